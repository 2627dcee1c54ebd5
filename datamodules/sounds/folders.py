"""Reads a sound bank from your own folder: ESC-50, AudioCaps, or audio files with a table.

``LAYOUTS`` describes the folders. The project downloads none of these data sets.
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

NO_CLASS = "unlabelled"  # the class of clips that only have a caption
ESC50_FAMILIES = ("animal", "nature", "human", "object", "urban")  # target // 10
Row = Mapping[str, str]
_LABELS = "audioset_labels"
_OPTIONAL = ("class", "family", _LABELS, "licence", "credit", "recording", "split", "src_file")


@dataclass(frozen=True)
class Layout:
    """How a table describes its clips.

    - ``table``: its usual path.
    - ``columns``: the required ones.
    - ``folders``: where the audio may be.
    - ``stems(row)``: possible names of the audio file, with or without suffix.
    - ``about(row)``: the fields of ``BankClip`` that the row states; a ``split`` is kept as it is.
    """

    table: str
    columns: tuple[str, ...]
    folders: tuple[str, ...]
    stems: Callable[[Row], Sequence[str]]
    about: Callable[[Row], dict]


def _esc50(row: Row) -> dict:
    category = row["category"].replace("_", " ")
    target = row["target"]
    family = UNKNOWN
    if target.isdigit() and int(target) < 50:
        family = ESC50_FAMILIES[int(target) // 10]
    return {
        "sound_class": row["category"],
        "caption": f"the sound of {category}",
        "family": family,
        "recording": f"freesound {row['src_file']}" if row.get("src_file") else "",
        "split": "test" if row["fold"] == "5" else "train",
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
            f"invalid split {stated['split']!r}: expected 'train', 'test' or an empty cell"
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
    """Reads a bank from ``folder``.

    Layouts:

    - ``csv``: a table with the columns ``file`` and ``caption``, and optionally ``class``,
      ``family``, ``audioset_labels`` (separated by ``;``), ``licence``, ``credit``, ``recording``
      and ``split``.
    - ``esc50``: ``meta/esc50.csv`` and ``audio/``; fold 5 is for testing, and the whole set counts
      as CC-BY-NC-3.0.
    - ``audiocaps``: one of its CSV files and audio files named ``YOUTUBEID_START``, ``YOUTUBEID``,
      ``YYOUTUBEID`` or ``AUDIOCAPID``; several captions of one sound become several clips of one
      recording.

    Args:
        folder: of the audio.
        table: absolute or relative to ``folder``; None: the usual one of the layout.
        layout: a key of ``LAYOUTS``.
        missing: ``error`` for rows without audio, or ``drop`` them into ``quarantined``.
        sample_rate_hz: of the bank.
        cache_dir: keeps the decoded waves in one file.

    Returns:
        A bank whose ``quarantined`` holds unreadable clips and exact copies of earlier files.

    Raises:
        UserError: for an unknown layout, missing columns or cells, a file outside the folder, and
            a table without usable rows.
        FileNotFoundError: counts and names the rows without audio.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r} is unknown; {did_you_mean(layout, LAYOUTS)}")
    if missing not in ("error", "drop"):
        raise UserError(f"invalid missing {missing!r}: expected 'error' or 'drop'")
    form = LAYOUTS[layout]
    folder = Path(folder)
    path = folder / (form.table if table is None else table)
    rows = _rows(path, form)
    files = listed(folder, suffixes=None, deep=True)
    lacking = {}
    found = []
    for number, row in rows:
        audio = _audio(folder, files, form, row, f"{path}, line {number}")
        if audio is None:
            lacking[f"line {number}: {form.stems(row)[0]}"] = "has no audio file"
        else:
            found.append((number, row, audio))
    if lacking and (missing == "error" or not found):
        shown = ", ".join(list(lacking)[:5])
        if len(lacking) > 5:
            shown += f" and {len(lacking) - 5} more"
        advice = f"the audio is expected below {folder}"
        if found:
            advice = "missing='drop' leaves them out"
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
                cells[column] = ";".join(value)  # a list is possible in JSON lines
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
                    raise UserError(f"{where}: {name!r} is outside {folder}; name files inside it")
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

    clips = []
    waves = {}
    quarantined = {}
    read: dict[str, Tensor] = {}  # a file that several rows name is decoded once
    first_with: dict[str, str] = {}
    for number, row, path in track(found, "reading recorded sounds", transient=True):
        try:
            about = form.about(row)
        except UserError as error:
            raise UserError(f"{where} {number}: {error}") from error
        name = path.relative_to(folder).as_posix()
        clip_id = f"{name}#{number}" if name in read else name
        if name not in read:
            try:
                read[name] = decode(path.read_bytes(), sample_rate_hz, name, first_with)
            except UserError as error:
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
    """Keeps stated splits and draws the others by recording."""
    drawn = iter(draw_splits([clip for clip in clips if not clip.split]))
    return tuple(
        replace(clip, recording_split=True) if clip.split else next(drawn) for clip in clips
    )
