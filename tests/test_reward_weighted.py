"""Reward-weighted fine-tuning: the loss, every backbone, resume, export, settings."""

from __future__ import annotations

import pytest
import torch
from toy_backbones import build
from toy_weighted import denoising, fitted, weighted_clips, write_corpus

from zoo.backbones import BACKBONES


def moving(backbone):
    """Its zero-initialised tensors are moved, so that gradients reach every layer."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.denoiser.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return backbone


@pytest.mark.long
@pytest.mark.parametrize("key", sorted(BACKBONES))
def test_two_steps_on_every_backbone(key, tmp_path):
    backbone = moving(build(key))
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    module = denoising(backbone)
    data = weighted_clips(write_corpus(tmp_path), backbone)
    made = fitted(module, data, tmp_path / "run", max_steps=2)
    assert made.global_step == 2
    changed = {n for n, value in backbone.named_parameters() if not torch.equal(value, before[n])}
    assert changed and all(name.startswith("denoiser.") for name in changed)
    trained = [name for name in before if name.startswith("denoiser.")]
    assert len(changed) > 0.5 * len(trained)
    assert all(value.isfinite().all() for value in backbone.parameters())
