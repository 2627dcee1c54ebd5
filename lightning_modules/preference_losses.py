"""Losses of a preference head: pure functions of logits and labels, means in nats.

Labels are probabilities in [0, 1]: 0 and 1 for one vote, a share for several ("soft").

Shapes: ``B`` clips, ``P`` pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def absolute_loss(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """-[y log p + (1 - y) log(1 - p)] with p = sigmoid(logit), mean over clips."""
    return functional.binary_cross_entropy_with_logits(logit_B, label_B)


def probability_loss_each(probability_B: Tensor, label_B: Tensor) -> Tensor:
    """The same (B,), of probabilities; logarithms are at least -100, so that 0 and 1 are finite."""
    above = probability_B.log().clamp(min=-100)
    below = torch.log1p(-probability_B).clamp(min=-100)
    return -(label_B * above + (1 - label_B) * below)


def pairwise_loss_each(
    winner_P: Tensor,
    loser_P: Tensor,
    winner_label_P: Tensor | float = 1.0,
    loser_label_P: Tensor | float = 0.0,
) -> Tensor:
    """BATON's "preference" loss (P,): -log p(winner) - log(1 - p(loser)).

    It is the absolute loss of both clips, not Bradley-Terry: what the two have in common counts.
    With soft labels it is the absolute loss of both with these.
    """
    losses = []
    for logit_P, label in ((winner_P, winner_label_P), (loser_P, loser_label_P)):
        target_P = torch.as_tensor(label, dtype=logit_P.dtype, device=logit_P.device)
        target_P = target_P.expand_as(logit_P)
        losses.append(
            functional.binary_cross_entropy_with_logits(logit_P, target_P, reduction="none")
        )
    return losses[0] + losses[1]


def preference_probability(winner_label_P: Tensor, loser_label_P: Tensor) -> Tensor:
    """(P,) that one listener prefers the first clip, if labels are shares of independent listeners.

    Those who say the same of both are split evenly: (1 + y_w - y_l) / 2, which is 1 for votes of 1
    and 0.
    """
    return (1 + winner_label_P - loser_label_P) / 2


def bradley_terry_loss_each(
    winner_P: Tensor, loser_P: Tensor, preferred_P: Tensor | float = 1.0
) -> Tensor:
    """-[q log sigmoid(d) + (1 - q) log sigmoid(-d)] (P,) with d = winner - loser.

    ``preferred_P``: the probability q that the winner is preferred. Only differences of logits
    count, so a probability of one clip means nothing after training with this loss alone.
    """
    difference_P = winner_P - loser_P
    target_P = torch.as_tensor(preferred_P, dtype=difference_P.dtype, device=difference_P.device)
    return functional.binary_cross_entropy_with_logits(
        difference_P, target_P.expand_as(difference_P), reduction="none"
    )
