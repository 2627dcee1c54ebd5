"""The questions of a labelling study, and what their answers mean.

A question has one or more fields; an answer maps the name of each field to the value of a choice,
or, where several may be ticked, to a list of values. An answer to a pair is in terms of the sides
that the rater heard, A and B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.errors import UserError, did_you_mean
from zoo.listening.items import Item

Answer = Mapping[str, Any]
_RATINGS = ("bad", "poor", "fair", "good", "excellent")
_MATCHES = ("not at all", "a little", "partly", "mostly", "completely")


@dataclass(frozen=True)
class Field:
    """One thing that is asked.

    ``options``: value -> words on the button. ``many``: any number of them may be ticked, also
    none. ``scale``: the options are the steps of a scale, from worst to best.
    """

    name: str
    text: str
    options: Mapping[str, str]
    many: bool = False
    scale: bool = False


@dataclass(frozen=True)
class LabelTask:
    """One kind of study.

    ``about``: for the command line. ``axes``: the tasks of the records that its votes become.
    """

    about: str
    question: str
    axes: tuple[str, ...]


TASKS: dict[str, LabelTask] = {
    "integrity": LabelTask(
        "tick the sounds that you hear", "Which of these sounds do you hear?", ("integrity",)
    ),
    "temporal": LabelTask(
        "are the sounds there, in the stated order",
        "Are the sounds there, in the order of the text?",
        ("temporal",),
    ),
    "pairwise": LabelTask(
        "which of two clips is better, without a reference",
        "Which is the better sound for this text?",
        ("pairwise",),
    ),
    "quality": LabelTask(
        "1 to 5, how good it sounds (MOS)", "How good does this sound?", ("quality",)
    ),
    "relevance": LabelTask(
        "1 to 5, how well it fits the text (MOS)",
        "How well does the sound fit the text?",
        ("relevance",),
    ),
    "mos": LabelTask(
        "quality and relevance of each clip together",
        "How good is this sound, and how well does it fit?",
        ("quality", "relevance"),
    ),
}


def task_named(name: str) -> LabelTask:
    """A task of ``TASKS``. Raises ``UserError`` for another name."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; {did_you_mean(name, TASKS)}")
    return TASKS[name]


def fields_of(task: str, item: Item) -> tuple[Field, ...]:
    """What is asked about an item."""
    if task == "integrity":
        if item.events:
            return (
                Field(
                    "heard",
                    "Tick every sound that you hear; none is an answer, too.",
                    {event: event for event in item.events},
                    many=True,
                ),
            )
        options = {"yes": "Yes, all of them", "no": "No, something is missing"}
        return (Field("all", "Do you hear every sound that the text names?", options),)
    if task == "temporal":
        options = {
            "yes": "Yes, all in this order",
            "order": "All there, in another order",
            "missing": "Something is missing",
        }
        return (Field("order", "", options),)
    if task == "pairwise":
        options = {
            "a": "A is better",
            "b": "B is better",
            "tie": "Equally good",
            "both_bad": "Both are bad",
        }
        return (Field("better", "", options),)
    scales = {
        "quality": ("Quality of the sound, whatever the text says", _RATINGS),
        "relevance": ("Fit to the text, whatever the quality is", _MATCHES),
    }
    return tuple(
        Field(axis, text, {str(i): word for i, word in enumerate(words, 1)}, scale=True)
        for axis, (text, words) in scales.items()
        if axis in TASKS[task].axes
    )


def checked(fields: Sequence[Field], answer: Any) -> dict[str, Any]:
    """The answer with its values in the order of the fields' options.

    Raises ``UserError`` unless it answers every field with values of its options.
    """
    if not isinstance(answer, Mapping) or set(answer) != {field.name for field in fields}:
        wanted = ", ".join(field.name for field in fields)
        raise UserError(f"answer: expected the fields {wanted}, got {answer!r}")
    clean: dict[str, Any] = {}
    for field in fields:
        given = answer[field.name]
        values = given if field.many and isinstance(given, list) else [given]
        unknown = [value for value in values if value not in list(field.options)]
        if unknown or isinstance(given, list) != field.many or len(set(values)) < len(values):
            choices = ", ".join(field.options)
            raise UserError(f"answer: expected {field.name} of {choices}, got {given!r}")
        clean[field.name] = [o for o in field.options if o in values] if field.many else given
    return clean


def votes_of(
    task: str, item: Item, answer: Answer, swapped: bool = False
) -> dict[str, tuple[float, bool]]:
    """Axis -> (value from 0 to 1, both are bad), as ``zoo.types.Vote`` holds them.

    ``swapped``: the second clip of a pair was heard as A. In the task integrity 1 means that every
    sound was ticked, in temporal that all are there in the stated order.
    """
    if task == "integrity":
        complete = set(answer.get("heard", ())) == set(item.events)
        return {task: (float(complete if "heard" in answer else answer["all"] == "yes"), False)}
    if task == "temporal":
        return {task: (float(answer["order"] == "yes"), False)}
    if task == "pairwise":
        better = answer["better"]
        value = {"a": 1.0, "b": 0.0}.get(better, 0.5)
        return {task: (1 - value if swapped else value, better == "both_bad")}
    return {axis: ((int(answer[axis]) - 1) / 4, False) for axis in TASKS[task].axes}


def passes_negative(task: str, answer: Answer, swapped: bool = False) -> bool:
    """Whether a rater recognised a clear negative.

    Its clip is that of an unrelated prompt (in the task quality: the clip under loud noise); in
    pairs that clip is the second one.
    """
    if task == "integrity":
        return not answer.get("heard") and answer.get("all") != "yes"
    if task == "temporal":
        return bool(answer["order"] == "missing")
    if task == "pairwise":
        return answer["better"] in ("b" if swapped else "a", "both_bad")
    return int(answer["relevance" if "relevance" in answer else "quality"]) <= 2


def is_repeated(task: str, item: Item, first: Answer, again: Answer, sides: Sequence[bool]) -> bool:
    """Whether two answers to one item agree; ``sides`` says whether each was heard swapped.

    Ratings may differ by one step.
    """
    one, other = (
        votes_of(task, item, answer, swapped)
        for answer, swapped in zip((first, again), sides, strict=True)
    )
    return all(abs(one[axis][0] - other[axis][0]) <= 0.25 for axis in one)
