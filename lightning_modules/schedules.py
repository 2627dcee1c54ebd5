"""Learning rates: linear warm-up with cosine decay, and the linear decay of rounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lightning_modules.optimizers import build_optimizer
from lightning_modules.training_settings import CosineSettings


def adamw_with_cosine(
    parameters: Iterable[nn.Parameter], settings: CosineSettings
) -> dict[str, Any]:
    """AdamW with a warm-up of ``warmup_steps`` and a cosine decay to 2 % at ``total_steps``.

    The result is for ``configure_optimizers``.
    """
    adam = build_optimizer(
        settings.name,
        parameters,
        settings.learning_rate,
        betas=(0.9, 0.98),
        epsilon=1e-8,
        weight_decay=settings.weight_decay,
    )
    schedulers = torch.optim.lr_scheduler
    warmup = schedulers.LinearLR(adam, 1e-3, total_iters=settings.warmup_steps)
    decay = schedulers.CosineAnnealingLR(
        adam,
        settings.total_steps - settings.warmup_steps,
        eta_min=0.02 * settings.learning_rate,
    )
    schedule = schedulers.SequentialLR(adam, [warmup, decay], [settings.warmup_steps])
    return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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
