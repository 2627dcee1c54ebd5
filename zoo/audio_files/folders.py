"""Lists the audio files of a folder and finds them by name."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from zoo.audio_files import FORMATS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The audio files of a folder.

    - ``files``: name inside the folder, with forward slashes -> path.
    - ``set_aside``: name of an entry that only looks like an audio file -> why it is left out.
    - ``by_key``: normalised name -> name among ``files``.
    """

    files: Mapping[str, Path]
    set_aside: Mapping[str, str]
    by_key: Mapping[str, str]

    def find(self, name: str) -> str | None:
        """The name among ``files`` that matches ``name``, else None.

        An equal name comes first, then one that Windows (``sub\\a.wav``) or a Mac (accents as
        separate characters) spells differently.
        """
        return name if name in self.files else self.by_key.get(_name_key(name))

    def reason(self, name: str) -> str:
        """Why a name was set aside, else ""."""
        reasons = {_name_key(other): why for other, why in self.set_aside.items()}
        return reasons.get(_name_key(name), "")

    def log_set_aside(self, folder: Path) -> None:
        """Logs a warning about what was set aside; it names the first five."""
        aside = self.set_aside
        if aside:
            first = "; ".join(f"{name}: {why}" for name, why in list(aside.items())[:5])
            log.warning("%s: left out %d that look like sounds (%s)", folder, len(aside), first)


def _name_key(name: str) -> str:
    return PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/"))).as_posix()


def listed(
    folder: str | Path, suffixes: Collection[str] | None = tuple(FORMATS), deep: bool = False
) -> Listing:
    """The audio files of a folder, sorted by name; ``deep`` includes its subfolders.

    ``suffixes`` are in lower case; None lists all files. Hidden files (``._a.wav``, which a Mac
    leaves next to ``a.wav``), folders and pipes with the name of a sound, broken links, and names
    that are not valid Unicode are set aside. Raises ``OSError`` for a folder that cannot be read.
    """
    folder = Path(folder)
    files = {}
    set_aside = {}
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        for name in sorted(folders) + sorted(names):
            path = Path(place) / name
            inside = path.relative_to(folder).as_posix()
            if suffixes is not None and path.suffix.lower() not in suffixes:
                continue
            why = _set_aside(path, inside)
            if not why:
                files[inside] = path
            elif not path.is_dir() or path.suffix.lower() in (suffixes or FORMATS):
                set_aside[inside] = why
        if not deep:
            break
    ordered = {name: files[name] for name in sorted(files)}
    return Listing(ordered, set_aside, {_name_key(name): name for name in ordered})


def _raise(error: OSError) -> None:
    raise error


def _set_aside(path: Path, inside: str) -> str:
    if path.is_dir():
        return "a folder"
    if any(part.startswith(".") for part in PurePosixPath(inside).parts):
        return "hidden"
    if not path.is_file():
        return "not a regular file (a pipe or a device)" if path.exists() else "a broken link"
    try:
        inside.encode()
    except UnicodeEncodeError:
        return "named in bytes that are not UTF-8"
    return ""
