"""How far each value is from the others of its group, in float64.

Sums are exactly rounded, so the order of the values changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from zoo.errors import UserError, did_you_mean

Deviation = Literal["group", "all"]


@dataclass(frozen=True)
class Moments:
    """``mean``, population ``std`` (exactly 0 when all values are equal) and ``count``."""

    mean: float
    std: float
    count: int


def moments(values: Iterable[float]) -> Moments:
    """Mean and population standard deviation by exactly rounded sums.

    Raises ``UserError`` when there is no value.
    """
    values = [float(value) for value in values]
    if not values:
        raise UserError("mean and deviation need at least one value, got none")
    if min(values) == max(values):
        return Moments(values[0], 0.0, len(values))
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Moments(mean, math.sqrt(squares / len(values)), len(values))


def by_group(value_B: np.ndarray, group_B: Sequence[str]) -> dict[str, Moments]:
    """Moments of the values of each group, in the order in which the groups appear."""
    values: dict[str, list[float]] = {}
    for value, group in zip(value_B, group_B, strict=True):
        values.setdefault(group, []).append(float(value))
    return {group: moments(members) for group, members in values.items()}


def standardised(
    value_B: np.ndarray, group_B: Sequence[str], of: Mapping[str, Moments], epsilon: float
) -> np.ndarray:
    """(value - mean) / (std + epsilon), float64 (B,), with the moments ``of`` the value's group."""
    mean_B = np.array([of[group].mean for group in group_B])
    std_B = np.array([of[group].std for group in group_B])
    return (value_B - mean_B) / (std_B + epsilon)


def z_scores(
    value_B: np.ndarray,
    group_B: Sequence[str],
    *,
    deviation: Deviation = "group",
    min_count: int = 1,
    epsilon: float = 1e-6,
) -> np.ndarray:
    """(value - mean of its group) / (deviation + epsilon), float64 (B,).

    Args:
        value_B: finite values (B,).
        group_B: the group of each value, such as the id of its prompt.
        deviation: "group": of the value's group; "all": of all values, so that groups of almost
            equal values stay near 0.
        min_count: a group with fewer values has the mean and deviation of all values.
        epsilon: is added to the deviation. Where all values are equal they are exactly 0.

    Raises:
        UserError: when ``deviation`` is unknown or there is no value.
    """
    if deviation not in ("group", "all"):
        known = did_you_mean(str(deviation), ("group", "all"))
        raise UserError(f"invalid deviation {deviation!r}; {known}")
    whole = moments(value_B)
    used = {}
    for group, own in by_group(value_B, group_B).items():
        if own.count < min_count:
            used[group] = whole
        else:
            std = own.std if deviation == "group" else whole.std
            used[group] = Moments(own.mean, std, own.count)
    return standardised(value_B, group_B, used, epsilon)
