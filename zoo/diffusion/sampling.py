"""Walking a path: guidance, noise, rollout, and the log-probability of what was walked.

Rollout and training call the same functions with the same ``Sampler``, so both score the same
policy. ``predict`` is ``Backbone.predict``: (latent (B, ...), time_B, Conditioning) -> output (B,
...).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zoo.diffusion.paths import require_known
from zoo.diffusion.steps import (
    RULES,
    SOLVERS,
    gaussian_step,
    log_prob,
    scored_mean,
    second_order_term,
    split,
    step_std,
)
from zoo.errors import UserError
from zoo.types import Conditioning, Path, Prompt, Trajectory

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
Transition = Callable[[Tensor, Tensor, Conditioning, Conditioning | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sampler:
    """How a path is walked.

    ``eta`` in [0, 1] is the share of fresh noise: one number, or one a step (a window of 1s among
    0s is stochastic there and an ODE elsewhere). ``guidance_scale`` 1 is no guidance.
    ``detach_unconditional`` keeps gradients out of the unconditional branch, at the price of two
    forwards instead of one of double size. ``rule``: "ddim" or "cps" (see ``step_std``), or a
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


def guided_output(
    predict: Predict,
    x: Tensor,
    time_B: Tensor,
    conditioning: Conditioning,
    negative: Conditioning | None,
    guidance_scale: float,
    detach_unconditional: bool = False,
) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598), float32: unconditional + scale * (conditional -
    unconditional).

    ``negative`` None or scale 1: one plain forward. Else one forward of 2B rows, the unconditional
    B first; with ``detach_unconditional`` two forwards of B rows, the unconditional first and
    without gradient. Raises ``UserError`` when row counts differ or the network's output is not
    shaped like ``x``.
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
        with torch.no_grad():
            unconditional = _checked(predict(x, time_B, negative), x)
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
    alpha, sigma = path.coefficients(path.times(sampler.steps))
    eta = torch.tensor(sampler.etas, dtype=torch.float64)
    return step_std(
        alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], eta=eta, rule=sampler.rule
    ).float()


