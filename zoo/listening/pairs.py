"""Two folders of generations from the same prompts, side by side."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import UserError
from zoo.files import sha256_of
from zoo.generations import Sample, read_samples
from zoo.statistics.clustered import clustered_mean
from zoo.types import Prompt

_Key = tuple[str, int | None, int]


@dataclass(frozen=True)
class Pair:
    """The samples of two systems for the same prompt (and seed)."""

    first: Sample
    second: Sample

    @property
    def prompt(self) -> Prompt:
        return self.first.prompt


@dataclass(frozen=True)
class Pairing:
    """``pairs`` in the order of the first folder, and the number of samples without a partner."""

    pairs: tuple[Pair, ...]
    alone: int


def read_pairs(first: str | Path, second: str | Path) -> Pairing:
    """Pairs the samples of both folders (``zoo.generations``) with the same prompt and seed.

    Repeats of a prompt without seeds are paired in their order. Raises as ``read_samples``, and
    ``UserError`` for one folder given twice, an id with different texts, and folders without any
    pair.
    """
    if Path(first).resolve() == Path(second).resolve():
        raise UserError(f"{first} is given for both sides; name the folders of two systems")
    ours, theirs = (_keyed(read_samples(folder)) for folder in (first, second))
    both = [key for key in ours if key in theirs]
    for key in both:
        own, other = ours[key].prompt.text, theirs[key].prompt.text
        if own != other:
            raise UserError(
                f"the id {key[0]!r} has the text {own!r} in {first} and {other!r} in {second};"
                " generate both from the same prompts"
            )
    if not both:
        raise UserError(
            f"no prompt (with its seed) is in both {first} and {second}; generate both from the"
            " same prompts and seeds"
        )
    return Pairing(
        tuple(Pair(ours[key], theirs[key]) for key in both), len(ours) + len(theirs) - 2 * len(both)
    )


def _keyed(samples: Sequence[Sample]) -> dict[_Key, Sample]:
    found: dict[_Key, Sample] = {}
    for sample in samples:
        repeat = 0
        while (key := (sample.prompt.id, sample.seed, repeat)) in found:
            repeat += 1
        found[key] = sample
    return found


def spread_pairs(pairs: Sequence[Pair], count: int | None) -> tuple[Pair, ...]:
    """``count`` pairs, evenly spread (None: all).

    Raises ``UserError`` for fewer than 1 or more than there are.
    """
    if count is None:
        return tuple(pairs)
    if not 1 <= count <= len(pairs):
        raise UserError(
            f"count is {count}, but there are {len(pairs)} pairs; give 1 to {len(pairs)}"
        )
    return tuple(pairs[i * len(pairs) // count] for i in range(count))


def pairs_fingerprint(pairs: Sequence[Pair]) -> str:
    """A hash of prompts and audio (12 hex digits), which separates answers of different tests.

    Raises ``OSError``.
    """
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(
            "\0".join(
                (
                    pair.prompt.id,
                    pair.prompt.text,
                    sha256_of(pair.first.path),
                    sha256_of(pair.second.path),
                )
            ).encode()
        )
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Difference:
    """The comparison of two systems; each prompt counts once, with its seeds averaged.

    Args:
        first, second: mean score of each system.
        change: of the second from the first.
        interval: Student's 95 % interval of ``change``; None below two prompts.
        prompts, clips: how many there were; a clip is a pair of sounds.
        higher, lower: prompts at which the second scores higher, and lower.
    """

    first: float
    second: float
    change: float
    interval: tuple[float, float] | None
    prompts: int
    clips: int
    higher: int
    lower: int


def paired_difference(
    prompt_ids: Sequence[str], first: Sequence[float], second: Sequence[float]
) -> Difference:
    """Compares the scores of two systems on the same prompts.

    Seeds of one prompt resemble each other, so a prompt counts once. Raises ``UserError`` for
    no or unequal numbers of clips, and for scores that are NaN or infinite.
    """
    if not prompt_ids or not len(prompt_ids) == len(first) == len(second):
        raise UserError(
            f"expected one prompt and two scores per pair, got {len(prompt_ids)} prompts,"
            f" {len(first)} and {len(second)} scores"
        )
    if not all(map(math.isfinite, [*first, *second])):
        raise UserError("a score is NaN or infinite; look for a broken clip")
    groups: dict[str, list[tuple[float, float]]] = {}
    for name, before, after in zip(prompt_ids, first, second, strict=True):
        groups.setdefault(name, []).append((before, after))
    sides = [
        [math.fsum(side) / len(side) for side in zip(*group, strict=True)]
        for group in groups.values()
    ]
    means = [math.fsum(column) / len(sides) for column in zip(*sides, strict=True)]
    changes = [after - before for before, after in sides]
    found = clustered_mean(
        [after - before for before, after in zip(first, second, strict=True)], prompt_ids
    )
    return Difference(
        first=means[0],
        second=means[1],
        change=found.value,
        interval=None if found.low is None or found.high is None else (found.low, found.high),
        prompts=len(sides),
        clips=len(prompt_ids),
        higher=sum(change > 0 for change in changes),
        lower=sum(change < 0 for change in changes),
    )
