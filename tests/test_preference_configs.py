"""The configurations of preference learning at toy size: trained, resumed, exported, played."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_baton_configs import played
from toy_pairs import write_pairs

import zoo
from lightning_modules import run
from lightning_modules.report import read_rows
from zoo.conditioners.prompt_memory import CAPACITY
from zoo.configuration import read_configuration
from zoo.generations import read_samples
from zoo.hub.export import export_run
from zoo.hub.run_facts import read_facts

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "preferences"


def of_labels(folder: Path) -> list[str]:
    write_pairs(folder)
    return [
        f"data.source.files={folder / 'pairs.jsonl'}",
        f"data.source.audio_root={folder / 'audio'}",
        f"data.cache_dir={folder / 'latents'}",
        "data.source.val_share=0.3",
        "data.seconds=0.5",
        "module.optimizer.warmup_steps=0",
        "module.optimizer.learning_rate=1e-3",
    ]


def of_captions(folder: Path) -> list[str]:
    captions = ROOT / "tests" / "outside"
    return [
        f"data.source.prompts.train={captions / 'captions_train.csv'}",
        f"data.source.prompts.validation={captions / 'captions_val.csv'}",
        "data.source.prompts.count=3",
        "data.source.prompts.seconds=0.2",
        "data.source.prompts_per_iteration=2",
        "data.source.clips=2",
        "data.source.epochs=1",
        "data.source.sampler.steps=2",
        "data.seconds=0.2",
        "data.batch_size=1",
        "module.optimizer.warmup_steps=0",
        "module.optimizer.learning_rate=1e-3",
        "trainer.accumulate_grad_batches=1",
    ]


SMALL = {
    "sft": of_labels,
    "dpo": of_labels,
    "crpo": of_captions,
    "expert_iteration": of_captions,
}


def fit(config: str, folder: Path, *overrides: str) -> run.Built:
    given = [
        *SMALL[config](folder),
        f"out_dir={folder / 'run'}",
        "trainer.accelerator=cpu",
        *overrides,
    ]
    given += ["trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false"]
    return run.fit(read_configuration([CONFIGS / f"{config}.yaml"], given))


@pytest.mark.long
@pytest.mark.parametrize("config", ["sft", "dpo", "crpo", "expert_iteration"])
def test_it_trains_resumes_exports_and_plays(config: str, tmp_path: Path, small_zoo: Path) -> None:
    fit(config, tmp_path, "trainer.max_epochs=1")
    built = fit(config, tmp_path, "trainer.max_epochs=2", "resume=true")
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    logged = {name for row in rows for name in row}
    assert "train/loss" in logged
    assert ("train/implicit_accuracy" in logged) == (config in ("dpo", "crpo"))
    if config == "dpo":  # the first epoch is SFT
        assert [row["epoch"] for row in rows if "train/implicit_accuracy" in row] == [1]
        assert "val/implicit_accuracy" in logged
    if config in ("crpo", "expert_iteration"):
        folders = sorted((tmp_path / "run" / "clips").glob("iteration_*/*"))
        assert len(folders) == 2
        scores = [[s.score for s in read_samples(folder)] for folder in folders]
        means = [row["iteration/score"] for row in rows if "iteration/score" in row]
        assert means == pytest.approx([sum(own) / len(own) for own in scores], abs=1e-6)
        assert (config == "crpo") == hasattr(built.module, "reference")
    if config == "crpo":
        assert built.module.reference.is_renewed
    facts = read_facts(tmp_path / "run", {})
    assert facts.checkpoint == "learned" and facts.learned == ("denoiser",)
    own = zoo.open_model(str(tmp_path / "run"))
    exported = zoo.load(export_run(tmp_path / "run", tmp_path / "model"))
    weights = dict(own.denoiser.named_parameters())
    for name, value in exported.denoiser.named_parameters():
        assert torch.equal(value.to(weights[name]), weights[name]), name
    # equal weights of TangoFlux play the same to 1e-6 only, from its two layouts on disk
    closeness = {"rtol": 0, "atol": 0 if config in ("sft", "dpo") else 1e-5}
    torch.testing.assert_close(played(own), played(exported), **closeness)
    base = read_configuration([CONFIGS / f"{config}.yaml"]).module["backbone"]["name"]
    assert not torch.equal(played(zoo.load(base)), played(own))


def test_published_settings() -> None:
    """Tango 2's paper 5.1 and README; TangoFlux's paper."""
    dpo, crpo = (read_configuration([CONFIGS / f"{name}.yaml"]) for name in ("dpo", "crpo"))
    optimizer = dpo.module["optimizer"]
    assert (optimizer["learning_rate"], optimizer["warmup_steps"]) == (9.6e-7, 200)
    assert (dpo.module["beta"], dpo.module["winner_weight"]) == (2000, 0)
    assert (dpo.module["sft_epochs"], dpo.trainer["max_epochs"]) == (1, 5)
    per_step = dpo.data["batch_size"] * dpo.trainer["accumulate_grad_batches"]
    assert 2 * per_step == 32  # on two devices
    assert (crpo.module["beta"], crpo.module["winner_weight"]) == (2000, 1)
    assert crpo.data["batch_size"] * crpo.trainer["accumulate_grad_batches"] == 48
    source = crpo.data["source"]
    assert (source["clips"], source["epochs"], source["prompts_per_iteration"]) == (5, 8, 20_000)
    assert crpo.trainer["max_epochs"] == 5 * source["epochs"]
    assert source["sampler"]["guidance_scale"] == 4.5
    assert crpo.module["optimizer"]["warmup_steps"] == 100


@pytest.mark.parametrize("config", ["crpo", "expert_iteration"])
def test_more_captions_than_are_kept_need_their_encoder(config: str) -> None:
    found = read_configuration([CONFIGS / f"{config}.yaml"])
    assert found.data["source"]["prompts_per_iteration"] > CAPACITY
    assert found.module["memory"]["text_encoders"] == "keep"


def test_what_is_compared_learns_from_the_same_clips() -> None:
    sft, dpo, crpo, expert = (
        read_configuration([CONFIGS / f"{name}.yaml"])
        for name in ("sft", "dpo", "crpo", "expert_iteration")
    )
    assert sft.data["source"] == dpo.data["source"]
    assert sft.module["optimizer"] == dpo.module["optimizer"]
    assert (sft.data["batches"], dpo.data["batches"]) == ("winners", "pairs")
    assert expert.data["source"]["reward"] == crpo.data["source"]["reward"]
    assert expert.data["source"]["prompts"] == crpo.data["source"]["prompts"]
    assert expert.module["optimizer"] == crpo.module["optimizer"]
    assert expert.data["batches"] == "winners"
