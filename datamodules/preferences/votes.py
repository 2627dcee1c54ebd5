"""From votes to labels by named rules, and how far the voters agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from zoo.errors import UserError, did_you_mean
from zoo.types import Preference, Vote


def _mean(votes: Sequence[Vote]) -> float:
    return math.fsum(vote.value for vote in votes) / len(votes)


def _majority(votes: Sequence[Vote]) -> float:
    """1 or 0 for the side that most votes are on; votes of 0.5 are on neither; 0.5 for a tie."""
    above = sum(vote.value > 0.5 for vote in votes)
    below = sum(vote.value < 0.5 for vote in votes)
    return 0.5 if above == below else float(above > below)


RULES: dict[str, Callable[[Sequence[Vote]], float]] = {"majority": _majority, "mean": _mean}


def agreement(votes: Sequence[Vote]) -> float:
    """The largest share of votes on one side (above 0.5, below it, or on it); 1 = all agree."""
    sides = Counter((vote.value > 0.5) - (vote.value < 0.5) for vote in votes)
    return max(sides.values()) / len(votes)


def aggregate(
    records: Sequence[Preference],
    rule: str = "mean",
    minimum_agreement: float = 0.0,
    minimum_votes: int = 1,
    drop_ties: bool = False,
) -> tuple[tuple[Preference, ...], dict[str, int]]:
    """Sets the label of every record that has votes; the votes stay.

    Args:
        records: those without votes keep their label.
        rule: ``mean`` gives a soft label, ``majority`` 0, 1 or, for a tie, 0.5.
        minimum_agreement: 0 to 1; records with votes whose largest side is a smaller share are
            left out.
        minimum_votes: records with votes, but fewer, are left out.
        drop_ties: leaves out records whose label is 0.5.

    Returns:
        The records, and reason -> how many were left out for it.

    Raises:
        UserError: for an unknown rule, or bounds that cannot be.
    """
    if rule not in RULES:
        raise UserError(f"unknown rule {rule!r}; {did_you_mean(rule, RULES)}")
    if not 0 <= minimum_agreement <= 1:
        raise UserError(f"minimum_agreement: expected 0 to 1, got {minimum_agreement}")
    if minimum_votes < 1:
        raise UserError(f"minimum_votes: expected a number >= 1, got {minimum_votes}")
    kept = []
    left_out: Counter[str] = Counter()
    for record in records:
        votes = record.votes
        if votes:
            record = replace(record, label=RULES[rule](votes))
        if votes and len(votes) < minimum_votes:
            left_out["too few votes"] += 1
        elif votes and agreement(votes) < minimum_agreement:
            left_out["too little agreement"] += 1
        elif drop_ties and record.label == 0.5:
            left_out["tie"] += 1
        else:
            kept.append(record)
    return tuple(kept), dict(left_out)


def krippendorff_alpha(records: Sequence[Preference]) -> float | None:
    """Krippendorff's alpha of the votes, with squared distances: 1 = full agreement, 0 = chance.

    None when no clip has two votes, or all votes on such clips are equal: alpha is not defined
    then. Raters may have voted on different clips.
    """
    # imports all of NLTK, about two seconds
    from nltk.metrics import interval_distance
    from nltk.metrics.agreement import AnnotationTask

    votes = []
    for number, record in enumerate(records):
        if len(record.votes) > 1:
            votes += [(vote.rater, number, float(vote.value)) for vote in record.votes]
    if len({value for _, _, value in votes}) < 2:
        return None
    return float(AnnotationTask(votes, distance=interval_distance).alpha())
