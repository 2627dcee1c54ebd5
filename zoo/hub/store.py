"""The store of pulled models: one plain folder per model and revision, whole and verified.

``ATTUNE_CACHE`` names the root; by default it is ``attune`` in the Hub client's home (``HF_HOME``,
~/.cache/huggingface). A record in each folder says where the files came from and what their hashes
are.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.files import folder_written_beside, written_beside

RECORD = ".attune-pull.json"


@dataclass(frozen=True)
class PullRecord:
    """Where the files of a folder came from. ``sha256``: relative file name -> hash."""

    repo_id: str
    revision: str
    licence: str
    sha256: Mapping[str, str] = field(hash=False)


def cache_root() -> Path:
    home = (
        os.environ.get("HF_HOME")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    return Path(os.environ.get("ATTUNE_CACHE") or Path(home) / "attune").expanduser()


def place(name: str, revision: str) -> Path:
    """The place of a zoo name or ``owner/name`` at a commit, whether pulled or not."""
    return cache_root() / "models" / name.replace("/", "--") / revision


def newest(name: str, revision: str | None = None) -> Path | None:
    """The folder of a pulled model at this commit, or of the last pull; None without one."""
    parent = place(name, "x").parent
    there = [path.parent for path in parent.glob(f"{revision or '*'}/{RECORD}")]
    return max(there, key=lambda path: (path / RECORD).stat().st_mtime_ns, default=None)


def is_downloaded(folder: str | Path) -> bool:
    """Whether a folder was pulled or is in the Hub client's cache; it must not name code then."""
    above = [folder := Path(folder).resolve(), *folder.parents]
    return any((path / RECORD).exists() for path in above) or any(
        path.name == "snapshots" for path in above[1:]
    )


def write_record(folder: Path, record: PullRecord) -> None:
    with written_beside(folder / RECORD) as temporary:
        text = json.dumps(asdict(record), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> PullRecord | None:
    """The record of a pulled folder; None without one.

    Raises ``UserError`` for an invalid one.
    """
    from zoo.hub.untrusted import read_json, safe_relative_path

    path = folder / RECORD
    if not path.is_file():
        return None
    node: dict[str, Any] = read_json(path)
    try:
        record = PullRecord(
            **{name: node[name] for name in ("repo_id", "revision", "licence", "sha256")}
        )
        texts = (record.repo_id, record.revision, record.licence, *record.sha256.values())
        if not all(isinstance(text, str) for text in texts):
            raise UserError("expected texts")
        for name in record.sha256:
            safe_relative_path(name)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); remove the folder and pull again") from error
    return record


def copied(source: Path, to: Path) -> Path:
    """A copy of a model folder at ``to``, whole or not there.

    Raises ``FileExistsError``, ``OSError``.
    """
    from zoo.hub.untrusted import check_folder

    files = check_folder(source)
    refuse_taken(to)
    check_room(sum(path.stat().st_size for path in files), to)
    with folder_written_beside(to) as part:
        for path in files:
            place_in = part / path.relative_to(source)
            place_in.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place_in)
    return to


def refuse_taken(to: Path) -> None:
    """Raises ``FileExistsError`` for a place where something is."""
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise FileExistsError(
            f"{to} exists and does not hold what is being pulled; name another folder, or remove it"
        )


def check_room(size_bytes: int, folder: Path) -> None:
    """Raises ``OSError`` (ENOSPC) when the disk below ``folder`` has less left."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        need = f"the disk has {free / 1e6:,.0f} MB left, {size_bytes / 1e6:,.0f} MB are needed"
        raise OSError(errno.ENOSPC, need, str(folder))
