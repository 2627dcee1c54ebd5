"""A backbone outside the project, named in a local YAML: it trains, resumes and generates."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from lightning_modules import run
from zoo.audio_files import write_audio
from zoo.configuration import read_configuration
from zoo.types import Waveform

OUTSIDE = Path(__file__).parent / "outside"
QUIET = ["trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder elsewhere, with a module, a configuration and three recordings."""
    folder = tmp_path / "their_project"
    shutil.copytree(OUTSIDE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    time = torch.arange(8000) / 8000
    for pitch_hz in (400, 600, 900):
        wave = Waveform(0.5 * torch.sin(2 * torch.pi * pitch_hz * time)[None], 8000)
        write_audio(folder / "clips" / f"{pitch_hz}.wav", wave)
    monkeypatch.chdir(folder)
    yield folder
    sys.modules.pop("whistles", None)


@pytest.mark.long
def test_the_tool_trains_it(project: Path, project_root: Path) -> None:
    """As users start it, with the current folder on PYTHONPATH."""
    command = [
        sys.executable,
        str(project_root / "tools/fit.py"),
        "--config",
        "whistles.yaml",
        *QUIET,
    ]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert torch.load("runs/whistles/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert len(load_file("runs/whistles/backbone.safetensors")) == 5


def test_it_trains_resumes_and_plays(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project))
    run.fit(read_configuration(["whistles.yaml"], QUIET))
    first = load_file("runs/whistles/backbone.safetensors")
    built = run.fit(
        read_configuration(["whistles.yaml"], [*QUIET, "resume=true", "trainer.max_steps=4"])
    )
    assert built.trainer.global_step == 4
    last = load_file("runs/whistles/backbone.safetensors")
    with built.module.ema.swapped():  # what is kept are the averages
        assert all(
            torch.equal(last[name], tensor)
            for name, tensor in built.module.backbone.state_dict().items()
        )
    assert any(not torch.equal(first[name], last[name]) for name in first)
    assert not Path("runs/whistles/model").exists()

    backbone = zoo.open_model("runs/whistles")
    assert all(torch.equal(last[name], tensor) for name, tensor in backbone.state_dict().items())
    (wave,) = zoo.generate(backbone, "a whistle", seconds=0.512, steps=4)
    assert wave.samples_CN.shape == (1, 4096)

    config = Path("runs/whistles/config.yaml")
    config.write_text(config.read_text().replace("width: 8", "width: 9"))
    with pytest.raises(ValueError, match="do not fit the backbone of config.yaml"):
        zoo.open_model("runs/whistles")


def test_a_package_that_python_does_not_find_is_named(project: Path) -> None:
    with pytest.raises(ValueError, match=r"module\.backbone\._target_.*'whistles'"):
        run.fit(read_configuration(["whistles.yaml"]))
    assert not (project / "runs").exists()
