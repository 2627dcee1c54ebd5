"""Splits by prompt: no prompt, and no clip, is ever in two splits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from datamodules.preferences.dialects import Labels
from datamodules.preferences.rows import Problem
from zoo.errors import UserError, did_you_mean
from zoo.types import Preference


def prompt_key(prompt: str) -> str:
    """The prompt without what does not make it another one: case, blanks and a full stop."""
    return " ".join(prompt.casefold().split()).rstrip(". ")


def split_by_prompt(
    records: Sequence[Preference], shares: Mapping[str, float], seed: int = 0
) -> tuple[Preference, ...]:
    """Draws a split for every prompt, and gives it to all records of the prompt.

    Prompts that share a clip stay together. A record without a prompt is split by its clip. The
    draw depends on the prompts and the seed only, not on the order of the records. A split that a
    record had is replaced.

    Args:
        records: at least as many prompts as splits.
        shares: split -> its share of the prompts; they add up to 1.
        seed: another seed gives another draw.

    Raises:
        UserError: for shares that are not positive or do not add up to 1, and for fewer groups of
            prompts than splits, because one would be empty.
    """
    if not shares or any(not name or not 0 < share <= 1 for name, share in shares.items()):
        raise UserError(f"shares {dict(shares)}: expected a name and a share above 0 for each")
    if not math.isclose(math.fsum(shares.values()), 1):
        raise UserError(f"shares {dict(shares)}: they must add up to 1")
    groups = _groups(records)
    names = sorted(
        set(groups), key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    )
    if len(names) < len(shares):
        raise UserError(
            f"{len(names)} groups of prompts cannot fill {len(shares)} splits, one would be empty;"
            " add prompts or ask for fewer splits"
        )
    split_of = {}
    ends = _ends(len(names), shares)
    for position, name in enumerate(names):
        split_of[name] = next(split for split, end in ends.items() if position < end)
    return tuple(
        replace(record, split=split_of[group])
        for record, group in zip(records, groups, strict=True)
    )


def _ends(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Split -> the position after its last one of ``count``; every split gets at least one."""
    sizes = {name: max(1, math.floor(share * count)) for name, share in shares.items()}
    while sum(sizes.values()) != count:
        step = 1 if sum(sizes.values()) < count else -1
        # the split furthest from its share, among those that keep at least one
        able = [name for name in sizes if step > 0 or sizes[name] > 1]
        name = max(able, key=lambda name: step * (shares[name] * count - sizes[name]))
        sizes[name] += step
    ends = {}
    end = 0
    for name, size in sizes.items():
        end += size
        ends[name] = end
    return ends


def _groups(records: Sequence[Preference]) -> list[str]:
    """The group of every record: the smallest key of all that hang together by prompt or clip."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    firsts = []
    for record in records:
        keys = _keys(record)
        firsts.append(keys[0])
        for key in keys:
            low, high = sorted((root(keys[0]), root(key)))
            parent[high] = low
    return [root(first) for first in firsts]


def _keys(record: Preference) -> list[str]:
    prompt = prompt_key(record.prompt)
    keys = [f"prompt {prompt}"] if prompt else []
    keys += [f"clip {name}" for name in (record.audio, record.other) if name]
    return keys or [f"models {record.model} {record.other_model}"]


def of_split(records: Sequence[Preference], split: str) -> tuple[Preference, ...]:
    """The records of a split. Raises ``UserError`` when there are none."""
    found = tuple(record for record in records if record.split == split)
    if not found:
        names = {record.split for record in records if record.split}
        advice = did_you_mean(split, names) if names else "draw splits with tools/labels.py split"
        raise UserError(f"the split {split!r} is empty; {advice}")
    return found


def crossings(files: Sequence[Labels]) -> tuple[Problem, ...]:
    """A problem for every record whose prompt or clip is in another split, also of another file."""
    first: dict[str, tuple[str, str]] = {}
    problems = []
    for labels in files:
        for place, record in zip(labels.places, labels.records, strict=True):
            if not record.split:
                continue
            for key in _keys(record):
                split, where = first.setdefault(key, (record.split, f"{labels.path}, {place}"))
                if split != record.split:
                    message = (
                        f"the {key!r} is in the split {record.split!r} here and in {split!r} in"
                        f" {where}; split by prompt with tools/labels.py split"
                    )
                    problems.append(Problem(labels.path, place, "split", message))
    return tuple(problems)


def doubles(labels: Labels) -> tuple[Problem, ...]:
    """A problem for every second opinion on the same clips, prompt and task in one file."""
    first: dict[tuple[str, ...], str] = {}
    problems = []
    for place, record in zip(labels.places, labels.records, strict=True):
        if record.label is None and record.score is None and not record.votes:
            continue
        models = () if record.audio else (record.model, record.other_model)
        key = (record.prompt, record.audio, record.other, record.task, *models)
        if key in first:
            message = (
                f"{record.audio!r} is labelled in {first[key]} already; keep one of the two, or"
                " give both as votes of one record"
            )
            problems.append(Problem(labels.path, place, "audio", message))
        else:
            first[key] = place
    return tuple(problems)
