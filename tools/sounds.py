"""Fetches and lists recorded sounds: python tools/sounds.py fetch --to sounds --set small"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported


def main(argv: Sequence[str]) -> None:
    from datamodules.sounds.fetch import main as command

    command(argv)


if __name__ == "__main__":
    sys.exit(reported(main))
