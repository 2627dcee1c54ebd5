"""Two folders of generations from the same prompts, side by side: the base model's and the
fine-tuned one's.
"""

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
    """One prompt (and seed) as the base model plays it, and as the fine-tuned one does."""

    base: Sample
    tuned: Sample

    @property
    def prompt(self) -> Prompt:
        return self.base.prompt


@dataclass(frozen=True)
class Pairing:
    """``pairs`` in the order of the base's folder; ``alone``: samples of either folder that have no
    partner in the other.
    """

    pairs: tuple[Pair, ...]
    alone: int


def read_pairs(before: str | Path, after: str | Path) -> Pairing:
    """The samples of both folders (``zoo.generations``) that answer the same prompt with the same
    seed.

    Repeats of a prompt without seeds are paired in their order. Raises what ``read_samples``
    raises, and ``UserError`` for one folder given twice, an id that stands for different texts,
    and folders without any pair.
    """
    if Path(before).resolve() == Path(after).resolve():
        raise UserError(
            f"{before} is given for both sides; name the base model's folder and the fine-tuned"
            " one's"
        )
    base, tuned = (_keyed(read_samples(folder)) for folder in (before, after))
    both = [key for key in base if key in tuned]
    for key in both:
        first, second = base[key].prompt.text, tuned[key].prompt.text
        if first != second:
            raise UserError(
                f"the id {key[0]!r} stands for {first!r} in {before} and for {second!r} in {after};"
                " generate both from the same prompts"
            )
    if not both:
        raise UserError(
            f"no prompt (with its seed) is in both {before} and {after}; generate both from the"
            " same prompts and seeds"
        )
    return Pairing(
        tuple(Pair(base[key], tuned[key]) for key in both), len(base) + len(tuned) - 2 * len(both)
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
    """``count`` of them, evenly spread (None: all).

    Raises ``UserError`` below 1 or above what there is.
    """
    if count is None:
        return tuple(pairs)
    if not 1 <= count <= len(pairs):
        raise UserError(
            f"count is {count}, but there are {len(pairs)} pairs; give 1 to {len(pairs)}"
        )
    return tuple(pairs[i * len(pairs) // count] for i in range(count))


def pairs_fingerprint(pairs: Sequence[Pair]) -> str:
    """12 hex digits over prompts and audio: answers to other sounds are never counted as answers to
    these. Raises ``OSError``.
    """
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(
            "\0".join(
                (
                    pair.prompt.id,
                    pair.prompt.text,
                    sha256_of(pair.base.path),
                    sha256_of(pair.tuned.path),
                )
            ).encode()
        )
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Difference:
    """Means over prompts (each prompt's seeds averaged first): of both sides and of tuned minus
    base, with its 95 % interval.

    ``interval``: Student's t over the ``prompts`` means; None below two. ``higher``, ``lower``:
    prompts that went up and down.
    """

    base: float
    tuned: float
    change: float
    interval: tuple[float, float] | None
    prompts: int
    clips: int
    higher: int
    lower: int


def paired_difference(
    prompt_ids: Sequence[str], base: Sequence[float], tuned: Sequence[float]
) -> Difference:
    """Seeds of one prompt resemble each other, so a prompt counts once.

    Raises ``UserError`` for no or unequal numbers of clips, and for scores that are NaN or
    infinite.
    """
    if not prompt_ids or not len(prompt_ids) == len(base) == len(tuned):
        raise UserError(
            f"expected a prompt and two scores a pair, got {len(prompt_ids)} prompts, {len(base)}"
            f" and {len(tuned)}"
        )
    if not all(map(math.isfinite, [*base, *tuned])):
        raise UserError("a score is NaN or infinite; look for a broken clip")
    groups: dict[str, list[tuple[float, float]]] = {}
    for name, *both in zip(prompt_ids, base, tuned, strict=True):
        groups.setdefault(name, []).append(tuple(both))
    sides = [
        [math.fsum(side) / len(side) for side in zip(*group, strict=True)]
        for group in groups.values()
    ]
    changes = [after - before for before, after in sides]
    found = clustered_mean(
        [after - before for before, after in zip(base, tuned, strict=True)], prompt_ids
    )
    interval = None if found.low is None or found.high is None else (found.low, found.high)
    means = [math.fsum(column) / len(sides) for column in zip(*sides, strict=True)]
    return Difference(
        *means,
        found.value,
        interval,
        len(sides),
        len(prompt_ids),
        sum(change > 0 for change in changes),
        sum(change < 0 for change in changes),
    )
