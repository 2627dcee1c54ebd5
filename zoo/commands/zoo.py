"""The command line of ``tools/zoo.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import UserError
from zoo.hub.entry import KINDS, ZooEntry, licence_words
from zoo.hub.lock import LOCK_FILE, check_file, check_revision, read_lock
from zoo.hub.registry import entries, entry_of, why_not_loadable
from zoo.hub.store import newest


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/zoo.py",
        description="Finds, pulls, exports, pushes and verifies models by name.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("list", help="list the models of the zoo", allow_abbrev=False)
    add.add_argument("--kind", choices=KINDS, help="only models of this kind")
    add.add_argument("--pattern", help="only names that contain this or match it as a glob (clap*)")
    add.set_defaults(run=_list)
    add = commands.add_parser("show", help="show all facts about a model", allow_abbrev=False)
    add.add_argument("name")
    add.set_defaults(run=_show)
    add = commands.add_parser(
        "pull", help="fetch a model by its zoo name or owner/name", allow_abbrev=False
    )
    add.add_argument("name")
    add.add_argument("--to", help="a new folder (default: the store of pulled models)")
    add.add_argument("--revision", help="commit, branch or tag (default: the pinned one)")
    add.add_argument(
        "--accept-licence",
        action="store_true",
        help="accept a licence that is not free without a question",
    )
    add.add_argument(
        "--lock",
        default=LOCK_FILE,
        help="file that pins commits and hashes at first pull (default: %(default)s)",
    )
    add.set_defaults(run=_pull)
    add = commands.add_parser(
        "export", help="make a model folder from a finished run", allow_abbrev=False
    )
    add.add_argument("run_folder", metavar="RUN")
    add.add_argument("--to", required=True, help="a new folder")
    add.add_argument(
        "--merge",
        action="store_true",
        help="merge the adapter into the model instead of exporting it alone",
    )
    add.add_argument(
        "--overwrite", action="store_true", help="replace an older export in the folder"
    )
    add.set_defaults(run=_export)
    add = commands.add_parser(
        "push", help="show what would be uploaded; with --yes upload it", allow_abbrev=False
    )
    add.add_argument("folder")
    add.add_argument("repo", metavar="OWNER/NAME")
    add.add_argument("--yes", action="store_true", help="upload")
    add.add_argument("--private", action="store_true", help="create a private repository")
    add.set_defaults(run=_push)
    add = commands.add_parser(
        "verify", help="check all files of a model folder or zoo name", allow_abbrev=False
    )
    add.add_argument("folder", metavar="DIR")
    add.add_argument(
        "--lock", default=LOCK_FILE, help="file that pins commits and hashes (default: %(default)s)"
    )
    add.set_defaults(run=_verify)
    return parser


def main(argv: Sequence[str]) -> None:
    """Runs a command. Raises ``UserError`` and ``OSError`` for mistakes in its arguments."""
    options = parser().parse_args(argv)
    options.run(options)


def _list(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    found = entries(options.kind, options.pattern)
    if not found:
        raise UserError(
            f"no entry matches {options.pattern!r}; `python tools/zoo.py list` shows all"
        )
    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind"):
        table.add_column(column, no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for column in ("licence", "cached", "loads", "what it is"):
        table.add_column(column, overflow="fold")
    for entry in found:
        licence = entry.licence + (" (gated)" if entry.gated else "")
        table.add_row(
            entry.name,
            entry.kind,
            _size(entry),
            licence,
            _cached(entry),
            _loads(entry),
            entry.summary,
        )
    console = Console()
    if not console.is_terminal:  # a pipe has no width to fold to
        console = Console(width=200)
    console.print(table)


def _loads(entry: ZooEntry) -> str:
    if why_not_loadable(entry) is None:
        return "yes"
    return "planned" if entry.importer is None else "own file"


def _show(options: argparse.Namespace) -> None:
    entry = entry_of(options.name)
    reason = why_not_loadable(entry)
    remote = f"{entry.repo_id} on the Hub" if entry.repo_id else "elsewhere"
    where = f"zoo/{entry.folder} (in the package)" if entry.folder else remote
    revision = entry.revision
    if revision is None:
        revision = "not known here: the first pull pins it"
        if entry.folder:
            revision = "that of the package"
    facts = {
        "kind": entry.kind,
        "architecture": entry.architecture,
        "loads": "yes" if reason is None else f"no: {reason}",
        "what it is": entry.summary,
        "files": where + (f", only {', '.join(entry.files)}" if entry.files else ""),
        "revision": revision,
        "base": entry.base or "none",
        "sample rate": f"{entry.sample_rate_hz} Hz",
        "size": _size(entry),
        "licence": licence_words(entry.licence, entry.gated),
        "cached": _cached(entry),
        "card": entry.card or "none here",
        "metrics": (
            ", ".join(f"{name} {value:g}" for name, value in entry.metrics.items())
            or "none recorded"
        ),
        "note": entry.note or "none",
    }
    print(entry.name)
    for name, value in facts.items():
        print(f"  {name + ':':<14}{value}")
    for name, digest in entry.sha256.items():
        print(f"  sha256        {digest}  {name}")
    if not entry.sha256:
        print("  sha256        not known here: the first pull pins them")


def _pull(options: argparse.Namespace) -> None:
    from zoo.hub.pull import pull

    bar = _Bar(f"pull {options.name}")
    with bar:
        folder = pull(
            options.name,
            options.revision,
            options.to,
            progress=bar.report,
            lock=options.lock,
            accept_licence=options.accept_licence or (_asked if sys.stdin.isatty() else False),
        )
    print(folder)


def _asked(terms: str) -> bool:
    try:
        return input(f"{terms}.\nDo you agree? [yes/no] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


class _Bar:
    """A progress bar on stderr; it starts with the first byte, after any question."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar = None
        self._task = None

    def report(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TransferSpeedColumn,
        )

        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self._title, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _export(options: argparse.Namespace) -> None:
    from zoo.hub.export import export_run

    export_run(options.run_folder, options.to, merge=options.merge, overwrite=options.overwrite)
    print(options.to)


