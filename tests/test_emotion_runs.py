"""EMOPIA's configurations at toy size: fit, early stop, resume, test, export and reload."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_emopia import write_tiny_set

import zoo
from lightning_modules import run, run_folder
from zoo.configuration import read_configuration
from zoo.rewards.mood_tasks import TASKS
from zoo.types import Prompt, Reward

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "emotion"


def fit(config: str, out_dir: Path, *overrides: str) -> run.Built:
    return run.fit(read_configuration([CONFIGS / config], [f"out_dir={out_dir}", *overrides]))


def rows(out_dir: Path) -> list[dict[str, str]]:
    with (out_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def exported(out_dir: Path) -> dict[str, torch.Tensor]:
    """The weights of the best epoch."""
    return load_file(out_dir / "model" / "model.safetensors")


def last(out_dir: Path) -> dict[str, torch.Tensor]:
    """The weights of the last epoch."""
    return torch.load(out_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "task"),
    [
        ("piano_demo.yaml", "ar_va"),
        ("emopia.yaml", "ar_va"),
        ("emopia_arousal.yaml", "arousal"),
        ("emopia_valence.yaml", "valence"),
    ],
)
def test_fits_resumes_tests_exports_and_reloads(tmp_path: Path, config: str, task: str) -> None:
    workers = (
        1 if config == "piano_demo.yaml" else 0
    )  # workers read ahead, which must not confuse a resumed epoch
    small = [*write_tiny_set(tmp_path / "set"), f"data.num_workers={workers}"]
    fit(config, tmp_path / "run", *small, "trainer.max_epochs=1")
    fit(config, tmp_path / "run", *small, "trainer.max_epochs=2", "resume=true")
    fit(config, tmp_path / "straight", *small, "trainer.max_epochs=2")
    for weights in (exported, last):
        resumed, straight = (weights(tmp_path / name) for name in ("run", "straight"))
        assert all(torch.equal(straight[name], value) for name, value in resumed.items()), (
            "a stop changed the run"
        )
    reward = zoo.load(str(tmp_path / "run" / "model"))
    assert isinstance(reward, Reward) and reward.class_names == TASKS[task]
    evaluation = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["evaluation"]
    assert evaluation["split"] == "test" and evaluation["clips"] == 4
    (tested,) = (row for row in rows(tmp_path / "straight") if row.get("test/accuracy"))
    for way, name in (("clip_vote", "accuracy"), ("chunk_share", "accuracy_chunks")):
        low, high = evaluation[f"{way}_interval"]
        assert low < evaluation[way] + 1e-6 and evaluation[way] < high + 1e-6
        assert float(tested[f"test/{name}"]) == pytest.approx(evaluation[way])
        assert float(tested[f"test/{name}_low"]) == pytest.approx(low)
    output = reward(
        torch.randn(1, 1, 22_050), 22_050, [Prompt("p", "sad piano", labels={"mood": "sad"})]
    )
    assert output.score_B.isfinite().all() and set(output.parts) == {
        *(f"p_{n}" for n in reward.class_names),
        "accuracy",
    }


def test_it_stops_after_epochs_without_a_new_best(tmp_path: Path) -> None:
    small = write_tiny_set(tmp_path / "set")
    impossible = [
        "trainer.callbacks[0].min_delta=2.0",
        "trainer.callbacks[0].patience=2",
    ]  # only the first epoch is a new best
    built = fit("emopia.yaml", tmp_path / "run", *small, *impossible, "trainer.max_epochs=9")
    assert built.trainer.current_epoch == 3


def test_validation_uses_crops_like_the_authors_or_whole_clips(tmp_path: Path) -> None:
    small = write_tiny_set(tmp_path / "set")
    lengths = {}
    for config in ("emopia.yaml", "piano_demo.yaml"):
        data = run.build(
            read_configuration([CONFIGS / config], [f"out_dir={tmp_path / 'run'}", *small])
        ).data
        data.setup()
        lengths[config] = {batch.wave_BCN.shape[-1] for batch in data.val_dataloader()}
    assert lengths == {"emopia.yaml": {11_025}, "piano_demo.yaml": {26_460}}


def test_a_song_in_two_splits_stops_the_run_before_it_begins(tmp_path: Path) -> None:
    small = write_tiny_set(tmp_path / "set")
    test = (tmp_path / "set" / "test.csv").read_text()
    (tmp_path / "set" / "val.csv").write_text(test)
    with pytest.raises(ValueError, match="val.*test"):
        fit("emopia.yaml", tmp_path / "run", *small, "trainer.max_epochs=1")
    assert not run_folder.holds_run(tmp_path / "run")


def test_the_authors_settings() -> None:
    config = read_configuration([CONFIGS / "emopia.yaml"])
    module, data = config.module, config.data
    assert (
        module["loss"] == "softmax_of_sigmoids"
        and module["optimizer"]
        == {"name": "adam", "learning_rate": 1e-4, "weight_decay": 1e-4, "restart_epochs": 16}
        and module["keep_best"]
    )
    assert module["degradations"] == {"gain_db": 0, "noise_share": 0, "low_pass_share": 0}
    reward = module["reward"]
    assert (
        reward["sample_rate_hz"],
        reward["chunk_s"],
        reward["n_fft"],
        reward["hop_samples"],
    ) == (22_050, 3.0, 1024, 512)
    assert (
        reward["n_mels"] == 128
        and reward["channels"] == [128, 128, 256, 256, 256, 256, 512]
        and reward["dropout"] == 0.5
    )
    assert (
        data["crop_s"] == 3.0
        and data["batch_size"] == 32
        and data["val_crop"]
        and data["seed"] == config.seed == 42
    )
    (stop,) = config.trainer["callbacks"]
    assert config.trainer["max_epochs"] == 100
    assert (stop["monitor"], stop["mode"], stop["patience"]) == ("val/accuracy", "max", 5)
