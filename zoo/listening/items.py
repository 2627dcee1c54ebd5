"""What people label: single clips, or pairs of clips of one prompt, from folders of generations."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.audio_files import read_audio
from zoo.errors import UserError
from zoo.files import files_written_together, sha256_of
from zoo.generations import Sample, read_samples
from zoo.listening.answers import check_systems

_SMALL_WORDS = frozenset(
    ("a", "an", "and", "are", "as", "at", "by", "followed", "for", "from", "in", "is", "it", "of")
    + ("on", "or", "the", "then", "to", "while", "with")
)


@dataclass(frozen=True)
class Clip:
    """One audio file that people hear.

    - ``name``: what label files call it, with forward slashes.
    - ``sha256``: of the file when the study began; another content is another clip.
    - ``model``: which system made it.
    """

    name: str
    path: Path
    sha256: str
    seconds: float
    model: str


@dataclass(frozen=True)
class Item:
    """What one vote is about: a prompt and one clip, or two.

    ``events``: names of the sounds that the prompt asks for, in order; empty when unknown.
    """

    prompt: str
    events: tuple[str, ...]
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Items:
    """Items in a fixed order, and reason -> how many clips or pairs were left out for it."""

    items: tuple[Item, ...]
    left_out: Mapping[str, int]


def read_items(
    folders: Sequence[str | Path],
    pairs: bool = False,
    names: Sequence[str] | None = None,
    pairs_per_prompt: int | None = None,
) -> Items:
    """Reads folders of generations (``zoo.generations``) and decodes every clip.

    The order of ``folders`` does not change the result.

    Args:
        folders: one per system.
        pairs: makes pairs of the clips of each prompt: with several folders those of different
            systems and the same seed, with one folder those of different seeds. Pairs of equal
            files and prompts with one clip are left out and counted.
        names: of the systems; None: the folders' names.
        pairs_per_prompt: at most so many, spread evenly; None: all.

    Raises:
        UserError: for audio that cannot be read, a folder that is given twice, and when nothing is
            left to label.
        OSError: for missing folders and files.
    """
    if not folders:
        raise UserError("name at least one folder of generations to label")
    if pairs_per_prompt is not None and pairs_per_prompt < 1:
        raise UserError(f"pairs_per_prompt: expected a number >= 1, got {pairs_per_prompt}")
    places = [Path(folder).resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise UserError("a folder is given twice; name each system once")
    if names is not None and len(names) != len(places):
        raise UserError(f"names: expected one for each of {len(places)} folders, got {len(names)}")
    root = audio_root(places)
    models = [place.relative_to(root).as_posix() for place in places] if names is None else names
    check_systems(models)
    found = [
        (sample, _clip(sample, root, model))
        for place, model in zip(places, models, strict=True)
        for sample in read_samples(place)
    ]
    by_name = {clip.name: (sample, clip) for sample, clip in found}
    found = [by_name[name] for name in sorted(by_name)]
    if not pairs:
        items = tuple(
            Item(sample.prompt.text, events_of(sample.prompt.labels), (clip,))
            for sample, clip in found
        )
        return Items(items, {})
    return _pairs(found, len(places) > 1, pairs_per_prompt)


def audio_root(folders: Sequence[Path]) -> Path:
    """The folder that the clips' names start from: the nearest one above all folders."""
    return Path(os.path.commonpath([folder.resolve().parent for folder in folders]))


def _clip(sample: Sample, root: Path, model: str) -> Clip:
    wave = read_audio(sample.path)
    path = sample.path.resolve()
    name = (sample.path.parent.resolve() / sample.path.name).relative_to(root).as_posix()
    seconds = wave.samples_CN.shape[1] / wave.sample_rate_hz
    return Clip(name, path, sha256_of(path), seconds, model)


def events_of(labels: Mapping[str, Any]) -> tuple[str, ...]:
    """The label ``events`` of a prompt: a list, or words with ``;`` or ``,`` between.

    Raises ``UserError`` for another kind of value, and for a sound that is named twice.
    """
    given = labels.get("events")
    if given is None or given == "":
        return ()
    if isinstance(given, str):
        given = [part for part in re.split(r"[;,]", given) if part.strip()]
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise UserError(f"events: expected names of sounds, got {given!r}; correct samples.json")
    events = tuple(" ".join(one.replace("_", " ").split()) for one in given)
    if "" in events or len(set(events)) < len(events):
        raise UserError(f"events: expected different names of sounds, got {given!r}")
    return events


