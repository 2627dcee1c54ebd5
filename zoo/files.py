"""Files and folders are written beside their place and then moved there, so that none is ever half-written."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What is written as audio: suffix -> libsndfile's names of the container and of the samples in it.
AUDIO_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}


@contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder (same suffix); on success it takes the name ``path`` in one step.

    On any error the temporary file is removed and an older file at ``path`` stays as it was. Raises ``OSError``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def folder_written_beside(folder: str | Path, replace: bool = False) -> Iterator[Path]:
    """Yields an empty temporary folder beside ``folder``, which on success takes its name in one step.

    ``folder`` may be an empty folder; anything else there raises ``FileExistsError``, or with ``replace`` (a folder) is gone once
    the new one is whole. On any error the temporary folder is removed and the older one stays as it was. What a killed process
    left of the same folder (a hidden ``.NAME.PID.part``) is removed, too. Raises ``OSError``, for a place that cannot be
    written to with what to do.
    """
    folder = Path(folder)
    is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_empty and not (replace and folder.is_dir()):
        raise FileExistsError(f"{folder} exists and is not an empty folder; name another one, or remove it")
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("part", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_after_killed(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = f"cannot write here ({error.strerror}); name a folder that you may write to"
            raise OSError(error.errno, advice, str(folder)) from error
        raise
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        if not is_empty:
            os.replace(folder, old)
        os.replace(temporary, folder)  # takes the place of an empty folder, too
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _clear_after_killed(folder: Path) -> None:
    """What a killed writer of ``folder`` left beside it goes; an older folder that it had moved away comes back."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        pid, what = left.name.removeprefix(f".{folder.name}.").partition(".")[::2]
        if what not in ("part", "old") or not left.is_dir() or _is_running(pid):
            continue
        if what == "old" and not folder.exists():
            os.replace(left, folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def clear_after_killed(directory: str | Path) -> None:
    """Removes what killed processes left in ``directory`` of files that they were writing (hidden, ``.NAME.PID.part.SUFFIX``)."""
    for left in Path(directory).glob(".*.part*"):
        name = re.fullmatch(r"\..*\.(\d+)\.part(\.[^.]*)?", left.name)
        if name and left.is_file() and not _is_running(name[1]):
            left.unlink(missing_ok=True)


def _is_running(pid: str) -> bool:
    if not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def sha256_of(path: str | Path) -> str:
    """The hash of a file in 64 hex digits. Raises ``OSError``."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
