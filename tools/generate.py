"""Generates audio: python tools/generate.py embedded/music "A sad piano solo" --seeds 0-3"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported


def main(argv: Sequence[str]) -> None:
    from zoo.commands import generate

    generate.main(argv, _file_prompts)


def _file_prompts(path: str, negative: str, seconds: float) -> Sequence[Any]:
    from datamodules.prompt_sources import (
        file_prompts,
    )  # after the arguments were read: --help needs no torch

    return file_prompts(path, negative, seconds)


if __name__ == "__main__":
    sys.exit(reported(main))
