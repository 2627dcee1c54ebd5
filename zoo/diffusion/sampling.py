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

    ``eta`` in [0, 1] is the share of fresh noise: one number, or one a step (a window of 1s among
    0s is stochastic there and an ODE elsewhere). ``guidance_scale`` 1 is no guidance.
    ``detach_unconditional`` keeps gradients out of the unconditional branch, at the price of two
    forwards instead of one of double size; the first optimiser step of a round then takes the
    unconditional outputs of its rollout. ``rule``: "ddim" or "cps" (see ``step_std``), or a
    solver for sampling only, which cannot be trained: "dpmpp_2m_sde", Stable Audio Open's own, of
    second order, with eta 1. Raises ``UserError`` on values that cannot be meant.
    """

    steps: int
    guidance_scale: float = 1.0
    eta: float | tuple[float, ...] = 1.0
    rule: str = "ddim"
    detach_unconditional: bool = False

    def __post_init__(self) -> None:
        if int(self.steps) != self.steps or self.steps < 1:
            raise UserError(
                f"Sampler: steps must be a whole number of at least 1, got {self.steps}"
            )
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise UserError(
                f"Sampler: guidance_scale must be a number of at least 0, got {self.guidance_scale}"
            )
        require_known("Sampler: rule", self.rule, (*RULES, *SOLVERS))
        if not isinstance(self.eta, (int, float)):
            object.__setattr__(self, "eta", tuple(float(eta) for eta in self.eta))
            if len(self.eta) != self.steps:
                raise UserError(
                    f"Sampler: eta needs one number a step, expected {self.steps}, got"
                    f" {len(self.eta)}"
                )
        outside = [eta for eta in self.etas if not 0 <= eta <= 1]
        if outside:
            raise UserError(
                f"Sampler: eta lies in [0, 1] (0 deterministic, 1 fully stochastic), got {outside}"
            )
        if self.rule in SOLVERS and set(self.etas) != {1.0}:
            raise UserError(
                f"Sampler: rule {self.rule!r} draws fresh noise at every step: eta must be 1, got"
                f" {self.eta}"
            )

    @property
    def etas(self) -> tuple[float, ...]:
        """One eta a step."""
        return self.eta if isinstance(self.eta, tuple) else (float(self.eta),) * int(self.steps)

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale != 1

    def sides(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt] | None]:
        """What a backbone encodes of ``prompts``: the prompts and their negatives.

        Without guidance the negatives are left out of the prompts, too, and there is no second
        side (None): nothing that a negative says has an effect then.
        """
        if not self.is_guided:
            return [prompt.without_negative() for prompt in prompts], None
        return list(prompts), [prompt.as_negative() for prompt in prompts]


def noise_generator(
    seed: int, round_index: int, prompt_id: str, sample_index: int
) -> torch.Generator:
    """The CPU generator of one sample's noise: a function of these four values only, whatever the
    batch size or rank.
    """
    key = json.dumps([int(seed), int(round_index), str(prompt_id), int(sample_index)]).encode()
    return torch.Generator("cpu").manual_seed(
        int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
    )


def network_time(time: Tensor) -> Tensor:
    """A time as networks get it: whole steps stay whole, continuous times become float32."""
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
    """Classifier-free guidance (arXiv 2207.12598), float32: unconditional + scale * (conditional -
    unconditional).

    ``negative`` None or scale 1: one plain forward. Else one forward of 2B rows, the unconditional
    B first; with ``detach_unconditional`` two forwards of B rows, the unconditional first and
    without gradient. Where that one is known already (``unconditional``), it is not computed.
    Raises ``UserError`` when row counts differ or the network's output is not shaped like ``x``.
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
    """(steps,) float32: the standard deviation of every step, 0 where it is deterministic.

    No network is needed.

    Raises ``UserError`` for a solver, whose steps are not those of a policy: they look at earlier
    predictions too.
    """
    if sampler.rule in SOLVERS:
        raise UserError(
            f"rule {sampler.rule!r} uses the predictions of earlier steps, so its steps have no"
            f" log-probability; train with one of {', '.join(map(repr, RULES))} and keep it for"
            " evaluation"
        )
    return _coefficients(path, sampler).std


def _coefficients(path: Path, sampler: Sampler) -> StepCoefficients:
    """Of all steps, (steps,), on the CPU; the first-order part of a solver's."""
    alpha, sigma = path.coefficients(path.times(sampler.steps))
    check_determined(alpha[:-1], sigma[:-1], path.prediction)
    eta = torch.tensor(sampler.etas, dtype=torch.float64)
    rule = "ddim" if sampler.rule in SOLVERS else sampler.rule
    return StepCoefficients.between(
        alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], eta=eta, rule=rule
    )


@dataclass(frozen=True)
class Schedule:
    """All numbers of a sampler's walk along a path, computed once, on the device of the latents.

    - ``times_S``: (S + 1,), the network's times.
    - ``at_S``: the coefficients of each step, (S,).
    - ``std_S``: (S,), what a trajectory of these steps stores: 0 where a step has no
      log-probability (it is deterministic, or a solver's).
    - ``stds``: the same numbers for decisions on the CPU.
    """

    path: Path
    sampler: Sampler
    times_S: Tensor
    at_S: StepCoefficients
    std_S: Tensor
    stds: tuple[float, ...]

    @staticmethod
    def of(path: Path, sampler: Sampler, device: torch.device | str) -> Schedule:
        """Raises ``UserError`` where the path's prediction does not determine a step."""
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
