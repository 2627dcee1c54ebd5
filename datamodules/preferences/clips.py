"""Finds the audio of label files on this machine, and sets aside what cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datamodules.preferences.dialects import Labels
from datamodules.preferences.rows import Problem
from zoo.audio_files import read_audio
from zoo.audio_files.folders import listed
from zoo.errors import UserError
from zoo.files import AUDIO_FORMATS
from zoo.types import Preference

log = logging.getLogger(__name__)
_LENGTH_RATIO = 1.5  # a clip further off its stated length was read or saved at a wrong rate


class Clips:
    """The audio files below a folder, found by the names in label files.

    A name matches by its whole path, else without its first folders, else by its file name alone if
    only one file has it (``elsewhere`` counts those). A name without a suffix matches any audio
    suffix.
    """

    def __init__(self, root: str | Path, moved: Sequence[tuple[str, str]] = ()) -> None:
        """Lists ``root``. ``moved`` holds old and new paths of folders or files.

        Raises ``FileNotFoundError`` when there is no such folder.
        """
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{root}: there is no such folder; name the one of the audio")
        self.moved = tuple((old.strip("/"), new.strip("/")) for old, new in moved)
        self.listing = listed(self.root, deep=True)
        self.elsewhere = 0
        self._by_file: dict[str, list[str]] = {}
        self._found: dict[str, Path] = {}
        for name in self.listing.files:
            path = PurePosixPath(name)
            for key in (path.name, path.stem):
                self._by_file.setdefault(key, []).append(name)

    def path(self, name: str) -> Path:
        """The file of a clip. Raises ``UserError`` when none, or more than one, matches."""
        if name not in self._found:
            self._found[name] = self._path(name)
        return self._found[name]

    def _path(self, name: str) -> Path:
        if not name:
            raise UserError("no clip is named; add its file name")
        parts = self._current(name).split("/")
        for first in range(len(parts)):
            found = self._listed("/".join(parts[first:]))
            if found is not None:
                return self.listing.files[found]
        alike = self._by_file.get(parts[-1], [])
        if len(alike) > 1:
            raise UserError(
                f"{name!r} could be {alike[0]} or {alike[1]} below {self.root}; tell them apart"
                " with --map OLD=NEW"
            )
        if not alike:
            why = self.listing.reason(parts[-1]) or f"there is no such file below {self.root}"
            raise UserError(f"{name!r}: {why}; name the right folder with --audio-root or --map")
        self.elsewhere += 1
        return self.listing.files[alike[0]]

    def _listed(self, name: str) -> str | None:
        has_suffix = PurePosixPath(name).suffix.lower() in AUDIO_FORMATS
        for suffix in ("",) if has_suffix else ("", *AUDIO_FORMATS):
            found = self.listing.find(name + suffix)
            if found is not None:
                return found
        return None

    def _current(self, name: str) -> str:
        """The name with the first of ``moved`` that applies put in."""
        for old, new in self.moved:
            if f"/{old}/" in f"/{name}/":
                return f"/{name}/".replace(f"/{old}/", f"/{new}/", 1).strip("/")
        return name.strip("/")


def clip_fault(
    clips: Clips, name: str, sample_rate_hz: int | None, seconds: float | None
) -> tuple[str, bool]:
    """Why a clip cannot be used, and whether its sample rate is the reason; ("", False) if it can.

    The clip is decoded as a whole, because nothing else finds damage in the middle.
    """
    try:
        path = clips.path(name)
        wave = read_audio(path)
    except (UserError, OSError) as error:
        return str(error), False
    lasts_s = wave.samples_CN.shape[1] / wave.sample_rate_hz
    wrong = wrong_rate(path, wave.sample_rate_hz, lasts_s, sample_rate_hz, seconds)
    return wrong, bool(wrong)


def wrong_rate(
    path: Path, rate_hz: int, lasts_s: float, stated_hz: int | None, stated_s: float | None
) -> str:
    """Why a clip cannot have the rate or the length that it was given as; "" if it can.

    Args:
        path: its file.
        rate_hz, lasts_s: what the file has.
        stated_hz, stated_s: what it is said to have; None: nothing.
    """
    if stated_hz is not None and rate_hz != stated_hz:
        return (
            f"{path} has {rate_hz} Hz and was given as {stated_hz} Hz; state its own rate, or"
            " resample it"
        )
    if stated_s is not None and not 1 / _LENGTH_RATIO < lasts_s / stated_s < _LENGTH_RATIO:
        return (
            f"{path} lasts {lasts_s:.2f} s at {rate_hz} Hz and was given as {stated_s:.2f} s; it"
            " was probably saved under a wrong sample rate"
        )
    return ""


@dataclass(frozen=True)
class Usable:
    """Records whose clips can all be read, and name -> why for the clips that cannot."""

    records: tuple[Preference, ...]
    quarantined: Mapping[str, str]


def usable(
    records: Sequence[Preference], clips: Clips, sample_rate_hz: int | None = None
) -> Usable:
    """Sets aside the records whose audio is missing or unreadable.

    The log counts the clips that were found by their file name alone. ``sample_rate_hz``: what the
    clips are said to have; None = what their files say.

    Raises ``UserError`` for a clip of another rate than stated, because then all of them are
    suspect, and when nothing is left.
    """
    faults: dict[str, str] = {}
    for record in records:
        for name in names_of(record):
            if name in faults:
                continue
            faults[name], is_rate = clip_fault(clips, name, sample_rate_hz, record.seconds)
            if is_rate:
                raise UserError(f"audio: {faults[name]}")
    bad = {name: fault for name, fault in faults.items() if fault}
    kept = tuple(one for one in records if not any(name in bad for name in names_of(one)))
    if not kept:
        first = next(iter(bad.values()), "there are no records")
        raise UserError(f"none of {len(records)} records has audio below {clips.root} ({first})")
    if clips.elsewhere:
        log.warning(
            "%d clips were found below %s by their file name alone, in another folder than the"
            " labels say; are they the right ones?",
            clips.elsewhere,
            clips.root,
        )
    return Usable(kept, bad)


def log_quarantined(quarantined: Mapping[str, str]) -> None:
    """Says in the log how many clips were left out, and which came first."""
    if quarantined:
        first = "; ".join(f"{name}: {why}" for name, why in list(quarantined.items())[:5])
        log.warning("left out %d clips that cannot be read: %s", len(quarantined), first)


def names_of(record: Preference) -> tuple[str, ...]:
    """The clips of a record: two for a pair."""
    return (record.audio, record.other) if record.task == "pairwise" else (record.audio,)


def audio_problems(
    labels: Labels, clips: Clips, sample_rate_hz: int | None = None
) -> dict[str, Problem]:
    """Clip -> why it cannot be used, at the first record that names it."""
    seen: set[str] = set()
    problems = {}
    for place, record in zip(labels.places, labels.records, strict=True):
        for name in names_of(record):
            if name in seen:
                continue
            seen.add(name)
            fault, _ = clip_fault(clips, name, sample_rate_hz, record.seconds)
            if fault:
                problems[name] = Problem(labels.path, place, "audio", fault)
    return problems
