"""The optimiser steps of a DDPO round have their own gradients, without dropout; evaluation."""

import lightning as L
import torch
from torch import nn
from toy_ddpo import fitted, module, recorded
from toys import ToyBackbone, prompt_round


class Gradients(L.Callback):
    """The gradients of each optimiser step, before clipping."""

    def __init__(self) -> None:
        self.steps = []

    def on_before_optimizer_step(self, trainer, ddpo, optimizer) -> None:
        self.steps.append({name: p.grad.clone() for name, p in ddpo.trainable().items()})


def test_each_update_learns_from_its_own_half_of_the_round():
    """If weights hardly move, the mean of both gradients is that of the whole round."""
    found = []
    for updates in (1, 2):
        recorder = Gradients()
        still = {
            "optimizer.learning_rate": 1e-12,
            "optimizer.weight_decay": 0.0,
            "optimizer.max_grad_norm": 1e9,
            "update.kl_coef": 0.1,
        }
        fitted(module({"update.per_round": updates}, **still), epochs=2, callbacks=[recorder])
        found.append(recorder.steps)
    whole, halves = found
    assert len(whole) == 2 and len(halves) == 4
    for i, gradient in enumerate(whole):
        for name, wanted in gradient.items():
            one = halves[2 * i][name]
            other = halves[2 * i + 1][name]
            torch.testing.assert_close((one + other) / 2, wanted, rtol=1e-3, atol=1e-6)
    assert max(gradient.abs().max() for gradient in whole[1].values()) > 1e-3


class Forgetful(ToyBackbone):
    """In train mode it loses half of its numbers."""

    def __init__(self):
        super().__init__()
        self.denoiser.out = nn.Sequential(nn.Dropout(0.5), self.denoiser.out)


def test_dropout_is_off_in_rollout_and_update():
    row = recorded(module({"optimizer.learning_rate": 1e-9}, backbone=Forgetful().train())).rounds[
        0
    ]
    assert abs(row["ratio/min"] - 1) <= 1e-6 and abs(row["ratio/max"] - 1) <= 1e-6


class Foreign(L.Callback):
    """Leaves gradients on the weights just before a round."""

    def on_train_batch_start(self, trainer, ddpo, batch, batch_idx) -> None:
        for parameter in ddpo.trainable().values():
            parameter.grad = torch.full_like(parameter, 5.0)


def test_foreign_gradients_are_not_learned():
    found = []
    for before in ([], [Foreign()]):
        recorder = Gradients()
        fitted(module({"optimizer.max_grad_norm": 1e9}), callbacks=[*before, recorder])
        found.append(recorder.steps[0])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_evaluation_samples_with_its_own_settings():
    batch = prompt_round(4)
    own = module({"evaluation.steps": 3, "evaluation.guidance_scale": 1.0}).evaluate(batch)
    wanted = module({"sampler.steps": 3, "sampler.guidance_scale": 1.0}).evaluate(batch)
    assert torch.equal(own.wave_BCN, wanted.wave_BCN)
    assert not torch.equal(own.wave_BCN, module().evaluate(batch).wave_BCN)
