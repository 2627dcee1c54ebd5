"""What the votes of a study came to: records for label files, raters, and tables of means."""

from __future__ import annotations

import json
import sqlite3
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.errors import UserError
from zoo.listening.headphones import NEEDED
from zoo.listening.items import Item
from zoo.listening.questions import TASKS, is_repeated, passes_negative, votes_of
from zoo.listening.study import stored_items
from zoo.listening.study_trials import Trial, trial_from
from zoo.listening.study_views import completion_code
from zoo.listening.vote_store import VoteStore
from zoo.statistics.clustered import Clustered, crossed_mean
from zoo.types import Preference, Vote

_UNITS = {  # axis -> (lowest, highest, what its mean is)
    "integrity": (0, 1, "share of clips in which every sound was heard"),
    "temporal": (0, 1, "share of clips with all sounds in order"),
    "quality": (1, 5, "mean opinion score of quality, 1 to 5"),
    "relevance": (1, 5, "mean opinion score of the fit to the text, 1 to 5"),
    "pairwise": (0, 1, "share won; a tie counts half"),
}


@dataclass(frozen=True)
class Given:
    """One saved answer of one rater."""

    rater: str
    trial: Trial
    item: Item
    answer: dict
    time_ms: float | None


@dataclass(frozen=True)
class Rater:
    """One rater.

    - ``done`` of ``total`` trials are answered, checks included.
    - ``passed`` of ``negatives`` clear negatives were recognised; ``agreed`` of ``repeats``
      repeats were answered as before.
    - ``headphones``: whether the check was passed; None: it was not taken.
    - ``seconds``: median time per answer; None: unknown.
    - ``about``: the questionnaire. ``code``: the completion code; "" before the end.
    """

    name: str
    done: int
    total: int
    passed: int
    negatives: int
    agreed: int
    repeats: int
    headphones: bool | None
    seconds: float | None
    restarts: int
    about: dict[str, str]
    code: str


@dataclass(frozen=True)
class StudyResult:
    """Everything that a file of votes holds."""

    task: str
    items: tuple[Item, ...]
    raters: tuple[Rater, ...]
    given: tuple[Given, ...]


@dataclass(frozen=True)
class MeanOpinion:
    """One row of a table.

    - ``axis``: a task of ``zoo.types.TASKS``. ``model``: whose clips.
    - ``mean``: in the units of the axis; its interval is for other prompts and other raters.
    - ``raters``, ``clips`` (or pairs), ``votes``: their counts. ``both_bad``: how many votes.
    """

    axis: str
    model: str
    mean: Clustered
    raters: int
    clips: int
    votes: int
    both_bad: int


def read_study(store: VoteStore) -> StudyResult:
    """Reads a file of votes, also while it is served. Raises ``OSError`` and ``UserError``."""
    with store.reading() as connection:
        facts = dict(connection.execute("SELECT key, value FROM study").fetchall())
        if "items" not in facts:
            raise UserError(f"{store.path}: no study has begun in this file")
        items = stored_items(connection)
        rows = connection.execute(
            "SELECT trials.*, votes.answer AS given, votes.time_ms AS time_ms FROM trials"
            " LEFT JOIN votes ON votes.trial = trials.key ORDER BY rater, position"
        ).fetchall()
        people = connection.execute("SELECT * FROM raters ORDER BY joined, name").fetchall()
    given = tuple(
        Given(
            row["rater"],
            trial_from(row),
            items[row["item"]],
            json.loads(row["given"]),
            row["time_ms"],
        )
        for row in rows
        if row["given"] is not None
    )
    totals: dict[str, int] = {}
    for row in rows:
        totals[row["rater"]] = totals.get(row["rater"], 0) + 1
    raters = tuple(
        _rater(
            facts,
            person,
            [one for one in given if one.rater == person["name"]],
            totals[person["name"]],
        )
        for person in people
    )
    return StudyResult(facts["task"], items, raters, given)


