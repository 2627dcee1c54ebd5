"""Label files of every dialect as the source of the reward model's data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from toy_preferences import tone

from datamodules.preferences.dialects import write_labels
from datamodules.preferences.rated import LabelFiles
from datamodules.preferences.weighted import WeightedClips
from datamodules.rated_clips import RatedClips
from zoo.audio_files import write_audio
from zoo.errors import UserError
from zoo.types import Preference, Vote


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve prompts of two clips in BATON's format, and a table of listeners on some of them."""
    (tmp_path / "audio").mkdir()
    rows = []
    for number in range(24):
        name = f"{number // 2:04d}_sound {number // 2}_{number % 2}.wav"
        write_audio(tmp_path / "audio" / name, tone(440, number))
        caption = f"sound {number // 2}" + "." * (number % 2)
        rows.append({"location": f"HD/{name}", "captions": caption, "feedback": number % 2})
    (tmp_path / "2label.json").write_text("\n".join(map(json.dumps, rows)))
    records = [
        Preference(
            "sound 0",
            "0000_sound 0_0.wav",
            "quality",
            votes=(Vote("ann", 1.0), Vote("bob", 0.5)),
        ),
        Preference("sound 1", "0001_sound 1_0.wav", "quality", votes=(Vote("ann", 0.25),)),
    ]
    write_labels(records, tmp_path / "mos.csv", "listeners")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_of_baton_becomes_batches_split_by_prompt(folder: Path) -> None:
    data = RatedClips(LabelFiles("2label.json", "audio"), val_share=0.3, test_share=0.2)
    data.setup()
    clips = [clip for split in data.splits.values() for clip in split]
    assert len(clips) == 24
    assert all(clip.audio.is_file() for clip in clips)
    groups = [{clip.group for clip in split} for split in data.splits.values()]
    assert sum(map(len, groups)) == 12  # "sound 3" and "sound 3." are one prompt
    assert {(clip.audio.name[-5], clip.label) for clip in clips} == {("0", 0.0), ("1", 1.0)}


def test_votes_are_aggregated_or_kept_by_listener(folder: Path) -> None:
    def labels(**settings: object) -> list[tuple[str, str | None, float]]:
        rows = LabelFiles("mos.csv", "audio", **settings).rated_clips()
        return [(clip.group, clip.listener, clip.label) for _, clip in rows]

    assert labels() == [("sound 0", None, 0.75), ("sound 1", None, 0.25)]
    assert labels(minimum_votes=2) == [("sound 0", None, 0.75)]
    assert labels(rule="majority") == [("sound 0", None, 1.0), ("sound 1", None, 0.0)]
    assert labels(listeners=True) == [
        ("sound 0", "ann", 1.0),
        ("sound 0", "bob", 0.5),
        ("sound 1", "ann", 0.25),
    ]


def test_unreadable_clips_are_left_out_and_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = folder / "audio" / "0001_sound 1_0.wav"
    bad.write_bytes(b"broken")
    assert len(LabelFiles("2label.json", "audio").rated_clips()) == 23
    assert bad.name in caplog.text
    with pytest.raises(UserError, match="48000 Hz|44100 Hz|16000 Hz"):
        LabelFiles("2label.json", "audio", sample_rate_hz=8000).rated_clips()


def test_labels_of_other_tasks_are_refused(folder: Path) -> None:
    both = ("2label.json", "mos.csv")
    with pytest.raises(UserError, match="integrity, quality"):
        LabelFiles(both, "audio").rated_clips()
    assert len(LabelFiles(both, "audio", task="quality").rated_clips()) == 2
    with pytest.raises(UserError, match="temporal"):
        LabelFiles(both, "audio", task="temporal").rated_clips()


def test_comparisons_give_both_clips_and_the_winner_of_a_tie_is_nobody(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = [f"{n // 2:04d}_sound {n // 2}_{n % 2}.wav" for n in range(4)]
    votes = (Vote("ann", 0.0), Vote("bob", 0.0), Vote("cyd", 0.5))
    pairs = [
        Preference("x", clips[0], "pairwise", clips[1], votes=votes, split="train"),
        Preference("x.", clips[0], "pairwise", clips[2], label=1.0, split="train"),
        Preference("y", clips[2], "pairwise", clips[3], label=0.5, split="train"),
        Preference("y", "gone.wav", "pairwise", clips[3], label=0.0, split="train"),
    ]
    write_labels(pairs, "pairs.jsonl", "attune")
    rows = LabelFiles("pairs.jsonl", "audio").rated_clips()
    found = [(clip.audio.name, clip.label, clip.group, clip.pair) for _, clip in rows]
    sixth = pytest.approx(1 / 6)
    assert found == [
        (clips[0], sixth, "x", "0"),
        (clips[1], pytest.approx(5 / 6), "x", "0"),
        (clips[0], 1.0, "x", "1"),
        (clips[2], 0.0, "x", "1"),
    ]
    assert "1 comparisons without a winner" in caplog.text and "gone.wav" in caplog.text
    data = RatedClips(Splits(rows), "pairs")
    data.setup()
    assert data.pairs("train") == [(1, 0), (2, 3)]  # the clips of two comparisons are not compared
    with pytest.raises(UserError, match=r"data\.batches=pairs"):
        RatedClips(Splits(rows)).setup()
    with pytest.raises(UserError, match="annotate"):
        WeightedClips(LabelFiles("pairs.jsonl", "audio"), 0.25).check_files()
    by_rater = LabelFiles("pairs.jsonl", "audio", listeners=True).rated_clips()
    assert [(clip.listener, clip.label) for _, clip in by_rater] == [
        ("ann", 0.0),
        ("ann", 1.0),
        ("bob", 0.0),
        ("bob", 1.0),
        (None, 1.0),
        (None, 0.0),
    ]
    write_labels(pairs[2:3], "ties.jsonl", "attune")
    with pytest.raises(UserError, match="winner"):
        LabelFiles("ties.jsonl", "audio").rated_clips()


class Splits:
    """The rows, and one more comparison to validate on."""

    def __init__(self, rows: list) -> None:
        held_out = [
            ("val", replace(clip, audio=Path(f"v{n}.wav"), group="z"))
            for n, (_, clip) in enumerate(rows[:2])
        ]
        self.rows = [*rows, *held_out]

    def rated_clips(self) -> list:
        return self.rows


def test_clips_in_another_folder_than_stated_are_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LabelFiles("2label.json", "audio").rated_clips()
    assert "file name alone" not in caplog.text
    name = "0003_sound 3_1.wav"
    (folder / "audio" / "other").mkdir()
    (folder / "audio" / name).rename(folder / "audio" / "other" / name)
    rows = LabelFiles("2label.json", "audio").rated_clips()
    assert len(rows) == 24
    assert "1 clips were found below audio by their file name alone" in caplog.text
