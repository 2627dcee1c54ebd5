"""Intervals of shares and means against published numbers, scipy and enumeration."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from zoo.errors import UserError
from zoo.statistics.bootstrap import bootstrap_means
from zoo.statistics.intervals import mean_and_error, wilson_interval


def test_wilson_interval_against_textbook_numbers():
    low, high = wilson_interval(81, 263)  # Newcombe 1998, table I, method 3
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert wilson_interval(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
    with pytest.raises(UserError, match="3 of 2"):
        wilson_interval(3, 2)


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (3, 7), (81, 263), (500, 500)])
def test_wilson_interval_equals_scipy_for_whole_numbers(successes: int, count: int):
    """scipy takes no fractional successes, which a mean of shares per clip gives."""
    expected = binomtest(successes, count).proportion_ci(method="wilson")
    assert wilson_interval(successes, count) == pytest.approx((expected.low, expected.high))
    if successes < count:
        low, high = wilson_interval(successes + 0.5, count)
        assert expected.low < low and expected.high < high


def test_mean_and_error():
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / math.sqrt(3)))
    with pytest.raises(UserError, match="got 1"):
        mean_and_error([1.0])


def test_only_existing_clips_are_drawn():
    prompts = ["a"] * 5 + ["b"] + ["c"] * 2
    assert np.array_equal(bootstrap_means([1.0] * 8, prompts, draws=200), np.ones(200))
    values = [0.0] * 5 + [6.0] + [2.0, 4.0]
    draws = bootstrap_means(values, prompts, draws=20_000)
    # three prompts drawn of three, each with as many clips as it has: the mean over clips that are
    # drawn
    totals = {"a": 0.0, "b": 6.0, "c": 6.0}
    counts = {"a": 5, "b": 1, "c": 2}
    triples = [(x, y, z) for x in "abc" for y in "abc" for z in "abc"]
    wanted = np.mean(
        [sum(totals[p] for p in triple) / sum(counts[p] for p in triple) for triple in triples]
    )
    assert draws.mean() == pytest.approx(wanted, abs=0.05) and draws.min() == 0 and draws.max() == 6
