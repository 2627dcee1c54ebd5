"""Names -> entries -> folders.

Looks at this machine only; ``zoo.hub.pull`` downloads what is missing.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path

from zoo.backbones import BACKBONES
from zoo.errors import UserError, did_you_mean
from zoo.hub.entry import KINDS, ZooEntry, is_repo_id
from zoo.hub.table import ENTRIES
from zoo.rewards import REWARDS

_TABLES = {
    "backbone": BACKBONES,
    "reward": REWARDS,
    "adapter": BACKBONES,
    "classifier": REWARDS,
    "codec": BACKBONES,
}


def entries(kind: str | None = None, pattern: str | None = None) -> tuple[ZooEntry, ...]:
    """The zoo's entries of one kind (None: all) whose name matches ``pattern``.

    A glob such as "clap*", or part of a name.

    Raises ``UserError`` for an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}; {did_you_mean(kind, KINDS)}")
    glob = "*" if pattern is None else pattern.lower()
    if not set("*?[") & set(glob):
        glob = f"*{glob}*"
    return tuple(
        entry
        for entry in ENTRIES.values()
        if kind in (None, entry.kind) and fnmatch.fnmatchcase(entry.name, glob)
    )


def entry_of(name: str) -> ZooEntry:
    """The entry of a name. Raises ``UserError`` with the nearest one."""
    if name not in ENTRIES:
        raise UserError(f"there is no zoo entry {name!r}; {did_you_mean(name, ENTRIES)}")
    return ENTRIES[name]


def why_not_loadable(entry: ZooEntry) -> str | None:
    """None when ``zoo.load`` can build this model, else the reason in words."""
    if entry.architecture not in _TABLES[entry.kind]:
        return f"architecture {entry.architecture!r} planned, cannot be loaded yet"
    if entry.importer is not None:
        return f"download its file by hand and open it with {entry.importer}(PATH)"
    return None


def find(name_or_path: str | Path) -> Path:
    """The folder of a zoo name, a local path, or an ``owner/name`` that has been pulled.

    Raises ``UserError`` for what is none of these and for entries that cannot be loaded yet,
    ``FileNotFoundError`` for a known one whose files are not here.
    """
    text = str(name_or_path)
    entry = ENTRIES.get(text)
    if entry is None:
        path = Path(name_or_path)
        if path.is_dir():
            return path
        if looks_remote(text):
            return _pulled(text, text)
        beside = (
            [place.as_posix() for place in path.parent.iterdir() if place.is_dir()]
            if path.parent.is_dir()
            else []
        )
        choices = [*ENTRIES, *(name for name in beside if "/" in text)]
        raise UserError(
            f"there is no model {text!r}, neither a name nor a folder; "
            f"{did_you_mean(text, choices)}"
        )
    reason = why_not_loadable(entry)
    if reason is not None:
        more = f" ({entry.note})" if entry.note else ""
        raise UserError(
            f"{entry.name}: {reason}; `python tools/zoo.py show {entry.name}` says what is"
            f" known{more}"
        )
    if entry.path is None:
        return _pulled(entry.name, str(entry.repo_id), entry.revision)
    if not (entry.path / "config.json").is_file():
        raise FileNotFoundError(
            f"the weights of {entry.name} are not in {entry.path}; install the package again"
        )
    return entry.path


def looks_remote(text: str) -> bool:
    """Whether this can only mean ``owner/name`` on the Hub: it is no existing folder."""
    return is_repo_id(text) and not Path(text).exists() and not Path(text.split("/")[0]).is_dir()


def _pulled(name: str, repo_id: str, revision: str | None = None) -> Path:
    """The folder of the entry's commit, else of the locked one, else of the last pull."""
    from zoo.hub.lock import read_lock
    from zoo.hub.store import newest

    pin = read_lock().get(repo_id)
    folder = newest(name, revision or (pin.revision if pin is not None else None))
    if folder is None:
        raise FileNotFoundError(
            f"{name} is not on this machine; fetch it with: python tools/zoo.py pull {name}"
            + (f" (from {repo_id} on the Hub)" if repo_id != name else "")
        )
    return folder
