"""The two-stage bootstrap where prompts have unequal numbers of clips."""

import numpy as np
import pytest

from zoo.statistics.bootstrap import bootstrap_means


def test_only_clips_that_are_there_are_drawn():
    prompts = ["a"] * 5 + ["b"] + ["c"] * 2
    assert np.array_equal(bootstrap_means([1.0] * 8, prompts, draws=200), np.ones(200))
    values = [0.0] * 5 + [6.0] + [2.0, 4.0]
    draws = bootstrap_means(values, prompts, draws=20_000)
    # three prompts drawn of three, each with as many clips as it has: the mean over clips that are
    # drawn
    totals, counts = {"a": 0.0, "b": 6.0, "c": 6.0}, {"a": 5, "b": 1, "c": 2}
    triples = [(x, y, z) for x in "abc" for y in "abc" for z in "abc"]
    wanted = np.mean(
        [sum(totals[p] for p in triple) / sum(counts[p] for p in triple) for triple in triples]
    )
    assert draws.mean() == pytest.approx(wanted, abs=0.05) and draws.min() == 0 and draws.max() == 6
