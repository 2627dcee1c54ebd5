"""BATON's label files, and those of AudioCaps and TangoFlux that share their keys.

File names follow one rule: ``<id>_<caption>_<sample>.wav``. The caption is everything between the
first and the last underscore, so it may itself hold underscores, commas and dots.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from datamodules.preferences.rows import (
    Row,
    json_array,
    json_lines,
    share,
    written_number,
)
from zoo.errors import UserError
from zoo.files import AUDIO_FORMATS
from zoo.types import TASKS, Preference

log = logging.getLogger(__name__)

Read = Iterator[tuple[str, Preference | UserError]]  # (place, what is there)
AUDIO_FOLDERS = {  # of the released audio
    "2label_HA": "2label_Integrity_HD_Audio",
    "2label_RA": "2label_Integrity_RD_Audio",
    "3label_HA": "3label_Temporal_HD_Audio",
    "3label_RA": "3label_Temporal_RD_Audio",
}
_TASK_WORDS = {"2label": "integrity", "3label": "temporal"}
_TASK_NAMES = {task: word for word, task in _TASK_WORDS.items()}
_SOURCE_ENDS = {"HD": "HA", "RD": "RA", "PD": "PD"}
_VALUES = ("feedback", "SED", "pre_score")
DEFAULT_TASK = "relevance"


@dataclass(frozen=True)
class Told:
    """What a caller says where the file says nothing.

    - ``task``, ``source``: for every record; None: as the file says, else the dialect's default.
    - ``scale``: lowest and highest value of listener scores; None: by their axis.
    - ``file``: the name of the file, which may say the task ("human_2label_test.json").
    """

    task: str | None = None
    source: str | None = None
    scale: tuple[float, float] | None = None
    file: str = ""

    def task_of(self, *words: str) -> str:
        """The task named in ``words`` or in the file's name, else ``DEFAULT_TASK``."""
        if self.task is not None:
            return self.task
        for text in (*words, self.file):
            for word, task in _TASK_WORDS.items():
                if word in text.lower():
                    return task
            for task in TASKS:
                if text.lower().startswith(task):
                    return task
        return DEFAULT_TASK


def caption_of(name: str) -> str:
    """The caption in a file name. Raises ``UserError`` for a name that does not follow the rule."""
    stem = name.rpartition("/")[2]
    suffix = PurePosixPath(stem).suffix
    if suffix.lower() in AUDIO_FORMATS:
        stem = stem.removesuffix(suffix)
    found = re.fullmatch(r"\d+_(.+)_\d+", stem, re.DOTALL)
    caption = found[1].strip() if found else ""
    if not caption:
        raise UserError(
            f"audio: no caption in the file name {name!r}, expected <id>_<caption>_<sample>.wav;"
            " rename the file or name the prompt in another format"
        )
    return caption


def each(rows: Sequence[Row], told: Told, read_one: Any) -> Read:
    """Reads row by row; an error of one row does not stop the others."""
    for row in rows:
        try:
            yield row.place, read_one(row, told)
        except UserError as error:
            yield row.place, error


def votes_joined(found: Read, column: str) -> Read:
    """Joins the votes on a clip, for one prompt and task, into one record at its first place.

    Records without votes and errors pass as they are. A second vote of a rater is an error, which
    names ``column``.
    """
    clips: dict[tuple[str, str, str], tuple[str, Preference]] = {}
    for place, one in found:
        if isinstance(one, UserError) or not one.votes:
            yield place, one
            continue
        key = (one.prompt, one.audio, one.task)
        if key not in clips:
            clips[key] = (place, one)
            continue
        first, record = clips[key]
        try:
            clips[key] = (first, replace(record, votes=record.votes + one.votes))
        except UserError:
            yield (
                place,
                UserError(
                    f"{column}: {one.votes[0].rater!r} judged {one.audio!r} before ({first}); keep"
                    " one vote per rater, clip and task"
                ),
            )
    yield from clips.values()


