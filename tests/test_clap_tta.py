"""configs/ddpo/clap_tta.yaml and its Tango variant: a CLAP reward, a held-out CLAP, captions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_modules import run
from lightning_modules.report import read_rows
from zoo.configuration import Run, read_configuration
from zoo.hub.table import ENTRIES

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("clap_tta", "clap_tta_tango")
SMALL = [
    *(
        f"data.prompts.{knob}={ROOT / 'tests/outside' / name}"
        for knob, name in (("train", "captions_train.csv"), ("validation", "captions_val.csv"))
    ),
    "data.prompts.count=4",
    "data.prompts.seconds=0.3",
    "data.prompts_per_round=2",
    "data.repeats=2",
    "data.val_prompts=2",
    "data.val_repeats=1",
    "module.sampler.steps=3",
    "module.sampler.batch_size=2",
    "module.update.batch_size=2",
    "module.update.timestep_fraction=1.0",
    "trainer.max_epochs=1",
    "trainer.check_val_every_n_epoch=1",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
]


def load(name: str, *overrides: str) -> Run:
    return read_configuration([ROOT / f"configs/ddpo/{name}.yaml"], overrides)


def test_tango_changes_only_its_own_settings() -> None:
    first, second = (load(name) for name in NAMES)
    backbones = [config.module.pop("backbone") for config in (first, second)]
    assert [ENTRIES[backbone["name"]].architecture for backbone in backbones] == [
        "audioldm2",
        "tango",
    ]
    guidance = [one.module["sampler"].pop("guidance_scale") for one in (first, second)]
    assert guidance == [3.5, 3.0]
    assert (
        first.module == second.module
        and first.data == second.data
        and first.trainer == second.trainer
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_comments_of_the_configuration_are_true(name: str) -> None:
    config = load(name)
    module, data = config.module, config.data
    samples = data["prompts_per_round"] * data["repeats"]
    assert (
        samples == 256
        and samples % (module["update"]["batch_size"] * module["update"]["per_round"]) == 0
    )
    assert data["prompts"]["count"] == config.trainer["max_epochs"] * data["prompts_per_round"], (
        "each caption comes up once"
    )
    judges = ENTRIES[module["reward"]["name"]], ENTRIES[module["held_out_reward"]["name"]]
    assert {judge.kind for judge in judges} == {"reward"} and judges[0].repo_id != judges[1].repo_id
    assert {judge.layout for judge in judges} == {"transformers"} and {
        judge.sample_rate_hz for judge in judges
    } == {48_000}
    assert (
        module["advantages"]["kind"] == "group"
        and module["update"]["kl_coef"] > 0
        and module["adapter"]["rank"] > 0
    )


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_captions_to_adapter(name: str, small_zoo: Path) -> None:
    out = small_zoo / "run"
    config = load(name, *SMALL, f"out_dir={out}")
    run.fit(config)
    last = read_rows(out / "metrics.csv")[-1]
    for metric in (
        "reward/mean",
        "held_out/mean",
        "held_out_scorer/mean",
        "kl_to_base",
        "grad_norm",
    ):
        assert torch.isfinite(torch.tensor(last[metric])), metric
    assert last["grad_norm"] > 0
    assert last["held_out/mean"] == pytest.approx(last["held_out_scorer/mean"], abs=1e-5), (
        "one CLAP here: it heard the same clips"
    )
    assert (
        list((out / "adapter").glob("*.safetensors"))
        and (out / "audio/after/samples.json").is_file()
    )
