"""Manages models: python tools/zoo.py list | show | pull | export | push | verify"""

import sys
from collections.abc import Sequence
from pathlib import Path

# also keeps this file, which is called zoo.py, from hiding the package
sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.errors import reported


def main(argv: Sequence[str]) -> None:
    from zoo.commands import zoo

    zoo.main(argv)


if __name__ == "__main__":
    sys.exit(reported(main))
