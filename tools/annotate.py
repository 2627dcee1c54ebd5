"""Scores clips: python tools/annotate.py generated --reward runs/baton/reward --out rd.jsonl"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported


def main(argv: Sequence[str]) -> None:
    from lightning_modules import annotation_command

    annotation_command.main(argv, _file_prompts, _labels)


# these import torch, which --help does not need


def _file_prompts(path: str, negative: str, seconds: float) -> Sequence[Any]:
    from datamodules.prompt_sources import file_prompts

    return file_prompts(path, negative, seconds)


def _labels() -> Any:
    from datamodules.preferences import annotation

    return annotation


if __name__ == "__main__":
    sys.exit(reported(main))
