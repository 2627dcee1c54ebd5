"""The options of ``tools/evaluate.py``; this file imports nothing heavy, for a quick ``--help``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.evaluation.results import ORIGINAL, TRAINED

BASE = "base"
WHICH = ("held_out", "train", "all")
SEED = 1_000_003  # far from the seeds of runs: no noise of an evaluation was trained on
SAMPLES = 25


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/evaluate.py",
        description=(
            "Accuracy by class, confusion, CLAP and other scores with intervals: "
            "table1.md, table2.md, results.json, "
            "confusion.png, tables.png, report.html."
        ),
        allow_abbrev=False,
    )
    _add_sources(parser.add_argument_group("what is evaluated").add_argument)
    _add_sampling(parser.add_argument_group("how a model is sampled").add_argument)
    _add_tables(parser.add_argument_group("scores and tables").add_argument)
    return parser


def _add_sources(add: Callable[..., Any]) -> None:
    add(
        "--generations",
        help=(
            "folder of audio with samples.json (as tools/generate.py and runs write it) or a table"
        ),
    )
    add(
        "--table",
        type=Path,
        help="CSV, TSV or JSONL: file,prompt[,label][,seed] (default: prompts.csv in the folder)",
    )
    add(
        "--model",
        help=(
            "instead of a folder: a zoo name, a run folder or a model folder, sampled now; or "
            "base (with --config)"
        ),
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME[=STRENGTH]",
        help="on the model; may be given several times",
    )
    add(
        "--baseline",
        help=(
            "what it is compared with: a folder of generations, a model, or base: the run's model "
            "untrained"
        ),
    )
    add(
        "--config",
        action="append",
        default=[],
        help="YAML of a run: its prompts, sampling and reward (a run folder has its own)",
    )
    add(
        "--combine",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="evaluated folders: one set of tables of all, nothing is scored",
    )


def _add_sampling(add: Callable[..., Any]) -> None:
    add(
        "--prompts",
        help=(
            ".txt, .csv or .jsonl; further columns are labels (mood). Default: those of the "
            "configuration"
        ),
    )
    add("--which", choices=WHICH, help="which prompts of the configuration (default: held_out)")
    add("--samples", type=int, help=f"clips per prompt (default: {SAMPLES})")
    add(
        "--seed",
        type=int,
        help=(
            "of a prompt's first clip; the next has the next seed, the same for all models "
            f"(default: {SEED})"
        ),
    )
    add("--steps", type=int, help="sampling steps (default: those of the run, else 20)")
    add("--guidance", type=float, help="guidance scale (default: that of the run, else 3)")
    add("--eta", type=float, help="share of fresh noise (default: that of the run, else 1)")
    add(
        "--seconds",
        type=float,
        help="length of prompts of --prompts that say none (default: that of the run)",
    )
    add(
        "--negative",
        help="negative of prompts of --prompts that say none (default: that of the run)",
    )
    add("--batch-size", type=int, default=8, help="samples at a time")
    add("--device", default="cpu", help="such as cpu, cuda, mps")


def _add_tables(add: Callable[..., Any]) -> None:
    add(
        "--rewards",
        nargs="+",
        metavar="NAME",
        help=(
            "zoo names, folders, .yaml (a _target_ or a run), or config: that of --config or the "
            "run"
        ),
    )
    add(
        "--pick-by",
        metavar="NAME",
        help=(
            "which of the --rewards picks the best of n clips of the baseline, for the row beside "
            "the trained model (default: the reward it was trained by, where it is among them)"
        ),
    )
    add(
        "--best-of",
        type=int,
        metavar="N",
        help="clips of a prompt to pick from (default: 4, or all if fewer; 1 for no such row)",
    )
    add(
        "--setting",
        help=(
            'row of Table 2, such as "19-step, 10 sec."; trained and original models with the '
            "same one are compared"
        ),
    )
    add("--name", help="of the model in the tables (default: that of its folder)")
    add(
        "--role",
        choices=[TRAINED, ORIGINAL],
        help=(
            "what a model without --baseline is in Table 2 "
            "(default: trained for runs and adapters, clips for a folder, else original)"
        ),
    )
    add(
        "--players",
        type=int,
        default=3,
        help="clips per class in report.html, from best to worst; 0 for none",
    )
    add(
        "--out",
        type=Path,
        default=Path("evaluation"),
        help="folder; an interrupted evaluation continues in it",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace the tables and pages of the evaluation that --out holds",
    )
