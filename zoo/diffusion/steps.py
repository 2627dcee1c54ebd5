"""The two functions of all algorithms: the Gaussian step with its log-probability, and the error.

``x``, ``output``, ``clean``, ``noise`` are (B, ...) of any rank; ``alpha``, ``sigma`` and their
``_next`` are (B,): every row may be at another step. Results are float32 whatever the dtype that
comes in.

Values that make no sense (an alpha of 0, a std of 0, an empty mask) are refused only where the
tensors lie on the CPU: reading them back from an accelerator would make it wait at every step.
``Schedule``, ``rollout`` and ``step_log_prob`` refuse them on the CPU before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.diffusion.paths import PREDICTIONS, exact, require_known
from zoo.errors import UserError
from zoo.types import Conditioning, Path

RULES = ("ddim", "cps")
# They use the predictions of several steps, so a step has no log-probability: for sampling only.
SOLVERS = ("dpmpp_2m_sde",)
MIN_SNR_FORMS = ("prediction", "snr")


def _any(condition: Tensor) -> bool:
    """Whether it holds anywhere; False on an accelerator, where the answer would have to wait."""
    return condition.device.type == "cpu" and bool(condition.any())


def _like(coefficient_B: Tensor, x: Tensor) -> Tensor:
    """A coefficient shaped (B, 1, ...), float32, on the device of ``x``."""
    return coefficient_B.to(device=x.device, dtype=torch.float32).reshape(-1, *[1] * (x.ndim - 1))


def check_determined(alpha: Tensor, sigma: Tensor, prediction: str) -> None:
    """Raises ``UserError`` where a prediction does not determine the pair (clean, noise).

    That is "eps" at alpha 0 and "x0" at sigma 0.
    """
    require_known("prediction", prediction, PREDICTIONS)
    if prediction == "eps" and _any(alpha == 0):
        raise UserError(
            "an 'eps' prediction at pure noise (alpha 0) says nothing about the clean latent;"
            " start the path below pure noise (VPCosine spacing='exponential', VPDiscrete) or"
            " let the network predict 'v', 'velocity' or 'x0'"
        )
    if prediction == "x0" and _any(sigma == 0):
        raise UserError(
            "an 'x0' prediction at sigma 0 says nothing about the noise; a step must start at"
            " sigma > 0"
        )


def split(
    output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction: str
) -> tuple[Tensor, Tensor]:
    """The network's ``output`` at ``x`` as (clean, noise): ``x = alpha * clean + sigma * noise``.

    "eps" is the noise, "x0" the clean latent, "v" is alpha * noise - sigma * clean (Salimans & Ho,
    arXiv 2202.00512), "velocity" is noise - clean (rectified flow, arXiv 2209.03003). Raises
    ``UserError`` where the prediction does not determine the pair (``check_determined``).
    """
    check_determined(alpha, sigma, prediction)
    x, output = x.float(), output.float()
    a, s = _like(alpha, x), _like(sigma, x)
    if prediction == "eps":
        return (x - s * output) / a, output
    if prediction == "x0":
        return output, (x - a * output) / s
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

    "ddim": eta * (sigma'/sigma) * sqrt(sigma^2 - (alpha/alpha')^2 sigma'^2), DDIM (arXiv
    2010.02502, eq. 16) for VP paths; on the cosine path with eta 1 it is the first-order
    SDE-DPM-Solver++ step (arXiv 2211.01095). "cps": sigma' * sin(eta * pi / 2),
    coefficient-preserving sampling (arXiv 2509.05952); eta 1 is ping-pong sampling.

    Args:
        alpha, sigma: before the step, (B,).
        alpha_next, sigma_next: after it, (B,); alpha' and sigma' above.
        eta: share of fresh noise in [0, 1], one number or (B,).
        rule: "ddim" or "cps".
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


@dataclass(frozen=True)
class StepCoefficients:
    """The numbers of Gaussian steps, float32, one per step or row.

    Before a step ``x = alpha * clean + sigma * noise``; the next latent has the mean ``alpha_next *
    clean + direction * noise`` and the standard deviation ``std``.
    """

    alpha: Tensor
    sigma: Tensor
    alpha_next: Tensor
    direction: Tensor
    std: Tensor

    @staticmethod
    def between(
        alpha: Tensor,
        sigma: Tensor,
        alpha_next: Tensor,
        sigma_next: Tensor,
        *,
        eta: float | Tensor,
        rule: str = "ddim",
    ) -> StepCoefficients:
        """The coefficients of steps from (alpha, sigma) to (alpha_next, sigma_next), on the CPU.

        They are computed in float64. ``eta`` and ``rule``: see ``step_std``.
        """
        std = step_std(alpha, sigma, alpha_next, sigma_next, eta=eta, rule=rule)
        direction = (exact(sigma_next) ** 2 - std**2).clamp(min=0).sqrt()
        numbers = (exact(alpha), exact(sigma), exact(alpha_next), direction, std)
        return StepCoefficients(*(number.float() for number in numbers))

    def to(self, device: torch.device | str) -> StepCoefficients:
        return StepCoefficients(*(number.to(device) for number in self._numbers()))

    def at(self, index: Tensor) -> StepCoefficients:
        """The coefficients of some steps, in the order of ``index``."""
        return StepCoefficients(*(number[index] for number in self._numbers()))

    def _numbers(self) -> tuple[Tensor, ...]:
        return self.alpha, self.sigma, self.alpha_next, self.direction, self.std


def step_mean(x: Tensor, output: Tensor, at_B: StepCoefficients, prediction: str) -> Tensor:
    """Mean (B, ...) of the next latents; gradients flow through ``x`` and ``output``."""
    clean, noise = split(output, x, at_B.alpha, at_B.sigma, prediction)
    return _like(at_B.alpha_next, clean) * clean + _like(at_B.direction, clean) * noise


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
    """Mean (B, ...) and deviation (B,) of the next latents: the policy of reinforcement learning.

    ``mean = alpha' * clean + sqrt(sigma'^2 - std^2) * noise`` with ``std`` from ``step_std``.
    Rollout and training take the same step with the coefficients of a ``Schedule``.

    Args:
        x: latents before the step; gradients flow through it.
        output: the network's output at ``x``; gradients flow through it.
        alpha, sigma: before the step, (B,).
        alpha_next, sigma_next: after it, (B,); alpha' and sigma' above.
        prediction: what ``output`` is.
        eta, rule: see ``step_std``.
    """
    at_B = StepCoefficients.between(alpha, sigma, alpha_next, sigma_next, eta=eta, rule=rule)
    return step_mean(x, output, at_B, prediction), at_B.std.to(x.device)


def second_order_factor(alpha_next: Tensor, levels: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The factor of the second-order term of DPM-Solver++(2M) SDE, float64 on the CPU.

    The term is this factor times the change of the clean latents since the last step's prediction;
    it is added to the mean of a first-order step with eta 1 (arXiv 2211.01095, the midpoint form).
    The factor is alpha' (1 - l'^2 / l^2) h / (2 h0), with h = log(l / l') and h0 = log(l0 / l).

    ``levels``: sigma / alpha before the last step (l0), before this one (l) and after it (l').
    Raises ``UserError`` for a step that ends at level 0.
    """
    before, now, after = (exact(level) for level in levels)
    if bool((after <= 0).any()):
        raise UserError(
            "a step to noise level 0 is of first order; leave the second-order term out"
        )
    share = torch.log(now / after) / torch.log(before / now)
    return exact(alpha_next) * 0.5 * (1 - (after / now) ** 2) * share


