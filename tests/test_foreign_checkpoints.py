"""Foreign files named like a checkpoint are refused in one line, and older checkpoints are used."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from toy_run import load

from lightning_modules import run
from lightning_modules.run_folder import is_intact, starting_point

RIGHT = {
    "state_dict": {"weight": torch.zeros(2)},
    "loops": {},
    "optimizer_states": [],
    "lr_schedulers": [],
    "epoch": 1,
    "global_step": 3,
}


class Code:
    def __reduce__(self):
        return print, ("was run",)


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", json.dumps({"state_dict": {}}))


def cut(path: Path) -> None:
    torch.save(RIGHT, path)
    path.write_bytes(path.read_bytes()[:-200])


FOREIGN = {
    "a list": (lambda path: torch.save([1, 2], path), "holds a list"),
    "no state_dict": (
        lambda path: torch.save(RIGHT | {"state_dict": None}, path),
        "is not the state of a run: it has no state_dict",
    ),
    "weights only": (
        lambda path: torch.save(
            {key: RIGHT[key] for key in ("state_dict", "epoch", "global_step", "loops")}, path
        ),
        "is not the state of a run: it has no optimizer_states, lr_schedulers",
    ),
    "another zip": (other_zip, "is not a checkpoint"),
    "code": (
        lambda path: torch.save(RIGHT | {"extra": Code()}, path),
        "is not a checkpoint of plain data",
    ),
    "a cut file": (cut, "is damaged"),
    "no zip": (lambda path: path.write_text("<html>"), "is damaged"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_alone_it_is_refused_and_beside_an_older_one_skipped(case, tmp_path, capfd):
    write, message = FOREIGN[case]
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write(folder / "last.ckpt")
    with pytest.raises(ValueError, match=f"last.ckpt {message}") as caught:
        starting_point(tmp_path, {}, True)
    assert "\n" not in str(caught.value)
    torch.save(RIGHT, folder / "epoch=0-step=3.ckpt")
    checkpoint, notes, *_ = starting_point(tmp_path, {}, True)
    assert checkpoint == folder / "epoch=0-step=3.ckpt"
    assert message in notes[-1]
    assert is_intact(checkpoint)
    assert "was run" not in capfd.readouterr().out


def test_the_state_of_another_model_is_reported_in_one_line(tmp_path):
    run.fit(load(tmp_path, "trainer.max_epochs=1"))
    for path in (tmp_path / "run/checkpoints").glob("*.ckpt"):
        state = torch.load(path, weights_only=True)
        state["state_dict"] = {
            f"other.{name}": tensor for name, tensor in state["state_dict"].items()
        }
        torch.save(state, path)
    with pytest.raises(ValueError, match=r"last\.ckpt.*other\.") as caught:
        run.fit(load(tmp_path, "trainer.max_epochs=2", "resume=true"))
    assert "\n" not in str(caught.value)
