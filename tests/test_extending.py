"""docs/extending.md: every file in it runs as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_modules import run
from lightning_modules.report import read_rows
from zoo.configuration import read_configuration
from zoo.types import Reward, lacking

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text("utf-8")
FILES = dict(re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", PAGE, flags=re.S | re.M))
QUIET = ["trainer.enable_model_summary=false", "trainer.max_epochs=1"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's folder, with the files of the page, on the Python path."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_its_files_are_found() -> None:
    assert {"brightness.py", "weather.py", "best_takes.py", "best_takes.yaml"} <= set(FILES)


@pytest.mark.long
def test_its_reward_keeps_the_contract_and_trains(project: Path, project_root: Path) -> None:
    import brightness

    reward = brightness.Brightness()
    assert not lacking(reward, Reward)
    time = torch.arange(16_000) / 16_000
    tones = torch.stack([torch.sin(2 * torch.pi * hz * time) for hz in (300, 5000)])
    silence = torch.zeros(1, 16_000)
    score_B = reward(torch.cat([tones, silence])[:, None], 16_000, ()).score_B
    assert score_B.tolist() == pytest.approx([0, 1, 0], abs=1e-3)
    smoke = project_root / "configs/ddpo/quickstart_smoke.yaml"
    overrides = ["module.reward={_target_: brightness.Brightness}", "out_dir=runs/bright"]
    run.fit(read_configuration([smoke], [*overrides, "data.seconds=0.512", *QUIET]))
    assert reward.unit in Path("runs/bright/report.html").read_text()


@pytest.mark.long
def test_its_data_module_trains(project: Path, project_root: Path) -> None:
    sounds = project_root / "configs/ddpo/quickstart_sounds.yaml"
    data = "data={_target_: weather.Weather, rounds: 1, repeats: 16, seconds: 0.512}"
    run.fit(read_configuration([sounds], [data, "out_dir=runs/weather", *QUIET]))
    assert [row["round"] for row in read_rows("runs/weather/metrics.csv")] == [1]


@pytest.mark.long
def test_its_algorithm_trains(project: Path) -> None:
    run.fit(read_configuration(["best_takes.yaml"], ["data.seconds=0.512", *QUIET]))
    rows = read_rows("runs/best_takes/metrics.csv")
    assert all({"loss", "reward"} <= set(row) for row in rows)
    adapter = load_file("runs/best_takes/adapter/adapter_model.safetensors")
    assert any(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)
