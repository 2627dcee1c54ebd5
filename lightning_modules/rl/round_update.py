"""All optimiser steps of one round of DDPO: what happens between its rewards and the next round."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from datamodules.batches import PromptBatch
from lightning_modules.rl.distributed import gather
from lightning_modules.rl.losses import rescaled_clip_range
from lightning_modules.rl.ppo_update import (
    OptimiserStep,
    backward_steps,
    on_cpu,
    recomputed_log_prob,
    scored_elements,
    update_metrics,
)
from lightning_modules.rl.ratio import worst_ratio
from lightning_modules.rl.settings import UpdateSettings
from zoo.backbones.lora import AdapterSwitch
from zoo.diffusion import Sampler, check_scorable, replay_schedule
from zoo.types import Backbone, Trajectory


def update_round(
    backbone: Backbone,
    sampler: Sampler,
    batch: PromptBatch,
    trajectory: Trajectory,
    plans: Sequence[OptimiserStep],
    advantage_B: Tensor,
    settings: UpdateSettings,
    *,
    advantage_clip: float,
    sampled_rows: int,
    backward: Callable[[Tensor], None],
    step: Callable[[], float],
    check: Callable[[float, str, float, bool], None],
    report: Callable[[str, int, int], None],
) -> dict[str, float]:
    """Learns from a round's samples; returns what to log.

    Processes may hold different numbers of micro-batches, so they meet only once per optimiser
    step.

    Args:
        backbone: the policy.
        sampler: of the rollout.
        batch: the round's prompts on this process.
        trajectory: the round's samples on this process.
        plans: the optimiser steps, of ``plan_round``.
        advantage_B: one per sample.
        settings: of the update.
        advantage_clip: advantages beyond it are cut.
        sampled_rows: samples that were rolled out at once.
        backward: ``backward(loss)`` adds gradients.
        step: applies the gradients of all processes, clears them and returns their norm.
        check: ``check(deviation, where, clip_range, same_shapes)`` sees the worst |ratio - 1| of
            all processes before each optimiser step; ``same_shapes`` says whether every
            micro-batch had as many rows as the batches that were sampled. Optimiser steps whose
            samples were all dropped are left out.
        report: ``report(phase, done, total)`` shows progress.
    """
    clip_range = settings.clip_range
    if settings.clip_reference_elements is not None:
        clip_range = rescaled_clip_range(
            clip_range, settings.clip_reference_elements, min(gather(scored_elements(trajectory)))
        )
    schedule = replay_schedule(backbone.path, sampler, trajectory)
    every = [micro for plan in plans for micro in plan.micro]
    for micro in every:
        check_scorable(schedule, micro.steps_KN)
    adapter_off = AdapterSwitch.of(backbone) if settings.kl_coef > 0 else None
    # Until the first optimiser step the unconditional outputs are those of the rollout. The first
    # round computes them again, so that the check of its ratio covers both sides of guidance.
    is_known = trajectory.unconditional_SB is not None and batch.round_index > 0
    may_reuse = is_known and not settings.recompute_old_log_prob
    old_SB = trajectory.log_prob_SB
    gap = 0.0
    if settings.recompute_old_log_prob:
        old_SB, gap = recomputed_log_prob(backbone, schedule, trajectory, every)
    records = []
    norms = []
    done = 0
    counted = 0
    for plan in plans:
        terms = sum(gather(plan.terms))
        counted += terms
        seen = []
        for micro in plan.micro:
            seen.append(
                backward_steps(
                    backbone,
                    schedule,
                    trajectory,
                    micro,
                    old_SB,
                    advantage_B,
                    terms,
                    backward,
                    clip_range=clip_range,
                    advantage_clip=advantage_clip,
                    kl_coef=settings.kl_coef,
                    adapter_off=adapter_off,
                    reuse_unconditional=may_reuse and not norms,
                )
            )
            done += 1
            report("update", done, len(every))
        seen = on_cpu(seen)
        records += seen
        if terms:
            off = [
                worst_ratio(record, micro, batch.prompts)
                for record, micro in zip(seen, plan.micro, strict=True)
            ]
            worst = max(off, key=lambda pair: pair[0], default=(0.0, "nothing"))
            same_shapes = all(len(micro.rows) == sampled_rows for micro in plan.micro)
            ranks = gather((*worst, same_shapes))
            deviation, where, _ = max(ranks, key=lambda rank: rank[0])
            check(deviation, where, clip_range, all(same for _, _, same in ranks))
            norms.append(step())
    records = [record for rank in gather(records) for record in rank]
    return update_metrics(records, clip_range, counted) | {
        "grad_norm": sum(norms) / len(norms),
        "clip_range": clip_range,
        "old_log_prob_gap": max(gather(gap)),
    }
