"""The zoo: python tools/zoo.py list | show NAME | pull NAME | export RUN --to DIR | push DIR
OWNER/NAME | verify DIR
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(
    Path(__file__).resolve().parents[1]
)  # also: this file is called zoo.py and must not hide the package

from zoo.errors import reported


def main(argv: Sequence[str]) -> None:
    from zoo.commands import zoo

    zoo.main(argv)


if __name__ == "__main__":
    sys.exit(reported(main))
