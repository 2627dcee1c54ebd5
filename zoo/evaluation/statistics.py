"""From the numbers of single clips to those of the tables, each with its interval.

Clips of one prompt are not independent, so intervals are over prompts
(``zoo.statistics.clustered``: Student's t over the means of prompts), of differences paired by
prompt. Hits alone are blind where all clips of a class are right, or all wrong: shares of one class
have at least Wilson's interval, balanced means and their differences at least the one by formula
(``mean_of_shares_interval``, ``paired_shares_interval``). Where every class has ``FEW_PROMPTS``
prompts or more, balanced means have the two-stage bootstrap (``zoo.statistics.bootstrap``) instead
of t: it stays within 0..1 and knows that a share near 1 is uncertain on one side only; with fewer
prompts it is too narrow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoo.errors import UserError
from zoo.evaluation.best_of_n import best_of_n
from zoo.evaluation.results import ClipSet, ScorerFacts, pairs
from zoo.statistics.bootstrap import bootstrap_means, percentile_interval
from zoo.statistics.clustered import Clustered, clustered_difference, clustered_mean
from zoo.statistics.intervals import (
    clips_needed,
    mean_of_shares_interval,
    paired_shares_interval,
    smallest_rise,
    wilson_interval,
)

FEW_PROMPTS = 10  # below, a bootstrap over prompts is too narrow, and any interval is rough
Interval = tuple[float, float] | None
SCORE = "score"


@dataclass(frozen=True)
class Estimate:
    """``value`` over ``count`` clips, with its 95 % interval over prompts (None for one prompt)."""

    value: float
    low: float | None
    high: float | None
    count: int
    prompts: int


@dataclass(frozen=True)
class Accuracy:
    """Of one classifier on one set.

    ``classes``: class -> share of its clips that are called it, None without clips; of a class with
    one prompt the interval is Wilson's over its clips, and speaks for that prompt only.

    ``balanced``: mean over the requested classes. ``confusion[i][j]``: clips that asked
    for class i and are called
    class j.
    """

    class_names: tuple[str, ...]
    classes: dict[str, Estimate | None]
    balanced: Estimate
    confusion: list[list[int]]

    @property
    def count(self) -> int:
        return self.balanced.count

    @property
    def prompts(self) -> int:
        return self.balanced.prompts


@dataclass(frozen=True)
class Difference:
    """Trained minus original.

    ``is_paired``: by the same prompts and sample numbers, else as independent sets.
    """

    estimate: Estimate
    is_paired: bool


def confusion_matrix(
    wanted: Sequence[str], predicted: Sequence[str], class_names: Sequence[str]
) -> list[list[int]]:
    """Counts clips by requested class (row) and predicted class (column).

    Raises ``UserError`` for an unknown class.
    """
    place = {name: i for i, name in enumerate(class_names)}
    unknown = {*wanted, *predicted} - place.keys()
    if unknown:
        raise UserError(
            f"unknown class {', '.join(sorted(unknown))}; expected one of {', '.join(class_names)}"
        )
    matrix = [[0] * len(class_names) for _ in class_names]
    for asked, called in zip(wanted, predicted, strict=True):
        matrix[place[asked]][place[called]] += 1
    return matrix


def accuracy(one: ClipSet, scorer: ScorerFacts) -> Accuracy | None:
    """None for a scorer without classes and for a set that it did not score."""
    if not has(one, scorer, SCORE) or not scorer.class_names:
        return None
    wanted = [clip.wanted[scorer.name] for clip in one.clips]
    predicted = [clip.predicted[scorer.name] for clip in one.clips]
    confusion = confusion_matrix(wanted, predicted, scorer.class_names)
    hits, prompts, asked = _hits(one, scorer)
    classes: dict[str, Estimate | None] = {}
    for name in scorer.class_names:
        rows = [i for i, own in enumerate(asked) if own == name]
        share = _share([hits[i] for i in rows], [prompts[i] for i in rows]) if rows else None
        classes[name] = share
    shares = [(confusion[i][i], sum(row)) for i, row in enumerate(confusion) if sum(row)]
    by_formula = mean_of_shares_interval(shares)
    balanced = _balanced(hits, prompts, asked, by_formula, (0.0, 1.0))
    return Accuracy(scorer.class_names, classes, balanced, confusion)


def _share(hits: Sequence[float], prompts: Sequence[str]) -> Estimate:
    """The share of hits among the clips of one class; its interval is at least Wilson's."""
    found = clustered_mean(hits, prompts)
    interval = wilson_interval(sum(hits), len(hits))
    if found.low is not None:
        interval = _clipped(_wider((found.low, found.high), interval), (0.0, 1.0))
    return Estimate(found.value, *interval, found.clips, found.prompts)


