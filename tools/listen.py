"""Sounds heard by people: python tools/listen.py page|blind|summary|label|results|export --help"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from zoo.commands.label import LabelFormats
from zoo.errors import reported


def aggregated(records, rule):
    from datamodules.preferences.votes import aggregate

    return aggregate(records, rule)[0]


def written(records, path, dialect, found):
    from datamodules.preferences.dialects import write_labels

    return write_labels(records, path, dialect, found)


def agreement(records):
    from datamodules.preferences.votes import krippendorff_alpha

    return krippendorff_alpha(records)


def main(argv: Sequence[str]) -> None:
    from zoo.commands.listen import main as command

    command(argv, LabelFormats(aggregated, written, agreement))


if __name__ == "__main__":
    sys.exit(reported(main))
