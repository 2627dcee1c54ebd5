"""How a path is walked: the sampler, its noise, guidance, and the schedule of its steps.

``predict`` is ``Backbone.predict``: (latent (B, ...), time_B, Conditioning) -> output (B, ...).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.diffusion.paths import require_known
from zoo.diffusion.steps import RULES, SOLVERS, StepCoefficients, check_determined
from zoo.errors import UserError
from zoo.types import Conditioning, Path, Prompt

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]


@dataclass(frozen=True)
class Sampler:
    """How a path is walked.

    Args:
        steps: denoising steps.
        guidance_scale: of classifier-free guidance; 1 for none.
        eta: share of fresh noise, 0 to 1: one number, or one per step (1s among 0s are stochastic
            there and an ODE elsewhere).
        rule: "ddim" or "cps" (see ``step_std``), or a solver, which samples and cannot be trained:
            "dpmpp_2m_sde", Stable Audio Open's own, of second order, with eta 1.
        detach_unconditional: keeps gradients out of the unconditional side of guidance, by two
            forwards instead of one of double size. The first optimiser step of a round then takes
            the unconditional outputs of its rollout.

    Raises:
        UserError: for a value out of range, an unknown rule, or etas that are not one per step.
    """

    steps: int
    guidance_scale: float = 1.0
    eta: float | tuple[float, ...] = 1.0
    rule: str = "ddim"
    detach_unconditional: bool = False

    def __post_init__(self) -> None:
        if int(self.steps) != self.steps or self.steps < 1:
            raise UserError(
                f"invalid sampling steps {self.steps}: steps must be a whole number >= 1"
            )
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise UserError(f"invalid guidance_scale {self.guidance_scale}: expected a number >= 0")
        require_known("Sampler: rule", self.rule, (*RULES, *SOLVERS))
        if not isinstance(self.eta, (int, float)):
            object.__setattr__(self, "eta", tuple(float(eta) for eta in self.eta))
            if len(self.eta) != self.steps:
                raise UserError(
                    f"Sampler: eta needs one number per step, expected {self.steps}, got"
                    f" {len(self.eta)}"
                )
        outside = [eta for eta in self.etas if not 0 <= eta <= 1]
        if outside:
            raise UserError(
                "Sampler: eta must be in [0, 1] (0 deterministic, 1 fully stochastic), got"
                f" {outside}"
            )
        if self.rule in SOLVERS and set(self.etas) != {1.0}:
            raise UserError(
                f"Sampler: rule {self.rule!r} draws fresh noise at every step: eta must be 1, got"
                f" {self.eta}"
            )

    @property
    def etas(self) -> tuple[float, ...]:
        """One eta per step."""
        return self.eta if isinstance(self.eta, tuple) else (float(self.eta),) * int(self.steps)

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale != 1

    @property
    def network_evaluations(self) -> int:
        """Rows that the network computes for one sample: both sides of guidance, every step.

        The solvers here are multistep: they reuse the prediction of the step before, so their
        steps cost one evaluation, too.
        """
        return int(self.steps) * (2 if self.is_guided else 1)

    def sides(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt] | None]:
        """The prompts that a backbone encodes, and their negatives.

        Without guidance negatives have no effect: there is no second side (None), and they are
        removed from the prompts.
        """
        if not self.is_guided:
            return [prompt.without_negative() for prompt in prompts], None
        return list(prompts), [prompt.as_negative() for prompt in prompts]


def noise_generator(
    seed: int, round_index: int, prompt_id: str, sample_index: int
) -> torch.Generator:
    """The CPU generator of one sample's noise.

    It depends on these four values only, not on the batch or the process.
    """
    key = json.dumps([int(seed), int(round_index), str(prompt_id), int(sample_index)]).encode()
    return torch.Generator("cpu").manual_seed(
        int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
    )


def network_time(time: Tensor) -> Tensor:
    """A time as networks take it: whole steps stay whole, continuous times become float32."""
    return time.float() if time.is_floating_point() else time


def unconditional_output(
    predict: Predict, x: Tensor, time_B: Tensor, negative: Conditioning
) -> Tensor:
    """The unconditional side of guidance alone, float32, without gradient."""
    with torch.no_grad():
        return _checked(predict(x, time_B, negative), x)


def guided_output(
    predict: Predict,
    x: Tensor,
    time_B: Tensor,
    conditioning: Conditioning,
    negative: Conditioning | None,
    guidance_scale: float,
    detach_unconditional: bool = False,
    unconditional: Tensor | None = None,
) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598), float32.

    unconditional + scale * (conditional - unconditional).

    Without ``negative`` or at scale 1 it is one plain forward; else one forward of 2B rows, the
    unconditional B first.

    Args:
        predict: the network.
        x: noisy latents (B, ...).
        time_B: their times.
        conditioning: one row per latent.
        negative: the unconditional side, one row per latent.
        guidance_scale: see above.
        detach_unconditional: two forwards of B rows instead, the unconditional first and without
            gradient.
        unconditional: its output where it is known, in place of that forward.

    Raises:
        UserError: when row counts differ or an output is not shaped like ``x``.
    """
    for name, side in (("conditioning", conditioning), ("negative", negative)):
        if side is not None and len(side) != x.shape[0]:
            raise UserError(
                f"{name} has {len(side)} rows for {x.shape[0]} latents; conditioning travels with"
                " its samples"
            )
    if negative is None or guidance_scale == 1:
        return _checked(predict(x, time_B, conditioning), x)
    if detach_unconditional:
        if unconditional is None:
            unconditional = unconditional_output(predict, x, time_B, negative)
        conditional = _checked(predict(x, time_B, conditioning), x)
    else:
        doubled = torch.cat([x, x])
        both = _checked(
            predict(
                doubled, torch.cat([time_B, time_B]), Conditioning.cat([negative, conditioning])
            ),
            doubled,
        )
        unconditional, conditional = both.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


