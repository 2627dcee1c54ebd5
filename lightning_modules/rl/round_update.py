"""All optimiser steps of one round of DDPO, from its plan: what happens between the rewards and the
next round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from datamodules.batches import PromptBatch
from lightning_modules.rl.distributed import gather
from lightning_modules.rl.losses import rescaled_clip_range
from lightning_modules.rl.ppo_update import (
    MicroBatch,
    backward_steps,
    recomputed_log_prob,
    scored_elements,
    update_metrics,
    worst_ratio,
)
from zoo.diffusion import Sampler
from zoo.types import Backbone, Trajectory


def update_round(
    backbone: Backbone,
    sampler: Sampler,
    batch: PromptBatch,
    trajectory: Trajectory,
    plans: Sequence[Sequence[MicroBatch]],
    advantage_B: Tensor,
    settings: Mapping[str, Any],
    *,
    backward: Callable[[Tensor], None],
    step: Callable[[], float],
    check: Callable[[float, str, float], None],
    report: Callable[[str, int, int], None],
) -> dict[str, float]:
    """Learns from ``trajectory`` (B samples) by ``plans`` (one list of micro-batches an optimiser
    step); returns what to log.

    ``settings`` are those of ``DDPO``. ``backward(loss)`` adds gradients; ``step()`` applies those
    of all processes, clears them and returns their norm; ``check(deviation, where, clip_range)``
    sees the worst |ratio - 1| of all processes before each step that learns anything; one whose
    samples were all dropped is left out. ``report(phase, done, total)`` shows progress.
    """
    s, clip_range = settings, settings["clip_range"]
    if s["clip_reference_elements"] is not None:
        clip_range = rescaled_clip_range(
            clip_range, s["clip_reference_elements"], min(gather(scored_elements(trajectory)))
        )
    old_SB, gap = trajectory.log_prob_SB, 0.0
    if s["recompute_old_log_prob"]:
        old_SB, gap = recomputed_log_prob(
            backbone, sampler, trajectory, [micro for plan in plans for micro in plan]
        )
    records, norms, done = [], [], 0
    for plan in plans:
        terms = sum(gather(sum(micro.terms for micro in plan)))
        worst = (0.0, "nothing")
        for micro in plan:
            record = backward_steps(
                backbone,
                sampler,
                trajectory,
                micro,
                old_SB,
                advantage_B,
                terms,
                backward,
                clip_range=clip_range,
                advantage_clip=s["advantage_clip"],
                kl_weight=s["kl_weight"],
            )
            records.append(record)
            worst = max(worst, worst_ratio(record, micro, batch.prompts), key=lambda pair: pair[0])
            done += 1
            report("update", done, sum(map(len, plans)))
        if terms:
            check(*max(gather(worst), key=lambda pair: pair[0]), clip_range)
            norms.append(step())
    metrics = update_metrics([record for rank in gather(records) for record in rank], clip_range)
    return metrics | {
        "grad_norm": sum(norms) / len(norms),
        "clip_range": clip_range,
        "old_log_prob_gap": max(gather(gap)),
    }