def _balanced(
    values: Sequence[float],
    prompts: Sequence[str],
    classes: Sequence[str],
    by_formula: Interval,
    bounds: tuple[float, float],
) -> Estimate:
    """Mean over classes of hits or paired changes; the interval is at least ``by_formula``."""
    found = clustered_mean(values, prompts, classes)
    asked = Counter(name for name, _ in dict.fromkeys(zip(classes, prompts, strict=True)))
    if min(asked.values()) >= FEW_PROMPTS:
        over_prompts: Interval = percentile_interval(bootstrap_means(values, prompts, classes))
    else:
        over_prompts = None if found.low is None else (found.low, found.high)
    if over_prompts is None:
        return _estimate(found)
    low, high = _clipped(_wider(over_prompts, by_formula), bounds)
    return Estimate(found.value, low, high, found.clips, found.prompts)


def _estimate(found: Clustered) -> Estimate:
    return Estimate(found.value, found.low, found.high, found.clips, found.prompts)


def _wider(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return min(first[0], second[0]), max(first[1], second[1])


def _clipped(interval: tuple[float, float], bounds: tuple[float, float]) -> tuple[float, float]:
    return max(interval[0], bounds[0]), min(interval[1], bounds[1])


def has(one: ClipSet, scorer: ScorerFacts, part: str) -> bool:
    """Whether the scorer gave this number for every clip of the set."""
    return bool(one.clips) and all(part in clip.values.get(scorer.name, {}) for clip in one.clips)


def column(one: ClipSet, scorer: ScorerFacts, part: str) -> list[float]:
    return [clip.values[scorer.name][part] for clip in one.clips]


def mean(one: ClipSet, scorer: ScorerFacts, part: str = SCORE) -> Estimate | None:
    """Mean over prompts with its interval; None for what was not scored."""
    return _estimate(_mean(one, scorer, part)) if has(one, scorer, part) else None


def _mean(one: ClipSet, scorer: ScorerFacts, part: str) -> Clustered:
    return clustered_mean(column(one, scorer, part), [clip.id for clip in one.clips])


def mean_difference(
    original: ClipSet, trained: ClipSet, scorer: ScorerFacts, part: str = SCORE
) -> Difference | None:
    """None where one of the sets lacks the number."""
    if not (has(original, scorer, part) and has(trained, scorer, part)):
        return None
    matched = pairs(trained, original)
    if matched is None:
        found = clustered_difference(_mean(original, scorer, part), _mean(trained, scorer, part))
        return Difference(_estimate(found), is_paired=False)
    change = [new.values[scorer.name][part] - old.values[scorer.name][part] for new, old in matched]
    return Difference(
        _estimate(clustered_mean(change, [new.id for new, _ in matched])), is_paired=True
    )


def accuracy_difference(
    original: ClipSet, trained: ClipSet, scorer: ScorerFacts
) -> Difference | None:
    """Of balanced means.

    None where one of the sets lacks it, or they ask for different classes (not means of the same).
    """
    if not scorer.class_names or not (has(original, scorer, SCORE) and has(trained, scorer, SCORE)):
        return None
    if set(_hits(original, scorer)[2]) != set(_hits(trained, scorer)[2]):
        return None
    matched = pairs(trained, original)
    if matched is None:
        return Difference(
            _apart(accuracy(original, scorer).balanced, accuracy(trained, scorer).balanced),
            is_paired=False,
        )
    right = [
        tuple(clip.wanted[scorer.name] == clip.predicted[scorer.name] for clip in pair)
        for pair in matched
    ]
    change = [float(new) - float(old) for new, old in right]
    classes = [clip.wanted[scorer.name] for clip, _ in matched]
    kinds = [
        Counter(value for value, own in zip(change, classes) if own == name)
        for name in dict.fromkeys(classes)
    ]
    by_formula = paired_shares_interval([(k[1.0], k[-1.0], k.total()) for k in kinds])
    return Difference(
        _balanced(change, [clip.id for clip, _ in matched], classes, by_formula, (-1.0, 1.0)),
        is_paired=True,
    )


def _apart(old: Estimate, new: Estimate) -> Estimate:
    """The difference of independent means, from their own intervals (Zou and Donner 2008)."""
    value = new.value - old.value
    count = min(old.count, new.count)
    prompts = min(old.prompts, new.prompts)
    if old.low is None or new.low is None:
        return Estimate(value, None, None, count, prompts)
    low = value - float(np.hypot(new.value - new.low, old.high - old.value))
    high = value + float(np.hypot(new.high - new.value, old.value - old.low))
    return Estimate(value, low, high, count, prompts)


@dataclass(frozen=True)
class Picked:
    """The best of n clips of every prompt, as one scorer sees them: ``value`` and ``gain``.

    ``gain``: the difference to the mean of the same clips, paired by prompt. ``is_judged``: False
    where the scorer is the one that picks.
    """

    value: Estimate
    gain: Estimate
    is_judged: bool


def picked(one: ClipSet, by: ScorerFacts, n: int, scorer: ScorerFacts) -> Picked | None:
    """Of accuracies (means over classes) for a classifier, else of scores.

    None for a set that one of the two did not score. Raises ``UserError`` where a prompt has fewer
    than ``n`` clips.
    """
    if not (has(one, by, SCORE) and has(one, scorer, SCORE)):
        return None
    values = _hits(one, scorer)[0] if scorer.class_names else column(one, scorer, SCORE)
    picking = column(one, by, SCORE)
    places: dict[str, list[int]] = {}
    for place, clip in enumerate(one.clips):
        places.setdefault(clip.id, []).append(place)
    rows = places.values()
    wanted = [one.clips[own[0]].wanted.get(scorer.name, "") for own in rows]
    # one network under two names would still judge its own choice
    is_judged = by.fingerprint != scorer.fingerprint
    found = best_of_n(
        {
            "by": [[picking[place] for place in own] for own in rows],
            "judge": [[values[place] for place in own] for own in rows],
        },
        "by",
        "judge",
        n,
        list(places),
        wanted if scorer.class_names else None,
    )
    if not scorer.class_names:
        return Picked(_estimate(found.best), _estimate(found.gain), is_judged)
    return Picked(
        _share_of_classes(found.best_P, list(places), wanted),
        _change_of_classes(found.gain_P, list(places), wanted),
        is_judged,
    )


def _share_of_classes(
    hits: Sequence[float], prompts: Sequence[str], classes: Sequence[str]
) -> Estimate:
    """Mean over classes of shares of hits, one per prompt, which counts as one clip."""
    own = _by_class(hits, classes)
    by_formula = mean_of_shares_interval([(min(sum(each), len(each)), len(each)) for each in own])
    return _balanced(hits, prompts, classes, by_formula, (0.0, 1.0))


def _change_of_classes(
    changes: Sequence[float], prompts: Sequence[str], classes: Sequence[str]
) -> Estimate:
    own = _by_class(changes, classes)
    kinds = [(sum(max(one, 0) for one in each), -sum(min(one, 0) for one in each)) for each in own]
    by_formula = paired_shares_interval(
        [(gained, lost, len(each)) for (gained, lost), each in zip(kinds, own, strict=True)]
    )
    return _balanced(changes, prompts, classes, by_formula, (-1.0, 1.0))


def _by_class(values: Sequence[float], classes: Sequence[str]) -> list[list[float]]:
    return [
        [value for value, own in zip(values, classes, strict=True) if own == name]
        for name in dict.fromkeys(classes)
    ]


Column = tuple[list[float], list[str], list[str]]  # values, prompts, classes: one each per clip


def _hits(one: ClipSet, scorer: ScorerFacts) -> Column:
    wanted = [clip.wanted[scorer.name] for clip in one.clips]
    hits = [
        float(clip.predicted[scorer.name] == asked)
        for clip, asked in zip(one.clips, wanted, strict=True)
    ]
    return hits, [clip.id for clip in one.clips], wanted


def power_note(accuracy: Accuracy) -> str:
    """The smallest rise found with 80 % power, and the clips that a rise of 0.10 needs."""
    share = accuracy.balanced.value
    rise = smallest_rise(share, accuracy.count)
    seen = "no rise at all" if rise is None else f"a rise of {rise:.2f} or more"
    note = (
        f"{accuracy.count} independent clips per model show {seen} from {share:.2f} with 80 % power"
        " (two-sided, 5 %)"
    )
    if share + 0.1 <= 1:
        note += (
            f"; a rise of 0.10 needs {int(np.ceil(clips_needed(share, share + 0.1)))} clips per"
            " model"
        )
    if accuracy.count == accuracy.prompts:
        return note
    return (
        f"{note}. Clips of one prompt are not independent: those of {accuracy.prompts} prompts show"
        " less"
    )
