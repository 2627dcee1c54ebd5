"""Values against those of their group, by arithmetic that a reader can redo."""

import math

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.statistics.z_scores import Moments, by_group, moments, z_scores

VALUES = np.array([1.0, 10.0, 3.0, 20.0, 7.0])
GROUPS = ["a", "b", "a", "b", "c"]


def test_moments_by_hand():
    assert moments([1.0, 3.0]) == Moments(2.0, 1.0, 2)
    assert moments([0.1] * 3) == Moments(0.1, 0.0, 3)  # exactly
    assert by_group(VALUES, GROUPS)["b"] == Moments(15.0, 5.0, 2)
    with pytest.raises(UserError):
        moments([])


def test_z_scores_by_hand():
    assert z_scores(VALUES, GROUPS).tolist() == pytest.approx([-1, -1, 1, 1, 0], abs=1e-5)
    whole = np.std(VALUES)
    wanted = np.array([-1.0, -5.0, 1.0, 5.0, 0.0]) / whole
    assert z_scores(VALUES, GROUPS, deviation="all").tolist() == pytest.approx(wanted, abs=1e-5)
    few = z_scores(VALUES, GROUPS, min_count=2)
    assert few.tolist()[:4] == z_scores(VALUES, GROUPS).tolist()[:4]
    assert few[4] == pytest.approx((7.0 - VALUES.mean()) / whole, abs=1e-5)
    assert z_scores(VALUES, GROUPS, epsilon=1.0)[0] == -0.5


def test_equal_values_are_exactly_zero_and_their_order_changes_nothing():
    assert z_scores(np.full(3, 0.1), ["a", "a", "b"]).tolist() == [0.0, 0.0, 0.0]
    rng = np.random.default_rng(0)
    value_B = rng.normal(size=64) * 10.0 ** rng.integers(-3, 3, 64)
    group_B = rng.choice(list("abc"), 64).tolist()
    order = rng.permutation(64)
    moved = z_scores(value_B[order], [group_B[i] for i in order])
    assert moved.tolist() == z_scores(value_B, group_B)[order].tolist()


def test_what_is_refused():
    with pytest.raises(UserError, match="deviation 'bach'"):
        z_scores(VALUES, GROUPS, deviation="bach")
    with pytest.raises(ValueError, match="shorter|longer"):
        z_scores(VALUES, GROUPS[:3])
    assert math.isfinite(z_scores(VALUES[:1], ["a"])[0])
