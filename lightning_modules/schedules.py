"""Optimisers and learning rates:

AdamW with linear warm-up and cosine decay, and the linear decay of rounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lightning_modules.optimizers import build_optimizer
from zoo.errors import UserError


def check_schedule(warmup_steps: int, total_steps: int) -> None:
    """Raises ``UserError`` unless the warm-up takes at least one step and ends before the schedule
    does.
    """
    if not 1 <= warmup_steps < total_steps:
        raise UserError(
            f"warmup_steps must be at least 1 and less than total_steps, got {warmup_steps} and"
            f" {total_steps}"
        )


def adamw_with_cosine(
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    warmup_steps: int,
    total_steps: int,
    optimizer: str = "adamw",
) -> dict[str, Any]:
    """What ``configure_optimizers`` returns: the rate rises over ``warmup_steps`` and falls to 2 %
    at ``total_steps``.

    ``optimizer`` is one of ``optimizers.OPTIMIZERS``; ``UserError`` for another name or a missing
    package.
    """
    adam = build_optimizer(optimizer, parameters, learning_rate, (0.9, 0.98), 1e-8, weight_decay)
    warmup = torch.optim.lr_scheduler.LinearLR(adam, 1e-3, total_iters=warmup_steps)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(
        adam, total_steps - warmup_steps, eta_min=0.02 * learning_rate
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(adam, [warmup, decay], [warmup_steps])
    return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def decay_rate(
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    decay_rounds: int | None,
    round_index: int,
) -> None:
    """Sets the rate of a round: from ``learning_rate`` linearly to a tenth of it in round
    ``decay_rounds`` and after.

    A pure function of the round, so a resumed run needs no state of it. ``decay_rounds`` None
    leaves the rate constant.
    """
    done = 0.0 if decay_rounds is None else min(round_index / decay_rounds, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * (1 - 0.9 * done)
