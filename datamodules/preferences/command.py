"""The command line of ``tools/labels.py``: check, stats, convert and split label files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_DESCRIPTION = """\
Checks, counts, converts and splits files of human or machine labels.

  check    reads every file and names file, row and field of each mistake (exit status 1)
  stats    counts tasks, sources, splits, labels and votes; agreement of the voters
  convert  writes all records as one file of another dialect
  split    draws splits by prompt and writes one file per split
"""


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add = common.add_argument
    add("files", nargs="+", metavar="FILE", help=".json, .jsonl, .csv, .tsv or .parquet")
    add("--audio-root", metavar="DIR", help="look for the clips below DIR and decode each one")
    add(
        "--map",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a folder or file that has another name below DIR; may be repeated",
    )
    add(
        "--sample-rate-hz",
        type=int,
        metavar="HZ",
        help="what every clip is said to have; another rate is a mistake",
    )
    add(
        "--captions",
        metavar="FILE",
        help="a table with the columns file and caption, for records that name no prompt",
    )
    add("--task", help="of every record; default: as the file says, else relevance")
    add("--source", help="HD (people), RD (reward model) or PD (no labels) for every record")
    add(
        "--scale",
        metavar="LOW:HIGH",
        help="of listener scores; default: 0:10 for relevance, 1:5 for quality and ratings",
    )
    whole = argparse.ArgumentParser(
        prog="python tools/labels.py",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = whole.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name in ("check", "stats"):
        actions.add_parser(name, parents=[common], allow_abbrev=False)
    convert = actions.add_parser("convert", parents=[common], allow_abbrev=False)
    convert.add_argument("--to", required=True, metavar="DIALECT", help="see docs/labels.md")
    convert.add_argument("--out", required=True, metavar="PATH", help="the file to write")
    convert.add_argument("--aggregate", metavar="RULE", help="votes to labels: mean or majority")
    convert.add_argument(
        "--min-agreement",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="leave out records whose largest side is a smaller share of the votes",
    )
    convert.add_argument(
        "--min-votes", type=int, default=1, metavar="N", help="leave out records with fewer votes"
    )
    convert.add_argument(
        "--drop-ties", action="store_true", help="leave out records with the label 0.5"
    )
    convert.add_argument(
        "--pairs", action="store_true", help="make pairs of the clips of each prompt"
    )
    convert.add_argument(
        "--drop-bad", action="store_true", help="leave out bad rows and clips, and name them"
    )
    convert.add_argument(
        "--extract-audio", metavar="DIR", help="write the audio inside parquet files to DIR"
    )
    split = actions.add_parser("split", parents=[common], allow_abbrev=False)
    split.add_argument("--out", required=True, metavar="DIR", help="a folder for NAME.jsonl")
    split.add_argument(
        "--shares",
        default="train=0.8,val=0.1,test=0.1",
        help="names and shares of the prompts (default: %(default)s)",
    )
    split.add_argument("--seed", type=int, default=0, help="another seed gives another draw")
    return whole


def main(argv: Sequence[str]) -> None:
    """Runs the command; exit status 1 when a row is bad.

    Raises ``UserError`` and ``OSError`` for mistakes in its arguments.
    """
    asked = parser().parse_args(argv)
    # imports torch, which would slow down --help
    from datamodules.preferences import label_files

    files = label_files.read(asked)
    actions = {
        "check": label_files.check,
        "stats": label_files.stats,
        "convert": label_files.convert,
        "split": label_files.split,
    }
    status = actions[asked.action](files, asked)
    if status:
        raise SystemExit(status)
