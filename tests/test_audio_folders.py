"""Which files of a folder are sounds, in training, sound banks and evaluations alike."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datamodules.audio import AudioDataModule, find_clips
from datamodules.emopia import read_split
from datamodules.sounds.folders import load_folder_bank
from datamodules.tables import read_table
from zoo.audio_files import read_audio
from zoo.audio_files.folders import listed
from zoo.evaluation.inputs import folder_samples
from zoo.generations import read_samples

NFC, NFD = (unicodedata.normalize(form, "é.wav") for form in ("NFC", "NFD"))


def tone(path: Path, pitch: float = 0.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(np.arange(8000) * pitch), 16_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``a.wav`` and ``sub/b.wav`` are sounds; everything else only looks like one."""
    sounds = tmp_path / "sounds"
    tone(sounds / "a.wav")
    tone(sounds / "sub" / "b.wav", 0.2)
    (sounds / "._a.wav").write_bytes(b"\0\5\x16\7" + bytes(4000))
    tone(sounds / ".a.123.part.wav")
    tone(sounds / ".old" / "c.wav")
    (sounds / "folder.wav").mkdir()
    os.mkfifo(sounds / "pipe.wav")
    (sounds / "link.wav").symlink_to(sounds / "nowhere.wav")
    (sounds / "notes.txt").touch()
    return sounds


ASIDE = {
    "._a.wav": "hidden",
    ".a.123.part.wav": "hidden",
    "folder.wav": "a folder",
    "pipe.wav": "not a regular file (a pipe or a device)",
    "link.wav": "a broken link",
}


def test_entries_that_are_not_sounds_are_set_aside_by_name(folder: Path) -> None:
    found = listed(folder, deep=True)
    assert list(found.files) == ["a.wav", "sub/b.wav"]
    assert found.set_aside == ASIDE | {".old/c.wav": "hidden"}
    assert list(listed(folder).files) == ["a.wav"] and listed(folder).set_aside == ASIDE
    assert list(listed(folder, suffixes=None).files) == ["a.wav", "notes.txt"]
    with pytest.raises(OSError, match="nowhere"):
        listed(folder / "nowhere")


def test_names_that_are_not_unicode_are_set_aside(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    os.rename(tmp_path / "a.wav", os.fsencode(tmp_path) + b"/\xff.wav")
    found = listed(tmp_path)
    assert not found.files and list(found.set_aside.values()) == [
        "named in bytes that are not UTF-8"
    ]


def test_training_takes_sounds_only(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = AudioDataModule(str(folder), 16_000, 1, 0.5, 2)
        data.setup()
    assert [clip.name for clip in data.train_clips] == [
        "a.wav",
        "sub/b.wav",
    ] and not data.quarantined
    assert "._a.wav: hidden" in caplog.text
    table = folder.parent / "t.csv"
    table.write_text("file,caption\npipe.wav,hiss\n")
    with pytest.raises(ValueError, match=r"pipe.wav \(line 2, not a regular file"):
        find_clips(folder, table)


def test_an_evaluation_takes_sounds_only(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "prompts.csv").write_text("file,text\na.wav,sad piano\n")
    with caplog.at_level(logging.WARNING):
        (sample,) = folder_samples(folder, None, read_table, ("mood",))
    assert sample.path == folder / "a.wav" and sample.prompt.text == "sad piano"
    assert "folder.wav: a folder" in caplog.text
    for name, message in (
        ("pipe.wav", "not a regular file"),
        ("folder.wav", "a folder"),
        ("b.wav", "there is no file"),
    ):
        (folder / "prompts.csv").write_text(f"file,prompt\n{name},sad piano\n")
        with pytest.raises(FileNotFoundError, match=f"line 2: .*{message}"):
            folder_samples(folder, None, read_table, ("mood",))
    (folder / "prompts.csv").write_text("file,prompt\nsub\\b.wav,sad piano\n")
    with pytest.raises(ValueError, match="line 2: .* not a file of"):
        folder_samples(folder, None, read_table, ("mood",))


@pytest.mark.parametrize(("on_disk", "written"), [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
def test_accents_are_found_whichever_way_they_are_written(
    tmp_path: Path, on_disk: str, written: str
) -> None:
    sounds = tmp_path / "s"
    tone(sounds / on_disk)
    entry = {"file": written, "id": "a", "text": "rain", "caption": "rain"}
    (sounds / "captions.csv").write_text(f"file,caption\n{written},rain\n", "utf-8")
    (sounds / "samples.json").write_text(json.dumps([entry]))
    assert [clip.path for clip in find_clips(sounds, sounds / "captions.csv")] == [sounds / on_disk]
    assert [clip.id for clip in load_folder_bank(sounds).clips] == [on_disk]
    assert [sample.path for sample in read_samples(sounds)] == [sounds / on_disk]
    for table in (None, sounds / "captions.csv"):
        assert folder_samples(sounds, table, read_table, ())[0].path == sounds / on_disk


def test_both_ways_of_writing_may_be_there(tmp_path: Path) -> None:
    tone(tmp_path / NFC)
    tone(tmp_path / NFD)
    found = listed(tmp_path)
    assert (found.find(NFC), found.find(NFD)) == (NFC, NFD)


@pytest.mark.parametrize("written", ["sub\\b.wav", "sub/b.wav", "./sub/b.wav", ".\\sub\\b.wav"])
def test_paths_of_windows_are_found(folder: Path, written: str) -> None:
    (folder / "captions.csv").write_text(f"file,caption\n{written},rain\n")
    assert [clip.name for clip in find_clips(folder, folder / "captions.csv")] == ["sub/b.wav"]
    assert [clip.id for clip in load_folder_bank(folder).clips] == ["sub/b.wav"]


def test_emopia_takes_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "Q1_x_0.wav").mkdir()
    tone(tmp_path / "Q1_y_0.wav")
    (tmp_path / "train.csv").write_text("fname,label\nQ1_y_0,Q1\n")
    assert len(read_split(tmp_path / "train.csv", tmp_path)) == 1
    (tmp_path / "train.csv").write_text("fname,label\nQ1_x_0,Q1\n")
    with pytest.raises(FileNotFoundError, match="Q1_x_0"):
        read_split(tmp_path / "train.csv", tmp_path)


def test_reading_a_pipe_does_not_block(folder: Path) -> None:
    for name, what in (("pipe.wav", "a pipe"), ("folder.wav", "a folder")):
        with pytest.raises(ValueError, match=f"{name} is .*{what}"):
            read_audio(folder / name)