def _pairs(
    found: Sequence[tuple[Sample, Clip]], across: bool, pairs_per_prompt: int | None
) -> Items:
    prompts: dict[str, list[tuple[Sample, Clip]]] = {}
    for sample, clip in found:
        prompts.setdefault(sample.prompt.text, []).append((sample, clip))
    left_out: Counter[str] = Counter()
    items: list[Item] = []
    for text, some in prompts.items():
        pairs = []
        for (one, clip), (other, second) in itertools.combinations(some, 2):
            if across and (clip.model == second.model or one.seed != other.seed):
                continue
            if clip.sha256 == second.sha256:
                left_out["pairs of equal files"] += 1
            else:
                pairs.append((clip, second))
        if len(some) < 2:
            left_out["prompts with one clip"] += 1
        limit = len(pairs) if pairs_per_prompt is None else min(len(pairs), pairs_per_prompt)
        spread = [pairs[i * len(pairs) // limit] for i in range(limit)]
        events = events_of(some[0][0].prompt.labels)
        items += [Item(text, events, pair) for pair in spread]
    if not items:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise UserError(
            f"there are no two different clips of one prompt to compare"
            f"{f' ({reasons})' if reasons else ''}; generate several seeds per prompt, or the same"
            " prompts and seeds with two systems"
        )
    return Items(tuple(items), dict(left_out))


def fingerprint(task: str, items: Sequence[Item]) -> str:
    """A hash (12 hex digits) of the task, the prompts and the audio: votes belong to one."""
    digest = hashlib.sha256(task.encode())
    for item in items:
        for part in (item.prompt, *item.events, *(clip.name for clip in item.clips)):
            digest.update(f"\0{part}".encode())
        digest.update("".join(clip.sha256 for clip in item.clips).encode())
    return digest.hexdigest()[:12]


def item_facts(item: Item) -> dict[str, Any]:
    """The item as plain JSON values, with the places of its files."""
    clips = [{**asdict(clip), "path": str(clip.path)} for clip in item.clips]
    return {"prompt": item.prompt, "events": list(item.events), "clips": clips}


def item_from(facts: Mapping[str, Any]) -> Item:
    """The item that ``item_facts`` described."""
    clips = tuple(Clip(**{**clip, "path": Path(clip["path"])}) for clip in facts["clips"])
    return Item(facts["prompt"], tuple(facts["events"]), clips)


def _content_words(item: Item) -> set[str]:
    words = re.findall(r"[^\W_]+", " ".join((item.prompt, *item.events)).lower())
    return set(words) - _SMALL_WORDS


def unrelated(items: Sequence[Item], index: int) -> list[int]:
    """Items whose prompts share no word with that of item ``index`` but words like "and"."""
    own = _content_words(items[index])
    return [i for i, item in enumerate(items) if not own & _content_words(item)]


def is_intact(clip: Clip, seen: dict[Path, tuple[int, int, bool]]) -> bool:
    """Whether the file is there with the content that the study began with.

    ``seen``: path -> size, time of change and the last result, so that a file is hashed once.
    """
    try:
        facts = clip.path.stat()
        known = seen.get(clip.path)
        if known is not None and known[:2] == (facts.st_size, facts.st_mtime_ns):
            return known[2]
        is_same = sha256_of(clip.path) == clip.sha256
    except OSError:
        return False
    seen[clip.path] = (facts.st_size, facts.st_mtime_ns, is_same)
    return is_same


def prompts_of(items: Iterable[Item]) -> int:
    """How many different prompts there are."""
    return len({item.prompt for item in items})


def copied_clips(items: Sequence[Item], folder: str | Path) -> dict[str, str]:
    """Copies every clip into ``folder`` under the names of BATON, and returns old -> new name.

    A name is ``<id>_<caption>_<sample>`` with the suffix of the clip; ids count prompts. Files of
    the same names are replaced, others stay; on any error nothing is. Raises ``UserError`` for a
    prompt that cannot be part of a file name, and ``OSError``.
    """
    names: dict[str, str] = {}
    ids: dict[str, int] = {}
    counts: Counter[str] = Counter()
    paths = {}
    for item in items:
        for clip in item.clips:
            if clip.name in names:
                continue
            text = item.prompt
            stem = f"{ids.setdefault(text, len(ids)):04d}_{text}_{counts[text]}"
            name = stem + clip.path.suffix
            if "/" in name or "\\" in name or "\0" in name or len(name.encode()) > 255:
                raise UserError(
                    f"the prompt {text!r} cannot be part of a file name (up to 255 bytes, no"
                    " slash); choose a dialect that needs no such names"
                )
            counts[text] += 1
            names[clip.name] = name
            paths[name] = clip.path
    with files_written_together(folder) as temporary:
        for name, path in paths.items():
            shutil.copyfile(path, temporary / name)
    return names
