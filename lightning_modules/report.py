"""The picture and the page of a run: ``curve.png``, and ``report.html``, which opens offline."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import parsing
from zoo.files import parsed_json, written_beside
from zoo.html_pages import LOUDEST_DB, QUIETEST_DB, clip, page, picture
from zoo.hub.runs import metrics_rows
from zoo.secrets import without_secrets

INDEX = "samples.json"  # next to the wav files of a folder of samples
UNCHANGED = 5e-4  # scores that differ by less are the same on the page


@dataclass(frozen=True)
class Sample:
    """One row of ``samples.json``. ``score`` is NaN where the reward gave no finite number."""

    file: str
    text: str
    negative: str
    labels: Mapping[str, object]
    score: float


@dataclass(frozen=True)
class Pair:
    """A prompt with the same noise before and after; ``None`` where that side is missing."""

    before: Sample | None
    after: Sample | None

    @property
    def change(self) -> float:
        """Score after minus score before; NaN where one of them is missing."""
        if self.before is None or self.after is None:
            return math.nan
        return self.after.score - self.before.score

    @property
    def either(self) -> Sample:
        return self.after or self.before


def read_rows(path: str | Path) -> list[dict[str, float]]:
    """As ``zoo.hub.runs.metrics_rows``."""
    return metrics_rows(Path(path))


def read_samples(folder: Path) -> list[Sample]:
    """The index of a folder of samples; empty where there is none.

    Raises ``ValueError`` for an index that is damaged.
    """
    index = folder / INDEX
    if not index.is_file():
        return []
    with parsing(index, "an index of samples"):
        rows = parsed_json(index.read_text(encoding="utf-8"))
        return [
            Sample(
                row["file"],
                row["text"],
                row["negative"],
                dict(row.get("labels") or {}),
                math.nan if row["score"] is None else float(row["score"]),
            )
            for row in rows
        ]


def ranked_pairs(before: Sequence[Sample], after: Sequence[Sample]) -> list[Pair]:
    """Samples of the same file as pairs, the largest change (up or down) first.

    Equal changes stay in the order of their files; pairs without a change come last.
    """
    first = {sample.file: sample for sample in before}
    second = {sample.file: sample for sample in after}
    pairs = [Pair(first.get(file), second.get(file)) for file in sorted(first.keys() | second)]
    return sorted(pairs, key=lambda pair: -abs(pair.change) if _finite(pair.change) else 1.0)


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _series(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """(rounds, values) of a column, without the rows that lack it."""
    pairs = [
        (row.get("round", float(i + 1)), row[name])
        for i, row in enumerate(rows)
        if _finite(row.get(name, math.nan))
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _classes(rows: Sequence[Mapping[str, float]], prefix: str) -> list[str]:
    """Columns such as reward/sad/mean, sorted."""
    names = {
        name
        for row in rows
        for name in row
        if name.startswith(prefix + "/") and name.endswith("/mean")
    }
    return sorted(name for name in names if name != f"{prefix}/mean")


def draw_curve(rows: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Draws training and held-out reward over rounds, as a PNG.

    The training reward has its mean, deviation and classes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for axis, prefix, title in (
        (left, "reward", "training prompts"),
        (right, "held_out", "held-out prompts, fixed noise"),
    ):
        x, mean = _series(rows, f"{prefix}/mean")
        _, std = _series(rows, f"{prefix}/std")
        dots = "o" if prefix == "held_out" or len(mean) == 1 else ""
        for name in _classes(rows, prefix):
            values = _series(rows, name)
            axis.plot(*values, lw=1, alpha=0.7, label=name.split("/")[1], marker=dots, ms=3)
        axis.plot(x, mean, color="black", lw=2, label="all", marker=dots)
        if len(std) == len(mean) and prefix == "reward":
            low, high = ([m + sign * s for m, s in zip(mean, std)] for sign in (-1, 1))
            axis.fill_between(x, low, high, color="black", alpha=0.08, lw=0)
        axis.set(title=title, xlabel="round", ylabel="reward")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if mean:
            axis.legend(fontsize=8)
        else:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="gray")
    with written_beside(path) as part:
        figure.savefig(part, format="png")


def draw_losses(rows: Sequence[Mapping[str, float]], path: str | Path) -> bool:
    """Draws what was logged in training and in validation over steps, as a PNG.

    Columns below ``train/`` and ``val/``. Returns whether there are any; else nothing is drawn.
    """
    from matplotlib.figure import Figure

    names = sorted({name for row in rows for name in row if name.startswith(("train/", "val/"))})
    series = {name: _over_steps(rows, name) for name in names}
    series = {name: values for name, values in series.items() if values[0]}
    if not series:
        return False
    titles = {"train/": "training", "val/": "validation"}
    measured = [prefix for prefix in titles if any(name.startswith(prefix) for name in series)]
    figure = Figure(figsize=(5 * len(measured), 4), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(measured), squeeze=False)[0]
    for axis, prefix in zip(axes, measured, strict=True):
        for name in (name for name in series if name.startswith(prefix)):
            x, y = series[name]
            axis.plot(x, y, lw=1, marker="o" if len(x) < 20 else "", ms=3, label=name)
        axis.set(title=titles[prefix], xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    with written_beside(path) as part:
        figure.savefig(part, format="png")
    return True


def _over_steps(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """(steps, values) of a column, without the rows that lack it."""
    pairs = [(row["step"], row[name]) for row in rows if "step" in row and name in row]
    pairs = [(x, y) for x, y in pairs if _finite(x) and _finite(y)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _signed(value: float) -> str:
    if not _finite(value):
        return "n/a"
    return f"{value:+.3f}" if abs(value) >= UNCHANGED else "0.000"


def _change_cell(change: float) -> str:
    kind = ""
    if _finite(change) and abs(change) >= UNCHANGED:
        kind = " up" if change > 0 else " down"
    return f'<td class="number{kind}">{_signed(change)}</td>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _number_row(rows: Sequence[Mapping[str, float]], title: str, name: str, part: bool) -> str:
    x, y = _series(rows, name)
    if not y:
        return ""
    kind = ' class="part"' if part else ""
    return (
        f"<tr{kind}><td>{html.escape(title)}</td>"
        f'<td class="number">{_signed(y[0])} <span class="note">round {x[0]:.0f}</span></td>'
        f'<td class="number">{_signed(y[-1])} <span class="note">round {x[-1]:.0f}</span></td>'
        f"{_change_cell(y[-1] - y[0] if len(y) > 1 else math.nan)}</tr>"
    )


def _numbers(rows: Sequence[Mapping[str, float]]) -> str:
    """A table of first and last rewards, each class below its mean, and where the time went."""
    lines = []
    for title, prefix in (
        ("held-out prompts", "held_out"),
        ("second opinion (not trained on)", "held_out_scorer"),
        ("training prompts", "reward"),
    ):
        lines.append(_number_row(rows, title, f"{prefix}/mean", part=False))
        for name in _classes(rows, prefix):
            lines.append(_number_row(rows, name.split("/")[1], name, part=True))
    head = (
        '<tr><th>mean reward</th><th class="number">first</th><th class="number">last</th>'
        '<th class="number">change</th></tr>'
    )
    spent = {
        what: sum(row.get(f"seconds/{what}", 0.0) for row in rows)
        for what in ("sampling", "reward", "update")
    }
    time = ", ".join(f"{what} {_duration(seconds)}" for what, seconds in spent.items())
    rounds = len([row for row in rows if "seconds/update" in row])
    return (
        f'<table class="narrow">{head}{"".join(lines)}</table>'
        f'<p class="note">Rounds of training: {rounds}; time: {time}. Everything that was logged is'
        " in metrics.csv.</p>"
    )


def _clip_cell(folder: Path, sample: Sample | None) -> str:
    if sample is None or not (folder / sample.file).is_file():
        return '<td class="note">none</td>'
    return f"<td>{clip(folder / sample.file)}reward {_signed(sample.score)}</td>"


def _prompt_cell(sample: Sample) -> str:
    lines = [html.escape(sample.text)]
    if sample.negative:
        lines.append(f'<span class="note">not: {html.escape(sample.negative)}</span>')
    words = {name: value for name, value in sample.labels.items() if isinstance(value, str)}
    if words:
        shown = ", ".join(f"{name}: {value}" for name, value in words.items())
        lines.append(f'<span class="note">{html.escape(shown)}</span>')
    return f"<td>{'<br>'.join(lines)}</td>"


def _pairs_table(folder: Path, pairs: Sequence[Pair]) -> str:
    rows = [
        f'<tr><td class="number">{rank}</td>{_prompt_cell(pair.either)}'
        f"{_clip_cell(folder / 'before', pair.before)}{_clip_cell(folder / 'after', pair.after)}"
        f"{_change_cell(pair.change)}</tr>"
        for rank, pair in enumerate(pairs, 1)
    ]
    head = (
        '<tr><th class="number">#</th><th>prompt</th><th>before</th><th>after</th>'
        '<th class="number">change</th></tr>'
    )
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _pairs(folder: Path) -> list[Pair]:
    return ranked_pairs(read_samples(folder / "before"), read_samples(folder / "after"))


def _samples(audio: Path) -> str:
    """What changed most, then samples spread over the prompts; each with its players."""
    largest = _pairs(audio / "largest")
    pairs = _pairs(audio)
    if not pairs:
        return '<p class="note">No samples were written.</p>'
    changes = [pair.change for pair in pairs if _finite(pair.change)]
    up = sum(change >= UNCHANGED for change in changes)
    down = sum(change <= -UNCHANGED for change in changes)
    parts = [
        f"""<p>Before and after: the same prompt with the same noise.</p>
