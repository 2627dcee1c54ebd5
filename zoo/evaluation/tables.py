"""Tables 1 and 2 of "RLHF on conditional music generation" from an evaluation, as Markdown and
HTML.

Table 1: accuracy of a mood classifier for every mood, and their mean. Table 2: CLAP similarity and
accuracy of the original and of the trained model. Here every number also says how sure it is and of
how many clips.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zoo.evaluation.results import TRAINED, ClipSet, Results, ScorerFacts, baseline_of
from zoo.evaluation.statistics import (
    FEW_PROMPTS,
    SCORE,
    Difference,
    Estimate,
    accuracy,
    accuracy_difference,
    has,
    mean,
    mean_difference,
    power_note,
)

NONE = "-"
OVER_PROMPTS = (
    "95 % intervals are over prompts (Student's t of the prompts' means: a prompt counts once,"
    " however many clips it has). They speak for prompts like those of the set, in number as the"
    " second column says; one prompt has no interval."
)


@dataclass(frozen=True)
class Table:
    """``notes`` stand below it, one a line."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """A line of Table 2: one side is None where a setting has only the other."""

    original: ClipSet | None
    trained: ClipSet | None

    @property
    def some(self) -> ClipSet:
        return self.trained or self.original

    @property
    def title(self) -> str:
        return (
            self.some.setting
            if self.trained is None
            else f"{self.trained.setting} ({self.trained.name})"
        )

    @property
    def sizes(self) -> str:
        """Clips (prompts), of the original and of the trained model where they differ."""
        return " / ".join(
            dict.fromkeys(sizes(one) for one in (self.original, self.trained) if one is not None)
        )


def lines(results: Results) -> list[Line]:
    """Every trained model with the original of its setting, then the originals that nothing was
    trained from, in order.
    """
    pairs = [
        Line(baseline_of(one, results.sets), one) for one in results.sets if one.role == TRAINED
    ]
    used = [line.original for line in pairs]
    return pairs + [
        Line(one, None) for one in results.sets if one.role != TRAINED and one not in used
    ]


def shown(estimate: Estimate | None, digits: int = 2, signed: bool = False) -> str:
    """``0.36 [0.27, 0.46]``."""
    if estimate is None:
        return NONE
    sign = "+" if signed else ""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{sign}.{digits}f} (one prompt, no interval)"
    value, low, high = (
        f"{number:{sign}.{digits}f}" for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def shown_difference(difference: Difference | None, digits: int = 2) -> str:
    if difference is None:
        return NONE
    return shown(difference.estimate, digits, signed=True) + (
        "" if difference.is_paired else ", unpaired"
    )


def few_prompts_note(sets: Sequence[tuple[str, ClipSet]]) -> list[str]:
    """What is to be said where a set, given with its title, has few prompts; nothing where none
    has.
    """
    few = sorted(
        {title for title, one in sets if len({clip.id for clip in one.clips}) < FEW_PROMPTS}
    )
    if not few:
        return []
    return [
        f"Fewer than {FEW_PROMPTS} prompts ({'; '.join(few)}): how prompts differ is known from"
        " these few alone, so the intervals are rough, and other prompts may do otherwise."
    ]


def sizes(one: ClipSet) -> str:
    return f"{len(one.clips)} ({len({clip.id for clip in one.clips})})"


def table_1(results: Results, scorer: ScorerFacts) -> Table:
    """One row a set: accuracy for every class, and the balanced mean."""
    rows, notes = [], []
    for one in results.sets:
        found = accuracy(one, scorer)
        if found is None:
            continue
        cells = []
        for each in found.classes.values():
            cells.append(
                NONE
                if each is None
                else f"{shown(each)} ({found.confusion[len(cells)][len(cells)]}/{each.count})"
            )
        rows.append((one.title, sizes(one), *cells, shown(found.balanced)))
        if baseline_of(one, results.sets) in (None, one):
            notes.append(f"{one.title}: {power_note(found)}.")
        absent = [name for name, each in found.classes.items() if each is None]
        if absent:
            notes.append(
                f"{one.title}: nothing asked for {', '.join(absent)}; the mean is over the other"
                " classes."
            )
        alone = [
            name for name, each in found.classes.items() if each is not None and each.prompts == 1
        ]
        if alone:
            notes.append(
                f"{one.title}: one prompt asked for each of {', '.join(alone)}; the interval of"
                " such a class is Wilson's over its clips and speaks for that prompt only."
            )
    chances = ", ".join(f"{chance:.2f}" for chance in one_class_means(results, scorer))
    always = f"Calling every clip the same class gives a mean of at most {chances or NONE}."
    how = (
        f"{OVER_PROMPTS} Of a class (hits / clips) and of the mean over classes they are at least"
        f" as wide as Wilson's; of means over classes with {FEW_PROMPTS} prompts each or more, by"
        " bootstrap over prompts and their clips."
    )
    few = few_prompts_note(
        [(one.title, one) for one in results.sets if accuracy(one, scorer) is not None]
    )
    header = ("setting, model", "clips (prompts)", *scorer.class_names, "mean")
    return Table(
        f"Table 1: accuracy by {scorer.title}",
        header,
        tuple(rows),
        (how, *few, always, _fingerprint(scorer), *notes),
    )


def one_class_means(results: Results, scorer: ScorerFacts) -> list[float]:
    """The best balanced mean of calling every clip the same class, for each number of classes that
    a set asks for.
    """
    found = (accuracy(one, scorer) for one in results.sets)
    return sorted(
        {
            1 / sum(each is not None for each in one.classes.values())
            for one in found
            if one is not None
        }
    )


def table_2(results: Results) -> Table:
    """One row a trained model: original, trained and difference of every scorer: accuracy of
    classifiers, else the mean score.
    """
    header = ["setting (trained model)", "clips (prompts)"]
    for scorer in results.scorers:
        what = (
            "accuracy"
            if scorer.class_names
            else "similarity"
            if scorer.title.startswith("clap/")
            else "score"
        )
        header += [f"{what} by {scorer.title}: original", "trained", "difference"]
    rows = []
    for line in lines(results):
        row = [line.title, line.sizes]
        for scorer in results.scorers:
            row += _triple(line, scorer)
        rows.append(tuple(row))
    how = (
        f"{OVER_PROMPTS} Accuracies: means over classes, their intervals at least as wide as by"
        " formula. Differences are paired by prompt and sample number unless they say otherwise."
    )
    rough = few_prompts_note([(line.title, line.some) for line in lines(results)])
    notes = (how, *rough, *map(_fingerprint, results.scorers))
    return Table("Table 2: original and trained", tuple(header), tuple(rows), notes)


def _triple(line: Line, scorer: ScorerFacts) -> list[str]:
    sides = (line.original, line.trained)
    if scorer.class_names:
        found = [None if one is None else accuracy(one, scorer) for one in sides]
        cells = [NONE if each is None else shown(each.balanced) for each in found]
        both = None if None in found else accuracy_difference(*sides, scorer)
        return [*cells, shown_difference(both)]
    cells = [NONE if one is None else shown(mean(one, scorer), 3) for one in sides]
    both = None if None in sides else mean_difference(*sides, scorer)
    return [*cells, shown_difference(both, 3)]


def parts_table(results: Results, scorer: ScorerFacts) -> Table:
    """Means of the score and of each of its parts: original, trained and difference."""
    rows = []
    for line in lines(results):
        for part in dict.fromkeys(
            part for clip in line.some.clips for part in clip.values.get(scorer.name, {})
        ):
            if not has(line.some, scorer, part):
                continue
            sides = [
                None if one is None else mean(one, scorer, part)
                for one in (line.original, line.trained)
            ]
            both = (
                None
                if None in sides
                else mean_difference(line.original, line.trained, scorer, part)
            )
            rows.append(
                (
                    line.title,
                    line.sizes,
                    part,
                    *(shown(side, 3) for side in sides),
                    shown_difference(both, 3),
                )
            )
    header = (
        "setting (trained model)",
        "clips (prompts)",
        "number",
        "original",
        "trained",
        "difference",
    )
    how = (
        f"{OVER_PROMPTS} Classes are not held fixed here, so an accuracy's interval can be wider"
        " than in Tables 1 and 2."
    )
    rough = few_prompts_note([(line.title, line.some) for line in lines(results)])
    return Table(f"All numbers by {scorer.title}", header, tuple(rows), (how, *rough))


def _fingerprint(scorer: ScorerFacts) -> str:
    return (
        f"{scorer.name}: fingerprint {scorer.fingerprint} (of weights and settings; equal ones give"
        " equal numbers)."
    )


def all_tables(results: Results) -> tuple[list[Table], list[Table], list[Table]]:
    """Table 1 for every classifier, Table 2, and all numbers of every scorer."""
    first = [table_1(results, scorer) for scorer in results.scorers if scorer.class_names]
    return first, [table_2(results)], [parts_table(results, scorer) for scorer in results.scorers]


def summary(results: Results) -> dict[str, Any]:
    """Every estimate as plain values, for ``results.json``."""
    sets = {}
    for one in results.sets:
        record: dict[str, Any] = {}
        for scorer in results.scorers:
            found, score = accuracy(one, scorer), mean(one, scorer)
            record[scorer.name] = {
                "score": None if score is None else asdict(score),
                "accuracy": None if found is None else asdict(found),
            }
        sets[one.title] = record
    differences = {}
    for line in lines(results):
        if line.original is None or line.trained is None:
            continue
        record = {}
        for scorer in results.scorers:
            by_kind = {
                "score": mean_difference(line.original, line.trained, scorer, SCORE),
                "accuracy": accuracy_difference(line.original, line.trained, scorer),
            }
            record[scorer.name] = {
                name: None if each is None else asdict(each) for name, each in by_kind.items()
            }
        differences[f"{line.trained.title} - {line.original.title}"] = record
    return {"sets": sets, "differences": differences}


def as_markdown(tables: Sequence[Table]) -> str:
    """A bar in a cell is escaped, a line end becomes a space."""
    parts = []
    for table in tables:
        rows = [table.header, ["---"] * len(table.header), *table.rows]
        body = "\n".join(
            "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |"
            for row in rows
        )
        notes = "".join(f"\n- {note}" for note in table.notes)
        parts.append(
            f"## {table.title}\n\n{body}\n{notes}\n" if notes else f"## {table.title}\n\n{body}\n"
        )
    return "\n".join(parts)


def as_html(table: Table) -> str:
    """Everything is escaped; an interval stands below its number."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    body = "".join(
        "<tr>" + "".join(f"<td>{_html_cell(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return (
        f"<h2>{html.escape(table.title)}</h2><table><tr>{head}</tr>{body}</table><ul"
        f' class="note">{notes}</ul>'
    )


def _html_cell(cell: str) -> str:
    return re.sub(
        r" (\[[-+.\d]+, [-+.\d]+\])", r'<br><span class="interval">\1</span>', html.escape(cell)
    )
