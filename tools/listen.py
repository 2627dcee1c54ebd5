"""Compares sounds by ear: python tools/listen.py page|blind|summary --help"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported


def main(argv: Sequence[str]) -> None:
    from zoo.commands.listen import main as command

    command(argv)


if __name__ == "__main__":
    sys.exit(reported(main))
