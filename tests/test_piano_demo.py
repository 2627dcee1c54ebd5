"""The rendered piano set: songs, overlapping moods, EMOPIA's layout, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import torch
from toy_emopia import TINY

from datamodules.emopia import MOOD_OF_QUADRANT, SPLITS, EmopiaDataModule
from datamodules.music import piano_demo
from datamodules.music.piano_command import main
from datamodules.music.piano_demo import plan_songs, render_segment, segment_notes, write_piano_demo
from datamodules.music.score import MOODS, RULES, compose
from zoo.errors import reported


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_split_holds_every_mood_and_a_song_is_in_one() -> None:
    songs = plan_songs(12, 0.25, 0)
    assert {(song.split, song.quadrant) for song in songs} == {
        (split, q) for split in SPLITS for q in MOOD_OF_QUADRANT
    }
    assert len({song.id for song in songs}) == 12
    counts = {
        split: sum(song.split == split for song in plan_songs(240, 0.25, 0)) for split in SPLITS
    }
    assert counts == {"train": 144, "val": 36, "test": 60}


def test_levers_come_from_the_mood_or_from_another_one() -> None:
    for song in plan_songs(40, 0.0, 1):
        own = RULES[MOOD_OF_QUADRANT[song.quadrant]]
        assert (song.rules.scale, song.rules.notes_per_beat, song.pattern) == (
            own.scale,
            own.notes_per_beat,
            MOOD_OF_QUADRANT[song.quadrant],
        )
    happy = [song for song in plan_songs(800, 0.25, 1) if song.quadrant == "Q1"]
    assert sum(song.pattern == "happy" for song in happy) / len(happy) == pytest.approx(
        0.75, abs=0.1
    )
    angry_tempi = [s.rules.tempo_bpm[0] for s in plan_songs(800, 0.0, 1) if s.quadrant == "Q2"]
    happy_tempi = [s.rules.tempo_bpm[0] for s in plan_songs(800, 0.0, 1) if s.quadrant == "Q1"]
    assert max(happy_tempi) > sorted(angry_tempi)[len(angry_tempi) // 2], (
        "tempi overlap without any foreign lever, too"
    )


def test_a_mood_with_its_own_rules_composes_as_ever_and_a_foreign_hand_changes_it() -> None:
    for mood in MOODS:
        assert compose(mood, 3, 4.0) == compose(mood, 3, 4.0, RULES[mood], mood)
    assert compose("sad", 3, 4.0) != compose("sad", 3, 4.0, pattern="angry")
    with pytest.raises(ValueError, match="'brave'"):
        compose("sad", 3, 4.0, pattern="brave")


def test_segments_of_a_song_vary_one_theme() -> None:
    song, other = (
        song for song in plan_songs(12, 0.25, 0) if song.quadrant == "Q1" and song.split != "val"
    )
    first, second, foreign = (
        segment_notes(s, k, 8.0) for s, k in ((song, 0), (song, 1), (other, 1))
    )
    theme = {
        note.pitch
        for note in compose(
            "happy", song.seed, 16 * 60 / song.rules.tempo_bpm[0], song.rules, song.pattern
        )
    }
    assert first != second and first == segment_notes(song, 0, 8.0)
    assert {note.pitch for note in first} <= theme and {note.pitch for note in second} <= theme
    assert not {note.pitch for note in foreign} <= theme
    assert all(0 <= note.start_s < 8.0 and 1 <= note.velocity <= 127 for note in first)


def test_a_segment_is_mono_noisy_and_of_its_own_level() -> None:
    song = plan_songs(12, 0.25, 0)[0]
    waves = [render_segment(song, segment, 1.0, "additive") for segment in range(4)]
    levels_db = [20 * float(wave.square().mean().sqrt().log10()) for wave in waves]
    assert all(wave.shape == (22_050,) and wave.abs().max() <= 1 for wave in waves)
    assert max(levels_db) - min(levels_db) > 1 and all(-32 < level < -17 for level in levels_db)


@pytest.mark.long
def test_the_set_is_read_as_emopia_is_and_repeats_to_the_byte(tmp_path: Path) -> None:
    clips = write_piano_demo(tmp_path / "a", **{**TINY, "segments": 2})
    assert clips == {"train": 8, "val": 8, "test": 8}
    data = EmopiaDataModule(
        str(tmp_path / "a" / "audio"), str(tmp_path / "a"), crop_s=0.5, batch_size=8, num_workers=0
    )
    data.setup()
    songs = [{clip.song for clip in clips} for clips in data.splits.values()]
    assert [len(s) for s in songs] == [4, 4, 4] and len(set.union(*songs)) == 12
    (batch,) = data.train_dataloader()
    assert batch.wave_BCN.shape == (8, 1, 11_025) and {
        prompt.labels["mood"] for prompt in batch.prompts
    } == set(MOODS)
    about = json.loads((tmp_path / "a" / "about.json").read_text())
    assert "synthetic" in about["what"] and about["clips"] == clips and about["soundfont"] is None
    write_piano_demo(tmp_path / "b", **{**TINY, "segments": 2})
    write_piano_demo(tmp_path / "c", **{**TINY, "segments": 2, "seed": 1})
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys() and all(a[name] != c[name] for name in a if name.endswith(".wav"))


@pytest.mark.parametrize("audio_format", ["flac", "mp3"])
def test_other_formats(tmp_path: Path, audio_format: str) -> None:
    write_piano_demo(tmp_path / "set", **{**TINY, "audio_format": audio_format})
    (path,) = (tmp_path / "set" / "audio").glob(f"Q3_demo-000002_0.{audio_format}")
    info = soundfile.info(path)
    assert (
        info.samplerate == 22_050
        and info.channels == 1
        and info.duration == pytest.approx(1.2, abs=0.1)
    )


def test_a_failure_on_the_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []

    def fails_late(notes, instrument, seconds):
        rendered.append(instrument)
        if len(rendered) == 3:
            raise OSError("the disk is full")
        return torch.zeros(2, round(seconds * 48_000)).numpy()

    monkeypatch.setitem(piano_demo.RENDERERS, "additive", fails_late)
    with pytest.raises(OSError, match="full"):
        write_piano_demo(tmp_path / "set", **TINY)
    assert rendered == ["piano"] * 3 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"songs": 11}, "at least 12 songs"),
        ({"ambiguity": 0.9}, "ambiguity 0.9"),
        ({"renderer": "steinway"}, "renderer 'steinway' is unknown"),
        ({"audio_format": "aiff"}, "audio_format 'aiff' is unknown: .* flac, wav, mp3"),
        ({"segments": 0}, "segments must be 1..64"),
        ({"seconds": 0.2}, "seconds at least 1"),
        ({"seconds": float("inf")}, "seconds at least 1"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_piano_demo(tmp_path / "set", **{**TINY, **changes})
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote_and_how_to_train_and_keeps_a_full_folder(
    tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "set"
    words = [
        "--to",
        str(folder),
        "--songs",
        "12",
        "--segments",
        "1",
        "--seconds",
        "1",
        "--renderer",
        "additive",
    ]
    assert reported(main, words) == 0
    printed = capsys.readouterr().out
    assert "wrote 12 clips (4 train, 4 val, 4 test) of synthetic piano" in printed
    assert (
        f"configs/emotion/piano_demo.yaml data.audio_dir={folder / 'audio'} data.split_dir={folder}"
        in printed
    )
    before = contents(folder)
    assert reported(main, words) == 2
    assert "not an empty folder" in capsys.readouterr().err and contents(folder) == before