def _guided_step(
    predict: Predict,
    path: Path,
    sampler: Sampler,
    x: Tensor,
    step_B: Tensor,
    conditioning: Conditioning,
    negative: Conditioning | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The guided output, and alpha, sigma, alpha', sigma' of row i of ``x`` before step
    ``step_B[i]`` (long, CPU).
    """
    times = path.times(sampler.steps)
    coefficients = (*path.coefficients(times[step_B]), *path.coefficients(times[step_B + 1]))
    time_B = network_time(times[step_B]).to(x.device)
    output = guided_output(
        predict,
        x,
        time_B,
        conditioning,
        negative,
        sampler.guidance_scale,
        sampler.detach_unconditional,
    )
    return output, coefficients


def _transition(
    predict: Predict,
    path: Path,
    sampler: Sampler,
    x: Tensor,
    step_B: Tensor,
    conditioning: Conditioning,
    negative: Conditioning | None,
) -> tuple[Tensor, Tensor]:
    """Mean and std of the next latents; row i of ``x`` stands before step ``step_B[i]`` (long,
    CPU).
    """
    output, coefficients = _guided_step(predict, path, sampler, x, step_B, conditioning, negative)
    eta = torch.tensor(sampler.etas, dtype=torch.float64)[step_B]
    return gaussian_step(
        x, output, *coefficients, prediction=path.prediction, eta=eta, rule=sampler.rule
    )


def _solver(predict: Predict, path: Path, sampler: Sampler) -> Transition:
    """DPM-Solver++(2M) SDE in the place of ``_transition``; it remembers the last step's clean
    latents and noise level.
    """
    last: tuple[Tensor, Tensor] | None = None

    def step(
        x: Tensor, step_B: Tensor, conditioning: Conditioning, negative: Conditioning | None
    ) -> tuple[Tensor, Tensor]:
        nonlocal last
        output, coefficients = _guided_step(
            predict, path, sampler, x, step_B, conditioning, negative
        )
        alpha, sigma, alpha_next, sigma_next = coefficients
        clean, level = (
            split(output, x, alpha, sigma, path.prediction)[0],
            sigma.double() / alpha.double(),
        )
        mean, std_B = gaussian_step(x, output, *coefficients, prediction=path.prediction, eta=1.0)
        if last is not None and bool((sigma_next > 0).all()):
            levels = (last[1], level, sigma_next.double() / alpha_next.double())
            mean = mean + second_order_term(clean, last[0], alpha_next, levels)
        last = (clean, level)
        return mean, std_B

    return step


@torch.no_grad()
def rollout(
    predict: Predict,
    path: Path,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    conditioning: Conditioning,
    negative: Conditioning | None,
    latent_shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    scored_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Trajectory:
    """Sample B latents of ``latent_shape`` (without the batch axis) and keep everything that
    training needs.

    Every sample draws, on the CPU in float32 from its own generator, its start noise and then one
    noise a step (also where the step is deterministic), so its noise does not depend on the batch
    it is in. ``scored_mask`` broadcasts against (B, *latent). ``progress(done, steps)`` is called
    after each step. A solver's trajectory has ``std_S`` and ``log_prob_SB`` 0: it is for listening.
    Raises ``UserError`` when counts differ, or guidance is asked for without ``negative``.
    """
    prompts, generators = tuple(prompts), tuple(generators)
    counts = {
        "prompts": len(prompts),
        "conditioning": len(conditioning),
        "generators": len(generators),
    }
    counts |= {} if negative is None else {"negative": len(negative)}
    if len(set(counts.values())) > 1 or not prompts:
        raise UserError(
            "a rollout needs one prompt, conditioning row and generator a sample, at least one,"
            f" got {counts}"
        )
    if negative is None and sampler.is_guided:
        raise UserError(
            f"guidance_scale {sampler.guidance_scale} needs a negative side; encode what"
            " Sampler.sides gives, or set the scale to 1"
        )
    conditioning = conditioning.to(device)
    negative = None if negative is None or not sampler.is_guided else negative.to(device)
    mask = None if scored_mask is None else scored_mask.to(device)
    count, steps = len(prompts), int(sampler.steps)

    def draw() -> Tensor:
        return torch.stack(
            [torch.randn(tuple(latent_shape), generator=generator) for generator in generators]
        ).to(device)

    latents, log_probs = [draw()], []
    if mask is not None:
        scored_mean(
            latents[0], mask
        )  # a mask that does not fit is refused before the first forward
    is_solver = sampler.rule in SOLVERS
    stds = torch.zeros(steps) if is_solver else step_stds(path, sampler)
    transition = (
        _solver(predict, path, sampler)
        if is_solver
        else partial(_transition, predict, path, sampler)
    )
    for step in range(steps):
        mean, std_B = transition(latents[-1], torch.full((count,), step), conditioning, negative)
        noise, is_scored = draw(), bool(stds[step] > 0)
        moved = mean + std_B.reshape(-1, *[1] * (mean.ndim - 1)) * noise
        latents.append(moved if is_scored or is_solver else mean)
        log_probs.append(
            log_prob(moved, mean, std_B, mask)
            if is_scored
            else torch.zeros(count, device=mean.device)
        )
        if progress is not None:
            progress(step + 1, steps)
    return Trajectory(
        prompts=prompts,
        conditioning=conditioning,
        negative=negative,
        latents_SB=torch.stack(latents),
        times_S=network_time(path.times(steps)).to(device),
        log_prob_SB=torch.stack(log_probs),
        std_S=stds.to(device),
        scored_mask=mask,
    )


def step_log_prob(
    predict: Predict,
    path: Path,
    sampler: Sampler,
    trajectory: Trajectory,
    step_B: Tensor,
    rows: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probability (B,), mean (B, ...), std (B,)) of the stored next latents under the present
    network.

    ``rows``: the B samples to score (None: all); of the latents only their two are read. ``step_B``
    long (B,): sample ``rows[i]`` is scored at step ``step_B[i]``. With unchanged weights, dtype and
    batch shape the log-probability equals the stored one. Raises ``UserError`` when a step is out
    of range or has no noise, or when the trajectory was sampled with other steps or eta.
    """
    step_B = step_B.detach().to(device="cpu", dtype=torch.long)
    row_B = (
        torch.arange(len(trajectory))
        if rows is None
        else torch.tensor(list(rows), dtype=torch.long)
    )
    if step_B.shape != row_B.shape:
        raise UserError(
            f"step_B needs one step a sample, shape ({len(row_B)},), got {tuple(step_B.shape)}"
        )
    stds, times = step_stds(path, sampler), network_time(path.times(sampler.steps))
    same = trajectory.std_S.shape == stds.shape and torch.allclose(
        trajectory.std_S.cpu(), stds, rtol=1e-5, atol=0
    )
    if not same or not torch.equal(trajectory.times_S.cpu(), times):
        raise UserError(
            "the trajectory was sampled with other steps, eta, rule or path; give the sampler of"
            " its rollout"
        )
    if sampler.is_guided != (trajectory.negative is not None):
        raise UserError(
            "guidance must be on in rollout and training alike; give the sampler of the"
            " trajectory's rollout"
        )
    if bool(((step_B < 0) | (step_B >= sampler.steps)).any()):
        raise UserError(f"steps lie in [0, {sampler.steps - 1}], got {step_B.tolist()}")
    for step in step_B.unique().tolist():
        if stds[step] == 0:
            raise UserError(
                f"step {step} (time {times[step].item():.6g} -> {times[step + 1].item():.6g}, eta"
                f" {sampler.etas[step]:g}) adds no noise, so it has no log-probability; leave it"
                " out of training (the last step of most paths) or raise its eta"
            )
    x, x_next = trajectory.latents_SB[step_B, row_B], trajectory.latents_SB[step_B + 1, row_B]
    negative = None if trajectory.negative is None else trajectory.negative.rows(row_B)
    mean, std_B = _transition(
        predict, path, sampler, x, step_B, trajectory.conditioning.rows(row_B), negative
    )
    return log_prob(x_next, mean, std_B, trajectory.mask_of(row_B)), mean, std_B
