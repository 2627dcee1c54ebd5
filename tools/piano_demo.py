"""Renders a piano data set in EMOPIA's layout: python tools/piano_demo.py --to data/piano_demo"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported


def main(argv: Sequence[str]) -> None:
    from datamodules.music.piano_command import main as command

    command(argv)


if __name__ == "__main__":
    sys.exit(reported(main))
