"""The picture and the page of a run:

``curve.png`` and a self-contained ``report.html`` that opens offline.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo.errors import parsing
from zoo.files import parsed_json, written_beside
from zoo.html_pages import page, picture, player
from zoo.hub.run_results import metrics_rows
from zoo.secrets import without_secrets


def read_rows(path: str | Path) -> list[dict[str, float]]:
    """As ``zoo.hub.run_results.metrics_rows``."""
    return metrics_rows(Path(path))


def _series(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    pairs = [
        (row.get("round", float(i + 1)), row[name])
        for i, row in enumerate(rows)
        if math.isfinite(row.get(name, math.nan))
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _classes(rows: Sequence[Mapping[str, float]], prefix: str) -> list[str]:
    names = {
        name
        for row in rows
        for name in row
        if name.startswith(prefix + "/") and name.endswith("/mean")
    }
    return sorted(name for name in names if name != f"{prefix}/mean")


def draw_curve(rows: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Training reward (mean, one standard deviation, each class) and held-out reward over rounds,
    as a PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for axis, prefix, title in (
        (left, "reward", "training prompts"),
        (right, "held_out", "held-out prompts, fixed noise"),
    ):
        x, mean = _series(rows, f"{prefix}/mean")
        _, std = _series(rows, f"{prefix}/std")
        for name in _classes(rows, prefix):
            axis.plot(
                *_series(rows, name),
                lw=1,
                alpha=0.7,
                label=name.split("/")[1],
                marker="." if prefix == "held_out" else "",
            )
        axis.plot(
            x, mean, color="black", lw=2, label="all", marker="o" if prefix == "held_out" else ""
        )
        if len(std) == len(mean) and prefix == "reward":
            low, high = ([m + sign * s for m, s in zip(mean, std)] for sign in (-1, 1))
            axis.fill_between(x, low, high, color="black", alpha=0.08, lw=0)
        axis.set(title=title, xlabel="round", ylabel="reward")
        axis.grid(alpha=0.3)
        if mean:
            axis.legend(fontsize=8)
        else:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="gray")
    with written_beside(path) as part:
        figure.savefig(part, format="png")


def _samples(folder: Path) -> dict[str, dict]:
    index = folder / "samples.json"
    if not index.is_file():
        return {}
    with parsing(index, "an index of samples"):
        samples = parsed_json(index.read_text(encoding="utf-8"))
        return {sample["file"]: sample for sample in samples}


def _cell(folder: Path, sample: dict | None) -> str:
    if sample is None or not (folder / sample["file"]).is_file():
        return '<td class="note">none</td>'
    return f"<td>{player(folder / sample['file'])}reward {sample['score']:+.3f}</td>"


def _table(audio: Path) -> str:
    before, after = _samples(audio / "before"), _samples(audio / "after")
    names = sorted(before.keys() | after.keys())
    if not names:
        return '<p class="note">No samples were written.</p>'
    rows = []
    for name in names:
        sample = after.get(name) or before[name]
        text = html.escape(sample["text"])
        if sample["negative"]:
            text += f'<br><span class="note">not: {html.escape(sample["negative"])}</span>'
        change = (
            after[name]["score"] - before[name]["score"]
            if name in before and name in after
            else math.nan
        )
        shown = f"{change:+.3f}" if math.isfinite(change) else "n/a"
        cells = _cell(audio / "before", before.get(name)) + _cell(audio / "after", after.get(name))
        rows.append(f'<tr><td>{text}</td>{cells}<td class="number">{shown}</td></tr>')
    head = "<tr><th>prompt</th><th>before</th><th>after</th><th>change</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _numbers(rows: Sequence[Mapping[str, float]]) -> str:
    lines = []
    named = {
        "training reward": "reward/mean",
        "held-out reward": "held_out/mean",
        "held-out scorer": "held_out_scorer/mean",
    }
    for title, name in named.items():
        x, y = _series(rows, name)
        if y:
            lines.append(
                f"<li>{title}: {y[0]:+.3f} (round {x[0]:.0f}) to {y[-1]:+.3f} (round"
                f" {x[-1]:.0f})</li>"
            )
    seconds = sum(
        value for row in rows for name, value in row.items() if name.startswith("seconds/")
    )
    return (
        f"<ul>{''.join(lines)}<li>{len(rows)} rows in metrics.csv, {seconds:.0f} s in sampling,"
        " reward and update</li></ul>"
    )


def write_report(out_dir: str | Path) -> Path:
    """``report.html`` in a run folder, from its metrics.csv, audio/before, audio/after and
    config.yaml. What is missing is said.

    Everything is inside the file: no script, no link to elsewhere. Raises ``OSError`` when it
    cannot be written.
    """
    out_dir = Path(out_dir)
    rows = read_rows(out_dir / "metrics.csv")
    curve, config = '<p class="note">Nothing was measured.</p>', out_dir / "config.yaml"
    if rows:
        draw_curve(rows, out_dir / "curve.png")
        curve = picture(out_dir / "curve.png", "rewards over rounds")
    settings = (
        without_secrets(config.read_text(encoding="utf-8"))
        if config.is_file()
        else ("config.yaml was not written")
    )
    body = f"""<h2>Rewards</h2>
{_numbers(rows)}
{curve}
<h2>Before and after</h2>
<p class="note">The same prompts with the same noise.</p>
{_table(out_dir / "audio")}
<h2>Settings</h2>
<pre>{html.escape(settings)}</pre>"""
    path = out_dir / "report.html"
    with written_beside(path) as part:
        part.write_text(page(out_dir.resolve().name, body), encoding="utf-8")
    return path
