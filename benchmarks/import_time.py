"""Measures the time of `import zoo` beyond torch: python benchmarks/import_time.py [--repeats 5]

A fresh process runs `import torch`, then `import zoo` with its table, then the first access to
`zoo.load` (the diffusion code, but no model library). It prints the least wall and processor time
of the repeats; on a busy machine rely on the second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 0.3
STEPS = ("import torch", "import zoo; zoo.entries()", "zoo.load, zoo.generate, zoo.score")


def seconds(steps: tuple[str, ...], repeats: int) -> list[tuple[float, float]]:
    """The least (wall, processor) time in s of each statement; one interpreter runs all of them."""
    clock = "(time.perf_counter(), time.process_time())"
    code = f"import time\nmarks = [{clock}]\n" + "".join(
        f"{step}\nmarks.append({clock})\n" for step in steps
    )
    code += "for (a, b), (c, d) in zip(marks, marks[1:]):\n    print(c - a, d - b)"
    runs = []
    for _ in range(repeats):
        output = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        runs.append([tuple(map(float, line.split())) for line in output.splitlines()])
    return [
        (min(run[i][0] for run in runs), min(run[i][1] for run in runs)) for i in range(len(steps))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=5)
    times = seconds(STEPS, parser.parse_args().repeats)
    print(f"{'':<40}{'wall':>10}{'processor':>12}")
    for step, (wall_s, processor_s) in zip(STEPS, times, strict=True):
        print(f"{step:<40}{wall_s:8.3f} s{processor_s:10.3f} s")
    beyond_s = min(times[1])
    print(f"`import zoo` beyond torch: {beyond_s:.3f} s, limit {LIMIT_S} s")
    return int(beyond_s > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