def scored_mean(values: Tensor, scored_mask: Tensor | None = None) -> Tensor:
    """Mean (B,) of ``values`` (B, ...) over the elements in ``scored_mask``; all when None.

    The mask has as many axes as ``values``, each of the same size or 1. Elements outside it do not
    change the mean, not even NaN. Raises ``UserError`` when the mask does not fit and, on the CPU,
    when a row has no scored element.
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
    if _any(count_B == 0):
        raise UserError(
            f"rows {(count_B == 0).nonzero().flatten().tolist()} have no scored element; check"
            " scored_mask"
        )
    flat = values.reshape(values.shape[0], -1)
    return torch.where(mask, flat, torch.zeros_like(flat)).sum(dim=1) / count_B


def log_prob(
    x_next: Tensor, mean: Tensor, std_B: Tensor, scored_mask: Tensor | None = None
) -> Tensor:
    """Log density (B,) of ``x_next`` under N(mean, std^2), in nats per scored element.

    ``x_next`` is an action that was taken: no gradient flows into it. On the CPU, rows whose std is
    0 raise ``UserError``.
    """
    if _any(std_B <= 0):
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
    """Mean squared error (B,) of the network's output to its target, per sample.

    Every algorithm that learns from clean latents weights or compares these numbers: pre-training,
    reward-weighted likelihood, Diffusion-DPO, NFT, AWM.

    Args:
        predict: the network.
        path: that it was made for.
        clean: latents (B, ...).
        time_B: one per latent, from ``path.sample_times``.
        noise: unit Gaussian, shaped like ``clean``.
        conditioning: one row per latent.
        scored_mask: the elements that count; all when None.
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


def min_snr_weights(
    alpha_B: Tensor,
    sigma_B: Tensor,
    prediction: str,
    gamma: float = 5.0,
    form: str = "prediction",
) -> Tensor:
    """Weights (B,) for ``denoising_error`` by min-SNR (arXiv 2303.09556), SNR = alpha^2 / sigma^2.

    Both published forms are finite at alpha 0 and sigma 0.

    Args:
        alpha_B, sigma_B: at the times of the errors.
        prediction: what the network puts out.
        gamma: the highest SNR that counts.
        form: "prediction" gives the error of the *clean* latent the weight min(SNR, gamma). On VP
            paths: "x0" min(SNR, gamma), "eps" min(SNR, gamma) / SNR, "v" min(SNR, gamma) /
            (SNR + 1); for "velocity" min(alpha^2, gamma sigma^2) / (alpha + sigma)^2.
            "snr" is min(SNR, gamma) / SNR whatever the prediction: Tango's code (arXiv 2304.13731),
            which weighs its v errors so.

    Raises: ``UserError`` for an unknown prediction or form, and a gamma that is not positive and
        finite.
    """
    require_known("prediction", prediction, PREDICTIONS)
    require_known("min-SNR form", form, MIN_SNR_FORMS)
    if not (math.isfinite(gamma) and gamma > 0):
        raise UserError(f"invalid gamma {gamma}: expected a positive number")
    alpha, sigma = alpha_B.float(), sigma_B.float()
    capped = torch.minimum(alpha**2, gamma * sigma**2)
    if prediction == "x0" and form == "prediction":
        return torch.where(
            sigma > 0, capped / (sigma**2).clamp(min=1e-30), torch.full_like(sigma, gamma)
        )
    if prediction == "eps" or form == "snr":
        return torch.where(alpha > 0, capped / (alpha**2).clamp(min=1e-30), torch.ones_like(alpha))
    return capped / ((alpha**2 + sigma**2) ** 2 if prediction == "v" else (alpha + sigma) ** 2)
