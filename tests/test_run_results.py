"""Checkpoints read for export: damaged or foreign ones are named in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from zoo.hub.runs import Checkpoint, newest_result, read_checkpoint

RIGHT = {"state_dict": {"weight": torch.ones(2)}, "global_step": 3}


class Code:
    def __reduce__(self):
        return print, ("was run",)


def cut(path: Path) -> None:
    torch.save(RIGHT, path)
    path.write_bytes(path.read_bytes()[:-200])


WRONG = {
    "a cut file": cut,
    "an empty file": lambda path: path.write_bytes(b""),
    "a page": lambda path: path.write_text("<html>"),
    "code": lambda path: torch.save(RIGHT | {"extra": Code()}, path),
    "a list": lambda path: torch.save([1], path),
    "no state_dict": lambda path: torch.save({"global_step": 3}, path),
    "ema of another kind": lambda path: torch.save(RIGHT | {"ema": [1]}, path),
    "a step that is none": lambda path: torch.save(RIGHT | {"global_step": None}, path),
}


@pytest.mark.parametrize("write", WRONG.values(), ids=WRONG)
def test_a_file_that_is_not_a_checkpoint_is_named_in_one_line(write, tmp_path, capsys):
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    write(path)
    with pytest.raises(ValueError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError) as caught:
        newest_result(tmp_path / "run")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "was run" not in capsys.readouterr().out


def test_an_older_one_takes_the_place_of_a_damaged_one(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save(RIGHT, folder / "old.ckpt")
    os.utime(folder / "old.ckpt", (1, 1))
    cut(folder / "last.ckpt")
    found = newest_result(tmp_path)
    assert isinstance(found, Checkpoint) and found.path.name == "old.ckpt" and found.step == 3
