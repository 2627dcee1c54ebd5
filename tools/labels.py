"""Checks and converts labels: python tools/labels.py check labels.json --audio-root audio"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported


def main(argv: Sequence[str]) -> None:
    from datamodules.preferences.command import main as command

    command(argv)


if __name__ == "__main__":
    sys.exit(reported(main))
