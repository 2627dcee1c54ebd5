"""The two functions that every algorithm shares: one Gaussian step with its log-probability, and
the denoising error.

``x``, ``output``, ``clean``, ``noise`` are (B, ...) of any rank; ``alpha``, ``sigma`` and their
``_next`` are (B,): every row may be at another step. Results are float32 whatever the dtype that
comes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.diffusion.paths import PREDICTIONS, exact, require_known
from zoo.errors import UserError
from zoo.types import Conditioning, Path

RULES = ("ddim", "cps")
SOLVERS = (
    "dpmpp_2m_sde",
)  # several predictions a step: for sampling only, they have no log-probability of one step


def _like(coefficient_B: Tensor, x: Tensor) -> Tensor:
    """A coefficient shaped (B, 1, ...), float32, on the device of ``x``."""
    return coefficient_B.to(device=x.device, dtype=torch.float32).reshape(-1, *[1] * (x.ndim - 1))


def split(
    output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction: str
) -> tuple[Tensor, Tensor]:
    """The network's ``output`` at ``x`` as (clean, noise), with ``x = alpha * clean + sigma *
    noise``.

    "eps" is the noise, "x0" the clean latent, "v" is alpha * noise - sigma * clean (Salimans & Ho,
    arXiv 2202.00512), "velocity" is noise - clean (rectified flow, arXiv 2209.03003). Raises
    ``UserError`` where the prediction does not determine the pair: "eps" at alpha 0, "x0" at sigma
    0.
    """
    require_known("prediction", prediction, PREDICTIONS)
    x, output = x.float(), output.float()
    if prediction == "eps":
        if bool((alpha == 0).any()):
            raise UserError(
                "an 'eps' prediction at pure noise (alpha 0) says nothing about the clean latent;"
                " start the path below pure noise (VPCosine spacing='exponential', VPDiscrete) or"
                " let the network predict 'v', 'velocity' or 'x0'"
            )
        return (x - _like(sigma, x) * output) / _like(alpha, x), output
    if prediction == "x0":
        if bool((sigma == 0).any()):
            raise UserError(
                "an 'x0' prediction at sigma 0 says nothing about the noise; a step must start at"
                " sigma > 0"
            )
        return output, (x - _like(alpha, x) * output) / _like(sigma, x)
    a, s = _like(alpha, x), _like(sigma, x)
    if prediction == "v":
        norm = a * a + s * s
        return (a * x - s * output) / norm, (s * x + a * output) / norm
    norm = a + s
    return (x - s * output) / norm, (x + a * output) / norm


def target(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """What the network should put out for this pair, float32: the inverse of ``split``."""
    require_known("prediction", prediction, PREDICTIONS)
    clean, noise = clean.float(), noise.float()
    if prediction == "eps":
        return noise
    if prediction == "x0":
        return clean
    if prediction == "v":
        return _like(alpha, clean) * noise - _like(sigma, clean) * clean
    return noise - clean


def step_std(
    alpha: Tensor,
    sigma: Tensor,
    alpha_next: Tensor,
    sigma_next: Tensor,
    *,
    eta: float | Tensor,
    rule: str = "ddim",
) -> Tensor:
    """Standard deviation (B,) of the step, float64 on the CPU; 0 where the step is deterministic.
    ``eta`` in [0, 1], one or (B,).

    "ddim": eta * (sigma'/sigma) * sqrt(sigma^2 - (alpha/alpha')^2 sigma'^2), DDIM (arXiv
    2010.02502, eq. 16) for VP paths; on the cosine path with eta 1 it is the first-order
    SDE-DPM-Solver++ step (arXiv 2211.01095). "cps": sigma' * sin(eta * pi / 2),
    coefficient-preserving sampling (arXiv 2509.05952); eta 1 is ping-pong sampling.
    """
    require_known("rule", rule, RULES)
    alpha, sigma, alpha_next, sigma_next = (
        exact(value) for value in (alpha, sigma, alpha_next, sigma_next)
    )
    eta = exact(torch.as_tensor(eta))
    if rule == "cps":
        return sigma_next * torch.sin(eta * (math.pi / 2)) + torch.zeros_like(sigma)
    kept = torch.where(alpha_next > 0, alpha / alpha_next.clamp(min=1e-300), torch.ones_like(alpha))
    shrink = torch.where(sigma > 0, sigma_next / sigma.clamp(min=1e-300), torch.zeros_like(sigma))
    return eta * shrink * (sigma**2 - kept**2 * sigma_next**2).clamp(min=0).sqrt()


def gaussian_step(
    x: Tensor,
    output: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    alpha_next: Tensor,
    sigma_next: Tensor,
    *,
    prediction: str,
    eta: float | Tensor,
    rule: str = "ddim",
) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and standard deviation (B,) of the next latent: the policy of all reinforcement
    learning here.

    ``mean = alpha' * clean + sqrt(sigma'^2 - std^2) * noise`` with ``std`` from ``step_std``.
    Gradients flow through ``x`` and ``output``.
    """
    clean, noise = split(output, x, alpha, sigma, prediction)
    std = step_std(alpha, sigma, alpha_next, sigma_next, eta=eta, rule=rule)
    direction = (exact(sigma_next) ** 2 - std**2).clamp(min=0).sqrt()
    return _like(alpha_next, clean) * clean + _like(direction, clean) * noise, std.float().to(
        clean.device
    )