def read_rated(rows: Sequence[Row], told: Told) -> Read:
    """As ``read_located``, but every row must have ``feedback`` or ``SED``."""
    for row, (place, found) in zip(rows, read_located(rows, told), strict=True):
        field, value = row.get(*_VALUES)
        if value is None and isinstance(found, Preference):
            error = f"{field}: expected a number from 0 to 1, got nothing; label or remove the row"
            yield place, UserError(error)
        else:
            yield place, found


def read_located(rows: Sequence[Row], told: Told) -> Read:
    """Rows with ``location``, ``captions`` and perhaps ``feedback``, ``SED`` or ``duration``.

    A row that points at the audio folder of another task than its ``dataset`` (all released rows of
    ``3label_RA`` do) is read as pointing at its own folder.
    """
    moved = []
    for row, (place, found) in zip(rows, each(rows, told, _located), strict=True):
        if isinstance(found, Preference) and found.audio != row.name("location"):
            moved.append((row.name("location"), found.audio))
        yield place, found
    if moved:
        log.warning(
            "%s: %d rows point at the audio folder of another task; %s is read as %s, and so on",
            told.file,
            len(moved),
            *moved[0],
        )


def _located(row: Row, told: Told) -> Preference:
    dataset = row.words("dataset")
    audio = row.name("location")
    folder = AUDIO_FOLDERS.get(dataset)
    parts = audio.split("/")
    if folder is not None and folder not in parts:
        audio = "/".join(folder if part in AUDIO_FOLDERS.values() else part for part in parts)
    field = row.get(*_VALUES)[0]
    value = row.share(*_VALUES)
    source = told.source or _source_of(dataset, field, value)
    return Preference(
        prompt=row.text("captions"),
        audio=audio,
        task=told.task_of(dataset, audio),
        label=None if source == "RD" else value,
        score=value if source == "RD" else None,
        source=source,
        split=row.words("split"),
        seconds=row.number("duration"),
    )


def _source_of(dataset: str, field: str, value: float | None) -> str:
    for source, end in _SOURCE_ENDS.items():
        if dataset.endswith(f"_{end}"):
            return source
    if value is None:
        return "PD"
    return "HD" if field == "feedback" else "RD"


def read_scores(rows: Sequence[Row], told: Told) -> Read:
    """``audio`` and ``pre_score``, a number that older files put into lists."""
    return each(rows, told, _scored)


def _scored(row: Row, told: Told) -> Preference:
    audio = row.name("audio")
    score = row.get("pre_score")[1]
    while isinstance(score, list) and len(score) == 1:
        score = score[0]
    return Preference(
        prompt=row.words("prompt", "captions") or caption_of(audio),
        audio=audio,
        task=told.task_of(audio),
        score=share("pre_score", score),
        source=told.source or "RD",
    )


def read_grouped(rows: Sequence[Row], told: Told) -> Read:
    """``{"grouped_ratings": {prompt: {file name: 0 or 1}}}``."""
    for row in rows:
        grouped = row.cells.get("grouped_ratings")
        if not isinstance(grouped, dict):
            error = "grouped_ratings: expected an object of prompts, correct the file"
            yield row.place, UserError(error)
            continue
        for prompt, rated in grouped.items():
            if not isinstance(rated, dict):
                error = f"grouped_ratings: expected an object of file names, got {rated!r}"
                yield f"prompt {prompt!r}", UserError(error)
                continue
            yield from _rated(rated, prompt, told, f"prompt {prompt!r}")


def read_pages(rows: Sequence[Row], told: Told) -> Read:
    """``{"ratings": [{"data": {file name: 0 or 1}}, ...], "current_index": 3}``."""
    for row in rows:
        pages = row.cells.get("ratings")
        if not isinstance(pages, list):
            yield row.place, UserError("ratings: expected a list of pages, correct the file")
            continue
        for number, page in enumerate(pages, 1):
            rated = page.get("data") if isinstance(page, dict) else None
            if not isinstance(rated, dict):
                error = 'ratings: expected {"data": {file name: 0 or 1}}, correct the page'
                yield f"page {number}", UserError(error)
                continue
            yield from _rated(rated, None, told, f"page {number}")


