"""How sure a measured share or difference of independent clips is.

Clips of one prompt are not: ``clustered.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from zoo.errors import UserError


def wilson_interval(successes: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """(low, high) of a proportion by Wilson's score interval (1927); 95 % at the default ``z``.

    ``successes`` may be fractional (a mean of per-clip shares times ``count``). Raises
    ``UserError`` for an empty sample or for successes outside 0..count.
    """
    if count <= 0 or not 0 <= successes <= count:
        raise UserError(
            f"a proportion needs 0 <= successes <= count and count > 0, got {successes} of {count}"
        )
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (sample deviation / sqrt(n)).

    Raises ``UserError`` below two values.
    """
    if len(values) < 2:
        raise UserError(f"a standard error needs at least two values, got {len(values)}")
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def clips_needed(first: float, second: float, power: float = 0.8) -> float:
    """Independent clips per arm for a two-sided 5 % test of two proportions with ``power``.

    Fleiss 1981, without correction for continuity. Infinite when they are equal. Raises
    ``UserError`` outside 0..1.
    """
    if not (0 <= first <= 1 and 0 <= second <= 1 and 0 < power < 1):
        raise UserError(
            f"proportions must be in 0..1 and power between them, got {first}, {second},"
            f" power {power}"
        )
    if first == second:
        return math.inf
    mean = (first + second) / 2
    alike = math.sqrt(2 * mean * (1 - mean))
    apart = math.sqrt(first * (1 - first) + second * (1 - second))
    return (
        (NormalDist().inv_cdf(0.975) * alike + NormalDist().inv_cdf(power) * apart)
        / (second - first)
    ) ** 2


def smallest_rise(share: float, count: int, power: float = 0.8) -> float | None:
    """The smallest rise above ``share`` that ``count`` independent clips per arm show, to 1e-6.

    With ``power`` (see ``clips_needed``); None when even a rise to 1 is too small. Raises
    ``UserError`` as ``clips_needed``.
    """
    if clips_needed(share, 1.0, power) > count:
        return None
    low = share
    high = 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if clips_needed(share, middle, power) > count else (low, middle)
    return high - share


def mean_of_shares_interval(hits: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """(low, high) of the mean of independent proportions, given as (successes, count):

    Wilson's intervals put together by the method of variance estimates recovery (Zou, Huang and
    Zhang 2009); 95 %. Unlike a bootstrap it knows that 0 hits of 25 are not a certainty. Raises
    ``UserError`` as ``wilson_interval``, and for no proportions.
    """
    if not hits:
        raise UserError("a mean of proportions needs at least one")
    shares = [(successes / count, *wilson_interval(successes, count)) for successes, count in hits]
    mean = sum(share for share, _, _ in shares) / len(shares)
    below = math.sqrt(sum((share - low) ** 2 for share, low, _ in shares)) / len(shares)
    above = math.sqrt(sum((high - share) ** 2 for share, _, high in shares)) / len(shares)
    return mean - below, mean + above


def paired_shares_interval(changes: Sequence[tuple[float, float, int]]) -> tuple[float, float]:
    """(low, high) of the mean over classes of paired differences of proportions, 95 %.

    A class is (clips right only after, clips right only before, clips); changes may be fractional
    (sums of changes of shares). One clip is added to each
    kind of change (Bonett and Price 2012), because no change is not certainty.

    Raises ``UserError`` for no classes, and for more changes than clips.
    """
    if not changes or any(
        min(gained, lost) < 0 or gained + lost > count or not count
        for gained, lost, count in changes
    ):
        raise UserError(
            f"paired differences need classes with 0 <= gained + lost <= clips, got {list(changes)}"
        )
    centre = variance = 0.0
    for gained, lost, count in changes:
        up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
        centre += (up - down) / len(changes)
        variance += (up + down - (up - down) ** 2) / (count + 2) / len(changes) ** 2
    half = NormalDist().inv_cdf(0.975) * math.sqrt(variance)
    return centre - half, centre + half