def second_order_term(
    clean: Tensor, clean_before: Tensor, alpha_next: Tensor, levels: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """What DPM-Solver++(2M) SDE adds to the mean of a first-order step with eta 1 (arXiv
    2211.01095; its midpoint form).

    ``clean`` and ``clean_before`` (B, ...): the clean latents by this step's and the last step's
    prediction. ``levels``: noise levels sigma / alpha (B,) before the last step, before this one
    and after it. alpha' (1 - l'^2/l^2) h / (2 h0) times the change of the clean latents, with h =
    log(l/l') and h0 = log(l0/l). Raises ``UserError`` for a step that ends at level 0.
    """
    before, now, after = (exact(level) for level in levels)
    if bool((after <= 0).any()):
        raise UserError(
            "a step to noise level 0 is of first order; leave the second-order term out"
        )
    share = torch.log(now / after) / torch.log(before / now)
    factor = exact(alpha_next) * 0.5 * (1 - (after / now) ** 2) * share
    return _like(factor, clean) * (clean - clean_before)


def scored_mean(values: Tensor, scored_mask: Tensor | None = None) -> Tensor:
    """Mean (B,) of ``values`` (B, ...) over the elements where ``scored_mask`` is true (all when
    None).

    The mask has as many axes as ``values`` and sizes equal to it or 1. What is masked out cannot
    spoil the mean, not even NaN. Raises ``UserError`` when the mask does not fit, or a row has
    nothing scored.
    """
    if scored_mask is None:
        return values.reshape(values.shape[0], -1).mean(dim=1)
    fits = scored_mask.ndim == values.ndim and all(
        m in (1, v) for m, v in zip(scored_mask.shape, values.shape, strict=True)
    )
    if not fits:
        raise UserError(
            f"scored_mask of shape {tuple(scored_mask.shape)} does not fit values of shape"
            f" {tuple(values.shape)}; give it the same number of axes, each of the same size or 1"
        )
    mask = (
        scored_mask.to(device=values.device, dtype=torch.bool)
        .expand(values.shape)
        .reshape(values.shape[0], -1)
    )
    count_B = mask.sum(dim=1)
    if bool((count_B == 0).any()):
        raise UserError(
            f"rows {(count_B == 0).nonzero().flatten().tolist()} have no scored element; check"
            " scored_mask"
        )
    flat = values.reshape(values.shape[0], -1)
    return torch.where(mask, flat, torch.zeros_like(flat)).sum(dim=1) / count_B


def log_prob(
    x_next: Tensor, mean: Tensor, std_B: Tensor, scored_mask: Tensor | None = None
) -> Tensor:
    """Log density (B,) of ``x_next`` under N(mean, std^2), mean over scored elements: nats per
    element.

    ``x_next`` is an action that was taken: no gradient flows into it.
    Raises ``UserError`` naming the rows whose std is 0.
    """
    if bool((std_B <= 0).any()):
        rows = (std_B <= 0).nonzero().flatten().tolist()
        raise UserError(
            f"rows {rows} have std 0: a deterministic step has no log-probability; leave such steps"
            " (usually the last one) out of training or raise their eta"
        )
    std = _like(std_B, mean)
    density = (
        -((x_next.detach().float() - mean.float()) ** 2) / (2 * std**2)
        - std.log()
        - 0.5 * math.log(2 * math.pi)
    )
    return scored_mean(density, scored_mask)


def denoising_error(
    predict: Callable[[Tensor, Tensor, Conditioning], Tensor],
    path: Path,
    clean: Tensor,
    time_B: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    scored_mask: Tensor | None = None,
) -> Tensor:
    """Per-sample mean squared error (B,) of the network's output to its target at ``time_B``, over
    scored elements.

    ``clean`` and ``noise`` are (B, ...); ``time_B`` comes from ``path.sample_times``. Every
    algorithm that learns from clean latents (pre-training, reward-weighted likelihood,
    Diffusion-DPO, NFT, AWM) weighs or compares these numbers.
    """
    alpha, sigma = path.coefficients(time_B)
    clean, noise = clean.float(), noise.float()
    x = _like(alpha, clean) * clean + _like(sigma, clean) * noise
    output = predict(
        x, time_B if not time_B.is_floating_point() else time_B.float(), conditioning
    ).float()
    return scored_mean(
        (output - target(clean, noise, alpha, sigma, path.prediction)) ** 2, scored_mask
    )
