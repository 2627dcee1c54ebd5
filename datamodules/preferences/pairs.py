"""Files of compared clips: TangoFlux, audio-alpaca / TRL, and arena rows."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.preferences.baton import Read, Told, each
from datamodules.preferences.rows import (
    Row,
    json_array,
    json_lines,
    pyarrow_parquet,
    written_number,
)
from zoo.errors import UserError, did_you_mean
from zoo.types import Preference, Vote

_OUTCOMES = {  # winner -> (value, both are bad)
    "model_a": (1.0, False),
    "model_b": (0.0, False),
    "tie": (0.5, False),
    "both_bad": (0.5, True),
}
_UNKNOWN = "unknown"  # written for a generator that nobody named
_SPELLINGS = {
    "a": "model_a",
    "left": "model_a",
    "b": "model_b",
    "right": "model_b",
    "tie (bothbad)": "both_bad",
    "tie (both bad)": "both_bad",
    "bothbad": "both_bad",
    "both bad": "both_bad",
}


def outcome(field: str, written: str) -> tuple[float, bool]:
    """(value, both are bad) of a comparison. Raises ``UserError``."""
    word = written.strip().lower()
    word = _SPELLINGS.get(word, word)
    if word not in _OUTCOMES:
        advice = did_you_mean(written, (*_OUTCOMES, *_SPELLINGS), limit=20)
        raise UserError(f"{field}: unknown outcome {written!r}; {advice}")
    return _OUTCOMES[word]


def outcome_word(vote: Vote) -> str:
    """The word for a vote. Raises ``UserError`` for a value between those of the words."""
    for word, found in _OUTCOMES.items():
        if found == (vote.value, vote.both_bad):
            return word
    raise UserError(
        f"votes: {vote.value} of {vote.rater!r} is neither a win (1), a loss (0) nor a tie (0.5),"
        " and this format has words for these only; choose attune"
    )


def read_chosen(rows: Sequence[Row], told: Told) -> Read:
    """Rows with ``chosen`` and ``rejected`` (TRL) or ``reject`` (TangoFlux)."""
    return each(rows, told, _chosen)


def _chosen(row: Row, told: Told) -> Preference:
    return Preference(
        prompt=row.text("prompt", "captions"),
        audio=row.name("chosen"),
        other=row.name("rejected", "reject"),
        task="pairwise",
        label=1.0,
        source=told.source or "RD",
        seconds=row.number("duration"),
    )


def _winner_first(record: Preference) -> Preference:
    """The pair with the better clip first. Raises ``UserError`` for single clips and ties."""
    if record.task != "pairwise":
        raise UserError(
            f"task: {record.audio!r} is a single clip, and this format holds pairs; --pairs"
            " compares the clips of a prompt"
        )
    if record.label is None or record.label == 0.5:
        found = "no label" if record.label is None else "a tie"
        raise UserError(
            f"label: {record.audio!r} against {record.other!r} is {found}, and this format holds a"
            " winner and a loser; use --aggregate mean --drop-ties"
        )
    return record if record.label > 0.5 else turned(record)


def turned(record: Preference) -> Preference:
    """The same pair with the clips, and all that is said of them, the other way round."""
    return replace(
        record,
        audio=record.other,
        other=record.audio,
        model=record.other_model,
        other_model=record.model,
        label=None if record.label is None else 1 - record.label,
        score=None if record.score is None else 1 - record.score,
        votes=tuple(replace(vote, value=1 - vote.value) for vote in record.votes),
    )


def write_tangoflux(records: Sequence[Preference]) -> bytes:
    rows = []
    for record in map(_winner_first, records):
        row: dict[str, Any] = {"captions": record.prompt}
        if record.seconds is not None:
            row["duration"] = written_number(record.seconds)
        rows.append({**row, "chosen": record.audio, "reject": record.other})
    return json_array(rows)


def parquet_writer(
    found: Callable[[str], Path] | None = None,
) -> Callable[[Sequence[Preference]], bytes]:
    """A writer of TRL's parquet; ``found`` gives the file of a clip, whose bytes go in."""

    def write(records: Sequence[Preference]) -> bytes:
        parquet = pyarrow_parquet()
        import pyarrow

        audio = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        features = {
            "prompt": {"dtype": "string", "_type": "Value"},
            "chosen": {"_type": "Audio"},
            "rejected": {"_type": "Audio"},
        }
        schema = pyarrow.schema(
            [("prompt", pyarrow.string()), ("chosen", audio), ("rejected", audio)],
            metadata={"huggingface": json.dumps({"info": {"features": features}}, allow_nan=False)},
        )
        target = io.BytesIO()
        with parquet.ParquetWriter(target, schema) as writer:
            for first in range(0, len(records), 32):
                rows = _parquet_rows(records[first : first + 32], found)
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        return target.getvalue()

    return write