<p class="note">The reward is what training raises. A higher number says that training worked, not
that it sounds better: listen. Spectrograms: brightness is the level, from {QUIETEST_DB} dB (black)
to {LOUDEST_DB} dB of full scale, the same in every picture.</p>"""
    ]
    if largest:
        parts.append(
            f"""<h2>Largest changes</h2>
<p>The samples of the evaluation whose reward changed most, one per prompt.</p>
{_pairs_table(audio / "largest", largest)}"""
        )
    parts.append(
        f"""<h2>A spread of prompts</h2>
<p>Chosen before training, evenly over the prompts: {up} went up, {down} down,
{len(changes) - up - down} stayed.</p>
{_pairs_table(audio, pairs)}"""
    )
    return "\n".join(parts)


def write_report(out_dir: str | Path, unit: str = "") -> Path:
    """Writes ``report.html`` in a run folder, and says what is missing.

    It reads metrics.csv, config.yaml, audio/before, audio/after and audio/largest.

    Everything is inside the file: no script, no link to elsewhere. ``unit`` says how the reward is
    read (``Reward.unit``), such as "cosine similarity of clip and prompt; 1 is best".

    Raises ``OSError`` when it cannot be written.
    """
    out_dir = Path(out_dir)
    rows = read_rows(out_dir / "metrics.csv")
    config = out_dir / "config.yaml"
    title = "Rewards"
    curve, numbers = '<p class="note">Nothing was measured.</p>', ""
    if any("reward/mean" in row or "held_out/mean" in row for row in rows):
        draw_curve(rows, out_dir / "curve.png")
        curve = picture(out_dir / "curve.png", "rewards over rounds")
        numbers = _numbers(rows)
    elif draw_losses(rows, out_dir / "curve.png"):  # training on clips, not on rewards
        title = "Losses"
        curve = picture(out_dir / "curve.png", "losses over steps")
    meaning = f"<p><strong>The reward:</strong> {html.escape(unit)}.</p>" if unit else ""
    settings = "config.yaml was not written"
    if config.is_file():
        settings = without_secrets(config.read_text(encoding="utf-8"))
    body = f"""{meaning}
{_samples(out_dir / "audio")}
<h2>{title}</h2>
{numbers}
{curve}
<h2>Settings</h2>
<details><summary>config.yaml</summary>
<pre>{html.escape(settings)}</pre></details>"""
    path = out_dir / "report.html"
    with written_beside(path) as part:
        part.write_text(page(out_dir.resolve().name, body), encoding="utf-8")
    return path
