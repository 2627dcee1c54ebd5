"""Areas under curves and calibration with clips that are not independent."""

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.statistics.ranking import area_under_curve, calibration_error, over_drawn_prompts


def test_area_counts_pairs_and_halves_ties():
    found = area_under_curve(
        [0.9, 0.5, 0.4, 0.5, 0.1], [True, True, True, False, False], list("abcde")
    )
    # good .9 beats both, .5 ties with one and beats one, .4 beats one: (2 + 1.5 + 1) / 6
    assert found.value == pytest.approx(4.5 / 6)
    assert (found.clips, found.prompts) == (5, 5)
    same = area_under_curve([0.3] * 4, [True, False, True, False], list("aabb"))
    assert same.value == 0.5


def test_error_of_independent_clips_is_delongs():
    random = np.random.default_rng(0)
    good = random.normal(1.0, 1.0, 30)
    bad = random.normal(0.0, 1.0, 40)
    found = area_under_curve([*good, *bad], [True] * 30 + [False] * 40, [str(i) for i in range(70)])
    above = (good[:, None] > bad[None]).astype(float)
    variance = above.mean(axis=1).var(ddof=1) / 30 + above.mean(axis=0).var(ddof=1) / 40
    # the covariance of DeLong is 0 for clips of prompts of their own
    assert found.error == pytest.approx(variance**0.5)
    assert found.low < found.value < found.high


def test_intervals_over_prompts_cover_where_those_over_clips_do_not():
    """Scores have a part that a prompt shares: copies of clips are no new evidence."""
    random = np.random.default_rng(1)
    covered = {"prompt": 0, "clip": 0}
    runs = 200
    for _ in range(runs):
        scores, good, prompts = [], [], []
        for prompt in range(16):
            shared = random.normal()
            for _ in range(8):
                is_good = prompt % 2 == 0
                scores.append(0.5 * is_good + shared + 0.3 * random.normal())
                good.append(is_good)
                prompts.append(prompt)
        true = 0.6315  # Phi(.5 / sqrt(2 * (1 + .09)))
        for kind, names in (("prompt", prompts), ("clip", range(len(scores)))):
            found = area_under_curve(scores, good, list(names))
            covered[kind] += found.low <= true <= found.high
    assert covered["prompt"] / runs > 0.88
    assert covered["clip"] / runs < 0.6


def test_what_a_prompt_adds_to_good_and_bad_alike_cancels():
    """By hand: V of good (1, .5), of bad (.5, 1), so all sums are 0."""
    found = area_under_curve([3, 2, 1, 0], [True, False, True, False], list("aabb"))
    assert found.value == 0.75 and found.error == 0
    apart = area_under_curve([3, 2, 1, 0], [True, False, True, False], list("abcd"))
    assert apart.error == pytest.approx((0.0625 + 0.0625) ** 0.5)


def test_difference_of_two_scores_of_the_same_clips():
    random = np.random.default_rng(2)
    good = [True, False] * 30
    scores = np.array(good) + random.normal(size=60)
    prompts = [str(i // 4) for i in range(60)]
    own = area_under_curve(scores.tolist(), good, prompts)
    noisy = (scores + 0.05 * random.normal(size=60)).tolist()
    other = area_under_curve(noisy, good, prompts)
    paired = area_under_curve(scores.tolist(), good, prompts, noisy)
    assert paired.value == pytest.approx(own.value - other.value)
    assert paired.error < 0.5 * own.error  # what both share cancels
    assert area_under_curve(scores.tolist(), good, prompts, scores.tolist()).error == 0


@pytest.mark.parametrize(
    ("scores", "good"),
    [([1.0, 2.0], [True, True]), ([1.0, float("nan")], [True, False]), ([1.0], [True, False])],
)
def test_what_has_no_area(scores, good):
    with pytest.raises(UserError):
        area_under_curve(scores, good, ["a"] * len(good))


def test_calibration_error_by_hand():
    # bins .0-.1: mean label .5 at .05, weight 2; .9-1: label 1 at .95 and at 1, weight 2
    error = calibration_error([0.05, 0.05, 0.95, 1.0], [0.0, 1.0, 1.0, 1.0])
    assert error == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)
    assert calibration_error([0.05, 0.15], [1, 0]) == pytest.approx((0.95 + 0.15) / 2)
    assert calibration_error([0.5] * 4, [1, 0, 1, 0]) == 0
    for wrong in ([1.2], [float("nan")]):
        with pytest.raises(UserError):
            calibration_error(wrong, [1.0])


def test_prompts_are_drawn_whole():
    prompts = list("aabbb")

    def check(rows: np.ndarray) -> float:
        counts = np.bincount(rows, minlength=5)
        assert counts[0] == counts[1] and counts[2] == counts[3] == counts[4]
        assert counts[0] + counts[2] == 2
        return float(counts[0])

    drawn = over_drawn_prompts(check, prompts, draws=50)
    assert set(drawn) == {0.0, 1.0, 2.0}
