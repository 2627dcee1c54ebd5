"""A sound bank from a user's own folder:

ESC-50, AudioCaps, or any audio files with a table beside them.

``LAYOUTS`` is the literal table of what is where. The project downloads none of these data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from torch import Tensor

from datamodules.sounds.clips import (
    BankClip,
    Bundle,
    SoundBank,
    cache_key,
    decode,
    draw_splits,
    read_cache,
    write_cache,
)
from datamodules.sounds.licences import UNKNOWN, spdx
from datamodules.tables import read_table
from zoo.audio_files import FORMATS
from zoo.audio_files.folders import Listing, listed
from zoo.errors import UserError, did_you_mean

NO_CLASS = "unlabelled"  # the class of clips that have a caption only
ESC50_FAMILIES = ("animal", "nature", "human", "object", "urban")  # target // 10
Row = Mapping[str, str]
_LABELS = "audioset_labels"
_OPTIONAL = ("class", "family", _LABELS, "licence", "credit", "recording", "split", "src_file")


@dataclass(frozen=True)
class Layout:
    """How a table speaks of its clips.

    ``table`` is its usual place; ``stems(row)`` are names under which the audio may lie, with a
    suffix or without, in one of ``folders``; ``about(row)`` gives the fields of a ``BankClip`` that
    the row states: a ``split`` among them is kept as it is.
    """

    table: str
    columns: tuple[str, ...]
    folders: tuple[str, ...]
    stems: Callable[[Row], Sequence[str]]
    about: Callable[[Row], dict]


def _esc50(row: Row) -> dict:
    category = row["category"].replace("_", " ")
    target = row["target"]
    family = ESC50_FAMILIES[int(target) // 10] if target.isdigit() and int(target) < 50 else UNKNOWN
    split = {"split": "test" if row["fold"] == "5" else "train"}
    recording = f"freesound {row['src_file']}" if row.get("src_file") else ""
    about = {
        "sound_class": row["category"],
        "caption": f"the sound of {category}",
        "family": family,
        "recording": recording,
    }
    return {
        **about,
        **split,
        "licence": "CC-BY-NC-3.0",
        "credit": "ESC-50 (K. J. Piczak), the clip's author in its LICENSE file",
    }


def _audiocaps(row: Row) -> dict:
    credit = f"https://www.youtube.com/watch?v={row['youtube_id']}"
    return {
        "caption": row["caption"],
        "recording": f"youtube {row['youtube_id']}",
        "credit": credit,
    }


def _csv(row: Row) -> dict:
    labels = tuple(
        label.strip() for label in row.get("audioset_labels", "").split(";") if label.strip()
    )
    names = {
        "class": "sound_class",
        "family": "family",
        "licence": "licence",
        "credit": "credit",
        "split": "split",
    }
    stated = {field: row[column] for column, field in names.items() if row.get(column)}
    if stated.get("split", "train") not in ("train", "test"):
        raise UserError(
            f"split is {stated['split']!r}; expected 'train' or 'test', or an empty cell"
        )
    return {
        "caption": row["caption"],
        "audioset_labels": labels,
        "recording": row.get("recording", ""),
        **stated,
    }


LAYOUTS: dict[str, Layout] = {
    "esc50": Layout(
        "meta/esc50.csv",
        ("filename", "fold", "target", "category"),
        ("audio", "."),
        lambda row: [row["filename"]],
        _esc50,
    ),
    "audiocaps": Layout(
        "train.csv",
        ("audiocap_id", "youtube_id", "start_time", "caption"),
        (".", "audio", "wavs"),
        lambda row: [
            f"{row['youtube_id']}_{row['start_time']}",
            row["youtube_id"],
            f"Y{row['youtube_id']}",
            row["audiocap_id"],
        ],
        _audiocaps,
    ),
    "csv": Layout("captions.csv", ("file", "caption"), (".",), lambda row: [row["file"]], _csv),
}


def load_folder_bank(
    folder: str | Path,
    table: str | Path | None = None,
    layout: str = "csv",
    missing: str = "error",
    sample_rate_hz: int = 16_000,
    cache_dir: str | Path | None = None,
) -> SoundBank:
    """A bank from ``folder``.

    ``table`` (relative to it, or absolute) is by default where the layout has it.

    - ``csv``: columns ``file`` and ``caption``, and where known ``class``, ``family``,
      ``audioset_labels`` (``;``), ``licence``,
      ``credit``, ``recording``, ``split``.
    - ``esc50``: ``meta/esc50.csv`` and ``audio/``; fold 5 is for testing, and the whole set counts
      as CC-BY-NC-3.0.
    - ``audiocaps``: one of its CSV files and the sounds as ``YOUTUBEID_START``, ``YOUTUBEID``,
      ``YYOUTUBEID`` or ``AUDIOCAPID``
      with any audio suffix; several captions of one sound become several clips of one recording.

    ``missing``: what to do about rows whose audio is not there: ``error`` or ``drop`` (each then
    stands in ``quarantined``).
    Clips that cannot be read, and files that are exact copies of earlier ones, are quarantined
    either way.

    Raises ``UserError`` for an unknown layout, missing columns or cells, a file outside the
    folder, or nothing usable, and ``FileNotFoundError`` that counts and names the rows that lack
    audio.
    """
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; {did_you_mean(layout, LAYOUTS)}")
    if missing not in ("error", "drop"):
        raise UserError(f"missing is {missing!r}; expected 'error' or 'drop'")
    form, folder = LAYOUTS[layout], Path(folder)
    path = folder / (form.table if table is None else table)
    rows = _rows(path, form)
    files = listed(folder, suffixes=None, deep=True)
    lacking, found = {}, []
    for number, row in rows:
        audio = _audio(folder, files, form, row, f"{path}, line {number}")
        if audio is None:
            lacking[f"line {number}: {form.stems(row)[0]}"] = "has no audio file"
        else:
            found.append((number, row, audio))
    if lacking and (missing == "error" or not found):
        shown = ", ".join(list(lacking)[:5]) + (
            f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        )
        advice = (
            "missing='drop' leaves them out" if found else f"the audio is looked for below {folder}"
        )
        raise FileNotFoundError(
            f"{path}: {len(lacking)} of {len(rows)} rows have no audio file ({shown}); {advice}"
        )
    facts = [f"{layout} rate {sample_rate_hz}"]
    for number, row, audio in found:
        facts.append(
            f"{number} {sorted(row.items())} {audio}"
            f" {audio.stat().st_size}.{audio.stat().st_mtime_ns}"
        )
    cache = (
        None if cache_dir is None else Path(cache_dir) / f"sounds-{cache_key(facts)}.safetensors"
    )
    if cache is not None and cache.is_file():
        bundle = read_cache(cache)
    else:
        bundle = _decoded(found, folder, form, f"{path}, line", sample_rate_hz)
        if cache is not None and bundle.clips:
            write_cache(cache, bundle)
    if not bundle.clips:
        reasons = "; ".join(
            f"{name} {reason}" for name, reason in list(bundle.quarantined.items())[:3]
        )
        raise UserError(f"{path}: none of {len(rows)} rows can be used ({reasons})")
    drawn = not any(clip.split for clip in bundle.clips)
    return SoundBank(
        _with_splits(bundle.clips),
        bundle.waves,
        sample_rate_hz,
        {**lacking, **bundle.quarantined},
        drawn,
    )


def _rows(path: Path, form: Layout) -> list[tuple[int, Row]]:
    rows = []
    for record in read_table(path, *form.columns).rows:
        cells = {}
        for column in {*form.columns, *_OPTIONAL} & record.cells.keys():
            value = record.cells[column]
            is_list = column == _LABELS and isinstance(value, list)
            if is_list and all(isinstance(label, str) for label in value):
                cells[column] = ";".join(value)  # JSON Lines may have a list
            else:
                cells[column] = record.text(column) if column == "caption" else record.name(column)
        for column in form.columns:
            if not cells.get(column):
                raise UserError(f"{record.where}: the column {column!r} is empty")
        rows.append((record.line, cells))
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def _audio(folder: Path, files: Listing, form: Layout, row: Row, where: str) -> Path | None:
    for place in form.folders:
        for stem in form.stems(row):
            for name in (stem, *(stem + suffix for suffix in FORMATS)):
                path = folder / place / name
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise UserError(
                        f"{where}: {name!r} lies outside {folder}; name files inside it"
                    )
                found = files.find((PurePath(place) / name).as_posix())
                if found is not None:
                    return files.files[found]
    return None


def _decoded(
    found: Sequence[tuple[int, Row, Path]],
    folder: Path,
    form: Layout,
    where: str,
    sample_rate_hz: int,
) -> Bundle:
    from rich.progress import track

    clips, waves, quarantined = [], {}, {}
    read: dict[str, Tensor] = {}  # a table may name one file in several rows: it is decoded once
    first_with: dict[str, str] = {}
    for number, row, path in track(found, "reading recorded sounds", transient=True):
        try:
            about = form.about(row)
        except ValueError as error:
            raise UserError(f"{where} {number}: {error}") from error
        name = path.relative_to(folder).as_posix()
        clip_id = f"{name}#{number}" if name in read else name
        if name not in read:
            try:
                read[name] = decode(path.read_bytes(), sample_rate_hz, name, first_with)
            except ValueError as error:
                quarantined[clip_id] = str(error)
                continue
        waves[clip_id] = wave_N = read[name]
        blank = BankClip(
            id=clip_id,
            sound_class=NO_CLASS,
            caption="",
            family=UNKNOWN,
            audioset_labels=(),
            licence=UNKNOWN,
            credit="",
            split="",
            seconds=len(wave_N) / sample_rate_hz,
            recording_split=False,
            recording="",
        )
        clip = replace(blank, **about)
        clips.append(replace(clip, licence=spdx(clip.licence), recording=clip.recording or name))
    return Bundle(tuple(clips), waves, quarantined)


def _with_splits(clips: Sequence[BankClip]) -> tuple[BankClip, ...]:
    """Stated splits are kept; the others are drawn by recording."""
    drawn = iter(draw_splits([clip for clip in clips if not clip.split]))
    return tuple(
        replace(clip, recording_split=True) if clip.split else next(drawn) for clip in clips
    )
