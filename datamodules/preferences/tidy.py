"""The plainest label file: a table with one row per clip, or per clip and listener."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from datamodules.preferences.baton import Read, Told, each, single, votes_joined
from datamodules.preferences.rows import Row, written_number
from zoo.errors import UserError
from zoo.types import Preference, Vote

# column -> names that people give it, in any case
COLUMNS = {
    "audio": ("audio", "file", "file_name", "filename", "path"),
    "prompt": ("prompt", "caption", "captions", "text"),
}
_WRITTEN = (
    "audio",
    "prompt",
    "label",
    "score",
    "listener",
    "time_ms",
    "task",
    "source",
    "split",
    "model",
    "seconds",
)


def read_tidy(rows: Sequence[Row], told: Told) -> Read:
    """Rows with ``audio``, ``prompt`` and ``label`` or ``score`` (0 to 1).

    Perhaps with ``listener`` (the label is then that listener's vote, with ``time_ms``), ``task``,
    ``source``, ``split``, ``model`` and ``seconds``. Votes on one clip become one record. Where a
    table has a column of labels, every row must have a label or a score.
    """
    named = [Row(row.place, _renamed(row)) for row in rows]
    yield from votes_joined(each(named, told, _clip), "listener")


def _renamed(row: Row) -> dict[str, object]:
    """The cells by our names of the columns; an exact name comes before others."""
    folded = {str(name).strip().casefold(): name for name in row.cells}
    cells = {folded_name: row.cells[name] for folded_name, name in folded.items()}
    for column, names in COLUMNS.items():
        here = next(name for name in names if name in folded)
        cells[column] = cells[here]
    return cells


def _clip(row: Row, told: Told) -> Preference:
    if row.words("other"):
        raise UserError(
            "other: a second clip, but this table has one row per clip; give each of the two a row"
            " and a label"
        )
    if row.words("group"):
        raise UserError(
            "group: clips are grouped by their prompt; remove the column, or give the clips of a"
            " group one prompt"
        )
    listener = row.words("listener")
    label = row.share("label")
    score = row.share("score")
    if label is None and (listener or ("label" in row.cells and score is None)):
        raise UserError(
            "label: expected a number from 0 (does not fit) to 1, got nothing; fill it in or"
            " remove the row"
        )
    audio = row.name("audio")
    votes = (Vote(listener, label, time_ms=row.number("time_ms")),) if listener else ()
    known = "HD" if label is not None else "PD" if score is None else "RD"
    return Preference(
        prompt=row.text("prompt"),
        audio=audio,
        task=told.task or row.words("task") or told.task_of(),
        votes=votes,
        label=None if listener else label,
        score=score,
        source=told.source or row.words("source") or known,
        split=row.words("split"),
        model=row.words("model"),
        seconds=row.number("seconds"),
    )


def write_tidy(records: Sequence[Preference]) -> bytes:
    target = io.StringIO()
    table = csv.DictWriter(target, _WRITTEN, lineterminator="\n")
    table.writeheader()
    for record in map(single, records):
        row = {
            "audio": record.audio,
            "prompt": record.prompt,
            "label": _number(record.label),
            "score": _number(record.score),
            "task": record.task,
            "source": record.source,
            "split": record.split,
            "model": record.model,
            "seconds": _number(record.seconds),
        }
        if not record.votes and record.label is None and record.score is None:
            raise UserError(
                f"label: {record.audio!r} has neither label nor score nor votes, and this format"
                " needs one of them; choose audiocaps"
            )
        if not record.votes:
            table.writerow(row)
        for vote in record.votes:
            voted = {"label": written_number(vote.value), "listener": vote.rater}
            table.writerow({**row, **voted, "time_ms": _number(vote.time_ms)})
    return target.getvalue().encode()


def _number(value: float | None) -> float | str:
    return "" if value is None else written_number(value)
