"""The command line of ``tools/listen.py``: comparison page, blind test, and labelling."""

from __future__ import annotations

import argparse
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.commands.label import LabelFormats, add_label_commands
from zoo.errors import UserError
from zoo.files import check_writable, clear_after_killed
from zoo.listening.answers import SUFFIXES, check_systems, described, read_answers

if TYPE_CHECKING:  # imports of torch wait until the arguments are parsed, for a quick --help
    from zoo.listening.pairs import Pairing


def parser(formats: LabelFormats) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/listen.py",
        description="Compares sounds by ear, and collects what people say of them.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser(
        "page", help="write one HTML file with prompts, sounds and scores", allow_abbrev=False
    )
    _add_folders(add)
    add.add_argument(
        "--scorer",
        required=True,
        help="a reward: zoo name (embedded/clap, clap-htsat-unfused) or model folder",
    )
    add.add_argument("--out", default="comparison.html", help="the file (default: %(default)s)")
    add.add_argument("--device", default="cpu", help="of the scorer, such as cpu, cuda, mps")
    add.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add.set_defaults(run=_page)
    add = commands.add_parser(
        "blind",
        help="serve a blind A/B test and save its answers (needs the extra app)",
        allow_abbrev=False,
    )
    _add_folders(add)
    add.add_argument(
        "--answers",
        required=True,
        help=f"file that ends in {' or '.join(SUFFIXES)}; a test continues where it stopped",
    )
    add.add_argument(
        "--names",
        nargs=2,
        default=["base", "tuned"],
        metavar=("BEFORE", "AFTER"),
        help="of the two systems in the answers; listeners never see them (default: base tuned)",
    )
    add.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of orders and sides; keep it while a test runs (default: %(default)s)",
    )
    add.add_argument(
        "--own-level",
        action="store_true",
        help="play files at their own level, not both at that of the quieter one",
    )
    add.add_argument(
        "--host", default="127.0.0.1", help="address to serve at; the default is this machine only"
    )
    add.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    add.set_defaults(run=_blind)
    add = commands.add_parser(
        "summary", help="summarise the answers of a blind test, with intervals", allow_abbrev=False
    )
    add.add_argument("answers")
    add.set_defaults(run=_summary)
    add_label_commands(commands, formats)
    return parser


def _add_folders(add: argparse.ArgumentParser) -> None:
    add.add_argument(
        "--before",
        required=True,
        help="folder of the base model's files: RUN/audio/before, or of tools/generate.py",
    )
    add.add_argument(
        "--after",
        required=True,
        help="folder of the fine-tuned model's files, from the same prompts and seeds",
    )
    add.add_argument("--count", type=int, help="how many pairs, evenly spread (default: all)")


def main(argv: Sequence[str], formats: LabelFormats) -> None:
    """Runs a command. Raises ``UserError`` and ``OSError`` for mistakes in its arguments."""
    options = parser(formats).parse_args(argv)
    options.run(options)


def _pairing(options: argparse.Namespace) -> Pairing:
    from zoo.listening.pairs import Pairing, read_pairs, spread_pairs

    found = read_pairs(options.before, options.after)
    if found.alone:
        print(f"{found.alone} samples of one folder have no partner in the other and are left out")
    return Pairing(spread_pairs(found.pairs, options.count), found.alone)


def _page(options: argparse.Namespace) -> None:
    from rich.progress import Progress

    from zoo.listening.comparison import scored, summary_lines, write_comparison
    from zoo.listening.pairs import paired_difference
    from zoo.loading import load
    from zoo.types import is_scorer

    out = Path(options.out)
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise UserError(f"--out {out}: expected a file that ends in .html")
    if out.exists() and not options.overwrite:
        raise UserError(f"{out} exists; give another --out, or --overwrite to replace it")
    check_writable(out)
    clear_after_killed(out.parent, glob.escape(out.name))
    pairing = _pairing(options)
    scorer = load(options.scorer, options.device)
    if not is_scorer(scorer):
        raise UserError(
            f"{options.scorer} is a {type(scorer).__name__}, which has no scores; name a reward"
        )
    with Progress(transient=True) as bar:
        task = bar.add_task("scoring", total=len(pairing.pairs))
        name, first, second = scored(
            pairing.pairs,
            scorer,
            options.scorer,
            lambda done, total: bar.update(task, completed=done),
        )
    write_comparison(out, pairing, name, first, second)
    found = paired_difference([pair.prompt.id for pair in pairing.pairs], first, second)
    print("\n".join([*summary_lines(name, found), str(out)]))


def _blind(options: argparse.Namespace) -> None:
    from zoo.listening.app import build, gradio, serve
    from zoo.listening.trials import listening_test

    gradio()
    check_systems(options.names)
    before, after = options.names
    pairs = _pairing(options).pairs
    test = listening_test(
        pairs, options.answers, (before, after), options.seed, not options.own_level
    )
    print(
        f"test {test.name}: {len(test.pairs)} pairs; answers go to {test.answers}; stop with Ctrl-C"
    )
    serve(build(test), [options.before, options.after], options.host, options.port)


def _summary(options: argparse.Namespace) -> None:
    if not Path(options.answers).is_file():
        raise UserError(f"{options.answers}: there is no such file of answers")
    print(described(read_answers(options.answers)))
