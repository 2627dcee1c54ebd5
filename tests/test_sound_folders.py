"""A user's own recordings:

ESC-50, AudioCaps, any folder with a table; and tables whose audio is lacking.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_sounds import tone

from datamodules.sounds import folders
from datamodules.sounds.folders import load_folder_bank


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four tones ``a.wav`` to ``d.wav`` and one below ``deep/``."""
    (tmp_path / "deep").mkdir()
    for k, name in enumerate(("a", "b", "c", "d", "deep/a")):
        (tmp_path / f"{name}.wav").write_bytes(tone(100 + 50 * k))
    return tmp_path


def test_any_folder_with_a_table_becomes_a_bank(folder: Path) -> None:
    (folder / "captions.csv").write_text(
        "file,caption,class,licence,audioset_labels\n"
        'a.wav,"a low hum, far",hum,CC0,Hum;Mains hum\nb,a hum,hum,GPL-2+,\nc.wav,a hum,hum,,\n'
        "d.wav,a whistle,,,\ndeep/a.wav,a beep,beep,ours,\na.wav,humming,hum,CC0,\n"
    )
    bank = load_folder_bank(folder)
    clips = {clip.id: clip for clip in bank.clips}
    assert clips.keys() == {"a.wav", "b.wav", "c.wav", "d.wav", "deep/a.wav", "a.wav#7"}
    assert clips["a.wav"].caption == "a low hum, far" and clips["a.wav"].audioset_labels == (
        "Hum",
        "Mains hum",
    )
    assert [clips[key].licence for key in ("a.wav", "b.wav", "c.wav", "deep/a.wav")] == [
        "CC0-1.0",
        "GPL-2.0-or-later",
        "unknown",
        "ours",
    ]
    assert clips["d.wav"].sound_class == "unlabelled" and clips["d.wav"].split == "both"
    assert (
        clips["a.wav"].split == clips["a.wav#7"].split != "both"
    )  # two captions of one recording stay together
    assert sorted(clips[key].split for key in ("a.wav", "b.wav", "c.wav")) == [
        "test",
        "train",
        "train",
    ]
    assert bank.select(licences=["CC0-1.0"]).classes() == ("hum",)
    assert torch.equal(bank.wave(clips["a.wav"]), bank.wave(clips["a.wav#7"]))


def test_stated_splits_are_kept_by_every_selection(folder: Path) -> None:
    (folder / "captions.csv").write_text(
        "file,caption,class,split,licence\na.wav,a hum,hum,test,MIT\nb.wav,a"
        " hum,hum,test,MIT\nc.wav,a hum,hum,train,MIT\n"
    )
    bank = load_folder_bank(folder)
    assert [clip.split for clip in bank.clips] == ["test", "test", "train"] and bank.clips[
        0
    ].recording_split
    assert [clip.split for clip in bank.select(licences=["MIT"]).clips] == ["test", "test", "train"]
    (folder / "captions.csv").write_text("file,caption,split\na.wav,a hum,valid\n")
    with pytest.raises(ValueError, match="line 2: invalid split 'valid': expected 'train'"):
        load_folder_bank(folder)


def test_esc50_is_read_as_it_is_published(folder: Path) -> None:
    (folder / "audio").mkdir()
    (folder / "meta").mkdir()
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold, take in ((1, "A"), (1, "B"), (5, "A")):
        name = f"{fold}-100{fold}-{take}-14.wav"
        (folder / "audio" / name).write_bytes(tone(100 * fold + 10 * ord(take)))
        rows.append(f"{name},{fold},14,chirping_birds,False,100{fold},{take}")
    (folder / "meta/esc50.csv").write_text("\n".join(rows))
    bank = load_folder_bank(folder, layout="esc50")
    assert [clip.split for clip in bank.clips] == ["train", "train", "test"]
    first = bank.clips[0]
    assert (first.sound_class, first.caption, first.family) == (
        "chirping_birds",
        "the sound of chirping birds",
        "nature",
    )
    assert (
        first.licence == "CC-BY-NC-3.0"
        and first.recording == bank.clips[1].recording == "freesound 1001"
    )


