"""Losses of a preference head, by arithmetic that a reader can redo."""

import math

import pytest
import torch

from lightning_modules.preference_losses import (
    absolute_loss,
    bradley_terry_loss_each,
    pairwise_loss_each,
    preference_probability,
    probability_loss_each,
)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_absolute_loss_is_the_cross_entropy_of_the_probability():
    logits = torch.tensor([logit(0.8), logit(0.3)])
    hard = absolute_loss(logits, torch.tensor([1.0, 0.0]))
    assert float(hard) == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2)
    soft = absolute_loss(logits[:1], torch.tensor([0.25]))
    assert float(soft) == pytest.approx(-(0.25 * math.log(0.8) + 0.75 * math.log(0.2)))


def test_certain_and_wrong_costs_a_hundred():
    each = probability_loss_each(
        torch.tensor([0.0, 1.0, 1.0, 0.0, 0.8]), torch.tensor([1.0, 0.0, 1.0, 0.0, 0.25])
    )
    own = -(0.25 * math.log(0.8) + 0.75 * math.log(0.2))
    assert each.tolist() == pytest.approx([100, 100, 0, 0, own])


def test_pairwise_loss_is_that_of_both_clips_and_not_bradley_terry():
    winner = torch.tensor([logit(0.8)])
    loser = torch.tensor([logit(0.3)])
    each = pairwise_loss_each(winner, loser)
    assert each.tolist() == pytest.approx([-math.log(0.8) - math.log(0.7)])
    shifted = pairwise_loss_each(winner + 1, loser + 1)
    assert abs(float(shifted - each)) > 0.1  # what the two have in common counts ...
    ranked = bradley_terry_loss_each(winner, loser)
    assert torch.allclose(ranked, bradley_terry_loss_each(winner + 1, loser + 1))  # ... or not
    difference = logit(0.8) - logit(0.3)
    assert ranked.tolist() == pytest.approx([math.log(1 + math.exp(-difference))])


def test_soft_labels_of_pairs():
    winner = torch.tensor([logit(0.8)])
    loser = torch.tensor([logit(0.3)])
    both = pairwise_loss_each(winner, loser, torch.tensor([0.9]), torch.tensor([0.4]))
    one = -(0.9 * math.log(0.8) + 0.1 * math.log(0.2))
    other = -(0.4 * math.log(0.3) + 0.6 * math.log(0.7))
    assert both.tolist() == pytest.approx([one + other])
    labels = torch.tensor([1.0, 0.9, 0.5]), torch.tensor([0.0, 0.4, 0.5])
    assert preference_probability(*labels).tolist() == pytest.approx([1.0, 0.75, 0.5])
    difference = logit(0.8) - logit(0.3)
    soft = bradley_terry_loss_each(winner, loser, torch.tensor([0.75]))
    expected = 0.75 * math.log(1 + math.exp(-difference)) + 0.25 * math.log(
        1 + math.exp(difference)
    )
    assert soft.tolist() == pytest.approx([expected])
