"""Measures the time of a start: python benchmarks/import_time.py [--repeats 5]

A fresh process runs `import torch`, then `import zoo` with its table, then the first access to
`zoo.load` (the diffusion code, but no model library). Further processes run `tools/fit.py` up to
the first line of a run and up to the end of `--help` and `--print-config`, beside the import of
the trainer, for which all of them waited before. It prints the least wall and processor time of the
repeats; on a busy machine rely on the second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 0.3
FIRST_LINE_LIMIT_S = 3.0
STEPS = ("import torch", "import zoo; zoo.entries()", "zoo.load, zoo.generate, zoo.score")
TRAINER = ("-c", "import lightning_modules.run")
FIT = ("tools/fit.py", "--config", "configs/ddpo/quickstart.yaml")
COMMANDS = (  # (title, arguments of Python, whether only the first line counts)
    ("import of the trainer", TRAINER, False),
    ("fit --help", (FIT[0], "--help"), False),
    ("fit --print-config", (*FIT, "--print-config"), False),
    ("fit, its first line", (*FIT, "out_dir=runs/import_time_never_written"), True),
)
Cost = tuple[float, float]  # wall and processor time in s


def seconds(steps: tuple[str, ...], repeats: int) -> list[Cost]:
    """The least cost of each statement; one interpreter runs all of them."""
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


def command_seconds(arguments: Sequence[str], first_line: bool, repeats: int) -> Cost:
    """The least cost of a process; with ``first_line`` up to its first line only."""
    costs = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            if first_line:
                process.stdout.readline()
                process.kill()
            else:
                process.stdout.read()
            wall_s = time.perf_counter() - started_s
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        costs.append((wall_s, usage.ru_utime + usage.ru_stime))
    return min(wall_s for wall_s, _ in costs), min(busy_s for _, busy_s in costs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    rows = dict(zip(STEPS, seconds(STEPS, repeats), strict=True))
    for title, arguments, first_line in COMMANDS:
        rows[title] = command_seconds(arguments, first_line, repeats)
    print(f"{'':<40}{'wall':>10}{'processor':>12}")
    for title, (wall_s, busy_s) in rows.items():
        print(f"{title:<40}{wall_s:8.3f} s{busy_s:10.3f} s")
    beyond_s = min(rows[STEPS[1]])
    first_s = min(rows["fit, its first line"])
    print(f"`import zoo` beyond torch: {beyond_s:.3f} s, limit {LIMIT_S} s")
    print(f"the first line of a run: {first_s:.3f} s, limit {FIRST_LINE_LIMIT_S} s")
    trainer_s = rows["import of the trainer"][1]
    for title in ("fit --print-config", "fit, its first line"):
        print(f"trainer / {title}: processor x{trainer_s / rows[title][1]:.1f}")
    return int(beyond_s > LIMIT_S or first_s > FIRST_LINE_LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
