"""Losses of preferences, as pure functions: of a head's logits, and of denoising errors in pairs.

Means are in nats. Labels are probabilities in [0, 1]: 0 and 1 for one vote, a share for several
("soft").

Shapes: ``B`` clips, ``P`` pairs, ``R`` rows: the winners of all pairs, then their losers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.latent_errors import pair_margins


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


def preference_logits(error_R: Tensor, reference_R: Tensor, beta: float) -> Tensor:
    """(P,) log odds of every preference, from denoising errors of policy and reference.

    ``-(beta / 2) * ((e_w - e_l) - (r_w - r_l))`` with the errors e of the policy and r of the
    reference: Diffusion-DPO (arXiv 2311.12908, eq. 14) with the factor of Tango 2's and TangoFlux's
    code. An error is a mean over the elements of a latent; the papers' is a sum, so beta is their
    beta * T * w / elements.
    """
    better_P, worse_P = torch.arange(len(error_R), device=error_R.device).chunk(2)
    gained_P = pair_margins(error_R, better_P, worse_P)
    return beta / 2 * (gained_P - pair_margins(reference_R, better_P, worse_P))


def preference_loss(
    error_R: Tensor, reference_R: Tensor, beta: float, winner_weight: float = 0.0
) -> Tensor:
    """() ``mean(-log sigmoid(logit)) + winner_weight * mean(error of the winners)``.

    DPO with ``winner_weight`` 0 (arXiv 2404.09956), CRPO with 1 (arXiv 2412.21037, eq. 4).
    """
    loss = -functional.logsigmoid(preference_logits(error_R, reference_R, beta)).mean()
    return loss + winner_weight * error_R[: len(error_R) // 2].mean()


def pair_measures(error_R: Tensor, reference_R: Tensor, beta: float) -> dict[str, Tensor]:
    """What is logged of a batch of pairs: () each; errors as in ``preference_logits``."""
    logit_P = preference_logits(error_R, reference_R, beta)
    winner_P, loser_P = error_R.chunk(2)
    return {
        "implicit_accuracy": (logit_P > 0).float().mean(),
        "preference_loss": -functional.logsigmoid(logit_P).mean(),
        "winner_error": winner_P.mean(),
        "loser_error": loser_P.mean(),
        "reference_error": reference_R.mean(),
    }
