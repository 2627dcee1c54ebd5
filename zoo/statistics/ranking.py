"""How well scores tell good clips from bad ones, when clips of one prompt are not independent.

Shapes: ``M`` good clips, ``N`` bad ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from zoo.errors import UserError
from zoo.statistics.clustered import Clustered, with_interval


def area_under_curve(
    scores: Sequence[float],
    is_good: Sequence[bool],
    prompts: Sequence[Hashable],
    other: Sequence[float] | None = None,
) -> Clustered:
    """The probability that a good clip scores above a bad one (AUC); a tie counts half.

    Its error is that of clustered data (Obuchowski 1997), which also holds for the difference of
    two scores of the same clips; with one clip per prompt it is DeLong's. Where all good clips
    score above all bad ones it is 0, which few clips do not prove.

    Args:
        scores: one finite number per clip.
        is_good: what is true of it.
        prompts: its prompt.
        other: other scores of the same clips; the result is then the AUC of ``scores`` less that of
            ``other``.

    Raises:
        UserError: for unequal counts, scores that are not finite, and without both kinds of clips.
    """
    good = np.asarray(is_good, dtype=bool)
    _check(scores, good, prompts)
    above = _above(np.asarray(scores, dtype=np.float64), good)
    if other is not None:
        _check(other, good, prompts)
        above = above - _above(np.asarray(other, dtype=np.float64), good)
    value = float(above.mean())
    count_good, count_bad = above.shape
    places = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    row_of = np.array([places[prompt] for prompt in prompts])
    deviation_good = np.zeros(len(places))  # sums over the clips of a prompt
    deviation_bad = np.zeros(len(places))
    np.add.at(deviation_good, row_of[good], above.mean(axis=1) - value)
    np.add.at(deviation_bad, row_of[~good], above.mean(axis=0) - value)
    clips = len(good)
    counts = (len(set(row_of[good])), len(set(row_of[~good])), len(places))
    if min(counts) < 2:
        return Clustered(value, None, None, None, None, clips, len(places))
    of_good, of_bad, of_all = (count / (count - 1) for count in counts)
    own_good = deviation_good / count_good
    own_bad = deviation_bad / count_bad
    parts = (
        of_good * (own_good**2).sum(),
        of_bad * (own_bad**2).sum(),
        2 * of_all * (own_good * own_bad).sum(),
    )
    variance = max(0.0, float(sum(parts)))
    return with_interval(value, variance, len(places) - 1.0, clips, len(places))


def _above(scores: np.ndarray, good: np.ndarray) -> np.ndarray:
    """(M, N): 1 where a good clip scores above a bad one, .5 at a tie."""
    high = scores[good][:, None]
    low = scores[~good][None]
    return (high > low) + 0.5 * (high == low)


def _check(scores: Sequence[float], good: np.ndarray, prompts: Sequence[Hashable]) -> None:
    if not len(scores) == len(good) == len(prompts):
        raise UserError(
            f"expected one label and prompt per score, got {len(scores)} scores, {len(good)} labels"
            f" and {len(prompts)} prompts"
        )
    if not np.isfinite(np.asarray(scores, dtype=np.float64)).all():
        raise UserError("a score is NaN or infinite; leave that clip out and say how many")
    if good.all() or not good.any():
        kind = "good" if good.any() else "bad"
        raise UserError(f"all clips are {kind}: there is nothing to tell apart")


def calibration_error(
    probabilities: Sequence[float], labels: Sequence[float], bins: int = 10
) -> float:
    """Expected calibration error: |mean label - mean probability| per bin, weighted by its clips.

    Bins have equal width. Few clips make it larger than it is, also for a perfect judge. Raises
    ``UserError`` for no clips, unequal counts and values outside 0..1.
    """
    given = np.asarray(probabilities, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.float64)
    if not len(given) or len(given) != len(truth):
        raise UserError(f"expected one label per probability, got {len(given)} and {len(truth)}")
    for name, values in (("probability", given), ("label", truth)):
        if not ((values >= 0) & (values <= 1)).all():
            raise UserError(f"a {name} is not in 0..1")
    place = np.minimum((given * bins).astype(np.int64), bins - 1)
    gap = np.zeros(bins)
    np.add.at(gap, place, truth - given)
    return float(np.abs(gap).sum() / len(given))


def over_drawn_prompts(
    statistic: Callable[[np.ndarray], float],
    prompts: Sequence[Hashable],
    draws: int = 500,
    seed: int = 0,
) -> np.ndarray:
    """(draws,) values of ``statistic(rows)`` for prompts that are drawn with replacement.

    ``rows`` are the clips of the drawn prompts, each as often as its prompt was drawn. For what is
    no mean and has no formula; ``percentile_interval`` gives the bounds.
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(prompt, []).append(row)
    groups = [np.array(rows) for rows in rows_of.values()]
    random = np.random.default_rng(seed)
    drawn = random.integers(len(groups), size=(draws, len(groups)))
    return np.array([statistic(np.concatenate([groups[i] for i in one])) for one in drawn])
