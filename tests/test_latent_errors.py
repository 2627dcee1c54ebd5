"""Denoising errors with weights and in pairs."""

from __future__ import annotations

import pytest
import torch
from toys import SMALL

from lightning_modules.latent_errors import (
    error_weights,
    latent_errors,
    pair_margins,
    weighted_mean,
)
from zoo.backbones.tiny import TinyAudio
from zoo.diffusion import VPCosine
from zoo.types import Prompt

PROMPTS = [Prompt(name, f"A {name} harp", "hiss", seconds=0.3) for name in ("sad", "glad")]


@pytest.fixture(scope="module")
def backbone() -> TinyAudio:
    torch.manual_seed(3)
    model = TinyAudio(**SMALL).eval()
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.normal_(std=0.1)
    return model


@torch.no_grad()
def test_rows_pair_samples_with_prompts(backbone):
    torch.manual_seed(0)
    clean = torch.randn(2, *backbone.latent_shape(0.3))
    noise = torch.randn_like(clean)
    time_B = torch.tensor([0.3, 0.6])
    rows = (torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1]))
    error_R = latent_errors(backbone, clean, PROMPTS, time_B, noise, rows)
    own_B = latent_errors(backbone, clean, PROMPTS, time_B, noise)
    (other,) = latent_errors(backbone, clean[:1], PROMPTS[1:], time_B[:1], noise[:1])
    torch.testing.assert_close(error_R, torch.stack([*own_B, other]), rtol=1e-5, atol=1e-6)
    assert len(error_R.unique()) == 3  # the toy listens: the caption makes a difference
    margin = pair_margins(error_R, torch.tensor([0]), torch.tensor([2]))
    assert margin == error_R[2] - error_R[0] != 0


def test_weights_of_samples_and_times_multiply():
    path = VPCosine("v")
    time_B = torch.tensor([0.25, 0.75])
    assert error_weights(path, time_B, None, None).tolist() == [1, 1]
    sample_B = torch.tensor([2.0, -1.0])
    assert error_weights(path, time_B, sample_B, None).tolist() == [2, -1]
    snr_B = torch.tensor(
        [(a / s) ** 2 for a, s in zip(*map(torch.Tensor.tolist, path.coefficients(time_B)))]
    )
    by_hand = sample_B * snr_B.clamp(max=0.5) / (snr_B + 1)
    torch.testing.assert_close(error_weights(path, time_B, sample_B, 0.5), by_hand)
    assert weighted_mean(torch.tensor([3.0, 4.0]), sample_B) == (2 * 3 - 4) / 2
