"""What the end of a run says: what it reached, where that lies, and the commands to go on with."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from lightning_modules.report import read_rows, read_samples


def run_summary(out_dir: str | Path, module: Any) -> list[str]:
    """Lines for the screen about a finished run folder; what it did not leave is not named.

    The reward's ``unit``, where it has one, says how its numbers are read.
    """
    out_dir = Path(out_dir)
    lines = [line for line in (_held_out(out_dir, module),) if line]
    if (out_dir / "report.html").is_file():
        lines.append(f"report:  {out_dir / 'report.html'}")
    name = shlex.quote(str(out_dir))
    has_adapter = (out_dir / "adapter").is_dir() or (out_dir / "denoiser.safetensors").is_file()
    if has_adapter or (out_dir / "model").is_dir():
        lines.append(f'hear:    python tools/generate.py {name} "YOUR PROMPT" --out generated')
        lines.append(f"export:  python tools/zoo.py export {name} --to FOLDER")
    return lines


def _held_out(out_dir: Path, module: Any) -> str:
    """Held-out reward before and after; of the samples with the same noise where no evaluation came
    first.
    """
    unit = getattr(getattr(module, "reward", None), "unit", "")
    rows = [row for row in read_rows(out_dir / "metrics.csv") if "held_out/mean" in row]
    first, last = (rows[0], rows[-1]) if rows else ({}, {})
    if last and first.get("round") == 0 and len(rows) > 1:
        before, after = first["held_out/mean"], last["held_out/mean"]
        what = "held-out reward"
    else:
        before, after = (_mean_score(out_dir / "audio" / name) for name in ("before", "after"))
        what = "reward of the samples in audio/"
    if not (math.isfinite(before) and math.isfinite(after)):
        return ""
    return f"{what}: {before:+.3f} before, {after:+.3f} after{f' ({unit})' if unit else ''}"


def _mean_score(folder: Path) -> float:
    scores = [sample.score for sample in read_samples(folder) if math.isfinite(sample.score)]
    return sum(scores) / len(scores) if scores else math.nan
