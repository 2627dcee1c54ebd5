"""Verifies that a model folder is whole, and matches its config, its pull and the zoo's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.files import sha256_of
from zoo.hub.store import RECORD, read_record
from zoo.hub.table import ENTRIES
from zoo.hub.untrusted import check_folder, check_index, check_safetensors_header, read_json

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_UNFINISHED = (".part", ".incomplete", ".tmp")


@dataclass(frozen=True)
class CheckedFile:
    """A file and its hash; ``known_by`` lists the records with this hash, and may be empty.

    Records are "the zoo's table", "config.json" and "the pull".
    """

    name: str
    size_bytes: int
    sha256: str
    known_by: tuple[str, ...] = ()


def verify_folder(
    folder: str | Path, promised: Mapping[str, str] | None = None
) -> tuple[CheckedFile, ...]:
    """Every file of a model folder with its hash.

    ``promised``: file name -> sha256, in addition to the folder's own.

    Raises ``UserError`` naming everything that is wrong: links, unfinished files, missing files,
    other hashes, headers and indexes that do not fit their files; and for a folder that holds no
    model at all. ``OSError`` for one that cannot be read.
    """
    folder = Path(folder)
    paths = {path.relative_to(folder).as_posix(): path for path in check_folder(folder)}
    unfinished = sorted(name for name in paths if is_unfinished(name))
    if unfinished:
        raise UserError(
            f"{folder} is half-written, it holds {', '.join(unfinished[:3])}; remove it and pull or"
            " export again"
        )
    record = read_record(folder)
    promises = {
        "the zoo's table": dict(promised or {}) | _table(folder),
        "the pull": {} if record is None else dict(record.sha256),
        CONFIG: _hashes(read_json(paths[CONFIG])) if CONFIG in paths else {},
    }
    if not {CONFIG, ADAPTER_CONFIG} & paths.keys() and record is None and not promised:
        raise UserError(
            f"{folder} is not a model: it has neither {CONFIG} nor {ADAPTER_CONFIG}, and no"
            " record of a pull"
        )
    wrong, files = [], []
    for who, hashes in promises.items():
        wrong += [
            f"{name} is missing (promised by {who})"
            for name in sorted(hashes.keys() - paths.keys())
        ]
    for name, path in paths.items():
        if name == RECORD:
            continue
        digest = sha256_of(path)
        wrong += [
            f"{name} has sha256 {digest}, {who} says {hashes[name]}"
            for who, hashes in promises.items()
            if hashes.get(name, digest) != digest
        ]
        wrong += _structure(folder, name, path)
        known_by = tuple(who for who, hashes in promises.items() if name in hashes)
        files.append(CheckedFile(name, path.stat().st_size, digest, known_by))
    if not any(name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt")) for name in paths):
        wrong.append("there are no weights in it")
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(
            f"{folder} is not whole: {'; '.join(wrong[:4])}{more}; pull or export it again"
        )
    return tuple(files)


def is_unfinished(name: str) -> bool:
    """Whether a file is what an interrupted download or export leaves."""
    return any(
        part in _UNFINISHED
        for part in ("." + piece for piece in name.rsplit("/", 1)[-1].split(".")[1:])
    )


def _table(folder: Path) -> dict[str, str]:
    found = [
        entry
        for entry in ENTRIES.values()
        if entry.path is not None and entry.path.resolve() == folder.resolve()
    ]
    return dict(found[0].sha256) if found else {}


def _hashes(config: dict[str, Any]) -> dict[str, str]:
    hashes = config.get("sha256")
    return (
        {str(name): str(digest) for name, digest in hashes.items()}
        if isinstance(hashes, dict)
        else {}
    )


def _structure(folder: Path, name: str, path: Path) -> list[str]:
    """What is wrong inside a weights file or an index, without reading a tensor."""
    try:
        if name.endswith(".safetensors"):
            check_safetensors_header(path)
        if name.endswith(".safetensors.index.json"):
            check_index(path, path.parent)
    except (UserError, FileNotFoundError) as error:
        return [str(error)]
    return []
