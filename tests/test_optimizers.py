"""Optimisers by name: the table, early errors, eight-bit moments and their resume."""

import sys
import types

import pytest
import torch
from toy_ddpo import fitted, module, trainer, weights
from toys import Rounds, ToyBackbone, small_audio, supervised

from lightning_modules.codec import Codec
from lightning_modules.contrastive import Contrastive
from lightning_modules.denoising import Denoising
from lightning_modules.mood_classifier import Emotion
from lightning_modules.optimizers import OPTIMIZERS, build_optimizer, optimizer_class
from zoo.backbones.spectral_codec import SpectralCodec
from zoo.instantiate import check
from zoo.rewards.clap import ClapReward
from zoo.rewards.mood import EmotionReward
from zoo.signatures import bind


class Rounded(torch.optim.AdamW):
    """A stand-in for AdamW8bit."""


@pytest.fixture
def stand_in(monkeypatch):
    found = types.SimpleNamespace(AdamW8bit=Rounded)
    monkeypatch.setitem(sys.modules, "stand_in", found)
    monkeypatch.setitem(OPTIMIZERS, "adamw_8bit", ("stand_in", "AdamW8bit", ""))


def test_adamw_is_torchs_with_the_values_given():
    weight = torch.nn.Parameter(torch.ones(3))
    adam = build_optimizer("adamw", [weight], 0.5, [0.8, 0.9], 1e-6, 0.25)
    group = adam.param_groups[0]
    assert type(adam) is torch.optim.AdamW is optimizer_class("adamw")
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        0.5,
        (0.8, 0.9),
        1e-6,
        0.25,
    )


def test_both_trainers_take_the_name(stand_in):
    assert type(module({"optimizer.name": "adamw_8bit"}).configure_optimizers()) is Rounded
    assert type(module().configure_optimizers()) is torch.optim.AdamW
    for name, kind in (("adamw_8bit", Rounded), ("adamw", torch.optim.AdamW)):
        trained = supervised(Denoising, small_audio(), optimizer=name)
        made = trained.configure_optimizers()["optimizer"]
        assert type(made) is kind and made.defaults["betas"] == (0.9, 0.98)


def test_an_unknown_name_is_refused_when_the_module_is_built():
    for make in (
        lambda name: module({"optimizer.name": name}),
        lambda name: supervised(Denoising, small_audio(), optimizer=name),
    ):
        with pytest.raises(ValueError, match="'adamw_8bits'.*'adamw_8bit'"):
            make("adamw_8bits")


def test_a_missing_package_says_what_installs_it_before_a_run_starts(monkeypatch):
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=r"needs the package bitsandbytes.*pip install 'bitsandbytes>=0\.50,<1'"
    ):
        module({"optimizer.name": "adamw_8bit"})
    assert set(OPTIMIZERS) == {"adamw", "adamw_8bit"}


def whole_denoiser(**settings):
    """A denoiser with weights of 4096 numbers, whose moments take eight bits; others keep 32."""
    return module(
        {"optimizer.name": "adamw_8bit", "adapter.rank": 0, "sampler.steps": 3},
        backbone=ToyBackbone(width=64),
        **settings,
    )


def test_eight_bit_moments_are_saved_and_resumed(tmp_path):
    pytest.importorskip(
        "bitsandbytes", reason="pip install 'bitsandbytes>=0.50,<1' (it computes on a CPU too)"
    )
    whole = whole_denoiser()
    half = whole_denoiser()
    resumed = whole_denoiser()
    before = weights(whole)
    run = fitted(whole, epochs=2)
    moments = [state["state1"] for state in run.optimizers[0].state.values()]
    assert {moment.dtype for moment in moments} == {torch.uint8, torch.float32}
    assert all((moment.dtype == torch.uint8) == (moment.numel() >= 4096) for moment in moments)
    assert all(not torch.equal(before[name], weight) for name, weight in weights(whole).items())
    fitted(half, epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    trainer(2).fit(resumed, Rounds(8, start=1), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name


CLAP = {"width": 32, "depth": 1, "heads": 2, "text_depth": 1, "embedding": 16}


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), -1.0])
@pytest.mark.parametrize("kind", [Denoising, Codec, Contrastive, Emotion])
def test_a_rate_that_no_optimiser_takes_is_refused_by_every_module(kind, rate):
    models = {
        Denoising: ToyBackbone,
        Codec: lambda: SpectralCodec(width=8, encoder_depth=1, decoder_depth=1),
        Contrastive: lambda: ClapReward("toy", "tiny", CLAP),
        Emotion: EmotionReward,
    }
    arguments = {"trainable": ["denoiser"]} if kind is Denoising else {}
    supervised(kind, models[kind](), learning_rate=1e-3, **arguments)
    with pytest.raises(ValueError, match="invalid learning_rate"):
        supervised(kind, models[kind](), learning_rate=rate, **arguments)


@pytest.mark.parametrize(
    ("target", "key", "value", "place"),
    [
        ("denoising.Denoising", "total_steps", 4, "module.optimizer.total_steps"),
        ("denoising.Denoising", "optimizer", "adamw_8bit", "module.optimizer.name"),
        ("codec.Codec", "learning_rate", 0.1, "module.optimizer.learning_rate"),
        ("contrastive.Contrastive", "snr_db", [1, 2], "module.degradations.snr_db"),
        ("mood_classifier.Emotion", "low_pass_hz", [1, 2], "module.degradations.low_pass_hz"),
        ("mood_classifier.Emotion", "restart_epochs", 4, "module.optimizer.restart_epochs"),
    ],
)
def test_a_setting_that_was_flat_is_told_its_place(target, key, value, place):
    node = {"_target_": f"lightning_modules.{target}", key: value}
    with pytest.raises(ValueError, match=f"module.{key} is now {place}"):
        check(node, "module")


def test_what_a_group_leaves_out_is_as_in_the_default_of_its_module():
    node = {"optimizer": {"learning_rate": 0.1}, "reward": ClapReward("toy", "tiny", CLAP)}
    found = bind(Contrastive, node, "module")["optimizer"]
    assert (found.learning_rate, found.total_steps, found.weight_decay) == (0.1, 1500, 0.05)
