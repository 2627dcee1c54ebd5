"""The pictures of an evaluation, and a ``report.html`` that opens offline."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import wrap
from typing import Any

from zoo.evaluation.beside import PICTURE as BEST_OF_N
from zoo.evaluation.beside import draw_best_of_n
from zoo.evaluation.results import (
    CLIPS,
    ORIGINAL,
    TRAINED,
    ClipSet,
    Results,
    ScoredClip,
    ScorerFacts,
)
from zoo.evaluation.statistics import SCORE, Accuracy, Estimate, accuracy, has, mean
from zoo.evaluation.tables import Line, Table, as_html, lines, one_class_means
from zoo.files import written_beside
from zoo.html_pages import page, picture, player

CONFUSION = "confusion.png"
TABLES = "tables.png"
REPORT = "report.html"
_COLUMNS = 3  # confusion matrices side by side


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _plain(text: str) -> str:
    """Text for matplotlib, where a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _save(figure: Any, path: Path) -> None:
    with written_beside(path) as part:
        figure.savefig(part, format="png")


def draw_confusion(results: Results, path: Path) -> bool:
    """Draws which share of each requested class (row) is called each class (column).

    One matrix per set and classifier.

    Returns:
        Whether anything was classified; else nothing is drawn.

    Raises:
        OSError: where the file cannot be written.
    """
    found = [
        (one, scorer, accuracy(one, scorer)) for scorer in results.scorers for one in results.sets
    ]
    drawn = [(one, scorer, each) for one, scorer, each in found if each is not None]
    if not drawn:
        return False
    columns = min(_COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = _figure(3.6 * columns, 3.7 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (one, scorer, each) in zip(axes, drawn):
        title = [*wrap(one.title, 36), *wrap(f"{scorer.name}, n = {each.count}", 36)]
        _matrix(axis, each, "\n".join(title))
    for axis in axes[len(drawn) :]:
        axis.axis("off")
    _save(figure, path)
    return True


def _matrix(axis: Any, found: Accuracy, title: str) -> None:
    """One confusion matrix; a class that no prompt requested has dashes."""
    shares = [[hits / max(1, sum(row)) for hits in row] for row in found.confusion]
    axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    places = range(len(found.class_names))
    names = [_plain(name) for name in found.class_names]
    axis.set_xticks(places, names, rotation=30, fontsize=8)
    axis.set_yticks(places, names, fontsize=8)
    axis.set_xlabel("predicted", fontsize=8)
    axis.set_ylabel("requested", fontsize=8)
    axis.set_title(_plain(title), fontsize=8)
    for i, row in enumerate(found.confusion):
        for j, hits in enumerate(row):
            if shares[i][j] > 0.5:
                colour = "white"
            else:
                colour = "black" if hits else "darkgray"
            cell = f"{shares[i][j]:.2f}\n({hits})" if sum(row) else "-"
            axis.text(j, i, cell, ha="center", va="center", color=colour, fontsize=7)


def draw_tables(results: Results, path: Path) -> None:
    """Draws every scorer's numbers with 95 % intervals: accuracies by class, else mean scores.

    Raises ``OSError``.
    """
    figure = _figure(11, 3.6 * len(results.scorers) + 0.4)
    axes = figure.subplots(len(results.scorers), 1, squeeze=False).flatten()
    for axis, scorer in zip(axes, results.scorers, strict=True):
        _numbers(axis, results, scorer)
        axis.grid(alpha=0.3, axis="y")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    labelled = [axis.get_legend_handles_labels() for axis in axes]
    drawn = {label: handle for one in labelled for handle, label in zip(*one, strict=True)}
    figure.legend(
        drawn.values(),
        drawn.keys(),
        fontsize=8,
        loc="outside lower center",
        ncols=min(3, len(drawn)),
        frameon=False,
    )
    _save(figure, path)


def _numbers(axis: Any, results: Results, scorer: ScorerFacts) -> None:
    """The bars of one scorer."""
    if not scorer.class_names:
        named = (other.class_names for other in results.scorers if other.class_names)
        classes = next(named, ())
        _bars(axis, results.sets, [*classes, "all clips"], _of_scores(scorer, classes))
        axis.set(title=_plain(f"mean score by {scorer.title}"))
        return
    _bars(axis, results.sets, [*scorer.class_names, "mean"], _of_classes(scorer))
    for chance in one_class_means(results, scorer):
        axis.axhline(chance, color="black", lw=0.8, ls=":", label="one class for every clip")
    axis.set(title=_plain(f"accuracy by {scorer.title}"), ylim=(0, 1.02))


def _of_classes(scorer: ScorerFacts) -> Callable[[ClipSet], list[Estimate | None]]:
    def estimates(one: ClipSet) -> list[Estimate | None]:
        found = accuracy(one, scorer)
        empty: list[Estimate | None] = [None] * (len(scorer.class_names) + 1)
        return empty if found is None else [*found.classes.values(), found.balanced]

    return estimates


def _of_scores(
    scorer: ScorerFacts, classes: Sequence[str]
) -> Callable[[ClipSet], list[Estimate | None]]:
    def estimates(one: ClipSet) -> list[Estimate | None]:
        asked = [
            replace(one, clips=tuple(clip for clip in one.clips if name in clip.wanted.values()))
            for name in classes
        ]
        return [mean(each, scorer) for each in (*asked, one)]

    return estimates


def _bars(
    axis: Any,
    sets: Sequence[ClipSet],
    names: Sequence[str],
    estimates: Callable[[ClipSet], list[Estimate | None]],
) -> None:
    """Draws a group of bars per name, with the last one (all clips) apart.

    A setting has one colour, pale where it is untrained.
    """
    from matplotlib import colormaps

    width = 0.8 / len(sets)
    settings = list(dict.fromkeys(one.setting for one in sets))
    for shift, one in enumerate(sets):
        found = [(place, each) for place, each in enumerate(estimates(one)) if each is not None]
        if not found:
            continue
        places = [place - 0.4 + width * (shift + 0.5) for place, _ in found]
        values = [each.value for _, each in found]
        sides = [_sides(each) for _, each in found]
        errors = [[below for below, _ in sides], [above for _, above in sides]]
        colour = colormaps["tab20"](2 * (settings.index(one.setting) % 10) + (one.role == ORIGINAL))
        # matplotlib leaves labels out that begin with a line below: a space before them shows them
        label = " " * one.title.startswith("_") + _plain(f"{one.title} (n = {len(one.clips)})")
        axis.bar(places, values, width * 0.95, label=label, color=colour)
        axis.errorbar(places, values, errors, fmt="none", ecolor="black", capsize=3, lw=1)
    axis.axvline(len(names) - 1.5, color="lightgray", lw=0.8)
    axis.set_xticks(range(len(names)), [_plain(name) for name in names])
    axis.margins(x=0.02)


def _sides(each: Estimate) -> tuple[float, float]:
    """How far the interval reaches below and above the value; nowhere without one."""
    if each.low is None or each.high is None:
        return 0.0, 0.0
    return max(0.0, each.value - each.low), max(0.0, each.high - each.value)


def chosen(one: ClipSet, scorer: ScorerFacts, count: int) -> dict[str, list[ScoredClip]]:
    """Chooses ``count`` clips per class (or ""), evenly spread from best to worst."""
    groups: dict[str, list[ScoredClip]] = {}
    for clip in one.clips:
        groups.setdefault(clip.wanted.get(scorer.name, ""), []).append(clip)
    order = [name for name in scorer.class_names if name in groups] or list(groups)
    picked = {}
    for name in order:
        ranked = sorted(groups[name], key=lambda clip: (-clip.values[scorer.name][SCORE], clip.key))
        many = min(count, len(ranked))
        picked[name] = [
            ranked[round(i * (len(ranked) - 1) / max(1, many - 1))] for i in range(many)
        ]
    return picked


def _cell(clip: ScoredClip | None) -> str:
    if clip is None:
        return '<td class="note">none</td>'
    numbers = []
    for name, values in clip.values.items():
        called = f", called {clip.predicted[name]}" if name in clip.predicted else ""
        numbers.append(html.escape(f"{name} {values[SCORE]:+.3f}{called}"))
    is_here = Path(clip.file).is_file()
    gone = '<span class="note">the file is not here</span>'
    sound = player(Path(clip.file)) if is_here else gone
    return f"<td>{sound}{'<br>'.join(numbers)}</td>"


def _players(line: Line, scorers: Sequence[ScorerFacts], count: int) -> str:
    """A table of players: the best and the worst clips of a line's set, next to the original's."""
    scorer = next((each for each in scorers if has(line.one, each, SCORE)), None)
    if scorer is None:
        return ""
    sides = [{clip.key: clip for clip in one.clips} for one in line.by_role.values()]
    rows = []
    for name, clips in chosen(line.one, scorer, count).items():
        for place, clip in enumerate(clips):
            if place == 0:
                rank = "best"
            else:
                rank = "worst" if place == len(clips) - 1 else "between"
            what = html.escape(f"{name or 'all'}: {rank}")
            text = html.escape(clip.text)
            cells = "".join(_cell(side.get(clip.key)) for side in sides)
            rows.append(
                f'<tr><td>{what}<br><span class="note">{text} (sample {clip.sample})</span></td>'
                f"{cells}</tr>"
            )
    head = "".join(
        f"<th>{role}: {html.escape(one.name)}</th>" for role, one in line.by_role.items()
    )
    whose = "the trained model" if line.one.role == TRAINED else "the model"
    whose = "the clips" if line.one.role == CLIPS else whose
    by = html.escape(f"Best and worst of {whose} by {scorer.title}.")
    return (
        f'<h2>{html.escape(line.title)}</h2><p class="note">{by}</p>'
        f"<table><tr><th>clip</th>{head}</tr>{''.join(rows)}</table>"
    )


def write_page(
    folder: Path,
    title: str,
    results: Results,
    tables: Sequence[Table],
    more: Sequence[Table],
    players: int = 3,
) -> Path:
    """Writes ``report.html``, after the pictures that it holds.

    Args:
        folder: where the page and the pictures go.
        title: of the page.
        results: for pictures and players.
        tables: at the head of the page.
        more: tables at its end.
        players: clips per class.

    Raises:
        OSError: where the files cannot be written.
        UserError: for a clip that cannot be read.
    """
    draw_tables(results, folder / TABLES)
    is_classified = draw_confusion(results, folder / CONFUSION)
    is_picked = draw_best_of_n(results, folder / BEST_OF_N)
    body = [as_html(table) for table in tables]
    body.append(picture(folder / TABLES, "the tables' numbers with their intervals"))
    if is_picked:
        body.append(picture(folder / BEST_OF_N, "what training and what choosing gains"))
    if is_classified:
        body.append(picture(folder / CONFUSION, "confusion matrices: requested and predicted"))
    if players:
        body += [_players(line, results.scorers, players) for line in lines(results)]
    body += [as_html(table) for table in more]
    with written_beside(folder / REPORT) as part:
        part.write_text(page(title, "\n".join(body)), encoding="utf-8")
    return folder / REPORT
