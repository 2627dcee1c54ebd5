"""From the numbers of single clips to those of the tables, each with its interval.

Clips of one prompt are not independent. So means and their differences have intervals of the two-stage bootstrap
(``zoo.metrics.bootstrap``). Shares of one class have Wilson's, which takes clips for independent, as published tables do. A
bootstrap of hits is blind where all clips of a class are right, or all wrong; so balanced means and their differences have the
wider of the bootstrap's interval and of one by formula (``mean_of_shares_interval``, ``paired_shares_interval``) on each side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_modules.evaluation.results import ClipSet, ScorerFacts, pairs
from zoo.metrics.bootstrap import bootstrap_means, percentile_interval
from zoo.metrics.intervals import (
    clips_needed,
    mcnemar_exact,
    mean_of_shares_interval,
    paired_shares_interval,
    smallest_rise,
    wilson_interval,
)

SCORE = "score"


@dataclass(frozen=True)
class Estimate:
    """``value`` with its 95 % interval; ``count``: the clips that it is of."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Accuracy:
    """Of one classifier on one set. ``classes``: class -> share of its clips that are called it (Wilson), None without clips.

    ``balanced``: mean over the classes that were asked for (bootstrap). ``confusion[i][j]``: clips that asked for class i and are
    called class j. ``prompts``: how many different ones.
    """

    class_names: tuple[str, ...]
    classes: dict[str, Estimate | None]
    balanced: Estimate
    confusion: list[list[int]]
    prompts: int

    @property
    def count(self) -> int:
        return self.balanced.count


@dataclass(frozen=True)
class Difference:
    """Trained minus original. ``is_paired``: clip by clip of the same prompts and sample numbers, else as independent sets.

    ``p``: of McNemar's exact test, of paired accuracies only; it takes clips for independent.
    """

    estimate: Estimate
    is_paired: bool
    p: float | None = None


def confusion_matrix(wanted: Sequence[str], predicted: Sequence[str], class_names: Sequence[str]) -> list[list[int]]:
    """Rows: what was asked for; columns: what it is called. Raises ``ValueError`` for a class that is none."""
    place = {name: i for i, name in enumerate(class_names)}
    strangers = {*wanted, *predicted} - place.keys()
    if strangers:
        raise ValueError(f"{', '.join(sorted(strangers))} is none of the classes {', '.join(class_names)}")
    matrix = [[0] * len(class_names) for _ in class_names]
    for asked, called in zip(wanted, predicted, strict=True):
        matrix[place[asked]][place[called]] += 1
    return matrix


def accuracy(one: ClipSet, scorer: ScorerFacts) -> Accuracy | None:
    """None for a scorer without classes and for a set that it did not score."""
    if not has(one, scorer, SCORE) or not scorer.class_names:
        return None
    wanted, predicted = ([getattr(clip, side)[scorer.name] for clip in one.clips] for side in ("wanted", "predicted"))
    confusion = confusion_matrix(wanted, predicted, scorer.class_names)
    classes: dict[str, Estimate | None] = {}
    for i, name in enumerate(scorer.class_names):
        hits, count = confusion[i][i], sum(confusion[i])
        classes[name] = Estimate(hits / count, *wilson_interval(hits, count), count) if count else None
    means = [each.value for each in classes.values() if each is not None]
    by_formula = mean_of_shares_interval([(confusion[i][i], sum(row)) for i, row in enumerate(confusion) if sum(row)])
    interval = _wider(percentile_interval(bootstrap_means(*_hits(one, scorer))), by_formula)
    balanced = Estimate(sum(means) / len(means), *interval, len(one.clips))
    return Accuracy(scorer.class_names, classes, balanced, confusion, len({clip.id for clip in one.clips}))