def _rater(facts: dict[str, str], person: sqlite3.Row, given: Sequence[Given], total: int) -> Rater:
    task = facts["task"]
    negatives = [one for one in given if one.trial.kind == "negative"]
    first = {one.trial.item: one for one in given if one.trial.kind == "item"}
    repeats = [one for one in given if one.trial.kind == "repeat" and one.trial.item in first]
    attempts = json.loads(person["headphones"])
    times_ms = [one.time_ms for one in given if one.time_ms is not None]
    name = person["name"]
    return Rater(
        name=name,
        done=len(given),
        total=total,
        passed=sum(passes_negative(task, one.answer, one.trial.swapped) for one in negatives),
        negatives=len(negatives),
        agreed=sum(
            is_repeated(
                task,
                one.item,
                first[one.trial.item].answer,
                one.answer,
                (first[one.trial.item].trial.swapped, one.trial.swapped),
            )
            for one in repeats
        ),
        repeats=len(repeats),
        headphones=max(attempts) >= NEEDED if attempts else None,
        seconds=statistics.median(times_ms) / 1000 if times_ms else None,
        restarts=person["restarts"],
        about=json.loads(person["about"] or "{}"),
        code=completion_code(facts["secret"], name) if person["finished"] else "",
    )


def trusted(result: StudyResult, min_passed: float = 0.0) -> tuple[set[str], set[str]]:
    """(raters whose votes count, raters whose votes do not).

    ``min_passed``: the share of clear negatives, 0 to 1, that a rater must have recognised; a rater
    who was asked none counts. Raises ``UserError`` for another number.
    """
    if not 0 <= min_passed <= 1:
        raise UserError(f"min_passed: expected a share from 0 to 1, got {min_passed}")
    good = {
        one.name
        for one in result.raters
        if not one.negatives or one.passed / one.negatives >= min_passed
    }
    return good, {one.name for one in result.raters} - good


def records_of(result: StudyResult, min_passed: float = 0.0) -> tuple[Preference, ...]:
    """One record per clip (or pair) and axis that has votes; checks are never among them.

    Raises ``UserError`` as ``trusted``.
    """
    good, _ = trusted(result, min_passed)
    votes: dict[tuple[str, int], list[Vote]] = {}
    for one in result.given:
        if one.trial.kind != "item" or one.rater not in good:
            continue
        found = votes_of(result.task, one.item, one.answer, one.trial.swapped)
        for axis, (value, both_bad) in found.items():
            vote = Vote(one.rater, value, both_bad, one.time_ms)
            votes.setdefault((axis, one.trial.item), []).append(vote)
    records = []
    for axis in TASKS[result.task].axes:
        for number, item in enumerate(result.items):
            if (axis, number) in votes:
                clip = item.clips[0]
                other = item.clips[1] if len(item.clips) > 1 else None
                records.append(
                    Preference(
                        prompt=item.prompt,
                        audio=clip.name,
                        task=axis,
                        other="" if other is None else other.name,
                        votes=tuple(votes[axis, number]),
                        model=clip.model,
                        other_model="" if other is None else other.model,
                        seconds=round(clip.seconds, 6),
                    )
                )
    return tuple(records)


def mean_opinions(records: Sequence[Preference]) -> tuple[MeanOpinion, ...]:
    """A row per axis and model, in the order of their first records.

    A pair of two models is a row that says how often the first one, by name, won against the other;
    pairs within a model have none.
    """
    groups: dict[tuple[str, str], list[tuple[str, str, Vote, float]]] = {}
    for record in records:
        low, high, _ = _UNITS[record.task]
        name, turn = record.model, False
        if record.task == "pairwise":
            if record.model == record.other_model:
                continue
            first, second = sorted((record.model, record.other_model))
            name, turn = f"{first} against {second}", record.model != first
        clip = f"{record.audio}\n{record.other}"
        for vote in record.votes:
            value = 1 - vote.value if turn else vote.value
            groups.setdefault((record.task, name), []).append(
                (record.prompt, clip, vote, low + value * (high - low))
            )
    return tuple(
        MeanOpinion(
            axis,
            name,
            crossed_mean(
                [value for *_, value in some],
                [prompt for prompt, *_ in some],
                [vote.rater for _, _, vote, _ in some],
            ),
            raters=len({vote.rater for _, _, vote, _ in some}),
            clips=len({clip for _, clip, _, _ in some}),
            votes=len(some),
            both_bad=sum(vote.both_bad for _, _, vote, _ in some),
        )
        for (axis, name), some in groups.items()
    )


def unit_of(axis: str) -> tuple[float, float, str]:
    """(lowest value, highest value, what the mean of an axis is)."""
    return _UNITS[axis]
