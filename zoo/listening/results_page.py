"""The results of a labelling study, for a terminal and as an HTML page with a plot."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo.files import written_beside
from zoo.html_pages import data_uri, page
from zoo.listening.vote_results import MeanOpinion, Rater, StudyResult, trusted, unit_of

_NOTE = (
    "Intervals are for other prompts and other raters: votes on one prompt, and those of one rater,"
    " resemble each other and do not count as independent. With few raters they are wide."
)


def _checks(right: int, asked: int) -> str:
    return f"{right} of {asked}" if asked else "-"


def _ends(row: MeanOpinion) -> tuple[float, float] | None:
    """The interval, within the values that a mean can have; None from one prompt."""
    lowest, highest, _ = unit_of(row.axis)
    if row.mean.low is None or row.mean.high is None:
        return None
    return max(lowest, row.mean.low), min(highest, row.mean.high)


def _interval(row: MeanOpinion) -> str:
    ends = _ends(row)
    return "no interval from one prompt" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"


def _rater_cells(rater: Rater) -> tuple[str, ...]:
    phones = {None: "-", True: "passed", False: "failed"}[rater.headphones]
    return (
        rater.name,
        f"{rater.done} of {rater.total}",
        _checks(rater.passed, rater.negatives),
        _checks(rater.agreed, rater.repeats),
        phones,
        "-" if rater.seconds is None else f"{rater.seconds:.1f} s",
        rater.code or "-",
    )


_RATER_HEAD = ("rater", "answered", "negatives", "repeats", "headphones", "per answer", "code")


def result_lines(
    result: StudyResult,
    rows: Sequence[MeanOpinion],
    alphas: Mapping[str, float | None],
    min_passed: float = 0.0,
) -> list[str]:
    """The results for a terminal.

    Args:
        result: what the file of votes holds.
        rows: ``mean_opinions`` of the records.
        alphas: axis -> Krippendorff's alpha; None where it is not defined.
        min_passed: see ``trusted``.
    """
    _, left_out = trusted(result, min_passed)
    lines = [f"{result.task}: {len(result.items)} items, {len(result.raters)} raters", ""]
    cells = [_RATER_HEAD, *(_rater_cells(rater) for rater in result.raters)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    if left_out:
        lines.append(
            f"left out below: {', '.join(sorted(left_out))} (recognised fewer than {min_passed:.0%}"
            " of the clear negatives)"
        )
    for row in rows:
        lines.append("")
        lines.append(f"{row.axis}, {row.model}: {row.mean.value:.2f} ({unit_of(row.axis)[2]})")
        lines.append(
            f"  95 % interval {_interval(row)}; {row.votes} votes of {row.raters} raters on"
            f" {row.clips} clips or pairs of {row.mean.prompts} prompts"
        )
        if row.both_bad:
            lines.append(f"  both bad: {row.both_bad} votes")
    for axis, alpha in alphas.items():
        found = "needs clips with two votes, and votes that differ" if alpha is None else None
        lines += ["", f"{axis}, Krippendorff's alpha (interval): {found or f'{alpha:.3f}'}"]
    return [*lines, "", _NOTE] if rows else [*lines, "", "there are no votes yet"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def results_html(
    result: StudyResult,
    rows: Sequence[MeanOpinion],
    alphas: Mapping[str, float | None],
    min_passed: float = 0.0,
) -> str:
    """The whole page; see ``result_lines``."""
    _, left_out = trusted(result, min_passed)
    means = [
        (
            row.axis,
            row.model,
            f"{row.mean.value:.2f}",
            _interval(row),
            str(row.raters),
            str(row.clips),
            str(row.votes),
            str(row.both_bad) if row.axis == "pairwise" else "-",
        )
        for row in rows
    ]
    agreement = [
        (axis, "not defined" if alpha is None else f"{alpha:.3f}") for axis, alpha in alphas.items()
    ]
    parts = [
        f"<p>{len(result.items)} items, {len(result.raters)} raters.</p>",
        _plots(rows),
        _table(
            (
                "question",
                "system",
                "mean",
                "95 % interval",
                "raters",
                "clips or pairs",
                "votes",
                "both bad",
            ),
            means,
        ),
        f'<p class="note">{html.escape(_NOTE)}</p>',
        "<h2>Agreement</h2>",
        _table(("question", "Krippendorff's alpha (interval)"), agreement),
        "<h2>Raters</h2>",
        _table(
            (*_RATER_HEAD[:-1], "counts"),
            [
                (*_rater_cells(rater)[:-1], "no" if rater.name in left_out else "yes")
                for rater in result.raters
            ],
        ),
    ]
    return page(f"Listening study: {result.task}", "\n".join(parts))


def _plots(rows: Sequence[MeanOpinion]) -> str:
    """One plot per axis: the mean of every system with its interval."""
    from matplotlib.figure import Figure

    drawn = []
    for axis in dict.fromkeys(row.axis for row in rows):
        own = [row for row in rows if row.axis == axis][::-1]
        low, high, unit = unit_of(axis)
        figure = Figure(figsize=(7.5, 1.1 + 0.42 * len(own)), dpi=110, layout="constrained")
        plot = figure.subplots()
        for place, row in enumerate(own):
            if (ends := _ends(row)) is not None:
                plot.plot(ends, [place, place], color="#1f5fa8", linewidth=2.5, alpha=0.5)
            plot.plot(row.mean.value, place, "o", color="#1f5fa8", markersize=8)
        if axis == "pairwise":
            plot.axvline(0.5, color="#5b6b7b", linewidth=1, linestyle=":")
        plot.set_yticks(range(len(own)), [row.model for row in own])
        plot.set_ylim(-0.6, len(own) - 0.4)
        margin = 0.02 * (high - low)
        plot.set_xlim(low - margin, high + margin)
        plot.set_xlabel(unit)
        plot.grid(axis="x", color="#d8dee5")
        plot.set_axisbelow(True)
        for side in ("top", "right", "left"):
            plot.spines[side].set_visible(False)
        plot.tick_params(left=False)
        content = io.BytesIO()
        figure.savefig(content, format="png")
        source = data_uri("image/png", content.getvalue())
        drawn.append(f'<img alt="{html.escape(axis)} by system" src="{source}">')
    return "".join(f"<p>{picture}</p>" for picture in drawn)


def write_results(
    path: str | Path,
    result: StudyResult,
    rows: Sequence[MeanOpinion],
    alphas: Mapping[str, float | None],
    min_passed: float = 0.0,
) -> None:
    """Writes ``results_html`` to a file. Raises ``OSError``."""
    content = results_html(result, rows, alphas, min_passed)
    with written_beside(Path(path)) as part:
        part.write_text(content, encoding="utf-8")
