"""The trials of one rater: items with few votes, and hidden checks among them.

A trial is one question. Checks are repeats of an item that was asked before, and clear negatives,
whose right answer is known. The page cannot tell them apart.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zoo.errors import UserError
from zoo.listening.items import Item, unrelated
from zoo.listening.questions import task_named
from zoo.listening.trials import balanced_sides

HEADPHONES = ("off", "check", "require")


@dataclass(frozen=True)
class StudySettings:
    """How a study is run.

    - ``task``: a key of ``zoo.listening.questions.TASKS``.
    - ``per_rater``: items for each rater; None: all.
    - ``repeats``, ``negatives``: hidden checks for each rater.
    - ``headphones``: "off", "check" (the result is saved) or "require".
    - ``questionnaire``: whether three short questions come before the completion code.
    - ``equal_level``: plays both clips of a pair at the level of the quieter one.
    """

    task: str
    per_rater: int | None = None
    repeats: int = 2
    negatives: int = 2
    headphones: str = "check"
    questionnaire: bool = True
    equal_level: bool = True

    def __post_init__(self) -> None:
        task_named(self.task)
        if self.per_rater is not None and self.per_rater < 1:
            raise UserError(f"per_rater: expected a number >= 1, got {self.per_rater}")
        for name in ("repeats", "negatives"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: expected a number >= 0, got {getattr(self, name)}")
        if self.headphones not in HEADPHONES:
            raise UserError(
                f"headphones: expected one of {', '.join(HEADPHONES)}, got {self.headphones!r}"
            )


@dataclass(frozen=True)
class Trial:
    """One question to one rater.

    - ``kind``: "item", "repeat" or "negative".
    - ``swapped``: the second clip of a pair is heard as A.
    - ``decoy``: in a negative, the item whose clip is heard instead (in pairs: as the second
      clip); None: the clip itself under noise.
    """

    item: int
    kind: str
    swapped: bool
    decoy: int | None = None
    position: int = 0
    key: str = ""


def draw_trials(
    items: Sequence[Item], settings: StudySettings, votes_I: Sequence[int], draw: random.Random
) -> list[Trial]:
    """The trials of one rater: those items that have the fewest votes, and the hidden checks.

    Args:
        items: of the study.
        settings: of the study.
        votes_I: how many votes every item has or will have.
        draw: decides between items with equally many votes, and the order.

    Returns:
        Items in random order; in half of the pairs the second clip is A. A repeat has at least a
        third of the items (five at most) between itself and its first time, the sides of a pair
        are then exchanged. Negatives are left out where no prompt is unrelated to another.
    """
    count = len(items) if settings.per_rater is None else min(settings.per_rater, len(items))
    order = draw.sample(range(len(items)), len(items))
    chosen = sorted(order, key=lambda item: votes_I[item])[:count]
    draw.shuffle(chosen)
    is_pair = settings.task == "pairwise"
    sides = balanced_sides(count, draw)
    trials = [
        Trial(item, "item", side and is_pair) for item, side in zip(chosen, sides, strict=True)
    ]
    gap = min(5, max(1, count // 3))
    repeated = draw.sample(range(count - gap), min(settings.repeats, count - gap))
    negatives = []
    for item in draw.sample(chosen, min(settings.negatives, count)):
        side = is_pair and draw.random() < 0.5
        if settings.task == "quality":
            negatives.append(Trial(item, "negative", side))
        elif others := unrelated(items, item):
            negatives.append(Trial(item, "negative", side, draw.choice(others)))
    for first in sorted(repeated, reverse=True):  # from the end, so that places stay
        one = trials[first]
        again = Trial(one.item, "repeat", is_pair and not one.swapped)
        trials.insert(draw.randint(first + 1 + gap, len(trials)), again)
    for negative in negatives:
        trials.insert(draw.randint(min(1, len(trials)), len(trials)), negative)
    return [replace(trial, position=i) for i, trial in enumerate(trials)]


def trial_from(row: sqlite3.Row) -> Trial:
    """The trial in a row of the table ``trials``."""
    return Trial(
        row["item"],
        row["kind"],
        bool(row["swapped"]),
        row["decoy"],
        row["position"],
        row["key"],
    )
