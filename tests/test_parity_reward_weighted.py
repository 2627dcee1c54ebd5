"""Parity of reward-weighted fine-tuning with BATON's loss on Tango's golden numbers.

BATON multiplies Tango's per-sample errors and their min-SNR weights by the reward before the mean
of the batch, so what it computes for any rewards follows from ``tango/training_loss_tiny``. Nothing
here knows particular seeds or shapes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_parity_tango import Golden, small
from torch import Tensor

from datamodules.batches import LatentBatch, PairedBatch
from lightning_modules.denoising import Denoising
from zoo.diffusion import min_snr_weights
from zoo.types import Prompt

pytestmark = [pytest.mark.parity, pytest.mark.long]
BETA = 0.25
REWARDS = {
    "ones": lambda count: torch.ones(count),
    "labels": lambda count: (torch.arange(count) % 2).float(),
    "scores": lambda count: torch.rand(count, generator=torch.Generator().manual_seed(3)),
    "centred": lambda count: torch.linspace(-0.6, 0.7, count),
    "zeros": lambda count: torch.zeros(count),
}


@pytest.fixture
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir, "training_loss_tiny")


@pytest.fixture
def module(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> Denoising:
    """BATON's settings, on the golden network, with the golden times, noise and texts."""
    backbone = small(golden)
    made = Denoising(
        backbone,
        condition_dropout=0.0,
        min_snr_gamma=5.0,
        min_snr_form="snr",
        pretrain_weight=BETA,
        ema_decay=None,
        trainable=["denoiser"],
        val_time=0.5,
    )
    told = backbone.encode_tokens(golden["input_ids"], golden["attention_mask"].bool())
    monkeypatch.setattr(backbone, "encode_prompts", lambda asked: told.rows(rows_of(asked)))
    kept = backbone.path.sample_times
    times = lambda u: golden["t"] if u.unique().numel() == len(u) > 1 else kept(u)
    monkeypatch.setattr(backbone.path, "sample_times", times)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: golden["noise"])
    return made


def rows_of(prompts: list[Prompt]) -> list[int]:
    return [int(prompt.id) for prompt in prompts]


def batch_of(golden: Golden, weight_B: Tensor | None = None) -> LatentBatch:
    prompts = tuple(Prompt(str(i), f"row {i}") for i in range(len(golden["t"])))
    return LatentBatch(golden["latents"], prompts, weight_B)


@pytest.mark.parametrize("kind", REWARDS, ids=[f"baton-{kind}" for kind in REWARDS])
def test_the_loss_of_any_rewards(golden: Golden, module: Denoising, kind: str, monkeypatch) -> None:
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    reward_B = REWARDS[kind](len(golden["t"]))
    labelled = batch_of(golden, reward_B)
    expected = (reward_B * golden["per_sample_mse"] * golden["weights"]).mean()
    alone = module.training_step(labelled, 0)
    torch.testing.assert_close(alone.detach(), expected, rtol=1e-4, atol=1e-7)
    paired = module.training_step(PairedBatch(labelled, batch_of(golden)), 0)
    expected = expected + BETA * golden["loss.snr5"]
    torch.testing.assert_close(paired.detach(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, -0.5], ids=["baton", "baton-negative"])
@pytest.mark.parametrize("kind", ["snr5", "plain"])
def test_the_gradient(golden: Golden, module: Denoising, kind: str, scale: float) -> None:
    module.hparams.min_snr_gamma = {"snr5": 5.0, "plain": None}[kind]
    weight_B = torch.full((len(golden["t"]),), scale)
    loss = module.weighted_error(batch_of(golden, weight_B), "any")
    assert loss.item() == pytest.approx(scale * golden[f"loss.{kind}"].item(), rel=1e-4)
    loss.backward()
    parameters = list(module.backbone.denoiser.parameters())
    norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm().item()
    wanted = golden[f"grad_norm.{kind}"].item()
    assert norm == pytest.approx(abs(scale) * wanted, rel=1e-3)
    bias = scale * golden[f"grad_conv_out_bias.{kind}"]
    found = module.backbone.denoiser.conv_out.bias.grad
    torch.testing.assert_close(found, bias, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["snr5", "plain"], ids=["baton-snr5", "baton-plain"])
def test_validation_at_one_time(golden: Golden, module: Denoising, kind: str, monkeypatch) -> None:
    module.hparams.min_snr_gamma = {"snr5": 5.0, "plain": None}[kind]
    found: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log_dict", lambda values, **_: found.update(values))
    with torch.no_grad():
        module.validation_step(batch_of(golden), 0)
    assert found["val/loss"].item() == pytest.approx(
        golden[f"loss_validation.{kind}"].item(), rel=1e-4
    )


@pytest.mark.parametrize("form", ["snr", "prediction"], ids=["baton-snr", "baton-prediction"])
def test_both_forms_of_min_snr(golden_dir: Path, form: str) -> None:
    golden = Golden(golden_dir, "schedule")
    alpha_bar = golden["alphas_cumprod"]
    name = {"snr": "min_snr_weight_gamma5", "prediction": "min_snr_weight_gamma5_vform"}[form]
    found = min_snr_weights(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), "v", 5.0, form)
    torch.testing.assert_close(found, golden[name], rtol=0, atol=1e-5)
    if form == "snr":
        bites = (found < 1 - 1e-6).nonzero().flatten()
        assert bites.max().item() == len(bites) - 1  # the first times only
