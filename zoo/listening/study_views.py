"""What a rater sees next, as plain values for the page: everything that is sent to a browser.

A view has a ``stage``: "headphones", "refused", "trial", "questions" or "done". Nothing in it tells
a check from another trial, a system from another, or one side of a pair from the other.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
from dataclasses import asdict
from typing import Any

from zoo.errors import UserError
from zoo.listening.headphones import (
    ATTEMPTS,
    NEEDED,
    QUESTIONS,
    headphone_questions,
    right_answers,
    three_tones,
)
from zoo.listening.questions import Field, checked, fields_of, task_named
from zoo.listening.study import Study, heard_sides, is_playable, known_rater
from zoo.listening.study_trials import trial_from
from zoo.listening.trials import now
from zoo.types import Waveform

QUESTIONNAIRE = (
    Field(
        "device",
        "What did you listen with?",
        {"headphones": "Headphones or earphones", "speakers": "Loudspeakers", "other": "Else"},
    ),
    Field(
        "hearing",
        "Do you have a hearing loss that you know of?",
        {"no": "No", "yes": "Yes", "unsaid": "I would rather not say"},
    ),
    Field(
        "experience",
        "How often have you judged sounds before?",
        {"never": "Never", "some": "A few times", "often": "Often, or as a profession"},
    ),
)
_LETTERS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"  # none that is mistaken for another


def next_view(study: Study, name: str, at: int | None = None) -> dict[str, Any]:
    """The view of a rater.

    Args:
        study: the study.
        name: of a rater who has joined.
        at: position of an answered trial to look at again; None: the first one without an answer.

    Raises:
        UserError: for an unknown rater.
        OSError: when the file of votes cannot be used.
    """
    view = _view(study, name, at)
    if view["stage"] == "done":
        with study.store.writing() as connection:
            connection.execute(
                "UPDATE raters SET finished = ? WHERE name = ? AND finished IS NULL",
                (now(), view["rater"]),
            )
    return view


def _view(study: Study, name: str, at: int | None) -> dict[str, Any]:
    with study.store.reading() as connection:
        row = known_rater(connection, name)
        rater = row["name"]
        stage = _before_trials(study, row)
        if stage is not None:
            return {"rater": rater, **stage}
        found = connection.execute(
            "SELECT trials.*, votes.answer AS given FROM trials LEFT JOIN votes ON"
            " votes.trial = trials.key WHERE rater = ? ORDER BY position",
            (rater,),
        ).fetchall()
        # clips that vanished are asked for again when they are back
        silent = {
            one["key"]
            for one in found
            if one["given"] is None and not is_playable(study, trial_from(one))
        }
        asked = [one for one in found if one["key"] not in silent]
        done = sum(one["given"] is not None for one in asked)
        view = {"rater": rater, "done": done, "total": len(asked), "missing": len(silent)}
        upto = next((i for i, one in enumerate(asked) if one["given"] is None), len(asked))
        index = upto if at is None else min(max(at, 0), upto)
        if index < len(asked):
            return view | {"stage": "trial", **_trial(study, connection, asked[index], index)}
        if study.settings.questionnaire and row["about"] is None:
            return view | {"stage": "questions", "fields": [asdict(one) for one in QUESTIONNAIRE]}
        return view | {"stage": "done", "code": completion_code(study.secret, rater)}


def _before_trials(study: Study, row: sqlite3.Row) -> dict[str, Any] | None:
    attempts = json.loads(row["headphones"])
    if study.settings.headphones == "off" or any(right >= NEEDED for right in attempts):
        return None
    if len(attempts) < ATTEMPTS:
        sounds = [f"headphones/{row['key']}/{number}" for number in range(QUESTIONS)]
        return {"stage": "headphones", "attempt": len(attempts), "sounds": sounds}
    return {"stage": "refused"} if study.settings.headphones == "require" else None


def _trial(
    study: Study, connection: sqlite3.Connection, row: sqlite3.Row, index: int
) -> dict[str, Any]:
    trial = trial_from(row)
    item = study.items[trial.item]
    heard = heard_sides(study, connection, trial)
    return {
        "key": trial.key,
        "at": index,
        "question": task_named(study.settings.task).question,
        "text": item.prompt,
        "events": list(item.events) if study.settings.task == "temporal" else [],
        "fields": [asdict(one) for one in fields_of(study.settings.task, item)],
        "heard": list(heard),
        "sounds": [f"audio/{trial.key}/{side}" for side in range(len(heard))],
        "answer": None if row["given"] is None else json.loads(row["given"]),
    }


def headphone_sound(study: Study, key: str, number: int) -> Waveform:
    """The sound of one question of a rater's present attempt. Raises ``UserError``."""
    with study.store.reading() as connection:
        row = connection.execute("SELECT * FROM raters WHERE key = ?", (key,)).fetchone()
    if row is None or not 0 <= number < QUESTIONS:
        raise UserError("this sound is not part of the study; reload the page")
    attempt = len(json.loads(row["headphones"]))
    return three_tones(*headphone_questions(f"{study.secret}/{key}/{attempt}")[number])


def answer_headphones(study: Study, name: str, attempt: int, answers: Any) -> None:
    """Saves the result of an attempt; one that was saved before stays.

    Raises ``UserError`` unless ``answers`` holds a place from 0 to 2 for every question.
    """
    is_whole = isinstance(answers, list) and len(answers) == QUESTIONS
    if not is_whole or any(type(one) is not int or not 0 <= one <= 2 for one in answers):
        raise UserError(f"answers: expected {QUESTIONS} places from 0 to 2, got {answers!r}")
    with study.store.writing() as connection:
        row = known_rater(connection, name)
        results = json.loads(row["headphones"])
        if attempt == len(results) < ATTEMPTS:
            results.append(right_answers(f"{study.secret}/{row['key']}/{attempt}", answers))
            text = json.dumps(results, allow_nan=False)
            connection.execute(
                "UPDATE raters SET headphones = ? WHERE name = ?", (text, row["name"])
            )


def answer_questionnaire(study: Study, name: str, answer: Any) -> None:
    """Saves what a rater says at the end. Raises ``UserError`` for an incomplete answer."""
    about = json.dumps(checked(QUESTIONNAIRE, answer), allow_nan=False)
    with study.store.writing() as connection:
        rater = known_rater(connection, name)["name"]
        connection.execute("UPDATE raters SET about = ? WHERE name = ?", (about, rater))


def completion_code(secret: str, rater: str) -> str:
    """Eight letters and digits that prove to the organiser that a rater has finished."""
    digest = hmac.new(secret.encode(), f"done/{rater}".encode(), hashlib.sha256).digest()
    code = "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:8])
    return f"{code[:4]}-{code[4:]}"
