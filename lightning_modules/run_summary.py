"""The last lines of a run: what it reached, where its report is, and how to go on."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from lightning_modules.report import read_rows, read_samples
from zoo.hub.artifact import CONFIG_FILE, read_config


def run_summary(out_dir: str | Path, module: Any) -> list[str]:
    """Lines for the screen about a finished run folder, each about something that is there.

    The ``unit`` of the module's reward says how to read the numbers.
    """
    out_dir = Path(out_dir)
    rewards = _held_out(out_dir, module)
    lines = [rewards] if rewards else []
    if (out_dir / "report.html").is_file():
        lines.append(f"report:  {out_dir / 'report.html'}")
    name = shlex.quote(str(out_dir))
    has_adapter = (out_dir / "adapter").is_dir() or (out_dir / "denoiser.safetensors").is_file()
    if has_adapter or (out_dir / "model").is_dir():
        if _is_reward(out_dir / "model"):
            lines.append(f"score:   python tools/annotate.py FOLDER --reward {name} --out rd.jsonl")
        else:
            lines.append(f'hear:    python tools/generate.py {name} "YOUR PROMPT" --out generated')
        lines.append(f"export:  python tools/zoo.py export {name} --to FOLDER")
    return lines


def _is_reward(model: Path) -> bool:
    return (model / CONFIG_FILE).is_file() and read_config(model)["kind"] == "reward"


def _held_out(out_dir: Path, module: Any) -> str:
    """Held-out reward before and after.

    Without an earlier evaluation, it compares samples of equal noise.
    """
    unit = getattr(getattr(module, "reward", None), "unit", "")
    rows = [row for row in read_rows(out_dir / "metrics.csv") if "held_out/mean" in row]
    if len(rows) > 1 and rows[0].get("round") == 0:
        before = rows[0]["held_out/mean"]
        after = rows[-1]["held_out/mean"]
        what = "held-out reward"
    else:
        before = _mean_score(out_dir / "audio" / "before")
        after = _mean_score(out_dir / "audio" / "after")
        what = "reward of the samples in audio/"
    if not (math.isfinite(before) and math.isfinite(after)):
        return ""
    return f"{what}: {before:+.3f} before, {after:+.3f} after{f' ({unit})' if unit else ''}"


def _mean_score(folder: Path) -> float:
    scores = [sample.score for sample in read_samples(folder) if math.isfinite(sample.score)]
    return sum(scores) / len(scores) if scores else math.nan
