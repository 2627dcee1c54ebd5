"""How sure a measured share or difference is."""

from __future__ import annotations

import math
from collections.abc import Sequence


def wilson_interval(successes: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """(low, high) of a proportion by Wilson's score interval (Wilson 1927); 95 % at the default ``z``.

    ``successes`` may be fractional (a mean of per-clip shares times ``count``). Raises ``ValueError`` for an empty sample or
    for successes outside 0..count.
    """
    if count <= 0 or not 0 <= successes <= count:
        raise ValueError(f"a proportion needs 0 <= successes <= count and count > 0, got {successes} of {count}")
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (sample deviation / sqrt(n)). Raises ``ValueError`` below two values."""
    if len(values) < 2:
        raise ValueError(f"a standard error needs at least two values, got {len(values)}")
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