def _checked(output: Tensor, x: Tensor) -> Tensor:
    if output.shape != x.shape:
        raise UserError(
            f"the network put out shape {tuple(output.shape)}, expected that of its latent,"
            f" {tuple(x.shape)}"
        )
    return output.float()


def step_stds(path: Path, sampler: Sampler) -> Tensor:
    """The standard deviation of every step, (steps,) float32; 0 where it is deterministic.

    Raises ``UserError`` for a solver, whose steps depend on earlier predictions too and so are not
    those of a policy.
    """
    if sampler.rule in SOLVERS:
        raise UserError(
            f"rule {sampler.rule!r} uses the predictions of earlier steps, so its steps have no"
            f" log-probability; train with one of {', '.join(map(repr, RULES))} and keep it for"
            " evaluation"
        )
    return _coefficients(path, sampler).std


def _coefficients(path: Path, sampler: Sampler) -> StepCoefficients:
    """The coefficients of all steps, (steps,), on the CPU; of a solver the first-order part."""
    alpha, sigma = path.coefficients(path.times(sampler.steps))
    check_determined(alpha[:-1], sigma[:-1], path.prediction)
    eta = torch.tensor(sampler.etas, dtype=torch.float64)
    rule = "ddim" if sampler.rule in SOLVERS else sampler.rule
    return StepCoefficients.between(
        alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], eta=eta, rule=rule
    )


@dataclass(frozen=True)
class Schedule:
    """All numbers of a sampler's steps along a path, computed once, on the device of the latents.

    - ``times_S``: (S + 1,), the network's times.
    - ``at_S``: the coefficients of each step, (S,).
    - ``std_S``: (S,), the deviations that a trajectory stores: 0 where a step has no
      log-probability (it is deterministic, or a solver's).
    - ``stds``: the same numbers, to be read without waiting for the device.
    """

    path: Path
    sampler: Sampler
    times_S: Tensor
    at_S: StepCoefficients
    std_S: Tensor
    stds: tuple[float, ...]

    @staticmethod
    def of(path: Path, sampler: Sampler, device: torch.device | str) -> Schedule:
        """Computes them. Raises ``UserError`` where the prediction does not determine a step."""
        at_S = _coefficients(path, sampler)
        std_S = torch.zeros_like(at_S.std) if sampler.rule in SOLVERS else at_S.std
        times_S = network_time(path.times(sampler.steps))
        return Schedule(
            path,
            sampler,
            times_S.to(device),
            at_S.to(device),
            std_S.to(device),
            tuple(std_S.tolist()),
        )
