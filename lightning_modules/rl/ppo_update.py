"""A policy-gradient update: its plan, backward passes, metrics, and the check of the ratio.

All random choices are keyed by (seed, round, inner epoch, ...), so a resumed run makes them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from datamodules.batches import PromptBatch
from lightning_modules.rl.losses import clipped_policy_loss, kl_to_reference
from lightning_modules.rl.settings import UpdateSettings
from zoo.backbones.lora import AdapterSwitch
from zoo.diffusion import Schedule, replay_step
from zoo.errors import UserError
from zoo.types import Backbone, Trajectory


@dataclass(frozen=True)
class MicroBatch:
    """Samples that are computed at once, at K steps one after the other.

    ``rows`` (n) index the round's samples; ``steps_KN`` (K, n) are their steps, on the CPU. The
    last ``fill`` rows repeat another one to complete the batch: they count nowhere.
    """

    rows: tuple[int, ...]
    steps_KN: Tensor
    fill: int = 0

    @property
    def count(self) -> int:
        """How many rows count."""
        return len(self.rows) - self.fill


@dataclass(frozen=True)
class OptimiserStep:
    """The micro-batches of one optimiser step on this process.

    ``terms`` counts the (sample, step) pairs that the loss is a mean over. The micro-batches may
    hold fewer: pairs whose gradient is known to be zero are left out.
    """

    micro: tuple[MicroBatch, ...]
    terms: int


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose numbers depend on the key only."""
    digest = hashlib.sha256(json.dumps(["update", *key]).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def trainable_steps(
    std_S: Tensor, window: tuple[int, int] | None, skip_last_step: bool
) -> list[int]:
    """The steps that may be trained, in sampler order.

    Args:
        std_S: the noise that each step adds, (S,).
        window: (lo, hi) takes steps lo to hi - 1; None takes every step that adds noise.
        skip_last_step: leaves out the last step of the sampler.

    Raises:
        UserError: for a window outside the sampler, a window with steps that add no noise, and when
            no step is left.
    """
    count = len(std_S)
    if window is not None and len(window) != 2:
        raise UserError(
            f"update.window takes a first step and the one after the last, (lo, hi), got {window}"
        )
    lo, hi = (0, count) if window is None else window
    if not 0 <= lo < hi <= count:
        raise UserError(
            f"invalid update.window ({lo}, {hi}): expected 0 <= lo < hi <= {count}, the sampling"
            " steps"
        )
    steps = [step for step in range(lo, hi) if not (skip_last_step and step == count - 1)]
    silent = [step for step in steps if not std_S[step] > 0]
    if window is None:
        steps = [step for step in steps if std_S[step] > 0]
    elif silent:
        raise UserError(
            f"update.window ({lo}, {hi}): steps {silent} add no noise, so they have no"
            " log-probability; leave them out, raise sampler.eta there, or set"
            " update.skip_last_step=true if it is the last one"
        )
    if not steps:
        raise UserError(
            f"of {count} steps none is left to train (update.window {window}); raise"
            " sampler.eta or sampler.steps"
        )
    return steps


def draw_steps(
    steps: Sequence[int], fraction: float, draw: str, batch: PromptBatch, *key: int
) -> Tensor:
    """Draws the steps to train of each sample, without repeats.

    Args:
        steps: those that may be trained.
        fraction: the share of them that is drawn.
        draw: "sample" gives each sample its own random subset in random order, "batch" one to all.
        batch: the samples.
        key: seed, round and inner epoch. With "sample" the draw also depends on the sample, and not
            on the process that the sample is on.

    Returns:
        (K, B) long, K = max(1, round(fraction * len(steps))).
    """
    kept = max(1, round(fraction * len(steps)))
    choices = torch.tensor(list(steps))

    def one(*name: int | str) -> Tensor:
        return choices[
            torch.randperm(len(steps), generator=keyed_generator(*key, "steps", *name))[:kept]
        ]

    if draw == "batch":
        return one().unsqueeze(1).expand(kept, len(batch)).contiguous()
    return torch.stack(
        [one(p.id, int(i)) for p, i in zip(batch.prompts, batch.sample_index, strict=True)], dim=1
    )


def plan_updates(
    steps_KB: Tensor,
    kept_B: Sequence[bool],
    learns_B: Sequence[bool],
    size: int,
    updates: int,
    *key: int,
    keep_shapes: bool = False,
) -> list[OptimiserStep]:
    """Deals the round's samples, in random order, to ``updates`` optimiser steps.

    An optimiser step computes only those of its samples that are kept and have a gradient, in
    micro-batches of ``size``. If there is none, it computes one step of one kept sample: that gives
    every weight a gradient of 0, as all samples together would, so momentum and weight decay still
    act. Without a kept sample it computes nothing.

    Args:
        steps_KB: the steps to train of each sample, (K, B).
        kept_B: False for samples that were dropped; they count nowhere.
        learns_B: False for samples whose gradient is zero; they count in the mean.
        size: samples per micro-batch.
        updates: optimiser steps of the round.
        key: seed, round and inner epoch; the order depends on nothing else.
        keep_shapes: fills the last micro-batch up to ``size``; else it may be smaller.

    Raises:
        UserError: when the sizes do not divide.
    """
    count = steps_KB.shape[1]
    check_sizes(count, size, updates)
    order = torch.randperm(count, generator=keyed_generator(*key, "order")).tolist()
    each = count // updates
    plans = []
    for start in range(0, count, each):
        kept = [row for row in order[start : start + each] if kept_B[row]]
        rows = [row for row in kept if learns_B[row]]
        trained_KB = steps_KB
        if kept and not rows:
            rows, trained_KB = kept[:1], steps_KB[:1]
        micro = []
        for i in range(0, len(rows), size):
            own = rows[i : i + size]
            fill = size - len(own) if keep_shapes else 0
            own = own + own[:1] * fill
            micro.append(MicroBatch(tuple(own), trained_KB[:, own], fill))
        plans.append(OptimiserStep(tuple(micro), len(kept) * steps_KB.shape[0]))
    return plans


def plan_round(
    steps: Sequence[int],
    batch: PromptBatch,
    kept_B: Sequence[bool],
    update: UpdateSettings,
    advantage_B: Tensor,
    seed: int,
    keep_shapes: bool = False,
) -> list[OptimiserStep]:
    """Plans the optimiser steps of all inner epochs of a round.

    Each inner epoch draws a new order and new steps. Samples of advantage 0 have no gradient unless
    there is a KL to the base model.

    Args:
        steps: the steps that may be trained.
        batch: the round's samples on this process.
        kept_B: False for samples that were dropped.
        update: settings of the update.
        advantage_B: one per sample.
        seed: of the order and of the drawn steps.
        keep_shapes: see ``plan_updates``.
    """
    plans = []
    learns_B = [update.kl_coef > 0 or advantage != 0 for advantage in advantage_B.tolist()]
    for epoch in range(update.inner_epochs):
        key = (seed, batch.round_index, epoch)
        steps_KB = draw_steps(steps, update.timestep_fraction, update.timestep_draw, batch, *key)
        sizes = update.batch_size, update.per_round
        plans += plan_updates(steps_KB, kept_B, learns_B, *sizes, *key, keep_shapes=keep_shapes)
    return plans


def check_sizes(count: int, batch_size: int, updates: int) -> None:
    """Raises ``UserError`` unless ``count`` samples split into ``updates`` whole steps."""
    if count % (batch_size * updates):
        raise UserError(
            f"a round of {count} samples (per process) does not split into"
            f" update.per_round={updates} optimiser steps of batches of"
            f" update.batch_size={batch_size}; it must be a multiple of {batch_size * updates}"
        )


def scored_elements(trajectory: Trajectory) -> int:
    """The number of latent elements in one sample's log-probability: the fewest of all samples."""
    shape = trajectory.latents_SB.shape[2:]
    if trajectory.scored_mask is None:
        return shape.numel()
    mask = trajectory.scored_mask
    return int(mask.expand(mask.shape[0], *shape).reshape(mask.shape[0], -1).sum(dim=1).min())


@dataclass(frozen=True)
class UpdateRecord:
    """What to log of one micro-batch, of the rows that count.

    ``ratio_KN`` (K, count); ``loss_K`` and ``kl_to_base_K`` (K,), each summed over the rows.
    """

    ratio_KN: Tensor
    loss_K: Tensor
    kl_to_base_K: Tensor


def on_cpu(records: Sequence[UpdateRecord]) -> list[UpdateRecord]:
    """The same records on the CPU, in one transfer, so that the processor waits once."""
    if not records:
        return []
    kinds = ("ratio_KN", "loss_K", "kl_to_base_K")
    tensors = [getattr(record, kind) for record in records for kind in kinds]
    fetched = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    parts = fetched.split([tensor.numel() for tensor in tensors])
    shaped = [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    return [UpdateRecord(*shaped[i : i + len(kinds)]) for i in range(0, len(shaped), len(kinds))]


def _indices(micro: MicroBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (n) and steps (K, n) of a micro-batch on ``device``, in one transfer."""
    both = torch.cat([torch.tensor([micro.rows]), micro.steps_KN]).to(device)
    return both[0], both[1:]


def backward_steps(
    backbone: Backbone,
    schedule: Schedule,
    trajectory: Trajectory,
    micro: MicroBatch,
    old_SB: Tensor,
    advantage_B: Tensor,
    terms: int,
    backward: Callable[[Tensor], None],
    *,
    clip_range: float,
    advantage_clip: float,
    kl_coef: float,
    adapter_off: AdapterSwitch | None = None,
    reuse_unconditional: bool = False,
) -> UpdateRecord:
    """Runs forward and backward of one step of a micro-batch after the other.

    Only one graph exists at a time, so memory does not grow with the steps. The gradients of all
    micro-batches add up to that of the mean, over ``terms`` (sample, step) pairs, of the clipped
    policy loss plus ``kl_coef`` times the KL to the base model (adapter off). Nothing is read back
    from the device of the trajectory; the record is there, too.

    Args:
        backbone, schedule, trajectory: the policy, and the samples that it learns from.
        micro: which rows and steps.
        old_SB, advantage_B: log-probabilities (S, B) and advantages (B,) of the round.
        terms: (sample, step) pairs of the optimiser step, over all processes.
        backward: ``backward(loss)`` adds gradients.
        clip_range, advantage_clip: see ``clipped_policy_loss``.
        kl_coef: weight of the KL.
        adapter_off: turns the backbone into its base model for the KL; None leaves the KL out.
        reuse_unconditional: see ``replay_step``.
    """
    rows, steps_KN = _indices(micro, trajectory.latents_SB.device)
    count = micro.count
    score = partial(replay_step, backbone.predict, schedule, trajectory)
    ratios, losses, divergences = [], [], []
    for step_N in steps_KN:
        base_mean = None
        if adapter_off is not None:
            with torch.no_grad(), adapter_off():
                _, base_mean, _ = score(step_N, rows)
        log_prob, mean, std = score(step_N, rows, reuse_unconditional)
        old = old_SB[step_N, rows]
        advantage = advantage_B[rows]
        policy = clipped_policy_loss(
            log_prob[:count], old[:count], advantage[:count], clip_range, advantage_clip
        )
        loss = policy.loss * count
        divergence = torch.zeros_like(loss)
        if base_mean is not None:
            divergence_N = kl_to_reference(mean, base_mean, std, trajectory.mask_of(rows))
            divergence = divergence_N[:count].sum()
            loss = loss + kl_coef * divergence
        backward(loss / terms)
        ratios.append(policy.ratio)
        losses.append(loss.detach())
        divergences.append(divergence.detach())
    return UpdateRecord(torch.stack(ratios), torch.stack(losses), torch.stack(divergences))


@torch.no_grad()
def recomputed_log_prob(
    backbone: Backbone, schedule: Schedule, trajectory: Trajectory, plan: Sequence[MicroBatch]
) -> tuple[Tensor, float]:
    """Scores the rollout again, in the batches of the update.

    Returns the old log-probabilities (S, B) to use, and the largest |ratio - 1| that the stored
    ones would have given.
    """
    old_SB = trajectory.log_prob_SB.clone()
    gaps = []
    for micro in plan:
        rows, steps_KN = _indices(micro, old_SB.device)
        for step_N in steps_KN:
            log_prob, _, _ = replay_step(backbone.predict, schedule, trajectory, step_N, rows)
            gaps.append((log_prob - trajectory.log_prob_SB[step_N, rows]).expm1().abs().max())
            old_SB[step_N, rows] = log_prob
    return old_SB, torch.stack(gaps).max().item() if gaps else 0.0


def update_metrics(
    records: Sequence[UpdateRecord], clip_range: float, terms: int
) -> dict[str, float]:
    """What to log of a round's micro-batches, from all processes.

    ``loss`` and ``kl_to_base`` are means over all ``terms`` (sample, step) pairs of the round's
    optimiser steps; the loss of a pair of advantage 0 is 0. ``ratio/*``, ``clip_fraction`` and
    ``approx_kl`` cover the pairs that were computed: with ``kl_coef`` 0 those whose advantage is
    not 0.
    """
    ratio = torch.cat([record.ratio_KN.flatten() for record in records]).double()
    return {
        "loss": sum(record.loss_K.double().sum().item() for record in records) / terms,
        "kl_to_base": sum(record.kl_to_base_K.double().sum().item() for record in records) / terms,
        "ratio/mean": ratio.mean().item(),
        "ratio/min": ratio.min().item(),
        "ratio/max": ratio.max().item(),
        "clip_fraction": ((ratio - 1).abs() > clip_range).double().mean().item(),
        "approx_kl": 0.5 * ratio.log().pow(2).mean().item(),
    }