def _wider(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return min(first[0], second[0]), max(first[1], second[1])


def has(one: ClipSet, scorer: ScorerFacts, part: str) -> bool:
    """Whether the scorer gave this number for every clip of the set."""
    return bool(one.clips) and all(part in clip.values.get(scorer.name, {}) for clip in one.clips)


def column(one: ClipSet, scorer: ScorerFacts, part: str) -> list[float]:
    return [clip.values[scorer.name][part] for clip in one.clips]


def mean(one: ClipSet, scorer: ScorerFacts, part: str = SCORE) -> Estimate | None:
    """Mean over clips with its bootstrap interval over prompts and their clips; None for what was not scored."""
    if not has(one, scorer, part):
        return None
    values = column(one, scorer, part)
    interval = percentile_interval(bootstrap_means(values, [clip.id for clip in one.clips]))
    return Estimate(float(np.mean(values)), *interval, len(values))


def mean_difference(original: ClipSet, trained: ClipSet, scorer: ScorerFacts, part: str = SCORE) -> Difference | None:
    """None where one of the sets lacks the number."""
    if not (has(original, scorer, part) and has(trained, scorer, part)):
        return None
    columns = [(column(one, scorer, part), [clip.id for clip in one.clips], None) for one in (original, trained)]
    matched = pairs(trained, original)
    if matched is None:
        return Difference(_independent(*columns), is_paired=False)
    change = [new.values[scorer.name][part] - old.values[scorer.name][part] for new, old in matched]
    return Difference(_paired(change, [new.id for new, _ in matched], None), is_paired=True)


def accuracy_difference(original: ClipSet, trained: ClipSet, scorer: ScorerFacts) -> Difference | None:
    """Of balanced means. None where one of the sets lacks it, or they ask for different classes (not means of the same)."""
    if not scorer.class_names or not (has(original, scorer, SCORE) and has(trained, scorer, SCORE)):
        return None
    old, new = _hits(original, scorer), _hits(trained, scorer)
    if set(old[2]) != set(new[2]):
        return None
    matched = pairs(trained, original)
    if matched is None:
        return Difference(_apart(accuracy(original, scorer).balanced, accuracy(trained, scorer).balanced), is_paired=False)
    right = [tuple(clip.wanted[scorer.name] == clip.predicted[scorer.name] for clip in pair) for pair in matched]
    p = mcnemar_exact(right.count((False, True)), right.count((True, False)))
    change = [float(new) - float(old) for new, old in right]
    classes = [clip.wanted[scorer.name] for clip, _ in matched]
    found = _paired(change, [clip.id for clip, _ in matched], classes)
    kinds = [Counter(value for value, own in zip(change, classes) if own == name) for name in dict.fromkeys(classes)]
    low, high = _wider((found.low, found.high), paired_shares_interval([(k[1.0], k[-1.0], k.total()) for k in kinds]))
    return Difference(replace(found, low=low, high=high), True, p)


def _apart(old: Estimate, new: Estimate) -> Estimate:
    """Difference of independent means from their own intervals (Zou and Donner 2008)."""
    value = new.value - old.value
    low = value - float(np.hypot(new.value - new.low, old.high - old.value))
    high = value + float(np.hypot(new.high - new.value, old.value - old.low))
    return Estimate(value, low, high, min(old.count, new.count))


Column = tuple[list[float], list[str], list[str] | None]  # values, prompts, classes: one each a clip


def _hits(one: ClipSet, scorer: ScorerFacts) -> Column:
    wanted = [clip.wanted[scorer.name] for clip in one.clips]
    hits = [float(clip.predicted[scorer.name] == asked) for clip, asked in zip(one.clips, wanted, strict=True)]
    return hits, [clip.id for clip in one.clips], wanted


def _stratified_mean(values: Sequence[float], classes: Sequence[str] | None) -> float:
    if classes is None:
        return float(np.mean(values))
    return float(np.mean([np.mean([v for v, c in zip(values, classes) if c == name]) for name in dict.fromkeys(classes)]))


def _paired(change: list[float], prompts: list[str], classes: list[str] | None) -> Estimate:
    interval = percentile_interval(bootstrap_means(change, prompts, classes))
    return Estimate(_stratified_mean(change, classes), *interval, len(change))


def _independent(old: Column, new: Column) -> Estimate:
    interval = percentile_interval(bootstrap_means(*new, seed=1) - bootstrap_means(*old, seed=0))
    value = _stratified_mean(new[0], new[2]) - _stratified_mean(old[0], old[2])
    return Estimate(value, *interval, min(len(old[0]), len(new[0])))


def power_note(accuracy: Accuracy) -> str:
    """What so many clips can show: the smallest rise that is found with 80 % power, and the clips that a rise of 0.10 needs."""
    share = accuracy.balanced.value
    rise = smallest_rise(share, accuracy.count)
    seen = "no rise at all" if rise is None else f"a rise of {rise:.2f} or more"
    note = f"{accuracy.count} independent clips a model show {seen} from {share:.2f} with 80 % power (two-sided, 5 %)"
    if share + 0.1 > 1:
        return note
    return f"{note}; a rise of 0.10 needs {int(np.ceil(clips_needed(share, share + 0.1)))} clips a model"
