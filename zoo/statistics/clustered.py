"""Means over prompts: clips of one prompt resemble each other and are not independent.

A prompt counts once, however many clips it has: the mean is over the means of prompts, with their
standard error and the interval of Student's t. It holds for prompts like these. A single prompt
has no interval, because it says nothing about others.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.errors import UserError

LEVEL = 0.95


@dataclass(frozen=True)
class Clustered:
    """A mean over prompts with its uncertainty.

    - ``value``: the mean.
    - ``error``: its standard error; None for one prompt.
    - ``low``, ``high``: its 95 % interval; None for one prompt.
    - ``degrees``: degrees of freedom of the interval; None for one prompt.
    - ``clips``, ``prompts``: their counts.
    """

    value: float
    error: float | None
    low: float | None
    high: float | None
    degrees: float | None
    clips: int
    prompts: int


def clustered_mean(
    values: Sequence[float], prompts: Sequence[Hashable], classes: Sequence[Hashable] | None = None
) -> Clustered:
    """Mean of ``values`` (one per clip) over prompts, with its interval by Student's t.

    For paired differences (after - before of each clip) it is the difference paired by prompt.

    Args:
        values: one number per clip.
        prompts: the prompt of each clip.
        classes: one per clip; the result is then the mean over classes of their means (for hits:
            the balanced accuracy). The variance is that within the classes, with Welch's degrees
            of freedom. Where a class has a single prompt its variance is unknown, and all prompts
            form one group: K - 1 degrees of freedom, a wider interval.

    Raises:
        UserError: for no clips, unequal counts, and values that are not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    classes = [None] * len(numbers) if classes is None else classes
    if not len(numbers) or not len(numbers) == len(prompts) == len(classes):
        counts = f"{len(numbers)} values, {len(prompts)} prompts, {len(classes)} classes"
        raise UserError(
            f"expected one prompt (and class) per value and at least one value, got {counts}"
        )
    if not np.isfinite(numbers).all():
        raise UserError(
            f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)} values are NaN or infinite;"
            " leave them out and say how many"
        )
    means = list(_prompt_means(numbers, prompts, classes).values())
    value = float(np.mean([own.mean() for own in means]))
    count = sum(map(len, means))
    if count < 2:
        return Clustered(value, None, None, None, None, len(numbers), count)
    if min(map(len, means)) > 1:
        parts = np.array([own.var(ddof=1) / len(own) for own in means]) / len(means) ** 2
        variance = float(parts.sum())
        freedom = float((parts**2 / [len(own) - 1 for own in means]).sum())
        degrees = variance**2 / freedom if freedom > 0 else float(count - len(means))
    else:
        weight = sum(1 / len(own) for own in means) / len(means) ** 2
        variance = float(np.concatenate(means).var(ddof=1)) * weight
        degrees = float(count - 1)
    return with_interval(value, variance, degrees, len(numbers), count)


def clustered_difference(first: Clustered, second: Clustered) -> Clustered:
    """``second - first`` of independent sets of clips (not pairs), with the interval of Welch's t.

    There is no interval where one of them has none.
    """
    value = second.value - first.value
    clips = min(first.clips, second.clips)
    prompts = min(first.prompts, second.prompts)
    parts = [
        (one.error**2, one.degrees)
        for one in (first, second)
        if one.error is not None and one.degrees is not None
    ]
    if len(parts) < 2:
        return Clustered(value, None, None, None, None, clips, prompts)
    variance = sum(part for part, _ in parts)
    freedom = sum(part**2 / degrees for part, degrees in parts)
    degrees = variance**2 / freedom if freedom > 0 else min(own for _, own in parts)
    return with_interval(value, variance, degrees, clips, prompts)


def crossed_mean(
    values: Sequence[float], prompts: Sequence[Hashable], raters: Sequence[Hashable]
) -> Clustered:
    """Mean of votes with an interval for other prompts and other raters at once.

    Votes on one prompt resemble each other, and so do those of one rater. The variance is that
    clustered by prompt plus that by rater less that by both (Cameron, Gelbach and Miller 2011), and
    at least the larger of the first two; Student's t has one degree of freedom less than there are
    prompts or raters, whichever are fewer. Every vote counts once. The votes of one rater have the
    interval over prompts, which says nothing about other raters.

    Args:
        values: one number per vote.
        prompts: the prompt of each vote.
        raters: who voted.

    Raises:
        UserError: for no votes, unequal counts, and values that are not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers) or not len(numbers) == len(prompts) == len(raters):
        counts = f"{len(numbers)} values, {len(prompts)} prompts, {len(raters)} raters"
        raise UserError(
            f"expected one prompt and rater per vote and at least one vote, got {counts}"
        )
    if not np.isfinite(numbers).all():
        raise UserError("a vote is NaN or infinite")
    value = float(numbers.mean())
    deviations = numbers - value
    by_prompt = _cluster_variance(deviations, prompts)
    by_rater = _cluster_variance(deviations, raters)
    prompt_count = len(set(prompts))
    if by_prompt is None:
        return Clustered(value, None, None, None, None, len(numbers), prompt_count)
    if by_rater is None:
        return with_interval(value, by_prompt, prompt_count - 1.0, len(numbers), prompt_count)
    by_both = _cluster_variance(deviations, list(zip(prompts, raters, strict=True))) or 0.0
    variance = max(by_prompt + by_rater - by_both, by_prompt, by_rater)
    degrees = min(prompt_count, len(set(raters))) - 1.0
    return with_interval(value, variance, degrees, len(numbers), prompt_count)


def _cluster_variance(deviations: np.ndarray, groups: Sequence[Hashable]) -> float | None:
    """Variance of a mean whose deviations are summed within groups; None for one group."""
    sums: dict[Hashable, float] = {}
    for deviation, group in zip(deviations, groups, strict=True):
        sums[group] = sums.get(group, 0.0) + float(deviation)
    if len(sums) < 2:
        return None
    squares = float(np.square(list(sums.values())).sum())
    return len(sums) / (len(sums) - 1) * squares / len(deviations) ** 2


def with_interval(
    value: float, variance: float, degrees: float, clips: int, prompts: int
) -> Clustered:
    """A value with its variance as ``Clustered``: the interval of Student's t."""
    from scipy.stats import t

    error = variance**0.5
    half = float(t.ppf((1 + LEVEL) / 2, degrees)) * error
    return Clustered(value, error, value - half, value + half, degrees, clips, prompts)


def _prompt_means(
    values: np.ndarray, prompts: Sequence[Hashable], classes: Sequence[Hashable]
) -> dict[Hashable, np.ndarray]:
    """Class -> the means of its prompts."""
    clips: dict[Hashable, dict[Hashable, list[float]]] = {}
    for value, prompt, name in zip(values, prompts, classes, strict=True):
        clips.setdefault(name, {}).setdefault(prompt, []).append(value)
    return {
        name: np.array([np.mean(own) for own in by_prompt.values()])
        for name, by_prompt in clips.items()
    }
