"""``python tools/sounds.py``: unpacks Debian packages of recorded sounds without root, lists them.

It downloads only the packages of ``datamodules/sounds/sources.py``, with ``apt-get download``,
which checks them against Debian's signed lists. ``dpkg-deb -x`` unpacks them without running their
scripts.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.sounds.sources import FULL_SET, SMALL_SET
from zoo.errors import UserError, did_you_mean

if TYPE_CHECKING:  # imports of torch wait until the arguments are parsed, for a quick --help
    from datamodules.sounds.clips import SoundBank

SETS = {"small": SMALL_SET, "full": FULL_SET}
SIZES = {"small": "79 MB download, 124 MB unpacked", "full": "459 MB download, 680 MB unpacked"}


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise OSError(f"`{' '.join(command)}` failed: {reason}")


def _download(package: str, folder: Path) -> Path:
    """Downloads a .deb into ``folder``, with the system's package lists or else with own lists.

    Own lists are kept below ``folder`` and need no root.
    """
    own = folder / "apt"
    options = ("-o", f"Dir::State::Lists={own / 'lists'}", "-o", f"Dir::Cache={own / 'cache'}")
    try:
        _run(["apt-get", "download", package], folder)
    except OSError as first:
        for below in ("lists/partial", "cache/archives/partial"):
            (own / below).mkdir(parents=True, exist_ok=True)
        try:
            if not any((own / "lists").glob("*Packages*")):
                _run(["apt-get", *options, "update"], folder)
            _run(["apt-get", *options, "download", package], folder)
        except OSError as error:
            raise OSError(
                f"{package} could not be downloaded. {first}. With separate package lists:"
                f" {error}. The names are those of Debian 12; another release may lack one: choose"
                " with --packages"
            ) from error
    found = sorted(folder.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise OSError(f"apt-get downloaded no {package}_*.deb into {folder}")
    return found[-1]


def fetch(
    to: str | Path, packages: Sequence[str] = SMALL_SET, say: Callable[[str], None] = print
) -> list[str]:
    """Downloads and unpacks the missing packages below ``to`` and returns their names.

    After an interruption it continues where it stopped. Raises ``UserError`` for a package that is
    not in ``FULL_SET``, and ``OSError`` where apt-get or dpkg-deb is missing or fails.
    """
    from rich.progress import Progress

    from datamodules.sounds.bank import install_command

    for name in packages:
        if name not in FULL_SET:
            raise UserError(
                f"{name!r} is not one of the sound packages; {did_you_mean(name, FULL_SET)}"
            )
    to = Path(to).expanduser().resolve()
    if to == Path("/"):
        raise UserError(
            "choose a separate folder, not /; to install for all users:"
            f" {install_command(packages)}"
        )
    state = to / ".packages"
    todo = [name for name in dict.fromkeys(packages) if not (state / f"{name}.unpacked").exists()]
    for name in packages:
        if name not in todo:
            say(f"{name} is already unpacked")
    if not todo:
        return []
    if lacking := [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]:
        raise OSError(
            f"{' and '.join(lacking)} not found: this needs Debian 12 or a container of it (docker"
            " run -it debian:12)"
        )
    state.mkdir(parents=True, exist_ok=True)
    with Progress(*Progress.get_default_columns(), transient=True) as progress:
        task = progress.add_task("", total=len(todo))
        for name in todo:
            progress.update(task, description=f"downloading {name}")
            _unpack(_download(name, state), name, to)
            progress.advance(task)
            say(f"unpacked {name} into {to}")
    return todo


def _unpack(archive: Path, name: str, to: Path) -> None:
    """Unpacks a package; until it is complete a mark ``.unpacking`` keeps the bank away."""
    mark = archive.with_name(f"{name}.unpacking")
    mark.touch()
    _run(["dpkg-deb", "-x", str(archive), str(to)], archive.parent)
    mark.replace(mark.with_suffix(".unpacked"))
    archive.unlink()


def summary(bank: SoundBank) -> list[tuple[str, ...]]:
    """One row per class: class, clips, seconds, split by recording, licences."""
    rows = []
    for name in bank.classes():
        clips = [clip for clip in bank.clips if clip.sound_class == name]
        licences = ", ".join(sorted({clip.licence for clip in clips}))
        tested = sum(clip.split == "test" for clip in clips)
        split = "unseen scenes only"
        if clips[0].recording_split:
            split = f"{len(clips) - tested} / {tested}"
        seconds = f"{sum(clip.seconds for clip in clips):.1f}"
        rows.append((name, str(len(clips)), seconds, split, licences))
    return rows


def show(bank: SoundBank) -> None:
    """Prints the table of classes, the totals and what was left out."""
    from rich.console import Console
    from rich.table import Table

    table = Table("class", "clips", "seconds", "train / test", "licences")
    for row in summary(bank):
        table.add_row(*row)
    console = Console()
    console.print(table)
    seconds = sum(clip.seconds for clip in bank.clips)
    console.print(f"{len(bank)} clips, {len(bank.classes())} classes, {seconds:.0f} s")
    for name, reason in bank.quarantined.items():
        console.print(f"left out: {name} {reason}", markup=False)


def main(argv: Sequence[str]) -> None:
    """Runs ``fetch --to DIR [--set NAME | --packages ...]`` or ``list [--root DIR] [...]``."""
    parser = argparse.ArgumentParser(
        prog="python tools/sounds.py",
        description="Recorded sounds from Debian packages.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser(
        "fetch", help="download and unpack packages below a folder, without root"
    )
    fetching.add_argument(
        "--to", required=True, metavar="DIR", help="the folder, later the root of the sound bank"
    )
    fetching.add_argument(
        "--set",
        choices=list(SETS),
        default="small",
        help="; ".join(f"{k}: {v}" for k, v in SIZES.items()),
    )
    fetching.add_argument(
        "--packages",
        nargs="+",
        metavar="NAME",
        help=f"some of {', '.join(FULL_SET)}, instead of a set",
    )
    listing = commands.add_parser(
        "list", help="list the available classes of sounds with their licences"
    )
    listing.add_argument(
        "--root",
        default="/",
        help="where the packages are: / (installed), or the folder given to --to",
    )
    listing.add_argument(
        "--licences", nargs="+", metavar="ID", help="only these, such as CC0-1.0 CC-BY-3.0"
    )
    listing.add_argument(
        "--sources", nargs="+", metavar="NAME", help="only these, such as opensfx sonic-pi"
    )
    options = parser.parse_args(list(argv))
    if options.command == "list":
        from datamodules.sounds.bank import load_bank

        show(load_bank(options.root, sources=options.sources, licences=options.licences))
        return
    packages = tuple(options.packages or SETS[options.set])
    size = "" if options.packages else f" ({SIZES[options.set]})"
    print(
        f"{', '.join(packages)}{size} by apt-get download and dpkg-deb -x into {options.to};"
        " nothing is installed"
    )
    fetch(options.to, packages)
    print(f"done; use it as root={options.to}")
