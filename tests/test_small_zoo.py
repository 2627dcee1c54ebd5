"""The small zoo for configurations: every big model by name, complete, from the cache only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy_zoo

import zoo
from zoo.backbones.tango import Tango
from zoo.hub.table import ENTRIES
from zoo.importers.pretrained_clap import with_files
from zoo.rewards.clap import ClapReward
from zoo.types import Backbone, Prompt, Reward

BIG = [
    entry.name
    for entry in ENTRIES.values()
    if (entry.architecture, entry.layout) in toy_zoo.WRITERS
]
ONE_EACH = (
    "audioldm-m-full",
    "audioldm2-music",
    "stable-audio-open-1.0",
    "tango2",
    "tangoflux",
    "larger-clap-music",
    "clap-music-audioset",
)
PROMPTS = [
    Prompt("a", "a happy piano", "low quality", 0.2, labels={"mood": "happy"}),
    Prompt("b", "a sad piano", "low quality", 0.2, labels={"mood": "sad"}),
]


def test_it_holds_the_models_that_configurations_name() -> None:
    assert {"audioldm2", "tango-full-ft-audiocaps", "clap-htsat-unfused", *ONE_EACH} <= set(BIG)
    assert {(ENTRIES[name].architecture, ENTRIES[name].layout) for name in ONE_EACH} == set(
        toy_zoo.WRITERS
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ONE_EACH)
def test_a_name_is_a_small_model_of_its_class(name: str, small_zoo: Path) -> None:
    model = zoo.load(name)
    assert 1000 < sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    if ENTRIES[name].kind == "backbone":
        assert isinstance(model, Backbone)
        first, second = zoo.generate(model, PROMPTS, steps=2, guidance_scale=2.0)
        assert first.samples_CN.shape == (model.channels, 3200) and not torch.equal(
            first.samples_CN, second.samples_CN
        )
    else:
        assert isinstance(model, Reward)
        scores = model(torch.randn(2, 1, 3200) * 0.1, 16_000, PROMPTS).score_B
        assert scores.isfinite().all() and scores[0] != scores[1]


@pytest.mark.long
def test_every_name_opens_with_zoo_load(small_zoo: Path) -> None:
    assert (
        zoo.load("audioldm2-music", dtype="bfloat16", checkpoint_activations=True).denoiser.dtype
        == torch.bfloat16
    )
    assert isinstance(zoo.load("tango2"), Tango)
    assert isinstance(
        ClapReward("630k", "transformers", with_files({"pretrained": "clap-630k-audioset-best"})),
        ClapReward,
    )


def test_emopia_is_below_the_working_directory(small_zoo: Path) -> None:
    from zoo.importers.emopia import load_emopia

    reward = load_emopia(toy_zoo.EMOPIA_FILE.format("ar_va"))
    assert (reward(torch.randn(2, 1, 80_000) * 0.1, 16_000, PROMPTS).score_B <= 0).all()
