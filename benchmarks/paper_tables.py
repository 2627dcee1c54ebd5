"""Tables and a picture for ``benchmarks/paper_questions.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.evaluation import Measured, half_width, markdown_table, shown
from benchmarks.quickstart_seeds import JUDGE, differences, direction
from zoo.files import written_beside
from zoo.statistics.intervals import mean_and_error

SCORES = {
    "accuracy": "balanced accuracy",
    "reward": "value reward",
    JUDGE: "held-out judge p(mood)",
    "clap": "CLAP cosine",
}
TABLE1, OWN = "table1", "own"  # the two sets of prompts
Titles = Mapping[str, str]  # condition -> its title in tables
# (condition, seed) -> set of prompts -> measurements
Runs = Mapping[tuple[str, int], Mapping[str, Measured]]
Bases = Mapping[str, Mapping[str, Measured]]  # condition -> set of prompts


def verdict(before: Measured, after: Measured, name: str) -> str:
    """``rose``, ``fell`` or ``unchanged``, by the interval over prompts."""
    return direction(differences(before, after, name))


def scored(bases: Bases) -> dict[str, str]:
    """The measured ``SCORES``: all, or all but the judge's."""
    measured = next(iter(bases.values()))[TABLE1].values
    return {name: title for name, title in SCORES.items() if name in measured}


def summary(titles: Titles, bases: Bases, runs: Runs, which: str) -> str:
    """One row per condition: base, mean over seeds after, and how many seeds rose and fell."""
    lines = []
    for condition, title in titles.items():
        rows = [row[which] for (name, _), row in runs.items() if name == condition and which in row]
        if not rows:
            continue
        before = bases[condition][which]
        line = [title]
        for score in scored(bases):
            verdicts = [verdict(before, row, score) for row in rows]
            after = np.mean([row.values[score].mean() for row in rows])
            line.append(f"{before.values[score].mean():.3f} -> {after:.3f}")
            line.append(f"{verdicts.count('rose')} / {verdicts.count('fell')} of {len(rows)}")
        lines.append(line)
    header = [
        "condition",
        *(text for title in scored(bases).values() for text in (title, "rose / fell")),
    ]
    return markdown_table(header, lines)


def over_seeds(titles: Titles, bases: Bases, runs: Runs, which: str) -> str:
    """One row per condition with two or more seeds: mean difference ± standard error over seeds."""
    lines = []
    for condition, title in titles.items():
        rows = [row[which] for (name, _), row in runs.items() if name == condition and which in row]
        if len(rows) > 1:
            before = bases[condition][which]
            means = [
                [differences(before, row, score).value for row in rows] for score in scored(bases)
            ]
            lines.append(
                [title, *("{:.3f} ± {:.3f}".format(*mean_and_error(column)) for column in means)]
            )
    return markdown_table(["condition", *scored(bases).values()], lines)


def references(real: Mapping[str, Measured]) -> str:
    """Scores of clips that no run made, with 95 % intervals: how high the scores can be."""
    columns = {
        name: title
        for name, title in SCORES.items()
        if all(name in clips.values for clips in real.values())
    }
    rows = [
        [title, *(shown(clips.estimate(name), 3) for name in columns)]
        for title, clips in real.items()
    ]
    return (
        markdown_table(["clips", *columns.values()], rows)
        if rows
        else "Not measured: there is no judge.\n"
    )


def every_run(bases: Bases, runs: Runs, which: str) -> str:
    """One row per run: the value after, and the paired difference with its interval."""
    lines = []
    for (name, seed), row in runs.items():
        if which in row:
            before = bases[name][which]
            line = [name, str(seed)]
            for score in scored(bases):
                line += [
                    f"{row[which].values[score].mean():.3f}",
                    shown(differences(before, row[which], score), 3),
                ]
            lines.append(line)
    return markdown_table(
        [
            "condition",
            "seed",
            *(text for title in scored(bases).values() for text in (title, "difference")),
        ],
        lines,
    )


def by_emotion(titles: Titles, bases: Bases, runs: Runs) -> str:
    """Table 1 of the paper: accuracy per emotion, of each base and each condition (seed mean)."""
    moods = list(dict.fromkeys(next(iter(bases.values()))[TABLE1].groups))
    lines = []

    def line(title: str, rows: Sequence[Measured]) -> None:
        means = [np.mean([row.mean("accuracy", mood) for row in rows]) for mood in moods]
        lines.append([title, *(f"{mean:.2f}" for mean in means)])

    seen: list[list[float]] = []  # conditions with the same sampler have the same base
    for condition, title in titles.items():
        rows = [row[TABLE1] for (name, _), row in runs.items() if name == condition]
        if rows:
            base = bases[condition][TABLE1]
            if (accuracy := base.values["accuracy"].tolist()) not in seen:
                line(f"base of: {title}" if seen else "base", [base])
                seen.append(accuracy)
            line(title, rows)
    return markdown_table(["trained on", *moods], lines)


def picture(titles: Titles, bases: Bases, runs: Runs, path: Path) -> None:
    """Draws paired differences on the prompts of Table 1: a panel per score, a point per seed."""
    from matplotlib.figure import Figure

    drawn = scored(bases)
    shown_titles = {condition: title for condition, title in titles.items() if condition in bases}
    figure = Figure(figsize=(13, 0.9 + 0.34 * len(shown_titles)), layout="constrained")
    panels = figure.subplots(1, len(drawn), sharey=True)
    for axes, (score, title) in zip(panels, drawn.items(), strict=True):
        for place, condition in enumerate(shown_titles):
            rows = [row[TABLE1] for (name, _), row in runs.items() if name == condition]
            for shift, row in enumerate(rows):
                found = differences(bases[condition][TABLE1], row, score)
                height = -place + 0.14 * ((len(rows) - 1) / 2 - shift)
                half = half_width(found)
                colour = f"C{place % 10}"
                axes.errorbar(
                    found.value, height, xerr=half, fmt="o", markersize=4, capsize=2, color=colour
                )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("after - before, 95 % over prompts", fontsize=9)
    panels[0].set_yticks(
        [-place for place in range(len(shown_titles))], list(shown_titles.values())
    )
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=150)
