"""Writes files and folders next to their place, then moves them: nothing is half-written."""

from __future__ import annotations

import collections
import errno
import fnmatch
import glob
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zoo.errors import UserError

JSON_DEPTH = 64  # levels of lists and objects

# Audio formats that can be written: suffix -> libsndfile's names of container and sample format.
AUDIO_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}


_LEFTOVER = re.compile(r"\.(?P<stem>.+)\.(?P<pid>\d+)\.(?P<what>part|old)(?P<suffix>\.[^.]*)?")
_STARTED_S = time.time()  # anything older was not written by this process
# Errors of writing that the system reports without naming a file.
_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; on success renames it to ``path`` in one step.

    The temporary path has the same suffix. On any error it is removed and an older file at ``path``
    stays as it was. The ``OSError`` names ``path``, also where the system named no file (a full
    disk) or the temporary one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with _errors_name(path, temporary):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # a disk that cannot be written to: the first error says so
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def files_written_together(folder: str | Path) -> Iterator[Path]:
    """Yields an empty temporary folder; on success moves all files in it into ``folder``.

    Files of the same names are replaced, others stay. On any error no file is moved and ``folder``
    stays as it was. Raises ``OSError``: ``IsADirectoryError`` where a folder has the name of one of
    the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clear_after_killed(folder, "together")
    temporary = folder / f".together.{os.getpid()}.part"
    try:
        with _errors_name(folder, temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            files = sorted(path for path in temporary.iterdir() if path.is_file())
            for path in files:
                _sync(path)
                if (folder / path.name).is_dir():
                    raise IsADirectoryError(
                        errno.EISDIR, os.strerror(errno.EISDIR), str(folder / path.name)
                    )
            for path in files:
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def folder_written_beside(folder: str | Path, replace: bool = False) -> Iterator[Path]:
    """Yields an empty temporary folder; on success renames it to ``folder`` in one step.

    An empty ``folder`` may exist. A folder with content raises ``FileExistsError``, or is replaced
    once the new one is complete (``replace=True``). On any error the temporary folder is removed
    and an older ``folder`` stays as it was. Leftovers of a killed process that wrote the same
    folder are removed (see ``clear_after_killed``). Raises ``OSError``.
    """
    folder = Path(folder)
    is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_empty and not (replace and folder.is_dir()):
        raise FileExistsError(
            f"{folder} exists and is not an empty folder; name another one, or remove it"
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear_after_killed(folder.parent, glob.escape(folder.name))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = f"cannot write here ({error.strerror}); name a folder that you may write to"
            raise OSError(error.errno, advice, str(folder)) from error
        raise
    try:
        with _errors_name(folder, temporary):
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    _sync(path)
        if not is_empty:
            os.replace(folder, old)
        os.replace(temporary, folder)  # also replaces an empty folder
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _errors_name(path: Path, temporary: Path) -> Iterator[None]:
    """Makes an ``OSError`` of writing name ``path`` or the file in it, not ``temporary``."""
    try:
        yield
    except OSError as error:
        named = error.filename
        if named is None and error.errno in _WRITING:
            error.filename = str(path)
        elif isinstance(named, (str, os.PathLike)) and Path(named).is_relative_to(temporary):
            error.filename = str(path / Path(named).relative_to(temporary))
        raise


def check_writable(path: str | Path) -> None:
    """Raises ``OSError`` unless ``path`` can be written: call it before the work starts.

    Writes a temporary file into the nearest existing folder; creates no folder and leaves ``path``
    as it is.
    """
    path = Path(path)
    folder = next(above for above in path.absolute().parents if above.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        advice = f"cannot be written here ({error.strerror}); name another place"
        raise OSError(error.errno, advice, str(path)) from error


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def clear_after_killed(directory: str | Path, *names: str) -> None:
    """Removes the half-written files and folders that killed processes left in ``directory``.

    Leftovers are hidden and named after the file and the process: ``.STEM.PID.part.SUFFIX`` for a
    file, ``.NAME.PID.part`` for a folder (nested once more where a folder was written into it), and
    ``.NAME.PID.old`` for a folder that was being replaced, which is restored where ``NAME`` is
    missing. Leftovers of running processes stay. ``names`` are patterns of the final names
    (default: all). Raises ``OSError``.
    """
    directory = Path(directory)
    for left in sorted(directory.glob(".*.*")) if directory.is_dir() else ():
        found = _LEFTOVER.fullmatch(left.name)
        if found is None or _is_being_written(left, found["pid"]):
            continue
        name = found["stem"] + (found["suffix"] or "")
        is_nested = False
        while inner := _LEFTOVER.fullmatch(name):
            name = inner["stem"] + (inner["suffix"] or "")
            is_nested = True
        if names and not any(fnmatch.fnmatchcase(name, pattern) for pattern in names):
            continue
        if not left.is_dir() or left.is_symlink():
            left.unlink(missing_ok=True)
        elif found["what"] == "old" and not is_nested and not (directory / name).exists():
            os.replace(left, directory / name)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_being_written(left: Path, pid: str) -> bool:
    try:
        if int(pid) == os.getpid():  # in a container the killed process often had this number, too
            return left.lstat().st_mtime >= _STARTED_S
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process, or one on another machine
        return True
    return True


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file in 64 hex digits. Raises ``OSError``."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parsed_json(text: str, depth: int = JSON_DEPTH) -> Any:
    """Parses one JSON value, more strictly than ``json.loads``.

    Raises ``UserError`` for invalid JSON, a key that occurs twice in one object, more than
    ``depth`` levels of lists and objects, and half a surrogate pair (which no file can hold).
    """
    too_deep = f"nested more than {depth} levels deep"
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles)
    except RecursionError:
        raise UserError(too_deep) from None
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON ({error})") from error
    level = [value]
    for _ in range(depth):
        children = [child for node in level for child in _children(node)]
        level = [child for child in children if isinstance(child, (dict, list))]
    if level:
        raise UserError(too_deep)
    if "\\ud" in text.lower():
        try:
            json.dumps(finite(value), ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise UserError("half a surrogate pair (\\ud800) is not a character") from None
    return value


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    node = dict(pairs)
    if len(node) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise UserError(f"the key {counts.most_common(1)[0][0]!r} occurs twice in one object")
    return node


def finite(value: Any) -> Any:
    """``value`` with None for every NaN or infinite number in it, because JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, (list, tuple)) else value
