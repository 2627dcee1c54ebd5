"""What ``tools/labels.py`` does with label files: check, stats, convert, split."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from datamodules.preferences.clips import Clips, audio_problems, names_of
from datamodules.preferences.dialects import DIALECTS, Labels, read_labels, write_labels
from datamodules.preferences.pairs import pairs_within_prompts
from datamodules.preferences.rows import Problem
from datamodules.preferences.splits import crossings, doubles, of_split, split_by_prompt
from datamodules.preferences.votes import aggregate, krippendorff_alpha
from datamodules.tables import read_table
from zoo.errors import UserError, for_screen
from zoo.files import files_written_together
from zoo.types import SOURCES, TASKS, Preference


@dataclass(frozen=True)
class Read:
    """The files of one command and what is wrong with them.

    ``clips`` is None without a root; ``bad_clips`` holds a problem by the name of the clip.
    """

    files: tuple[Labels, ...]
    problems: tuple[Problem, ...]
    clips: Clips | None
    bad_clips: Mapping[str, Problem]

    @property
    def all_problems(self) -> tuple[Problem, ...]:
        return (*self.problems, *self.bad_clips.values())

    @property
    def records(self) -> tuple[Preference, ...]:
        return tuple(record for labels in self.files for record in labels.records)


def read(asked: argparse.Namespace) -> Read:
    """Reads and checks all files of a command line. Raises ``UserError`` and ``OSError``."""
    for name, value, choices in (("task", asked.task, TASKS), ("source", asked.source, SOURCES)):
        if value is not None and value not in choices:
            raise UserError(f"invalid --{name} {value!r}: expected one of {', '.join(choices)}")
    if asked.audio_root is None and (asked.map or asked.sample_rate_hz is not None):
        raise UserError("--map and --sample-rate-hz are about clips; name --audio-root DIR, too")
    scale = None
    if asked.scale is not None:
        low, high = _pair(asked.scale, ":", "--scale")
        scale = (_number(low, "--scale"), _number(high, "--scale"))
    extract_to = getattr(asked, "extract_audio", None)
    files = tuple(
        read_labels(path, asked.task, asked.source, scale, extract_to) for path in asked.files
    )
    if asked.captions is not None:
        captions = _captions(asked.captions)
        files = tuple(_captioned(labels, captions) for labels in files)
    clips = None
    if asked.audio_root is not None:
        clips = Clips(asked.audio_root, [_pair(moved, "=", "--map") for moved in asked.map])
    problems: list[Problem] = []
    bad_clips: dict[str, Problem] = {}
    for labels in files:
        problems += (*labels.problems, *doubles(labels))
        if clips is not None:
            bad_clips = {**audio_problems(labels, clips, asked.sample_rate_hz), **bad_clips}
    problems += crossings(files)
    return Read(files, tuple(problems), clips, bad_clips)


def _captions(path: str) -> dict[str, str]:
    """File name, with and without its suffix -> caption, of a table. Raises ``UserError``."""
    captions = {}
    for row in read_table(path, "file", "caption").rows:
        name = PurePosixPath(row.words("file").replace("\\", "/"))
        captions[name.name] = captions[name.stem] = row.words("caption")
    return captions


def _captioned(labels: Labels, captions: Mapping[str, str]) -> Labels:
    """The labels with prompts for the records that name none."""
    records = []
    for record in labels.records:
        name = record.audio.rpartition("/")[2]
        if not record.prompt and name in captions:
            record = replace(record, prompt=captions[name])
        records.append(record)
    return replace(labels, records=tuple(records))


def _pair(text: str, separator: str, option: str) -> tuple[str, str]:
    first, found, second = text.partition(separator)
    if not (first and found and second):
        raise UserError(f"invalid {option} {text!r}: expected two values and {separator!r} between")
    return first, second


def _number(text: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"invalid {option}: expected a number, got {text!r}")
    return value


def check(found: Read, asked: argparse.Namespace) -> int:
    """Prints what the files are and every problem. Returns the exit status."""
    for labels in found.files:
        print(_described(labels))
    if found.clips is not None:
        names = {name for record in found.records for name in names_of(record)}
        bad = len(found.bad_clips)
        print(f"audio: {len(names)} clips are named, {bad} of them cannot be used")
        if found.clips.elsewhere:
            print(
                f"audio: {found.clips.elsewhere} clips were found by their file name alone, under"
                " another folder than the labels say"
            )
    else:
        print("audio: not looked at; --audio-root DIR does")
    return _print_problems(found.all_problems)


def _described(labels: Labels) -> str:
    if not labels.dialect:
        return f"{labels.path}: no readable row"
    about = DIALECTS[labels.dialect].about
    count = len(labels.records)
    prompts = len({record.prompt for record in labels.records if record.prompt})
    text = f"{labels.path}: {count} records of {labels.dialect} ({about}), {prompts} prompts"
    without = sum(not record.prompt for record in labels.records)
    if without:
        text += f"; {without} of them name no prompt: --captions FILE adds it"
    return text


def _print_problems(problems: Sequence[Problem]) -> int:
    for problem in problems:
        print(for_screen(f"bad: {problem}"))
    print(f"{len(problems)} bad" if problems else "all good")
    return 1 if problems else 0


def stats(found: Read, asked: argparse.Namespace) -> int:
    """Prints counts, balance and agreement by task. Returns the exit status."""
    for labels in found.files:
        print(_described(labels))
    for task in TASKS:
        records = [record for record in found.records if record.task == task]
        if records:
            _print_task(task, records)
    return _print_problems(found.all_problems) if found.all_problems else 0


def _print_task(task: str, records: Sequence[Preference]) -> None:
    prompts = {record.prompt for record in records if record.prompt}
    print(f"\n{task}: {len(records)} records, {len(prompts)} prompts")
    print(f"  sources: {_counts(record.source for record in records)}")
    print(f"  splits: {_counts(record.split or 'none' for record in records)}")
    labels = [record.label for record in records if record.label is not None]
    if labels:
        print(
            f"  labels: {len(labels)}, mean {math.fsum(labels) / len(labels):.3f};"
            f" {_balance(labels)}"
        )
    scores = [record.score for record in records if record.score is not None]
    if scores:
        print(f"  scores: {len(scores)}, mean {math.fsum(scores) / len(scores):.3f}")
    voted = [record for record in records if record.votes]
    if voted:
        raters = {vote.rater for record in voted for vote in record.votes}
        votes = sum(len(record.votes) for record in voted)
        each = _counts(f"records with {len(record.votes)}" for record in voted)
        print(f"  votes: {votes} of {len(raters)} raters; {each}")
        alpha = krippendorff_alpha(voted)
        if alpha is None:
            print("  Krippendorff's alpha: needs records with two votes, and votes that differ")
        else:
            print(f"  Krippendorff's alpha (interval): {alpha:.3f}")


def _balance(labels: Sequence[float]) -> str:
    above = sum(label > 0.5 for label in labels)
    below = sum(label < 0.5 for label in labels)
    share = max(above, below) / len(labels)
    ties = len(labels) - above - below
    return f"{above} above 0.5, {below} below, {ties} at 0.5; majority {share:.3f}"


def _counts(values: Iterable[str]) -> str:
    return ", ".join(f"{count} {value}" for value, count in sorted(Counter(values).items()))


def convert(found: Read, asked: argparse.Namespace) -> int:
    """Writes the records of all files as one file. Returns the exit status."""
    records = _good(found, asked.drop_bad)
    uses_votes = asked.min_agreement or asked.min_votes != 1 or asked.drop_ties
    if asked.aggregate is not None:
        records, left_out = aggregate(
            records, asked.aggregate, asked.min_agreement, asked.min_votes, asked.drop_ties
        )
        for reason, count in left_out.items():
            print(f"left out {count} records: {reason}")
    elif uses_votes:
        raise UserError(
            "--min-agreement, --min-votes and --drop-ties are for --aggregate; name its rule"
        )
    if asked.pairs:
        records = (
            *(record for record in records if record.task == "pairwise"),
            *pairs_within_prompts(records),
        )
    lost = write_labels(records, asked.out, asked.to, _clip_files(found))
    print(f"wrote {len(records)} records of {asked.to} to {asked.out}")
    for field, count in lost.items():
        print(f"{asked.to} has no place for all of it: {field} of {count} records was not kept")
    return 0


def _clip_files(found: Read) -> Callable[[str], Path] | None:
    return None if found.clips is None else found.clips.path


def _good(found: Read, drop_bad: bool) -> tuple[Preference, ...]:
    """The records without problems. Raises ``UserError`` unless ``drop_bad`` or all are good."""
    problems = found.all_problems
    if not problems:
        return found.records
    if not drop_bad:
        raise UserError(
            f"{len(problems)} bad entries, the first is {problems[0]}; see them all with check,"
            " correct them, or leave them out with convert --drop-bad"
        )
    _print_problems(problems)
    bad_places = {(problem.path, problem.place) for problem in found.problems}
    kept = []
    for labels in found.files:
        for place, record in zip(labels.places, labels.records, strict=True):
            is_bad_clip = any(name in found.bad_clips for name in names_of(record))
            if (labels.path, place) not in bad_places and not is_bad_clip:
                kept.append(record)
    print(f"left out {len(found.records) - len(kept)} records that were read")
    return tuple(kept)


def split(found: Read, asked: argparse.Namespace) -> int:
    """Writes one file of our JSON lines per split. Returns the exit status."""
    shares = {}
    for part in asked.shares.split(","):
        name, share = _pair(part.strip(), "=", "--shares")
        if not name.isidentifier():
            raise UserError(f"invalid --shares {name!r}: expected letters, digits and _ in a name")
        shares[name] = _number(share, "--shares")
    records = split_by_prompt(_good(found, drop_bad=False), shares, asked.seed)
    folder = Path(asked.out)
    with files_written_together(folder) as temporary:
        for name in shares:
            some = of_split(records, name)
            write_labels(some, temporary / f"{name}.jsonl", "attune")
    for name in shares:
        some = of_split(records, name)
        prompts = {record.prompt for record in some}
        print(f"wrote {len(some)} records of {len(prompts)} prompts to {folder / name}.jsonl")
    return 0
