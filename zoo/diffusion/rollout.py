"""Walking a path: samples, rollouts, and the log-probability of their steps.

Sampling, rollout and training take the steps of the same ``Schedule``, so all of them follow the
same policy. No number is read back from the device of the latents on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.diffusion.sampling import (
    Predict,
    Sampler,
    Schedule,
    guided_output,
    step_stds,
    unconditional_output,
)
from zoo.diffusion.steps import (
    SOLVERS,
    log_prob,
    scored_mean,
    second_order_factor,
    split,
    step_mean,
)
from zoo.errors import UserError
from zoo.types import Conditioning, Path, Prompt, Trajectory

Progress = Callable[[int, int], None]  # (steps done, of how many)


@dataclass(frozen=True)
class RolloutBuffers:
    """Where a rollout of B samples in S steps writes, float32.

    - ``latents_SB``: (S + 1, B, *latent).
    - ``log_prob_SB``: (S, B).
    - ``unconditional_SB``: the network's unconditional outputs, (S, B, *latent), or None.
    """

    latents_SB: Tensor
    log_prob_SB: Tensor
    unconditional_SB: Tensor | None

    @staticmethod
    def empty(
        sampler: Sampler,
        count: int,
        latent_shape: Sequence[int],
        device: torch.device | str,
        keep_unconditional: bool = False,
    ) -> RolloutBuffers:
        """For ``count`` samples; unconditional outputs are kept only where they are detached."""
        steps = int(sampler.steps)
        shape = tuple(latent_shape)
        is_kept = keep_unconditional and sampler.is_guided and sampler.detach_unconditional
        return RolloutBuffers(
            torch.empty(steps + 1, count, *shape, device=device),
            torch.zeros(steps, count, device=device),
            torch.empty(steps, count, *shape, device=device) if is_kept else None,
        )

    def rows(self, rows: slice) -> RolloutBuffers:
        """Views of the places of some samples."""
        kept = self.unconditional_SB
        return RolloutBuffers(
            self.latents_SB[:, rows],
            self.log_prob_SB[:, rows],
            None if kept is None else kept[:, rows],
        )


@dataclass(frozen=True)
class _Step:
    """One step of a walk.

    ``moved`` are the next latents (B, ...), drawn from ``mean`` and ``std_B``; ``unconditional`` is
    the output of a detached unconditional side.
    """

    moved: Tensor
    mean: Tensor
    std_B: Tensor
    unconditional: Tensor | None


def _walk(
    predict: Predict,
    schedule: Schedule,
    x: Tensor,
    conditioning: Conditioning,
    negative: Conditioning | None,
    draw: Callable[[], Tensor],
) -> Iterator[_Step]:
    """Yields all steps from the start noise ``x``. Steps that add no noise draw it, too."""
    sampler = schedule.sampler
    path = schedule.path
    count = x.shape[0]
    is_solver = sampler.rule in SOLVERS
    factors = _second_order_factors(schedule) if is_solver else {}
    before = None
    for step in range(int(sampler.steps)):
        step_B = torch.full((count,), step, device=x.device)
        time_B = schedule.times_S[step_B]
        at_B = schedule.at_S.at(step_B)
        unconditional = None
        if negative is not None and sampler.detach_unconditional:
            unconditional = unconditional_output(predict, x, time_B, negative)
        output = guided_output(
            predict,
            x,
            time_B,
            conditioning,
            negative,
            sampler.guidance_scale,
            sampler.detach_unconditional,
            unconditional,
        )
        mean = step_mean(x, output, at_B, path.prediction)
        if is_solver:  # it remembers the clean latents of its last step
            clean = split(output, x, at_B.alpha, at_B.sigma, path.prediction)[0]
            if before is not None and step in factors:
                mean = mean + factors[step] * (clean - before)
            before = clean
        moved = mean + at_B.std.reshape(-1, *[1] * (mean.ndim - 1)) * draw()
        x = moved if schedule.stds[step] > 0 or is_solver else mean
        yield _Step(x, mean, at_B.std, unconditional)


def _second_order_factors(schedule: Schedule) -> dict[int, float]:
    """Step -> its ``second_order_factor``, for the steps that have one."""
    alpha, sigma = schedule.path.coefficients(schedule.path.times(schedule.sampler.steps))
    levels = sigma.double() / alpha.double()
    return {
        step: second_order_factor(
            alpha[step + 1], (levels[step - 1], levels[step], levels[step + 1])
        ).item()
        for step in range(1, int(schedule.sampler.steps))
        if sigma[step + 1] > 0
    }


def _drawing(
    generators: Sequence[torch.Generator], latent_shape: Sequence[int], device: torch.device | str
) -> Callable[[], Tensor]:
    """A function that draws noise (B, *latent): each sample from its own generator, on the CPU."""
    shape = tuple(latent_shape)

    def draw() -> Tensor:
        each = [torch.randn(shape, generator=generator) for generator in generators]
        return torch.stack(each).to(device)

    return draw


def _used_negative(
    sampler: Sampler, negative: Conditioning | None, counts: dict[str, int]
) -> Conditioning | None:
    """``negative`` where the sampler is guided, else None.

    Raises ``UserError`` when the ``counts`` of what comes per sample differ or are 0, and for
    guidance without ``negative``.
    """
    counts = counts | ({} if negative is None else {"negative": len(negative)})
    if len(set(counts.values())) > 1 or not all(counts.values()):
        raise UserError(
            "a rollout needs one prompt, conditioning row and generator per sample, at least one,"
            f" got {counts}"
        )
    if negative is None and sampler.is_guided:
        raise UserError(
            f"guidance_scale {sampler.guidance_scale} needs a negative side; encode what"
            " Sampler.sides gives, or set the scale to 1"
        )
    return negative if sampler.is_guided else None


def sample_latents(
    predict: Predict,
    path: Path,
    sampler: Sampler,
    conditioning: Conditioning,
    negative: Conditioning | None,
    latent_shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Tensor:
    """Clean latents (B, *latent), as ``rollout`` makes them; nothing on the way is kept.

    Where gradients are enabled they flow from the latents through every step to the weights.

    Args:
        predict: the network, ``Backbone.predict``.
        path: that is walked.
        sampler: how it is walked.
        conditioning: one row per sample.
        negative: the unconditional side of guidance, one row per sample.
        latent_shape: of one sample, without the batch axis.
        generators: one per sample, on the CPU: its start noise and then one noise per step.
        device: of the latents.
        progress: called after each step.

    Raises:
        UserError: when counts differ, and for guidance without ``negative``.
    """
    counts = {"conditioning": len(conditioning), "generators": len(generators)}
    used = _used_negative(sampler, negative, counts)
    schedule = Schedule.of(path, sampler, device)
    draw = _drawing(generators, latent_shape, device)
    sides = conditioning.to(device), None if used is None else used.to(device)
    x = draw()
    for done, step in enumerate(_walk(predict, schedule, x, *sides, draw), start=1):
        x = step.moved
        if progress is not None:
            progress(done, int(sampler.steps))
    return x


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
    progress: Progress | None = None,
    buffers: RolloutBuffers | None = None,
) -> Trajectory:
    """Samples B latents and keeps everything that training needs, without gradient.

    A sample's noise does not depend on its batch. The trajectory of a solver cannot be trained: its
    ``std_S`` and ``log_prob_SB`` are 0.

    Args:
        predict: the network, ``Backbone.predict``.
        path: that is walked.
        sampler: how it is walked.
        prompts: of the B samples.
        conditioning: one row per sample.
        negative: the unconditional side of guidance, one row per sample.
        latent_shape: of one sample, without the batch axis.
        generators: one per sample, on the CPU: its start noise and then one noise per step, also
            where the step is deterministic.
        scored_mask: the elements that count; broadcasts against (B, *latent).
        device: of the latents.
        progress: called after each step.
        buffers: where to write (None: new ones, without unconditional outputs).

    Raises:
        UserError: when counts differ or the mask does not fit, and for guidance without
            ``negative``.
    """
    counts = {"prompts": len(prompts), "conditioning": len(conditioning)}
    used = _used_negative(sampler, negative, counts | {"generators": len(generators)})
    conditioning = conditioning.to(device)
    negative = None if used is None else used.to(device)
    if scored_mask is not None:  # one that does not fit is refused before the first forward
        scored_mean(torch.zeros(len(prompts), *latent_shape), scored_mask.cpu())
    mask = None if scored_mask is None else scored_mask.to(device)
    schedule = Schedule.of(path, sampler, device)
    draw = _drawing(generators, latent_shape, device)
    if buffers is None:
        buffers = RolloutBuffers.empty(sampler, len(prompts), latent_shape, device)
    with torch.no_grad():
        start = draw()
        buffers.latents_SB[0] = start
        walk = _walk(predict, schedule, start, conditioning, negative, draw)
        for number, step in enumerate(walk):
            buffers.latents_SB[number + 1] = step.moved
            if buffers.unconditional_SB is not None:
                assert step.unconditional is not None  # a buffer exists only where it is made
                buffers.unconditional_SB[number] = step.unconditional
            if schedule.stds[number] > 0:
                buffers.log_prob_SB[number] = log_prob(step.moved, step.mean, step.std_B, mask)
            if progress is not None:
                progress(number + 1, int(sampler.steps))
    return Trajectory(
        prompts=tuple(prompts),
        conditioning=conditioning,
        negative=negative,
        latents_SB=buffers.latents_SB,
        times_S=schedule.times_S,
        log_prob_SB=buffers.log_prob_SB,
        std_S=schedule.std_S,
        scored_mask=mask,
        unconditional_SB=buffers.unconditional_SB,
    )


def replay_schedule(path: Path, sampler: Sampler, trajectory: Trajectory) -> Schedule:
    """The schedule of a trajectory, on its device: checked once, used for every ``replay_step``.

    Raises ``UserError`` when the trajectory was sampled with other steps, eta, rule or guidance.
    """
    step_stds(path, sampler)  # a solver has none
    schedule = Schedule.of(path, sampler, trajectory.latents_SB.device)
    same = trajectory.std_S.shape == schedule.std_S.shape and torch.allclose(
        trajectory.std_S, schedule.std_S, rtol=1e-5, atol=0
    )
    if not same or not torch.equal(trajectory.times_S, schedule.times_S):
        raise UserError(
            "the trajectory was sampled with other steps, eta, rule or path; give the sampler of"
            " its rollout"
        )
    if sampler.is_guided != (trajectory.negative is not None):
        raise UserError(
            "guidance must be on both in rollout and training; give the sampler of the"
            " trajectory's rollout"
        )
    return schedule


def check_scorable(schedule: Schedule, steps: Tensor) -> None:
    """Raises ``UserError`` for steps (long, on the CPU) that are out of range or add no noise."""
    sampler = schedule.sampler
    if bool(((steps < 0) | (steps >= sampler.steps)).any()):
        raise UserError(f"steps must be in [0, {sampler.steps - 1}], got {steps.tolist()}")
    for step in steps.unique().tolist():
        if schedule.stds[step] == 0:
            now, after = schedule.times_S[step : step + 2].tolist()
            raise UserError(
                f"step {step} (time {now:.6g} -> {after:.6g}, eta {sampler.etas[step]:g}) adds no"
                " noise, so it has no log-probability; leave it out of training (the last step of"
                " most paths) or raise its eta"
            )


def replay_step(
    predict: Predict,
    schedule: Schedule,
    trajectory: Trajectory,
    step_B: Tensor,
    row_B: Tensor,
    reuse_unconditional: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores stored steps under the present network.

    Sample ``row_B[i]`` is scored at step ``step_B[i]``; only its two latents are read. With
    unchanged weights, dtype and batch shape the log-probability equals the stored one.

    Args:
        predict: the network, ``Backbone.predict``.
        schedule: from ``replay_schedule``.
        trajectory: holds the steps.
        step_B: long, on the device of the trajectory; ``check_scorable`` allows them.
        row_B: long, on the device of the trajectory.
        reuse_unconditional: takes the trajectory's ``unconditional_SB`` in place of a forward,
            which is right as long as the weights are those of the rollout.

    Returns:
        Log-probability (B,), mean (B, ...) and std (B,) of the next latents.
    """
    sampler = schedule.sampler
    x = trajectory.latents_SB[step_B, row_B]
    x_next = trajectory.latents_SB[step_B + 1, row_B]
    known = trajectory.unconditional_SB if reuse_unconditional else None
    output = guided_output(
        predict,
        x,
        schedule.times_S[step_B],
        trajectory.conditioning.rows(row_B),
        None if trajectory.negative is None else trajectory.negative.rows(row_B),
        sampler.guidance_scale,
        sampler.detach_unconditional,
        None if known is None else known[step_B, row_B],
    )
    at_B = schedule.at_S.at(step_B)
    mean = step_mean(x, output, at_B, schedule.path.prediction)
    return log_prob(x_next, mean, at_B.std, trajectory.mask_of(row_B)), mean, at_B.std


def step_log_prob(
    predict: Predict,
    path: Path,
    sampler: Sampler,
    trajectory: Trajectory,
    step_B: Tensor,
    rows: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``replay_step`` with all its checks.

    Args:
        predict: the network, ``Backbone.predict``.
        path: that the trajectory was sampled along.
        sampler: that it was sampled with.
        trajectory: holds the steps.
        step_B: the step to score of each sample, long.
        rows: the samples to score; None: all.

    Returns:
        Log-probability (B,), mean (B, ...) and std (B,) of the next latents.

    Raises:
        UserError: for a step out of range or without noise, and when the trajectory was sampled in
            another way.
    """
    step_B = step_B.detach().to(device="cpu", dtype=torch.long)
    row_B = torch.arange(len(trajectory)) if rows is None else torch.tensor([*rows])
    if step_B.shape != row_B.shape:
        raise UserError(
            f"step_B needs one step per sample, shape ({len(row_B)},), got {tuple(step_B.shape)}"
        )
    schedule = replay_schedule(path, sampler, trajectory)
    check_scorable(schedule, step_B)
    device = trajectory.latents_SB.device
    return replay_step(predict, schedule, trajectory, step_B.to(device), row_B.to(device))
