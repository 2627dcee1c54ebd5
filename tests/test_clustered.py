"""Means over prompts: arithmetic by hand, and a simulation of the coverage of intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.statistics.bootstrap import bootstrap_means, percentile_interval
from zoo.statistics.clustered import clustered_difference, clustered_mean, crossed_mean


def test_a_prompt_counts_once_however_many_clips_it_has():
    found = clustered_mean(
        [1.0, 3.0, 5.0, 5.0, 5.0, 5.0], ["a", "a", "b", "b", "b", "b"]
    )  # means of prompts: 2 and 5
    assert (
        found.value == 3.5 and found.error == pytest.approx(1.5) and found.degrees == 1
    )  # 3 / sqrt 2 / sqrt 2
    assert (found.low, found.high) == pytest.approx(
        (3.5 - 12.7062 * 1.5, 3.5 + 12.7062 * 1.5), abs=1e-3
    )
    assert (found.clips, found.prompts) == (6, 2)


def test_copies_of_a_clip_add_no_information():
    once = clustered_mean([0.1, 0.4, 0.7], ["a", "b", "c"])
    often = clustered_mean([0.1, 0.4, 0.7] * 20, ["a", "b", "c"] * 20)
    assert (once.low, once.high) == pytest.approx((often.low, often.high))


def test_one_prompt_has_a_mean_and_no_interval():
    found = clustered_mean([1.0, 2.0], ["a", "a"])
    assert (
        found.value == 1.5
        and found.error is found.low is found.high is found.degrees is None
        and found.prompts == 1
    )
    other = clustered_difference(clustered_mean([0.0, 1.0], ["a", "b"]), found)
    assert other.value == 1.0 and other.low is None


def test_classes_are_held_fixed_where_their_prompts_allow_it():
    values = [0.0, 2.0, 10.0, 14.0, 18.0]
    prompts = list("abcde")
    classes = list("xxyyy")
    found = clustered_mean(values, prompts, classes)
    x, y = 2 / 2, 16 / 3  # variances of the class means: (deviation^2) / prompts
    assert found.value == (1 + 14) / 2 and found.error == pytest.approx(math.sqrt(x + y) / 2)
    assert found.degrees == pytest.approx((x + y) ** 2 / (x**2 / 1 + y**2 / 2))
    single = clustered_mean(
        [0.0, 1.0, 0.5], list("abc"), list("xyz")
    )  # a prompt each: all prompts are one group
    assert single.error == pytest.approx(0.5 / math.sqrt(3)) and single.degrees == 2


def test_unpaired_arms_vary_each_for_itself():
    arm = clustered_mean([0.0, 1.0, 2.0], list("abc"))
    found = clustered_difference(arm, arm)
    assert (
        found.value == 0
        and found.error == pytest.approx(arm.error * math.sqrt(2))
        and found.degrees == pytest.approx(4)
    )


def test_values_without_a_mean_are_refused():
    with pytest.raises(ValueError, match="0 values"):
        clustered_mean([], [])
    with pytest.raises(ValueError, match="2 prompts"):
        clustered_mean([1.0], ["a", "b"])
    with pytest.raises(ValueError, match="1 of 2"):
        clustered_mean([1.0, math.nan], ["a", "b"])


def _covered(prompts: int, clips: int, simulations: int = 400) -> tuple[float, float, float]:
    """Share of simulations whose interval holds the true mean 0: t, bootstrap, and t over clips.

    Correlation within prompts .66, as the quickstart's clips have it.
    """
    random = np.random.default_rng(prompts)
    names = np.repeat(np.arange(prompts), clips)
    hits = np.zeros(3)
    for seed in range(simulations):
        values = math.sqrt(0.66) * random.normal(size=prompts)[names] + math.sqrt(
            0.34
        ) * random.normal(size=len(names))
        over = clustered_mean(values, names.tolist())
        naive = clustered_mean(values, list(range(len(values))))
        low, high = percentile_interval(
            bootstrap_means(values, names.tolist(), draws=200, seed=seed)
        )
        hits += [over.low <= 0 <= over.high, low <= 0 <= high, naive.low <= 0 <= naive.high]
    return tuple(hits / simulations)


@pytest.mark.parametrize("prompts", [2, 3, 4, 12])
def test_intervals_over_prompts_have_their_coverage(prompts):
    over_prompts, bootstrap, over_clips = _covered(prompts, clips=8)
    assert 0.92 <= over_prompts <= 0.98  # three standard errors of 400 simulations around .95
    assert over_clips < 0.75
    assert bootstrap < (0.92 if prompts <= 4 else 0.97)


def test_unpaired_differences_have_their_coverage():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        arms = []
        for prompts, spread in ((4, 1.0), (9, 3.0)):
            values = np.repeat(spread * random.normal(size=prompts), 5)
            arms.append(clustered_mean(values, np.repeat(np.arange(prompts), 5).tolist()))
        found = clustered_difference(*arms)
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_the_bootstrap_draws_clips_within_the_prompts_that_it_draws():
    values = np.random.default_rng(0).normal(size=40)
    one = bootstrap_means(
        values, ["only"] * 40, draws=4000
    )  # no prompts to draw: all that varies are its clips
    assert one.std() == pytest.approx(values.std() / math.sqrt(40), rel=0.05)
    values = [0.0, 2.0, 10.0, 12.0]
    prompts = ["a", "a", "b", "b"]
    draws = bootstrap_means(values, prompts, draws=20_000)
    # variance: between prompts 25 / 2, within them 1 / 4 (two drawn prompts of two drawn clips,
    # deviation 1)
    assert draws.var() == pytest.approx(25 / 2 + 1 / 4, rel=0.03)
    assert len(set(np.round(draws, 6))) > 3  # without the second stage: 1, 6 and 11 alone


def test_votes_are_clustered_by_prompt_and_by_rater() -> None:
    # two prompts, two raters, one vote each: 1 3 / 2 6, mean 3, deviations -2 0 / -1 3
    found = crossed_mean([1, 3, 2, 6], ["p", "p", "q", "q"], ["a", "b", "a", "b"])
    assert found.value == 3
    by_prompt = 2 / 1 * ((-2) ** 2 + 2**2) / 16  # sums -2 and 2
    by_rater = 2 / 1 * ((-3) ** 2 + 3**2) / 16  # sums -3 and 3
    by_both = 4 / 3 * (4 + 0 + 1 + 9) / 16
    assert found.error == pytest.approx(max(by_prompt + by_rater - by_both, by_rater) ** 0.5)
    assert (found.degrees, found.clips, found.prompts) == (1.0, 4, 2)


def test_votes_of_one_rater_or_prompt() -> None:
    alone = crossed_mean([1, 3, 2, 6], ["p", "p", "q", "q"], ["a"] * 4)
    assert alone.error == pytest.approx(clustered_mean([1, 3, 2, 6], ["p", "p", "q", "q"]).error)
    assert crossed_mean([1, 3], ["p", "p"], ["a", "b"]).error is None
    for wrong in ([], [float("nan")]):
        with pytest.raises(UserError):
            crossed_mean(wrong, ["p"] * len(wrong), ["a"] * len(wrong))
    with pytest.raises(UserError, match="1 prompts"):
        crossed_mean([1, 2], ["p"], ["a", "b"])


def test_the_interval_of_votes_covers_the_truth() -> None:
    """Raters and prompts have their own levels; an interval over prompts alone is too narrow."""
    random = np.random.default_rng(0)
    prompts = np.repeat(np.arange(20), 8)
    raters = np.tile(np.arange(8), 20)
    hits = {"crossed": 0, "prompts": 0}
    for _ in range(300):
        level = 0.3 * random.standard_normal(20)[prompts] + 0.5 * random.standard_normal(8)[raters]
        votes = level + 0.5 * random.standard_normal(160)
        for name, found in (
            ("crossed", crossed_mean(votes, prompts.tolist(), raters.tolist())),
            ("prompts", clustered_mean(votes, prompts.tolist())),
        ):
            hits[name] += found.low <= 0 <= found.high
    assert 0.92 <= hits["crossed"] / 300 <= 0.985 and hits["prompts"] / 300 < 0.75
