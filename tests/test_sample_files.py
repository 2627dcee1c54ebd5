"""The index of a folder of generations, and its possible errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from zoo.audio_files import write_audio
from zoo.generations import Sample, read_samples, write_index
from zoo.types import Prompt, Waveform


def audio(path: Path) -> Path:
    write_audio(path, Waveform(torch.zeros(1, 80), 8000))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rain = Prompt("r1", "rain, then ücho", "noise", 2.5, labels={"mood": "sad"})
    first = Sample(audio(tmp_path / "a.wav"), rain, seed=3, score=0.5)
    write_index(tmp_path, [first])
    second = Sample(audio(tmp_path / "b.wav"), Prompt("b", "wind"))
    write_index(tmp_path, [second])
    assert read_samples(tmp_path) == (first, second)
    again = Sample(first.path, rain, seed=4)
    write_index(tmp_path, [again])
    assert read_samples(tmp_path) == (
        again,
        second,
    ), "an entry of the same file is replaced, the others stay"


def test_the_samples_of_a_run_are_read(tmp_path: Path) -> None:
    """``lightning_modules.audio_samples`` writes the same index."""
    audio(tmp_path / "00_p0.wav")
    facts = {
        "file": "00_p0.wav",
        "id": "p0",
        "text": "rain",
        "negative": "",
        "seconds": 1.0,
        "labels": {},
        "score": -0.25,
    }
    (tmp_path / "samples.json").write_text(json.dumps([facts]))
    assert read_samples(tmp_path) == (
        Sample(tmp_path / "00_p0.wav", Prompt("p0", "rain", seconds=1.0), None, -0.25),
    )


GOOD = {"file": "a.wav", "id": "a", "text": "rain"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not valid JSON"),
        ("{}", "holds a dict, expected a list"),
        ("[]", "lists no sample"),
        ("[3]", "entry 1: expected an object, got int"),
        ([GOOD, {"file": "a.wav", "id": "b"}], "entry 2: expected words under 'text', got None"),
        ([{**GOOD, "file": "../a.wav"}], "entry 1: .*leaves its folder"),
        ([{**GOOD, "file": "/etc/passwd"}], "entry 1: .*absolute"),
        ([{**GOOD, "file": "sub/a.wav"}], "is not a file of this folder itself"),
        ([{**GOOD, "file": "link.wav"}], "is not a file of this folder itself"),
        ([{**GOOD, "labels": "sad"}], "labels must be an object"),
        ([{**GOOD, "seed": 1.5}], "seed must be a number, got 1.5"),
        ([{**GOOD, "score": True}], "score must be a number, got True"),
        ([{**GOOD, "seconds": -1}], "seconds must be positive"),
    ],
)
def test_bad_indexes_are_named(tmp_path: Path, content: object, message: str) -> None:
    folder = tmp_path / "audio"
    audio(folder / "a.wav")
    audio(tmp_path / "a.wav")
    (folder / "link.wav").symlink_to(tmp_path / "a.wav")
    (folder / "samples.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    with pytest.raises(ValueError, match=message):
        read_samples(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    with pytest.raises(FileNotFoundError, match=r"befor\b.*'before'"):
        read_samples(tmp_path / "befor")
    with pytest.raises(FileNotFoundError, match=r"samples\.json.*tools/generate\.py"):
        read_samples(tmp_path / "before")
    (tmp_path / "before" / "samples.json").write_text(json.dumps([GOOD]))
    with pytest.raises(FileNotFoundError, match=r"entry 1: .*a\.wav"):
        read_samples(tmp_path / "before")
    (tmp_path / "audio").mkdir()
    (tmp_path / "before").rename(tmp_path / "audio" / "before")
    with pytest.raises(FileNotFoundError, match="audio/before"):
        read_samples(tmp_path)


def test_an_index_of_something_else_is_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text('[{"name": "mine"}]')
    with pytest.raises(ValueError, match="entry 1: .*'file'"):
        write_index(tmp_path, [Sample(audio(tmp_path / "a.wav"), Prompt("a", "rain"))])
    assert (tmp_path / "samples.json").read_text() == '[{"name": "mine"}]'
