"""Evaluates models: python tools/evaluate.py --model runs/one --rewards embedded/mood --out DIR"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported


def main(argv: Sequence[str]) -> None:
    from zoo.evaluation.options import parser

    asked = parser().parse_args(argv)
    # imported after the arguments are parsed, because --help needs no torch
    from datamodules.prompt_sources import file_prompts
    from datamodules.tables import read_table
    from zoo.commands import evaluate

    evaluate.run(asked, file_prompts, read_table)


if __name__ == "__main__":
    sys.exit(reported(main))
