"""Trust on first use: the commit and hashes of the first pull, in a file to be committed.

``attune.lock.json`` in the working folder holds, for each Hub repository, the commit and the sha256
and size of every file that was pulled. A later pull, on whichever machine, must find the same or is
refused before anything is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zoo.errors import UserError
from zoo.files import written_beside
from zoo.hub.entry import is_repo_id
from zoo.hub.untrusted import read_json, safe_relative_path

LOCK_FILE = "attune.lock.json"
_VERSION = 1


@dataclass(frozen=True)
class LockedFile:
    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise UserError(f"sha256 must be 64 hex digits, got {self.sha256!r}")
        if not isinstance(self.size_bytes, int) or self.size_bytes < 0:
            raise UserError(f"size_bytes must be a count, got {self.size_bytes!r}")


@dataclass(frozen=True)
class Pin:
    """One repository: the commit, and what is known of its files (of those that were pulled)."""

    revision: str
    files: Mapping[str, LockedFile] = field(hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.revision, str) or not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise UserError(f"revision must be a commit of 40 hex digits, got {self.revision!r}")


def read_lock(path: str | Path = LOCK_FILE) -> Mapping[str, Pin]:
    """repository id -> pin; empty when there is no such file.

    Raises ``UserError`` for an invalid one.
    """
    path = Path(path)
    if not path.is_file():
        return MappingProxyType({})
    node = read_json(path)
    if node.get("version") != _VERSION:
        raise UserError(
            f"{path} has version {node.get('version')!r}, this Attune writes {_VERSION}; update"
            " Attune, or name another file with --lock"
        )
    try:
        pins = {repo_id: _pin(repo_id, pin) for repo_id, pin in node["repos"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it, or remove it to trust the next pull afresh"
        ) from error
    return MappingProxyType(pins)


def _pin(repo_id: str, node: dict[str, Any]) -> Pin:
    if not is_repo_id(repo_id):
        raise UserError(f"{repo_id!r} is not owner/name")
    files = {
        str(safe_relative_path(name)): LockedFile(file["sha256"], file["size_bytes"])
        for name, file in node["files"].items()
    }
    return Pin(node["revision"], files)


def check_revision(
    pin: Pin | None, repo_id: str, revision: str, path: str | Path = LOCK_FILE
) -> None:
    """Raises ``UserError`` when the lock file pins another commit."""
    if pin is not None and pin.revision != revision:
        raise UserError(
            f"{path} pins {repo_id} at {pin.revision}, but {revision} was requested or found; pull"
            f" without --revision, or remove {repo_id} from {path} if the change is intended"
        )


def check_file(
    pin: Pin | None, repo_id: str, name: str, sha256: str, path: str | Path = LOCK_FILE
) -> None:
    """Raises ``UserError`` when the lock file has another hash of this file.

    Args:
        pin: the repository's entry in the lock file; None without one.
        repo_id: "owner/name", for the message.
        name: of the file within the repository.
        sha256: of the file that was found.
        path: of the lock file, for the message.
    """
    known = None if pin is None else pin.files.get(name)
    if known is not None and known.sha256 != sha256:
        raise UserError(
            f"{name} of {repo_id} has sha256 {sha256}, but {path} pins {known.sha256}: it is not"
            " the file that was first pulled; ask its publisher what changed"
        )


def write_pin(repo_id: str, pin: Pin, path: str | Path = LOCK_FILE) -> None:
    """Adds a pin to the lock file (files of an earlier pull of the same commit stay).

    Raises ``UserError`` and ``OSError``.
    """
    path = Path(path)
    pins = dict(read_lock(path))
    before = pins.get(repo_id)
    check_revision(before, repo_id, pin.revision, path)
    for name, file in pin.files.items():
        check_file(before, repo_id, name, file.sha256, path)
    merged = {**(before.files if before is not None else {}), **pin.files}
    if before is not None and merged == dict(before.files):
        return
    pins[repo_id] = Pin(pin.revision, merged)
    node = {
        "version": _VERSION,
        "repos": {
            name: {
                "revision": one.revision,
                "files": {
                    file: {"sha256": locked.sha256, "size_bytes": locked.size_bytes}
                    for file, locked in sorted(one.files.items())
                },
            }
            for name, one in sorted(pins.items())
        },
    }
    with written_beside(path) as temporary:
        temporary.write_text(json.dumps(node, indent=2, allow_nan=False) + "\n", encoding="utf-8")