def _push(options: argparse.Namespace) -> None:
    from zoo.hub.pull import push

    print(push(options.folder, options.repo, private=options.private, yes=options.yes).describe())


def _verify(options: argparse.Namespace) -> None:
    from zoo.hub.artifact_check import is_artifact, verify_artifact
    from zoo.hub.store import read_record
    from zoo.hub.untrusted import shown
    from zoo.hub.verify import verify_folder
    from zoo.loading import load

    named = [entry for entry in entries() if entry.name == options.folder]
    folder = (
        Path(options.folder)
        if not named or Path(options.folder).is_dir()
        else named[0].path or newest(named[0].name)
    )
    if folder is None or not folder.is_dir():
        near = f"pull {named[0].name} first" if named else "name a model folder, or a zoo name"
        raise FileNotFoundError(f"there is no folder {options.folder}; {near}")
    files = verify_folder(folder)
    record = read_record(folder)
    pin = None
    if record is not None:
        pin = read_lock(options.lock).get(record.repo_id)
        check_revision(pin, record.repo_id, record.revision, options.lock)
    lines = []
    for file in files:
        if record is not None:
            check_file(pin, record.repo_id, file.name, file.sha256, options.lock)
        known = list(file.known_by)
        if pin is not None and file.name in pin.files:
            known.append(str(options.lock))
        source = f"hash from {', '.join(known)}" if known else "no recorded hash"
        lines.append(f"{file.sha256}  {file.size_bytes:>13,}  {shown(file.name)}  ({source})")
    lines += verify_artifact(folder, load) if is_artifact(folder) else []
    print("\n".join([*lines, f"{folder} is whole: {len(files)} files"]))


def _size(entry: ZooEntry) -> str:
    size = entry.size_bytes
    if size is None:
        folder = newest(entry.name, entry.revision)
        if folder is not None:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return "unknown" if size is None else f"{size / 1e6:,.1f} MB"


def _cached(entry: ZooEntry) -> str:
    if entry.folder is not None:
        return "in the package" if (entry.path / "config.json").is_file() else "missing"
    return "yes" if newest(entry.name, entry.revision) is not None else "no"
