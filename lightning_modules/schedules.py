"""Learning rates: warm-up with cosine, linear or no decay, and the linear decay of rounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_modules.optimizers import build_optimizer
from lightning_modules.training_settings import ScheduleSettings
from zoo.errors import UserError


def steps_of_run(settings: ScheduleSettings, module: LightningModule) -> int:
    """``total_steps``, or all optimiser steps that the trainer of ``module`` will take.

    Raises ``UserError`` for a run without an end, and for one that ends within the warm-up.
    """
    if settings.total_steps is not None:
        return settings.total_steps
    steps = module.trainer.estimated_stepping_batches
    if not settings.warmup_steps < steps < float("inf"):
        raise UserError(
            f"the run takes {steps} optimiser steps, with {settings.warmup_steps} of warm-up; set"
            " module.optimizer.total_steps, or another trainer.max_epochs or trainer.max_steps"
        )
    return int(steps)


def rate_share(step: int, schedule: str, total_steps: int, warmup_steps: int) -> float:
    """The share of the highest rate in optimiser step ``step`` (from 0), "linear" or "constant"."""
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    return max(0.0, (total_steps - step) / (total_steps - warmup_steps))


def scheduled_optimizer(
    parameters: Iterable[nn.Parameter], settings: ScheduleSettings, total_steps: int
) -> dict[str, Any]:
    """The optimiser, and a schedule that changes its rate after every step.

    The result is for ``configure_optimizers``; ``total_steps`` comes from ``steps_of_run``.
    """
    adam = build_optimizer(
        settings.name,
        parameters,
        settings.learning_rate,
        betas=settings.betas,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    schedule = _schedule(adam, settings, total_steps)
    return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _schedule(
    adam: torch.optim.Optimizer, settings: ScheduleSettings, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    schedulers = torch.optim.lr_scheduler
    rise = settings.warmup_steps
    if settings.schedule != "cosine":
        name = settings.schedule
        return schedulers.LambdaLR(adam, lambda step: rate_share(step, name, total_steps, rise))
    lowest = 0.02 * settings.learning_rate
    decay = schedulers.CosineAnnealingLR(adam, total_steps - rise, eta_min=lowest)
    if rise == 0:
        return decay
    warmup = schedulers.LinearLR(adam, 1e-3, total_iters=rise)
    return schedulers.SequentialLR(adam, [warmup, decay], [rise])


def decay_rate(
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    decay_rounds: int | None,
    round_index: int,
) -> None:
    """Sets the rate of a round: linear from ``learning_rate`` to a tenth in round ``decay_rounds``.

    A pure function of the round, so a resumed run needs no state of it. ``decay_rounds`` None
    leaves the rate constant.
    """
    done = 0.0 if decay_rounds is None else min(round_index / decay_rounds, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * (1 - 0.9 * done)
