"""Parity with Hannieliao/Baton on golden numbers: reward head, losses, gradients, pairs.

Nothing here knows particular seeds, sizes or settings: all are read from the files.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodules.preferences.pairs import ordered_pairs
from lightning_modules.preference_losses import (
    absolute_loss,
    bradley_terry_loss_each,
    pairwise_loss_each,
    probability_loss_each,
)
from lightning_modules.preference_model import HeadOptimizer
from zoo.importers.baton import KEY, load_baton_head
from zoo.rewards.preference import PreferenceHead

pytestmark = pytest.mark.parity
FORWARD, LOSS, GRADIENT = 1e-5, 1e-5, 1e-4  # absolute; relative; relative
STEPS_RELATIVE, STEPS_ABSOLUTE, AFTER_STEPS = 1e-3, 1e-5, 1e-4


def seeds_of(golden_dir: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "seeded_weights", golden_dir / "seeded_weights.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Toy(nn.Module):
    """Stands for the CLAP, which these numbers do not need."""

    name = "clap/none"
    differentiable = False

    def __call__(self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Any) -> None:
        raise AssertionError("no audio is heard here")

    embed_audio = embed_text = __call__


class Golden:
    """Facts, arrays by name, and the original's head as its authors wrote it, through our reader.

    Of the same formats there may be several files, each with its own seed and size.
    """

    def __init__(self, path: Path, golden_dir: Path, file: Path) -> None:
        self.facts: dict[str, Any] = json.loads(path.read_text())
        self.arrays = np.load(path.parent / self.facts["file"])
        weights = self.facts["weights"]
        manifest = json.loads((path.parent / weights["manifest"]).read_text())
        seeds = seeds_of(golden_dir)
        state = seeds.seeded_state(manifest["tensors"], weights["seed"])
        assert seeds.state_sha256(state) == weights["state_sha256"], (
            "the generator of the weights differs"
        )
        self.state = {name: torch.from_numpy(value) for name, value in state.items()}
        content = {"epoch": 1, "loss": 0.5, "optimizer_state_dict": {}, KEY: self.state}
        torch.save(content, file)
        self.head: PreferenceHead = load_baton_head(file, Toy()).head
        self.parameters = manifest["n_params"]

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def logits(self) -> Tensor:
        return self.head(self["audio_embedding"], self["text_embedding"])


@pytest.fixture
def golden(golden_dir: Path, tmp_path: Path) -> Golden:
    return Golden(golden_dir / "baton" / "reward_head.json", golden_dir, tmp_path / "head.pth")


def assert_absolute(got: Tensor, expected: Tensor, tolerance: float) -> None:
    worst = (got.detach().double() - expected.double()).abs().max().item()
    assert got.shape == expected.shape and worst <= tolerance, f"off by {worst:.2e}"


def assert_relative(
    got: Tensor, expected: Tensor, tolerance: float, absolute: float = 1e-12
) -> None:
    assert got.shape == expected.shape
    torch.testing.assert_close(
        got.detach().double(), expected.double(), rtol=tolerance, atol=absolute
    )


def assert_gradient(got: Tensor, expected: Tensor) -> None:
    """As a share of the largest entry: sums of float32 products round near 0."""
    assert got.shape == expected.shape
    worst = (got.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert worst <= GRADIENT, f"off by {worst:.2e} of the largest entry"


def test_baton_head_forward(golden: Golden) -> None:
    head = golden.head
    assert sum(p.numel() for p in head.parameters()) == golden.parameters
    assert head.state_dict().keys() == golden.state.keys()
    inputs = torch.cat([golden["audio_embedding"], golden["text_embedding"]], dim=1)
    assert_absolute(head.fc1(inputs).relu(), golden["hidden"], FORWARD)
    scale = max(1.0, golden["logit"].abs().max().item())
    assert_absolute(golden.logits(), golden["logit"], FORWARD * scale)
    assert_absolute(golden.logits().sigmoid(), golden["probability"], FORWARD)


def test_baton_absolute_losses(golden: Golden) -> None:
    for labels, name in (("labels", "bce"), ("soft_labels", "bce_soft")):
        assert_relative(absolute_loss(golden.logits(), golden[labels]), golden[name], LOSS)
        of_probabilities = probability_loss_each(golden.logits().sigmoid(), golden[labels])
        assert_relative(of_probabilities.mean(), golden[name], LOSS)


def test_baton_saturated_rows(golden: Golden) -> None:
    """Probabilities of exactly 0 and 1 have a finite loss, as in the reference."""
    each = probability_loss_each(golden["saturated_probability"], golden["saturated_label"])
    assert_relative(each, golden["saturated_bce_each"], LOSS, 1e-7)


def test_baton_pairwise_loss(golden: Golden) -> None:
    logit_B = golden.logits()
    winner, loser = (logit_B[golden[name]] for name in ("pair_winner", "pair_loser"))
    each = pairwise_loss_each(winner, loser)
    assert_relative(each, golden["pair_loss"], LOSS, 1e-7)
    assert_relative(each.mean(), golden["pair_loss_mean"], LOSS)
    other = bradley_terry_loss_each(winner, loser)
    assert (other - golden["pair_loss"]).abs().max() > 1e-3, "it would pass for Bradley-Terry"


def test_baton_gradients(golden: Golden) -> None:
    head = golden.head.requires_grad_(True)
    absolute_loss(golden.logits(), golden["labels"]).backward()
    assert_gradient(head.fc2.weight.grad, golden["grad_fc2_weight"])
    gradient = head.fc1.weight.grad
    assert_relative(gradient.norm(), golden["grad_fc1_weight_norm"], GRADIENT)
    stored = golden["grad_fc1_weight_slice"]
    row_step, column_step = (
        full // kept for full, kept in zip(gradient.shape, stored.shape, strict=True)
    )
    assert_gradient(gradient[::row_step, ::column_step], stored)


def trained(golden: Golden, optimizer: torch.optim.Optimizer) -> Tensor:
    losses = []
    for _ in range(len(golden["adam_losses"])):
        loss = absolute_loss(golden.logits(), golden["labels"])
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack(losses)


def test_baton_adam_steps(golden: Golden) -> None:
    """With weight decay as an L2 term of the gradient, by the optimiser that training uses."""
    stated = golden.facts["optimizer"]
    settings = HeadOptimizer(stated["name"].lower(), stated["lr"], stated["weight_decay"])
    golden.head.requires_grad_(True)
    optimizer = settings.built(golden.head.parameters())
    (group,) = optimizer.param_groups
    assert (list(group["betas"]), group["eps"]) == (stated["betas"], stated["eps"])
    assert_relative(
        trained(golden, optimizer), golden["adam_losses"], STEPS_RELATIVE, STEPS_ABSOLUTE
    )
    assert_absolute(golden.logits().sigmoid(), golden["adam_probability_after"], AFTER_STEPS)


def test_baton_pair_building(golden_dir: Path) -> None:
    facts = json.loads((golden_dir / "baton" / "pair_building.json").read_text())
    rows = [
        (prompt, file, score)
        for prompt, files in facts["grouped_ratings"].items()
        for file, score in files.items()
    ]
    prompts, files, scores = zip(*rows, strict=True)
    pairs = ordered_pairs(scores, prompts)
    assert [[files[better], files[worse]] for better, worse in pairs] == facts["pairs"]
