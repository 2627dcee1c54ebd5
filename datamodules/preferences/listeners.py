"""Files of single opinions: tidy tables of listeners, Label Studio, and our own JSON lines."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.preferences.baton import Read, Told, caption_of, each, single, votes_joined
from datamodules.preferences.pairs import outcome, outcome_word
from datamodules.preferences.rows import Row, json_array, json_lines, number, written_number
from zoo.errors import UserError, did_you_mean
from zoo.types import Preference, Vote

_SCALES = {  # task -> lowest and highest score that listeners give
    "integrity": (0.0, 1.0),
    "temporal": (0.0, 1.0),
    "relevance": (0.0, 10.0),
    "quality": (1.0, 5.0),
}
_AXES = {"mos": "quality", "mos-q": "quality", "ovl": "quality", "rel": "relevance"}
_CHOICES = {
    **dict.fromkeys(("1", "yes", "match", "matches", "good", "true", "positive"), 1.0),
    **dict.fromkeys(("0", "no", "mismatch", "does not match", "bad", "false", "negative"), 0.0),
}
_PLAIN = tuple(field.name for field in dataclasses.fields(Preference) if field.name != "votes")
_VOTE = tuple(field.name for field in dataclasses.fields(Vote))
_NUMBERS = ("label", "score", "seconds")
_RATED_TO = 5.0  # stars of a Label Studio rating, unless its caller says otherwise


def scaled(field: str, value: float, scale: tuple[float, float]) -> float:
    """``value`` on ``scale`` as a number from 0 to 1. Raises ``UserError`` outside the scale."""
    low, high = scale
    if not low <= value <= high:
        raise UserError(
            f"{field}: expected a score from {low:g} to {high:g}, got {value:g}; correct it, or"
            " state the scale with --scale LOW:HIGH"
        )
    return round((value - low) / (high - low), 9)


def _unscaled(value: float, scale: tuple[float, float]) -> float | int:
    low, high = scale
    return written_number(round(low + value * (high - low), 10))


def read_listeners(rows: Sequence[Row], told: Told) -> Read:
    """One score per row: ``clip_id``, ``listener_id``, ``axis``, ``score``, perhaps ``time_ms``.

    Scores of a clip on one axis become one record. The prompt stands in ``prompt``, else in the
    clip's name, else it stays empty.
    """
    yield from votes_joined(each(rows, told, _listener_score), "listener_id")


def _listener_score(row: Row, told: Told) -> Preference:
    axis = row.text("axis").lower()
    task = told.task or _AXES.get(axis, axis)
    if task not in _SCALES:
        advice = did_you_mean(axis, (*_SCALES, *_AXES), limit=20)
        raise UserError(f"axis: {axis!r} is no task, {advice}; or state the task with --task")
    audio = row.name("clip_id")
    score = number("score", row.text("score"))
    return Preference(
        prompt=row.words("prompt", "caption", "captions") or _caption_or_nothing(audio),
        audio=audio,
        task=task,
        votes=(
            Vote(
                row.text("listener_id"),
                scaled("score", score, told.scale or _SCALES[task]),
                time_ms=row.number("time_ms"),
            ),
        ),
        source=told.source or row.words("source") or "HD",
        split=row.words("split"),
    )


def _caption_or_nothing(audio: str) -> str:
    try:
        return caption_of(audio)
    except UserError:
        return ""


def write_listeners(records: Sequence[Preference]) -> bytes:
    target = io.StringIO()
    columns = ("clip_id", "listener_id", "axis", "score", "time_ms", "prompt", "source", "split")
    table = csv.writer(target, lineterminator="\n")
    table.writerow(columns)
    for record in map(single, records):
        if not record.votes:
            raise UserError(
                f"votes: {record.audio!r} has none, and this format holds single votes; choose"
                " another"
            )
        for vote in record.votes:
            table.writerow(
                (
                    record.audio,
                    vote.rater,
                    record.task,
                    _unscaled(vote.value, _SCALES[record.task]),
                    "" if vote.time_ms is None else written_number(vote.time_ms),
                    record.prompt,
                    record.source,
                    record.split,
                )
            )
    return target.getvalue().encode()


def read_label_studio(rows: Sequence[Row], told: Told) -> Read:
    """Tasks of Label Studio, as it exports them and as ``write_label_studio`` writes them.

    ``data`` names ``audio`` (for pairs ``audio`` and ``other``, or ``audio_a`` and ``audio_b``) and
    ``prompt``. The first result of an annotation that is a choice, a rating, a number or a
    comparison is the vote; cancelled annotations are left out.
    """
    return each(rows, told, _label_studio_task)


def _label_studio_task(row: Row, told: Told) -> Preference:
    data = row.cells.get("data")
    if not isinstance(data, dict):
        raise UserError(f"data: expected an object with audio and prompt, got {data!r}")
    cells = Row(row.place, data)
    audio = cells.name("audio", "audio_a")
    other = cells.words("other", "audio_b").replace("\\", "/")
    has_other = bool(other or cells.words("other_model"))
    task = cells.words("task") or ("pairwise" if has_other else told.task_of(audio))
    annotations = row.cells.get("annotations") or []
    if not isinstance(annotations, list):
        raise UserError(f"annotations: expected a list, got {annotations!r}")
    votes: list[Vote] = []
    for annotation in annotations:
        if not isinstance(annotation, dict):
            raise UserError(f"annotations: expected objects, got {annotation!r}")
        vote = _annotation(Row(row.place, annotation), told, f"unnamed {len(votes) + 1}")
        if vote is not None:
            votes.append(vote)
    return Preference(
        prompt=cells.words("prompt", "captions", "caption", "text") or _caption_or_nothing(audio),
        audio=audio,
        task=task,
        other=other,
        votes=tuple(votes),
        label=cells.share("label"),
        score=cells.share("score"),
        source=told.source or cells.words("source") or "HD",
        split=cells.words("split"),
        model=cells.words("model"),
        other_model=cells.words("other_model"),
        seconds=cells.number("seconds"),
    )


def _annotation(row: Row, told: Told, unnamed: str) -> Vote | None:
    if row.cells.get("was_cancelled"):
        return None
    by = row.get("completed_by")[1]
    if isinstance(by, dict):
        rater = Row(row.place, by).words("email", "id") or unnamed
    else:
        rater = row.words("completed_by") or unnamed
    seconds = row.number("lead_time")
    time_ms = None if seconds is None else round(seconds * 1000, 6)
    for result in row.cells.get("result") or []:
        found = _result(result, told) if isinstance(result, dict) else None
        if found is not None:
            return Vote(rater, found[0], found[1], time_ms)
    return None


def _result(result: Mapping[str, Any], told: Told) -> tuple[float, bool] | None:
    """(value, both are bad) of one result; None for a kind that is no opinion."""
    value = result.get("value")
    if not isinstance(value, dict):
        return None
    kind = result.get("type")
    if kind == "number":
        read = number("number", value.get("number"))
        return scaled("number", read, told.scale or (0.0, 1.0)), False
    if kind == "rating":
        read = number("rating", value.get("rating"))
        return scaled("rating", read, told.scale or (1.0, _RATED_TO)), False
    if kind == "pairwise":
        return outcome("selected", str(value.get("selected")))
    if kind == "choices":
        choice = (value.get("choices") or [""])[0]
        known = _CHOICES.get(str(choice).strip().lower())
        return outcome("choices", str(choice)) if known is None else (known, False)
    return None


def write_label_studio(records: Sequence[Preference]) -> bytes:
    """Tasks to import into Label Studio; votes become annotations."""
    tasks = []
    for record in records:
        data = _cells(record)
        annotations = [_written_annotation(vote, record) for vote in record.votes]
        tasks.append({"data": data, "annotations": annotations})
    return json_array(tasks)


def _written_annotation(vote: Vote, record: Preference) -> dict[str, Any]:
    is_id = vote.rater.isascii() and vote.rater.isdigit() and str(int(vote.rater)) == vote.rater
    if record.task == "pairwise" and (vote.both_bad or vote.value in (0, 0.5, 1)):
        kind = "choices"
        value: dict[str, Any] = {"choices": [outcome_word(vote)]}
    else:
        kind = "number"
        value = {"number": written_number(vote.value)}
    written: dict[str, Any] = {
        "completed_by": int(vote.rater) if is_id else {"email": vote.rater},
        "result": [{"from_name": "opinion", "to_name": "audio", "type": kind, "value": value}],
    }
    if vote.time_ms is not None:
        written["lead_time"] = vote.time_ms / 1000
    return written


def _cells(record: Preference) -> dict[str, Any]:
    """All fields but the votes that say something."""
    cells = {name: getattr(record, name) for name in _PLAIN}
    for name in _NUMBERS:
        if cells[name] is not None:
            cells[name] = written_number(cells[name])
    kept = ("prompt", "audio", "task", "source")
    return {name: v for name, v in cells.items() if name in kept or v not in (None, "")}


def read_own(rows: Sequence[Row], told: Told) -> Read:
    """Our own JSON lines: the fields of ``Preference``, its votes as objects."""
    return each(rows, told, _own)


def _own(row: Row, told: Told) -> Preference:
    _known(row.cells, (*_PLAIN, "votes"))
    votes = row.cells.get("votes") or []
    if not isinstance(votes, list) or not all(isinstance(vote, dict) for vote in votes):
        raise UserError(f"votes: expected a list of objects, got {votes!r}")
    return Preference(
        prompt=row.words("prompt"),
        audio=row.words("audio").replace("\\", "/"),
        task=told.task or row.text("task"),
        other=row.words("other").replace("\\", "/"),
        votes=tuple(_own_vote(Row(row.place, vote)) for vote in votes),
        label=row.share("label"),
        score=row.share("score"),
        source=told.source or row.words("source") or "HD",
        split=row.words("split"),
        model=row.words("model"),
        other_model=row.words("other_model"),
        seconds=row.number("seconds"),
    )


def _own_vote(row: Row) -> Vote:
    _known(row.cells, _VOTE)
    value = row.share("value")
    if value is None:
        raise UserError("value: expected a number from 0 to 1, got nothing")
    both_bad = row.cells.get("both_bad", False)
    if not isinstance(both_bad, bool):
        raise UserError(f"both_bad: expected true or false, got {both_bad!r}")
    return Vote(row.text("rater"), value, both_bad, row.number("time_ms"))


def _known(cells: Mapping[str, Any], fields: Sequence[str]) -> None:
    unknown = sorted(set(cells) - set(fields))
    if unknown:
        raise UserError(f"{unknown[0]}: no such field; {did_you_mean(unknown[0], fields)}")


def write_own(records: Sequence[Preference]) -> bytes:
    rows = []
    for record in records:
        row = _cells(record)
        if record.votes:
            row["votes"] = [_own_vote_cells(vote) for vote in record.votes]
        rows.append(row)
    return json_lines(rows)


def _own_vote_cells(vote: Vote) -> dict[str, Any]:
    cells: dict[str, Any] = {"rater": vote.rater, "value": written_number(vote.value)}
    if vote.both_bad:
        cells["both_bad"] = True
    if vote.time_ms is not None:
        cells["time_ms"] = written_number(vote.time_ms)
    return cells