def _rated(rated: dict[str, Any], prompt: str | None, told: Told, where: str) -> Read:
    for name, value in rated.items():
        place = f"{where}, file {name!r}"
        audio = name.replace("\\", "/")
        try:
            text = caption_of(audio) if prompt is None else prompt.strip()
            if not text:
                raise UserError("prompt: expected words, got nothing; name the prompt")
            if not audio.strip():
                raise UserError("audio: expected a file name, got nothing; name the file")
            label = None if value is None else share("label", value)
            task = told.task_of(audio)
            source = told.source or "HD"
            yield place, Preference(text, audio, task, label=label, source=source)
        except UserError as error:
            yield place, error


def value_of(record: Preference) -> float:
    """The label, else the score, of a record. Raises ``UserError`` when it has neither."""
    value = record.label if record.label is not None else record.score
    if value is None:
        advice = "aggregate its votes first" if record.votes else "it has no votes either"
        raise UserError(f"label: {record.audio!r} has neither label nor score; {advice}")
    return value


def _dataset(record: Preference) -> str:
    return f"{_TASK_NAMES.get(record.task, record.task)}_{_SOURCE_ENDS[record.source]}"


def _row(record: Preference, field: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "dataset": _dataset(single(record)),
        "location": record.audio,
        "captions": record.prompt,
    }
    if field is not None:
        row[field] = written_number(value_of(record))
    return row


def single(record: Preference) -> Preference:
    """The record, which must not be a pair. Raises ``UserError``."""
    if record.task == "pairwise":
        raise UserError(
            f"task: {record.audio!r} is compared with {record.other!r}, and this format holds"
            " single clips; choose arena, trl, tangoflux, labelstudio or attune"
        )
    return record


def write_feedback(records: Sequence[Preference]) -> bytes:
    return json_lines([_row(record, "feedback") for record in records])


def write_sed(records: Sequence[Preference]) -> bytes:
    return json_lines([_row(record, "SED") for record in records])


def write_finetune(records: Sequence[Preference]) -> bytes:
    return json_array([_row(record, "feedback") for record in records])


def write_captions(records: Sequence[Preference]) -> bytes:
    return json_lines([_row(record, None) for record in records])


def write_scores(records: Sequence[Preference]) -> bytes:
    rows = []
    for record in map(single, records):
        rows.append({"audio": record.audio, "pre_score": written_number(value_of(record))})
    return json_array(rows)


def write_durations(records: Sequence[Preference]) -> bytes:
    rows = []
    for record in map(single, records):
        if record.seconds is None:
            raise UserError(f"seconds: {record.audio!r} has no length; add one, or --audio-root")
        rows.append(
            {
                "captions": record.prompt,
                "location": record.audio,
                "duration": written_number(record.seconds),
            }
        )
    return json_array(rows)


def write_grouped(records: Sequence[Preference]) -> bytes:
    grouped: dict[str, dict[str, float]] = {}
    for record in map(single, records):
        rated = grouped.setdefault(record.prompt, {})
        _add_once(rated, record)
    return _object({"grouped_ratings": grouped})


def write_pages(records: Sequence[Preference], per_page: int = 9) -> bytes:
    rated: dict[str, float] = {}
    for record in map(single, records):
        _add_once(rated, record)
    names = list(rated)
    starts = range(0, len(names), per_page)
    pages = [{"data": {n: rated[n] for n in names[start : start + per_page]}} for start in starts]
    return _object({"ratings": pages, "current_index": max(0, len(pages) - 1)})


def _add_once(rated: dict[str, float], record: Preference) -> None:
    name = record.audio.rpartition("/")[2]
    if name in rated:
        raise UserError(
            f"audio: two clips have the file name {name!r}, and this format holds file names only;"
            " rename one or choose another format"
        )
    rated[name] = float(value_of(record))


def _object(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()
