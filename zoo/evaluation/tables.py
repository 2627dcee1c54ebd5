"""Tables 1 and 2 of "RLHF on conditional music generation", as Markdown and HTML.

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

from zoo.evaluation.results import (
    CLIPS,
    ORIGINAL,
    TRAINED,
    ClipSet,
    Results,
    ScorerFacts,
    baseline_of,
)
from zoo.evaluation.statistics import (
    FEW_PROMPTS,
    SCORE,
    Accuracy,
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
DIFFERENCE = "difference"
OVER_PROMPTS = (
    "95 % intervals are over prompts (Student's t of the prompts' means: a prompt counts once,"
    " however many clips it has). They speak for prompts like those of the set, in number as the"
    " second column says; one prompt has no interval."
)


@dataclass(frozen=True)
class Table:
    """``notes`` stand below it, one per line."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """A line of Table 2: a set, and the original that it is compared with, if there is one."""

    one: ClipSet
    original: ClipSet | None = None

    @property
    def by_role(self) -> dict[str, ClipSet]:
        """Role -> set, the original first."""
        found = {} if self.original is None else {ORIGINAL: self.original}
        return {**found, self.one.role: self.one}

    @property
    def title(self) -> str:
        is_trained = self.one.role == TRAINED
        return f"{self.one.setting} ({self.one.name})" if is_trained else self.one.setting

    @property
    def sizes(self) -> str:
        """Clips (prompts), of the original and of the trained model where they differ."""
        return " / ".join(dict.fromkeys(sizes(one) for one in self.by_role.values()))


def lines(results: Results) -> list[Line]:
    """Every trained model with the original of its setting, then all unpaired sets, in order."""
    pairs = [
        Line(one, baseline_of(one, results.sets)) for one in results.sets if one.role == TRAINED
    ]
    used = [line.original for line in pairs]
    others = [one for one in results.sets if one.role != TRAINED and one not in used]
    return pairs + [Line(one) for one in others]


def columns(results: Results) -> tuple[str, ...]:
    """The roles that occur, and ``difference`` where a trained model has its original."""
    there = {one.role for one in results.sets}
    roles = tuple(role for role in (ORIGINAL, TRAINED, CLIPS) if role in there)
    is_compared = any(line.original is not None for line in lines(results))
    return (*roles, DIFFERENCE) if is_compared else roles


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
    unpaired = "" if difference.is_paired else ", unpaired"
    return shown(difference.estimate, digits, signed=True) + unpaired


def few_prompts_note(sets: Sequence[tuple[str, ClipSet]]) -> list[str]:
    """A note where one of the sets, each given with its title, has few prompts; else nothing."""
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
    """One row per set: accuracy for every class, and the balanced mean."""
    found = [(one, accuracy(one, scorer)) for one in results.sets]
    known = [(one, each) for one, each in found if each is not None]
    rows = tuple(_accuracy_row(one, each) for one, each in known)
    chances = ", ".join(f"{chance:.2f}" for chance in one_class_means(results, scorer))
    always = f"Calling every clip the same class gives a mean of at most {chances or NONE}."
    how = (
        f"{OVER_PROMPTS} Of a class (hits / clips) and of the mean over classes they are at least"
        f" as wide as Wilson's; of means over classes with {FEW_PROMPTS} prompts each or more, by"
        " bootstrap over prompts and their clips."
    )
    few = few_prompts_note([(one.title, one) for one, _ in known])
    notes = [note for one, each in known for note in _accuracy_notes(results, one, each)]
    header = ("setting, model", "clips (prompts)", *scorer.class_names, "mean")
    title = f"Table 1: accuracy by {scorer.title}"
    return Table(title, header, rows, (how, *few, always, _fingerprint(scorer), *notes))


def _accuracy_row(one: ClipSet, found: Accuracy) -> tuple[str, ...]:
    cells = []
    for place, each in enumerate(found.classes.values()):
        hits = found.confusion[place][place]
        cells.append(NONE if each is None else f"{shown(each)} ({hits}/{each.count})")
    return (one.title, sizes(one), *cells, shown(found.balanced))


def _accuracy_notes(results: Results, one: ClipSet, found: Accuracy) -> list[str]:
    """Notes on the power of unpaired sets, and on classes with little information."""
    notes = []
    if baseline_of(one, results.sets) is None:
        notes.append(f"{one.title}: {power_note(found)}.")
    absent = [name for name, each in found.classes.items() if each is None]
    if absent:
        notes.append(
            f"{one.title}: no prompt requests {', '.join(absent)}; the mean is over the other"
            " classes."
        )
    alone = [name for name, each in found.classes.items() if each is not None and each.prompts == 1]
    if alone:
        notes.append(
            f"{one.title}: one prompt requests each of {', '.join(alone)}; the interval of such"
            " a class is Wilson's over its clips and speaks for that prompt only."
        )
    return notes


def one_class_means(results: Results, scorer: ScorerFacts) -> list[float]:
    """The best balanced mean of calling all clips the same class, per number of classes."""
    found = [accuracy(one, scorer) for one in results.sets]
    counts = {
        sum(each is not None for each in one.classes.values()) for one in found if one is not None
    }
    return sorted(1 / count for count in counts)


def table_2(results: Results) -> Table:
    """One row per line: original, trained and difference of every scorer (``columns``).

    Accuracy for classifiers, else the mean score.
    """
    shown_columns = columns(results)
    header = [_line_head(results), "clips (prompts)"]
    for scorer in results.scorers:
        first, *more = shown_columns
        header += [f"{measure(scorer)} by {scorer.title}: {first}", *more]
    rows = []
    for line in lines(results):
        row = [line.title, line.sizes]
        for scorer in results.scorers:
            cells = _accuracy_cells(line, scorer) if scorer.class_names else _cells(line, scorer)
            row += [cells.get(name, NONE) for name in shown_columns]
        rows.append(tuple(row))
    is_both = DIFFERENCE in shown_columns
    how = (
        f"{OVER_PROMPTS} Accuracies: means over classes, their intervals at least as wide as by"
        " formula."
    )
    if is_both:
        how += " Differences are paired by prompt and sample number unless they say otherwise."
    rough = few_prompts_note([(line.title, line.one) for line in lines(results)])
    notes = (how, *rough, *map(_fingerprint, results.scorers))
    title = (
        "Table 2: original and trained" if is_both else f"Table 2: {' and '.join(shown_columns)}"
    )
    return Table(title, tuple(header), tuple(rows), notes)


def _line_head(results: Results) -> str:
    is_trained = any(one.role == TRAINED for one in results.sets)
    return "setting (trained model)" if is_trained else "setting"


def measure(scorer: ScorerFacts) -> str:
    """What the numbers of a scorer are called."""
    if scorer.class_names:
        return "accuracy"
    return "similarity" if scorer.title.startswith("clap/") else "score"


def _accuracy_cells(line: Line, scorer: ScorerFacts) -> dict[str, str]:
    """Column (see ``columns``) -> cell."""
    found = {role: accuracy(one, scorer) for role, one in line.by_role.items()}
    cells = {role: shown(each.balanced) for role, each in found.items() if each is not None}
    if line.original is not None and len(cells) == 2:
        both = accuracy_difference(line.original, line.one, scorer)
        cells[DIFFERENCE] = shown_difference(both)
    return cells


def _cells(line: Line, scorer: ScorerFacts, part: str = SCORE) -> dict[str, str]:
    """Column (see ``columns``) -> cell, of means of one number."""
    cells = {role: shown(mean(one, scorer, part), 3) for role, one in line.by_role.items()}
    if line.original is not None:
        both = mean_difference(line.original, line.one, scorer, part)
        cells[DIFFERENCE] = shown_difference(both, 3)
    return cells


def parts_table(results: Results, scorer: ScorerFacts) -> Table:
    """Means of the score and of every part that the scorer gave."""
    shown_columns = columns(results)
    rows = []
    for line in lines(results):
        parts = [part for clip in line.one.clips for part in clip.values.get(scorer.name, {})]
        for part in dict.fromkeys(parts):
            if has(line.one, scorer, part):
                cells = _cells(line, scorer, part)
                numbers = [cells.get(name, NONE) for name in shown_columns]
                rows.append((line.title, line.sizes, part, *numbers))
    header = (_line_head(results), "clips (prompts)", "number", *shown_columns)
    how = (
        f"{OVER_PROMPTS} Classes are not held fixed here, so an accuracy's interval can be wider"
        " than in Tables 1 and 2."
    )
    rough = few_prompts_note([(line.title, line.one) for line in lines(results)])
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
    sets = {
        one.title: {
            scorer.name: {
                "score": _plain(mean(one, scorer)),
                "accuracy": _plain(accuracy(one, scorer)),
            }
            for scorer in results.scorers
        }
        for one in results.sets
    }
    differences = {}
    for line in lines(results):
        if line.original is None:
            continue
        differences[f"{line.one.title} - {line.original.title}"] = {
            scorer.name: {
                "score": _plain(mean_difference(line.original, line.one, scorer)),
                "accuracy": _plain(accuracy_difference(line.original, line.one, scorer)),
            }
            for scorer in results.scorers
        }
    return {"sets": sets, "differences": differences}


def _plain(record: Estimate | Accuracy | Difference | None) -> dict[str, Any] | None:
    return None if record is None else asdict(record)


def as_markdown(tables: Sequence[Table]) -> str:
    """Tables as Markdown: a bar in a cell is escaped, a line end becomes a space."""
    parts = []
    for table in tables:
        rows = [table.header, ["---"] * len(table.header), *table.rows]
        body = "\n".join(f"| {' | '.join(map(_markdown_cell, row))} |" for row in rows)
        notes = "".join(f"\n- {note}" for note in table.notes)
        parts.append(f"## {table.title}\n\n{body}\n" + (f"{notes}\n" if notes else ""))
    return "\n".join(parts)


def _markdown_cell(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


def as_html(table: Table) -> str:
    """A table as HTML: everything is escaped, an interval stands below its number."""
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