def _parquet_rows(
    records: Sequence[Preference], found: Callable[[str], Path] | None
) -> list[dict[str, Any]]:
    def clip(name: str) -> dict[str, Any]:
        return {"bytes": None if found is None else found(name).read_bytes(), "path": name}

    return [
        {"prompt": one.prompt, "chosen": clip(one.audio), "rejected": clip(one.other)}
        for one in map(_winner_first, records)
    ]


def read_arena(rows: Sequence[Row], told: Told) -> Read:
    """One vote per row, on two clips for one prompt.

    Columns: ``prompt``, ``model_a``, ``model_b``, ``winner``, perhaps ``audio_a``, ``audio_b``,
    ``judge`` and ``time_ms``.

    Votes on the same pair become one record, also where a row names the pair the other way round. A
    row without ``judge`` counts as a rater of its own.
    """
    pairs: dict[tuple[str, ...], tuple[str, Preference]] = {}
    for place, found in each(rows, told, _arena_vote):
        if isinstance(found, UserError):
            yield place, found
            continue
        key = _pair_key(found)
        reverse = _pair_key(turned(found))
        if reverse in pairs:
            key = reverse
            found = turned(found)
        if key not in pairs:
            pairs[key] = (place, found)
            continue
        first, record = pairs[key]
        try:
            pairs[key] = (first, replace(record, votes=record.votes + found.votes))
        except UserError:
            rater = found.votes[0].rater
            error = f"judge: {rater!r} voted on this pair before; keep one vote per judge"
            yield place, UserError(error)
    yield from pairs.values()


def _pair_key(record: Preference) -> tuple[str, ...]:
    return (record.prompt, record.audio, record.other, record.model, record.other_model)


def _arena_vote(row: Row, told: Told) -> Preference:
    value, both_bad = outcome("winner", row.text("winner"))
    has_audio = any(row.get(field)[1] is not None for field in ("audio_a", "audio_b"))
    return Preference(
        prompt=row.text("prompt", "captions", "caption", "text"),
        audio=row.name("audio_a") if has_audio else "",
        other=row.name("audio_b") if has_audio else "",
        task="pairwise",
        votes=(
            Vote(
                row.words("judge", "rater", "listener_id") or f"unnamed, {row.place}",
                value,
                both_bad,
                row.number("time_ms"),
            ),
        ),
        source=told.source or row.words("source") or "HD",
        split=row.words("split"),
        model=_model(row, "model_a"),
        other_model=_model(row, "model_b"),
    )


def _model(row: Row, field: str) -> str:
    name = row.text(field)
    return "" if name == _UNKNOWN else name


def write_arena(records: Sequence[Preference]) -> bytes:
    rows = []
    for record in records:
        if record.task != "pairwise":
            raise UserError(
                f"task: {record.audio!r} is a single clip, and this format holds pairs; --pairs"
                " compares the clips of a prompt"
            )
        votes = record.votes
        if not votes and record.label is not None:
            votes = (Vote("label", record.label),)
        if not votes:
            raise UserError(f"votes: {record.audio!r} against {record.other!r} has no vote")
        for vote in votes:
            row = {
                "prompt": record.prompt,
                "model_a": record.model or _UNKNOWN,
                "model_b": record.other_model or _UNKNOWN,
                "winner": outcome_word(vote),
                "audio_a": record.audio,
                "audio_b": record.other,
                "judge": vote.rater,
                "time_ms": None if vote.time_ms is None else written_number(vote.time_ms),
                "source": record.source,
                "split": record.split,
            }
            rows.append({name: value for name, value in row.items() if value not in (None, "")})
    return json_lines(rows)


def ordered_pairs(values: Sequence[float], groups: Sequence[str]) -> list[tuple[int, int]]:
    """(better, worse) of all clips of a group with different values, as BATON pairs them.

    In the order of the groups, of the first clip and of the second one. Equal values give no pair,
    and clips of two groups are never compared.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return [
        (one, other) if values[one] > values[other] else (other, one)
        for rows in members.values()
        for one, other in itertools.combinations(rows, 2)
        if values[one] != values[other]
    ]


def pairs_within_prompts(records: Sequence[Preference]) -> tuple[Preference, ...]:
    """All pairs of clips of one prompt and task with different labels (else scores), winner first.

    In the order of ``ordered_pairs``.
    """
    rated = [
        (record, record.label if record.label is not None else record.score)
        for record in records
        if record.task != "pairwise"
    ]
    rated = [(record, value) for record, value in rated if value is not None]
    groups = [f"{record.task}\0{record.prompt}" for record, _ in rated]
    pairs = []
    for better, worse in ordered_pairs([value for _, value in rated], groups):
        winner = rated[better][0]
        loser = rated[worse][0]
        pairs.append(
            replace(
                winner,
                other=loser.audio,
                task="pairwise",
                votes=(),
                label=1.0,
                score=None,
                other_model=loser.model,
            )
        )
    return tuple(pairs)
