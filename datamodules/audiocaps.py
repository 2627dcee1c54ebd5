"""Captions of AudioCaps as prompts: its CSV files ``train.csv``, ``val.csv`` and ``test.csv``.

No audio is needed.

Format (Kim et al., NAACL 2019; github.com/cdjkim/audiocaps): columns
``audiocap_id,youtube_id,start_time,caption``; a row is one caption of the ten seconds from
``start_time`` (seconds) of a video. A clip has one caption in train and five in val and test; each
row has an id of its own. The files hold no licence of ours and are not shipped.
"""

from __future__ import annotations

import csv
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.tables import check_header, decode, delimited, lines, read_text
from zoo.errors import UserError, did_you_mean
from zoo.types import Prompt

log = logging.getLogger(__name__)
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
CAPTIONS = ("drawn", "first", "all")
BAD_ROWS = ("stop", "drop")
SECONDS = 10.0  # length of an AudioCaps clip


@dataclass(frozen=True)
class Row:
    """One caption.

    ``start_s``: where the clip starts in the video; ``extra``: cells of other columns; ``line``:
    from 1.
    """

    audiocap_id: str
    youtube_id: str
    start_s: float
    caption: str
    extra: Mapping[str, str]
    line: int

    @property
    def clip(self) -> str:
        """The ten seconds that the caption is of: video and start."""
        return f"{self.youtube_id}_{self.start_s:g}"


@dataclass(frozen=True)
class Rows:
    """What a file holds:

    ``rows``, and how many rows were blank, repeated (id and all), or bad and dropped.
    """

    rows: tuple[Row, ...]
    empty: int
    repeated: int
    dropped: tuple[str, ...]
    encoding: str


