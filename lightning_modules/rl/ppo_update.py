"""What a policy-gradient update is made of: which steps, in which order, in which micro-batches;
and the check of the ratio.

Everything random here is keyed by (seed, round, inner epoch, ...), so a resumed run makes the same
choices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from datamodules.batches import PromptBatch
from lightning_modules.rl.losses import clipped_policy_loss, kl_to_reference
from lightning_modules.rl.settings import UpdateSettings
from zoo.backbones.lora import AdapterSwitch
from zoo.diffusion import Schedule, replay_step
from zoo.errors import UserError
from zoo.types import Backbone, Prompt, Trajectory

SAME_SHAPES, OTHER_SHAPES = 1e-6, 1e-5  # |ratio - 1| that float32 leaves before the first update


@dataclass(frozen=True)
class MicroBatch:
    """One forward's worth of work, K times.

    ``rows`` (n) index the round's samples; ``steps_KN`` (K, n) are their steps.
    """

    rows: tuple[int, ...]
    steps_KN: Tensor


@dataclass(frozen=True)
class OptimiserStep:
    """The micro-batches of one optimiser step on this process.

    ``terms`` counts the (sample, step) pairs of its mean. It may be more than the micro-batches
    hold: pairs whose gradient is known to be zero are not computed.
    """

    micro: tuple[MicroBatch, ...]
    terms: int


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator that is a function of the key only."""
    digest = hashlib.sha256(json.dumps(["update", *key]).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def trainable_steps(
    std_S: Tensor, window: tuple[int, int] | None, skip_last_step: bool
) -> list[int]:
    """Steps that may be trained, in sampler order. ``std_S`` (S,) is the noise of each step.

    ``window`` (lo, hi) takes steps lo..hi-1; None takes every step that adds noise.
    ``skip_last_step`` leaves out the last step of the sampler. Raises ``UserError`` for a window
    outside the sampler, steps without noise in it, or when nothing is left.
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
    steps: Sequence[int], share: float, draw: str, batch: PromptBatch, *key: int
) -> Tensor:
    """Steps to train, (K, B) long with K = max(1, round(share * len(steps))), without repeats in a
    column.

    ``draw`` "sample": each sample has its own random subset in random order; "batch": one for all.
    ``key`` names the draw: seed, round, inner epoch; with "sample" also the sample, so that its
    steps do not depend on the process it is on.
    """
    kept = max(1, round(share * len(steps)))
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
) -> list[OptimiserStep]:
    """The round's samples in random order, dealt to ``updates`` optimiser steps.

    Of the samples of an optimiser step only those that are kept and learn something are computed,
    in micro-batches of ``size`` (the last one may be smaller). Where nothing is left, one step of
    one kept sample is computed: it gives every weight the gradient 0, as all of them would, so the
    optimiser's momentum and decay go on. Without any kept sample there is nothing to compute.

    Args:
        steps_KB: the steps to train of each sample, (K, B).
        kept_B: False for samples that were dropped; they count nowhere.
        learns_B: False for samples whose gradient is zero; they count in the mean.
        size: samples per micro-batch.
        updates: optimiser steps of the round.
        key: seed, round and inner epoch, which name the order.

    Raises: ``UserError`` when the sizes do not divide.
    """
    count = steps_KB.shape[1]
    check_sizes(count, size, updates)
    order = torch.randperm(count, generator=keyed_generator(*key, "order")).tolist()
    each = count // updates
    plans = []
    for start in range(0, count, each):
        kept = [row for row in order[start : start + each] if kept_B[row]]
        rows = [row for row in kept if learns_B[row]]
        micro = [
            MicroBatch(tuple(rows[i : i + size]), steps_KB[:, rows[i : i + size]])
            for i in range(0, len(rows), size)
        ]
        if kept and not rows:
            micro = [MicroBatch((kept[0],), steps_KB[:1, kept[:1]])]
        plans.append(OptimiserStep(tuple(micro), len(kept) * steps_KB.shape[0]))
    return plans


def plan_round(
    steps: Sequence[int],
    batch: PromptBatch,
    kept_B: Sequence[bool],
    update: UpdateSettings,
    advantage_B: Tensor,
    seed: int,
) -> list[OptimiserStep]:
    """The optimiser steps of all inner epochs of a round.

    Each inner epoch draws its order and its steps anew. A sample of advantage 0 has a gradient
    only where there is a KL to the base model.
    """
    plans = []
    learns_B = [update.kl_coef > 0 or advantage != 0 for advantage in advantage_B.tolist()]
    for epoch in range(update.inner_epochs):
        key = (seed, batch.round_index, epoch)
        steps_KB = draw_steps(steps, update.timestep_fraction, update.timestep_draw, batch, *key)
        plans += plan_updates(steps_KB, kept_B, learns_B, update.batch_size, update.per_round, *key)
    return plans


def check_sizes(count: int, batch_size: int, updates: int) -> None:
    """Raises ``UserError`` unless a round of ``count`` samples per rank splits into ``updates`` of
    whole training batches.
    """
    if count % (batch_size * updates):
        raise UserError(
            f"a round of {count} samples (per process) does not split into"
            f" update.per_round={updates} optimiser steps of batches of"
            f" update.batch_size={batch_size}; it must be a multiple of {batch_size * updates}"
        )


def scored_elements(trajectory: Trajectory) -> int:
    """Latent elements that count in one sample's log-probability (the fewest of all samples)."""
    shape = trajectory.latents_SB.shape[2:]
    if trajectory.scored_mask is None:
        return shape.numel()
    mask = trajectory.scored_mask
    return int(mask.expand(mask.shape[0], *shape).reshape(mask.shape[0], -1).sum(dim=1).min())


def is_full_precision(network: nn.Module, device_type: str, convolutions: bool = False) -> bool:
    """Whether the network computes in float32 (or float64): no half weights, autocast or TF32.

    ``convolutions``: cuDNN's convolutions count, too, where TF32 is PyTorch's default.
    """
    halves = any(
        p.is_floating_point() and p.dtype not in (torch.float32, torch.float64)
        for p in network.parameters()
    )
    tf32 = device_type == "cuda" and (
        torch.get_float32_matmul_precision() != "highest" or torch.backends.cuda.matmul.allow_tf32
    )
    tf32 = tf32 or (device_type == "cuda" and convolutions and torch.backends.cudnn.allow_tf32)
    return not (halves or tf32 or torch.is_autocast_enabled(device_type))


def ratio_tolerance(
    network: nn.Module, device_type: str, same_shapes: bool, clip_range: float
) -> tuple[float, str]:
    """How far from 1 rounding may bring the ratio before the first update; what to do beyond it.

    ``same_shapes``: old and new log-probabilities come from batches of one shape. Then the same
    kernels run twice and the ratio is 1 to the last bit or two: 1e-6. Batches of another shape
    are summed in another order: up to 2.2e-6 was measured in float32 (AudioLDM 2 at toy size;
    more elements average more out), 1e-5 is allowed. In half precision and with TF32 half of
    ``clip_range``: beyond that, clipping would act on rounding.
    """
    remedy = "update.recompute_old_log_prob=true is the remedy"
    if not is_full_precision(network, device_type, convolutions=not same_shapes):
        return clip_range / 2, f"rounding of half precision (or TF32) is the likely cause; {remedy}"
    means = (
        "this means that training scores another policy than the one that sampled: look for "
        "conditioning of other prompts, swapped guidance halves, dropout or train mode"
    )
    if same_shapes:
        why = f"in float32 at equal shapes {means}. Only where other kernels are the cause {remedy}"
        return SAME_SHAPES, why
    why = f"in float32 {means}. Only where batch shapes or other kernels are the cause {remedy} "
    return OTHER_SHAPES, why + "(or sampler.batch_size equal to update.batch_size)"


@dataclass(frozen=True)
class UpdateRecord:
    """What one micro-batch saw:

    ``ratio_KN`` (K, n); ``loss_K`` and ``kl_to_base_K`` (K,), each summed over its rows.
    """

    ratio_KN: Tensor
    loss_K: Tensor
    kl_to_base_K: Tensor


def on_cpu(records: Sequence[UpdateRecord]) -> list[UpdateRecord]:
    """The same records on the CPU, fetched at once: an accelerator is waited for one time."""
    if not records:
        return []
    kinds = ("ratio_KN", "loss_K", "kl_to_base_K")
    tensors = [getattr(record, kind) for record in records for kind in kinds]
    fetched = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    parts = fetched.split([tensor.numel() for tensor in tensors])
    shaped = [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    return [UpdateRecord(*shaped[i : i + len(kinds)]) for i in range(0, len(shaped), len(kinds))]


def _indices(micro: MicroBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (n) and steps (K, n) of a micro-batch on ``device``, moved at once."""
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
    """Forward and backward of each step of one micro-batch, one graph at a time, so memory does not
    grow with the steps.

    Gradients of all micro-batches add up to the gradient of the mean over ``terms`` (sample, step)
    pairs of the clipped policy loss plus ``kl_coef`` times the KL to the base model (adapter
    off). The record stays on the device of the trajectory: nothing is read back from there.

    Args:
        backbone, schedule, trajectory: the policy, and the samples that it learns from.
        micro: which rows and steps.
        old_SB, advantage_B: log-probabilities (S, B) and advantages (B,) of the round.
        terms: (sample, step) pairs of the optimiser step, over all processes.
        backward: ``backward(loss)`` adds gradients.
        clip_range, advantage_clip: see ``clipped_policy_loss``.
        kl_coef: what the KL is multiplied with.
        adapter_off: turns the backbone into its base model for the KL; None leaves the KL out.
        reuse_unconditional: see ``replay_step``.
    """
    rows, steps_KN = _indices(micro, trajectory.latents_SB.device)
    score = partial(replay_step, backbone.predict, schedule, trajectory)
    ratios, losses, divergences = [], [], []
    for step_N in steps_KN:
        base_mean = None
        if adapter_off is not None:
            with torch.no_grad(), adapter_off():
                _, base_mean, _ = score(step_N, rows)
        log_prob, mean, std = score(step_N, rows, reuse_unconditional)
        policy = clipped_policy_loss(
            log_prob, old_SB[step_N, rows], advantage_B[rows], clip_range, advantage_clip
        )
        loss = policy.loss * len(micro.rows)
        divergence = torch.zeros_like(loss)
        if base_mean is not None:
            divergence = kl_to_reference(mean, base_mean, std, trajectory.mask_of(rows)).sum()
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
    """Old log-probabilities (S, B) scored again in the very batches of the update; the largest
    |ratio - 1| of the stored ones.
    """
    old_SB, gaps = trajectory.log_prob_SB.clone(), []
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
    optimiser steps; the loss of a pair of advantage 0 is 0. ``ratio/*``,
    ``clip_fraction`` and ``approx_kl`` are over the pairs that were computed: with ``kl_coef`` 0
    those whose advantage is not 0.
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


def worst_ratio(
    record: UpdateRecord, micro: MicroBatch, prompts: Sequence[Prompt]
) -> tuple[float, str]:
    """The largest |ratio - 1|, and the step and prompt where it is; NaN counts as infinite."""
    off = torch.where(record.ratio_KN.isnan(), torch.inf, (record.ratio_KN - 1).abs())
    k, n = divmod(int(off.argmax()), off.shape[1])
    prompt = prompts[micro.rows[n]]
    return (
        off[k, n].item(),
        f"step {int(micro.steps_KN[k, n])} of prompt {prompt.id!r} ({prompt.text!r})",
    )


def check_ratio(deviation: float, where: str, tolerance: float, why: str) -> None:
    """Before the first update the policy that is trained is the one that sampled: ratio 1.

    ``tolerance``: how far it may be off; ``why``: what to look for (``ratio_tolerance``).
    Raises ``UserError`` otherwise (also on NaN).
    """
    if deviation <= tolerance:
        return
    raise UserError(
        f"before the first update the importance ratio must be 1 within {tolerance:.3g}, but it is"
        f" off by {deviation:.3g} at {where}; {why}"
    )
