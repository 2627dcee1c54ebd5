"""Losses of policy-gradient methods, as pure functions.

Log-probabilities are in nats per scored latent element.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.diffusion import scored_mean
from zoo.errors import UserError


@dataclass(frozen=True)
class PolicyLoss:
    """The policy loss and its diagnostics.

    ``loss`` () has the gradient; ``ratio`` (B,), ``clip_fraction`` and ``approx_kl`` () are
    detached.
    """

    loss: Tensor
    ratio: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor


def clipped_policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip_range: float,
    advantage_clip: float = 5.0,
) -> PolicyLoss:
    """Clipped importance-sampled policy loss (PPO, arXiv 1707.06347 eq. 7; DDPO, 2305.13301).

    loss = mean(max(-A r, -A clip(r, 1 - clip_range, 1 + clip_range))) with r = exp(log_prob -
    old_log_prob). ``clip_fraction`` is the share of rows with |r - 1| > clip_range, for any
    sign of A; ``approx_kl`` = mean((log_prob - old_log_prob)^2) / 2.

    Args:
        log_prob: under the trained policy, (B,). Gradients flow into it alone.
        old_log_prob: under the policy that sampled, (B,).
        advantage: A, (B,).
        clip_range: of the ratio, around 1.
        advantage_clip: A is first cut to +-``advantage_clip``.

    Raises:
        UserError: when shapes differ or a range is not positive.
    """
    if not log_prob.shape == old_log_prob.shape == advantage.shape:
        raise UserError(
            "log_prob, old_log_prob and advantage need one value per sample each, got shapes "
            f"{tuple(log_prob.shape)}, {tuple(old_log_prob.shape)}, {tuple(advantage.shape)}"
        )
    if not (clip_range > 0 and advantage_clip > 0):
        raise UserError(
            f"clip_range and advantage_clip must be positive, got {clip_range} and {advantage_clip}"
        )
    advantage = advantage.detach().to(log_prob).clamp(-advantage_clip, advantage_clip)
    log_ratio = log_prob - old_log_prob.detach()
    ratio = log_ratio.exp()
    loss = torch.maximum(
        -advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range)
    ).mean()
    ratio, log_ratio = ratio.detach(), log_ratio.detach()
    return PolicyLoss(
        loss, ratio, ((ratio - 1).abs() > clip_range).float().mean(), 0.5 * (log_ratio**2).mean()
    )


def kl_to_reference(
    mean: Tensor, reference_mean: Tensor, std_B: Tensor, scored_mask: Tensor | None = None
) -> Tensor:
    """KL(policy || reference) of one step, (B,), in nats per scored element.

    It is (mean - reference_mean)^2 / (2 std^2): exact, because both Gaussians share ``std_B`` (B,)
    (DPOK, arXiv 2305.16381). No gradient flows into ``reference_mean``. On the CPU, rows whose std
    is 0 raise ``UserError``.
    """
    if std_B.device.type == "cpu" and bool((std_B <= 0).any()):
        rows = (std_B <= 0).nonzero().flatten().tolist()
        raise UserError(
            f"rows {rows} have std 0: a deterministic step has no KL; leave such steps out of"
            " training"
        )
    std = std_B.to(mean).reshape(-1, *[1] * (mean.ndim - 1))
    return scored_mean((mean - reference_mean.detach()) ** 2 / (2 * std**2), scored_mask)


def rescaled_clip_range(clip_range: float, reference_elements: int, scored_elements: int) -> float:
    """A clip range that was tuned on ``reference_elements``, for a latent of ``scored_elements``.

    The log-ratio is a mean over elements, so clip_range * elements (nats of the true log-ratio)
    stays constant: 1e-4 at 16,384 elements is 1.6384 nats. Raises ``UserError`` unless all three
    are positive.
    """
    if not (clip_range > 0 and reference_elements > 0 and scored_elements > 0):
        raise UserError(
            "clip_range, reference_elements and scored_elements must be positive, "
            f"got {clip_range}, {reference_elements}, {scored_elements}"
        )
    return clip_range * reference_elements / scored_elements
