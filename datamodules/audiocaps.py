"""Captions of AudioCaps (``train.csv``, ``val.csv``, ``test.csv``) as prompts; needs no audio.

Format (Kim et al., NAACL 2019; github.com/cdjkim/audiocaps): columns
``audiocap_id,youtube_id,start_time,caption``; a row is one caption of the ten seconds from
``start_time`` (seconds) of a video. A clip has one caption in train and five in val and test; each
row has its own id. The files are not under this project's licence and are not shipped.
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

    ``start_s``: start of the clip in the video. ``extra``: cells of other columns. ``line``: in the
    file, from 1.
    """

    audiocap_id: str
    youtube_id: str
    start_s: float
    caption: str
    extra: Mapping[str, str]
    line: int

    @property
    def clip(self) -> str:
        """The id of the ten seconds that the caption describes: video and start."""
        return f"{self.youtube_id}_{self.start_s:g}"


@dataclass(frozen=True)
class Rows:
    """The rows of a file, and what was left out.

    ``empty`` and ``repeated`` count rows; ``dropped`` describes the bad ones.
    """

    rows: tuple[Row, ...]
    empty: int
    repeated: int
    dropped: tuple[str, ...]
    encoding: str


def is_audiocaps(path: str | Path) -> bool:
    """Whether a file is a readable CSV whose header names the four columns."""
    path = Path(path)
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    try:
        first = next((line for _, line in lines(decode(start, str(path))[0]) if line.strip()), "")
        return set(COLUMNS) <= {cell.strip() for cell in next(csv.reader([first]), [])}
    except UserError:
        return False


def read_rows(path: str | Path, bad_rows: Literal["stop", "drop"] = "stop") -> Rows:
    """Reads the captions of an AudioCaps CSV.

    A row is bad if id, video, start or caption is missing, if it has fewer or more cells than the
    header, if its start is not a number of seconds, or if its id was used for another caption.
    ``bad_rows`` is "stop" (at the first) or "drop" (the log counts them and names the first lines).
    Broken double quotes always stop, because they may swallow any number of rows.

    Raises ``UserError``, which names file and line, also for a missing file, another suffix, a
    wrong header and a file without captions.
    """
    path = Path(path)
    if bad_rows not in BAD_ROWS:
        raise UserError(f"bad_rows {bad_rows!r} is unknown; {did_you_mean(bad_rows, BAD_ROWS)}")
    text, encoding = read_text(path, (".csv",))
    rows: dict[str, Row] = {}
    header = None
    empty = 0
    repeated = 0
    dropped = []
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
                    f"the audiocap_id {row.audiocap_id!r} belongs to another caption in line"
                    f" {known.line}"
                )
        except UserError as error:
            problem = f"line {line}: {error}"
            if bad_rows == "stop":
                raise UserError(
                    f"{path}, {problem}; fix the file, or drop such rows with bad_rows=drop"
                ) from None
            dropped.append(problem)
            continue
        repeated += known is not None
        rows.setdefault(row.audiocap_id, row)
    if not rows:
        raise UserError(
            f"{path} holds no caption ({empty} empty and {len(dropped)} bad rows); expected"
            f" {','.join(COLUMNS)} and one row per caption"
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
    """The caption of a row. Raises ``UserError`` without file and line."""
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
    """Chooses captions of each clip; clips stay in the order of the file.

    ``captions``: the "first" in the file; one "drawn" by ``seed`` and clip, independent of other
    rows; or "all" that differ in wording.
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
    """Prompts of one AudioCaps CSV; the log counts what is left out.

    Args:
        path: the file.
        captions: "drawn", "first" or "all" of each clip (``chosen_captions``).
        bad_rows: "stop" at a bad row, or "drop" it (``read_rows``).
        negative: text of guidance's unconditional side.
        seconds: length of every sample.
        seed: of the drawn captions.

    Returns:
        Prompts with the id ``audiocap_id`` and the labels ``youtube_id``, ``start_s`` and the
        file's other columns.

    Raises:
        UserError: as ``read_rows``, and for unknown ``captions``.
    """
    if captions not in CAPTIONS:
        raise UserError(f"captions {captions!r} is unknown; {did_you_mean(captions, CAPTIONS)}")
    found = read_rows(path, bad_rows)
    rows = chosen_captions(found.rows, captions, seed)
    clips = len({row.clip for row in rows})
    summary = f"{path}: {len(rows)} of {len(found.rows)} captions of {clips} clips"
    if found.empty or found.repeated or found.dropped or found.encoding == "latin-1":
        note = "; not UTF-8, read as Latin-1" if found.encoding == "latin-1" else ""
        first = ""
        if found.dropped:
            more = "; ..." if found.dropped[3:] else ""
            first = f" ({'; '.join(found.dropped[:3])}{more})"
        log.warning(
            "%s; dropped %d empty, %d repeated and %d bad rows%s%s",
            summary,
            found.empty,
            found.repeated,
            len(found.dropped),
            first,
            note,
        )
    else:
        log.info("%s", summary)
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
    """Training and held-out prompts for ``PromptDataModule(prompts=...)`` from AudioCaps files.

    Args:
        train: the CSV of training captions.
        validation: the CSV of held-out captions, or None. Training captions with exactly the words
            of a held-out one ("a man speaks") are left out and counted in the log.
        captions: "drawn", "first" or "all" of each clip (``chosen_captions``).
        count: how many training captions to draw by ``seed`` (None: all).
        bad_rows: "stop" at a bad row, or "drop" it (``read_rows``).
        negative: text of guidance's unconditional side.
        seconds: length of every sample.
        seed: of everything that is drawn.

    Returns:
        (training prompts, held-out prompts).

    Raises:
        UserError: as ``caption_prompts``, for a clip or an id in both files, and for a ``count``
            larger than the training captions.
    """
    shared = {
        "captions": captions,
        "bad_rows": bad_rows,
        "negative": negative,
        "seconds": seconds,
        "seed": seed,
    }
    prompts = caption_prompts(train, **shared)
    held_out = ()
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