def is_audiocaps(path: str | Path) -> bool:
    """Whether a file is a CSV whose header names the four columns.

    A file that cannot be read is not.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    try:
        first = next((line for _, line in lines(decode(start, str(path))[0]) if line.strip()), "")
        return set(COLUMNS) <= {cell.strip() for cell in next(csv.reader([first]), [])}
    except ValueError:
        return False


def read_rows(path: str | Path, bad_rows: Literal["stop", "drop"] = "stop") -> Rows:
    """The captions of an AudioCaps CSV (UTF-8 with or without a mark, UTF-16 with its mark, else
    Latin-1).

    A row is bad without id, video, start or caption, with fewer or more cells than the header, with
    a start that is no number of seconds, or when its id stands for another caption already.
    ``bad_rows``: "stop" at the first, or "drop" them; the log counts them and names the first
    lines. Broken double quotes always stop: nobody knows how many rows they swallow.

    Raises ``UserError`` naming file and line, also for a missing file, another suffix, a wrong
    header and no caption at all.
    """
    path = Path(path)
    if bad_rows not in BAD_ROWS:
        raise UserError(f"bad_rows {bad_rows!r} is unknown; {did_you_mean(bad_rows, BAD_ROWS)}")
    text, encoding = read_text(path, (".csv",))
    rows: dict[str, Row] = {}
    header, empty, repeated, dropped = None, 0, 0, []
    for line, cells in delimited(text, path, one_line=True):
        if header is None:
            if any(cells):
                header = _header(cells, path)
            continue
        if not any(cells):
            empty += 1
            continue
        try:
            row = _row(header, cells, line)
            known = rows.get(row.audiocap_id)
            if known is not None and (known.clip, known.caption) != (row.clip, row.caption):
                raise UserError(
                    f"the audiocap_id {row.audiocap_id!r} stands for another caption in line"
                    f" {known.line}"
                )
        except ValueError as error:
            problem = f"line {line}: {error}"
            if bad_rows == "stop":
                raise UserError(
                    f"{path}, {problem}; mend the file, or drop such rows with bad_rows=drop"
                ) from None
            dropped.append(problem)
            continue
        repeated += known is not None
        rows.setdefault(row.audiocap_id, row)
    if not rows:
        raise UserError(
            f"{path} holds no caption ({empty} empty and {len(dropped)} bad rows); expected"
            f" {','.join(COLUMNS)} and a row a caption"
        )
    return Rows(tuple(rows.values()), empty, repeated, tuple(dropped), encoding)


def _header(cells: Sequence[str], path: Path) -> list[str]:
    missing = [name for name in COLUMNS if name not in cells]
    if missing:
        raise UserError(
            f"{path}: expected the header {','.join(COLUMNS)}, but {', '.join(missing)} is missing;"
            f" the first line is {','.join(cells)[:120]!r}"
        )
    check_header(cells, path)
    return list(cells)


def _row(header: Sequence[str], cells: Sequence[str], line: int) -> Row:
    """Raises ``UserError`` without file and line."""
    if len(cells) != len(header):
        hint = "; put a caption with commas in double quotes" if len(cells) > len(header) else ""
        raise UserError(f"{len(cells)} cells, but the header names {len(header)} columns{hint}")
    named = dict(zip(header, cells, strict=True))
    for name in COLUMNS:
        if not named[name]:
            raise UserError(f"no {name}")
    try:
        start_s = float(named["start_time"])
    except ValueError:
        start_s = -1.0
    if not 0 <= start_s < float("inf"):
        raise UserError(
            f"start_time must be a number of seconds from 0, got {named['start_time']!r}"
        )
    extra = {name: value for name, value in named.items() if name not in COLUMNS and name and value}
    return Row(named["audiocap_id"], named["youtube_id"], start_s, named["caption"], extra, line)


def chosen_captions(rows: Sequence[Row], captions: str, seed: int) -> tuple[Row, ...]:
    """The captions that are used of each clip, clips in the order of the file.

    "first" in the file; one "drawn" by ``seed`` and clip, whatever the other rows are; or "all"
    that differ in words.
    """
    clips: dict[str, dict[str, Row]] = {}
    for row in rows:
        clips.setdefault(row.clip, {}).setdefault(row.caption, row)
    chosen: list[Row] = []
    for clip, different in clips.items():
        of_clip = list(different.values())
        if captions == "drawn":
            by_id = sorted(of_clip, key=lambda row: row.audiocap_id)
            of_clip = [random.Random(f"audiocaps/{seed}/{clip}").choice(by_id)]
        chosen += of_clip[:1] if captions == "first" else of_clip
    return tuple(chosen)


def caption_prompts(
    path: str | Path,
    captions: Literal["drawn", "first", "all"] = "all",
    bad_rows: Literal["stop", "drop"] = "stop",
    negative: str = "",
    seconds: float = SECONDS,
    seed: int = 0,
) -> tuple[Prompt, ...]:
    """Prompts of one AudioCaps CSV: id = ``audiocap_id``; labels ``youtube_id``, ``start_s`` and
    the file's other columns.

    See ``read_rows`` for ``bad_rows`` and ``chosen_captions`` for ``captions`` and ``seed``. What
    is left out is counted in the log. Raises ``UserError``.
    """
    if captions not in CAPTIONS:
        raise UserError(f"captions {captions!r} is unknown; {did_you_mean(captions, CAPTIONS)}")
    found = read_rows(path, bad_rows)
    rows = chosen_captions(found.rows, captions, seed)
    clips = len({row.clip for row in rows})
    told = f"{path}: {len(rows)} of {len(found.rows)} captions of {clips} clips"
    if found.empty or found.repeated or found.dropped or found.encoding == "latin-1":
        note = "; not UTF-8, read as Latin-1" if found.encoding == "latin-1" else ""
        first = (
            f" ({'; '.join(found.dropped[:3])}{'; ...' if found.dropped[3:] else ''})"
            if found.dropped
            else ""
        )
        log.warning(
            "%s; dropped %d empty, %d repeated and %d bad rows%s%s",
            told,
            found.empty,
            found.repeated,
            len(found.dropped),
            first,
            note,
        )
    else:
        log.info("%s", told)
    labels = [{**row.extra, "youtube_id": row.youtube_id, "start_s": row.start_s} for row in rows]
    return tuple(
        Prompt(row.audiocap_id, row.caption, negative, float(seconds), labels=label)
        for row, label in zip(rows, labels, strict=True)
    )


def audiocaps_prompts(
    train: str | Path,
    validation: str | Path | None = None,
    captions: Literal["drawn", "first", "all"] = "drawn",
    count: int | None = None,
    bad_rows: Literal["stop", "drop"] = "stop",
    negative: str = "",
    seconds: float = SECONDS,
    seed: int = 0,
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """(training prompts, held-out prompts) for ``PromptDataModule(prompts=...)`` from two AudioCaps
    files.

    ``count``: so many training captions, drawn by ``seed`` (None: all). Training captions that
    held-out clips have word for word ("a man speaks") are left out and counted in the log, so that
    what is held out is. Raises ``UserError`` as ``caption_prompts`` does, for a clip or an id that
    is in both files, and for a ``count`` that cannot be met.
    """
    shared = {
        "captions": captions,
        "bad_rows": bad_rows,
        "negative": negative,
        "seconds": seconds,
        "seed": seed,
    }
    prompts, held_out = caption_prompts(train, **shared), ()
    if validation is not None:
        held_out = caption_prompts(validation, **shared)
        prompts = _apart(prompts, held_out, train, validation)
    if count is not None:
        if not 0 < count <= len(prompts):
            raise UserError(
                f"count is {count}, but {train} gives {len(prompts)} training captions; give 1 to"
                f" {len(prompts)}"
            )
        kept = set(random.Random(f"audiocaps count/{seed}").sample(range(len(prompts)), count))
        prompts = tuple(prompt for i, prompt in enumerate(prompts) if i in kept)
    return prompts, held_out


def _apart(
    prompts: Sequence[Prompt], held_out: Sequence[Prompt], train: str | Path, validation: str | Path
) -> tuple[Prompt, ...]:
    def clip(prompt: Prompt) -> tuple[str, float]:
        return prompt.labels["youtube_id"], prompt.labels["start_s"]

    for what, names in (
        ("clips", (set(map(clip, prompts)), set(map(clip, held_out)))),
        ("ids", ({p.id for p in prompts}, {p.id for p in held_out})),
    ):
        both = sorted(map(str, names[0] & names[1]))
        if both:
            raise UserError(
                f"{len(both)} {what} are in both {train} and {validation}, first {both[0]}; name"
                " another file to hold out (val.csv)"
            )
    words = {prompt.text.casefold() for prompt in held_out}
    kept = tuple(prompt for prompt in prompts if prompt.text.casefold() not in words)
    if len(kept) < len(prompts):
        left_out = len(prompts) - len(kept)
        log.warning(
            "%s: left out %d training captions that %s has word for word",
            train,
            left_out,
            validation,
        )
    if not kept:
        raise UserError(
            f"{validation} holds every caption of {train}; name another file to hold out (val.csv)"
        )
    return kept