def test_audiocaps_finds_its_sounds_under_the_usual_names(folder: Path) -> None:
    for name in ("x1_30.wav", "y2.flac", "Yz3.wav", "44.wav"):
        (folder / name).write_bytes(
            tone(100 + 7 * len(name) + ord(name[0]), kind="FLAC" if "flac" in name else "WAV")
        )
    (folder / "val.csv").write_text(
        "audiocap_id,youtube_id,start_time,caption\n41,x1,30,A dog barks\n42,y2,0,Rain\n43,z3,10,A"
        " bell\n44,w4,5,Wind\n45,x1,30,A dog barking loudly\n"
    )
    bank = load_folder_bank(folder, "val.csv", layout="audiocaps")
    assert [clip.id for clip in bank.clips] == [
        "x1_30.wav",
        "y2.flac",
        "Yz3.wav",
        "44.wav",
        "x1_30.wav#6",
    ]
    assert (
        bank.clips[0].credit == "https://www.youtube.com/watch?v=x1"
        and bank.clips[0].licence == "unknown"
    )
    assert (
        bank.clips[0].recording == bank.clips[4].recording
        and bank.clips[0].split == bank.clips[4].split
    )


def test_rows_without_audio_are_counted_and_named_or_dropped(folder: Path) -> None:
    (folder / "captions.csv").write_text(
        "file,caption\na.wav,a hum\nlost.wav,a hiss\ngone,a hoot\n"
    )
    with pytest.raises(
        FileNotFoundError,
        match=r"2 of 3.*line 3: lost\.wav, line 4: gone.*missing='drop'",
    ):
        load_folder_bank(folder)
    bank = load_folder_bank(folder, missing="drop")
    assert [clip.id for clip in bank.clips] == ["a.wav"]
    assert bank.quarantined == {
        "line 3: lost.wav": "has no audio file",
        "line 4: gone": "has no audio file",
    }
    (folder / "captions.csv").write_text("file,caption\nlost.wav,a hiss\n")
    with pytest.raises(FileNotFoundError, match="1 of 1"):
        load_folder_bank(folder, missing="drop")


def test_unusable_files_and_copies_are_quarantined(folder: Path) -> None:
    (folder / "bad.wav").write_bytes(b"RIFF")
    (folder / "copy.wav").write_bytes((folder / "a.wav").read_bytes())
    (folder / "captions.csv").write_text(
        "file,caption\na.wav,a hum\nbad.wav,a hiss\ncopy.wav,a hum\n"
    )
    bank = load_folder_bank(folder)
    assert (
        bank.quarantined.keys() == {"bad.wav", "copy.wav"}
        and bank.quarantined["copy.wav"] == "is a copy of a.wav"
    )
    (folder / "captions.csv").write_text("file,caption\nbad.wav,a hiss\n")
    with pytest.raises(ValueError, match=r"1 rows.*bad\.wav"):
        load_folder_bank(folder)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("file,words\na.wav,a hum\n", {}, "must name a column 'caption'"),
        ("name,caption\na.wav,a hum\n", {}, "must name a column 'file'.* it has 'name', 'caption'"),
        ("file,caption\na.wav,\n", {}, "line 2: the column 'caption' is empty"),
        ("file,caption\n../x.wav,a hum\n", {}, "line 2: '../x.wav' is outside"),
        ("file,caption\n", {}, "has no rows"),
        (
            "file,caption\na.wav,a hum\n",
            {"layout": "esc"},
            "layout 'esc' is unknown; did you mean 'esc50'",
        ),
        (
            "file,caption\na.wav,a hum\n",
            {"missing": "skip"},
            "invalid missing 'skip': expected 'error' or 'drop'",
        ),
    ],
)
def test_a_table_that_cannot_be_read_is_named(
    folder: Path, table: str, options: dict, message: str
) -> None:
    (folder / "captions.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        load_folder_bank(folder, **options)


def test_the_second_load_of_a_folder_comes_from_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "captions.csv").write_text("file,caption\na.wav,a hum\nb.wav,a hiss\n")
    first = load_folder_bank(folder, cache_dir=folder / "cache")
    monkeypatch.setattr(folders, "decode", lambda *_: pytest.fail("decoded again"))
    second = load_folder_bank(folder, cache_dir=folder / "cache")
    assert second.clips == first.clips and torch.equal(
        first.wave(first.clips[1]), second.wave(second.clips[1])
    )
