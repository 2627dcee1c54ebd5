"""Optimisers by name:

AdamW (arXiv 1711.05101), and AdamW whose moments are kept in eight bits (arXiv 2110.02861).

What eight bits save is 6 of the 8 bytes that AdamW keeps a trained weight, and only in tensors of
at least 4096 weights (smaller ones stay in 32 bits). For a whole AudioLDM 2 denoiser (347 million
weights) that is 2.1 GB; for a LoRA adapter it is megabytes.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from zoo.errors import UserError, did_you_mean

# name -> (module, class, what installs it); a module is imported when its optimiser is asked for
OPTIMIZERS = {
    "adamw": ("torch.optim", "AdamW", "pip install torch"),
    "adamw_8bit": ("bitsandbytes.optim", "AdamW8bit", "pip install 'bitsandbytes>=0.50,<1'"),
}


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of an optimiser.

    Raises ``UserError`` for an unknown name, and where its package is not installed.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer {name!r}; {did_you_mean(name, OPTIMIZERS)}")
    module, kind, command = OPTIMIZERS[name]
    try:
        return getattr(importlib.import_module(module), kind)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"optimizer {name!r} needs the package {package}, which cannot be imported ({error});"
            f" {command}, or take 'adamw'"
        ) from error


def check_rates(settings: Mapping[str, Any]) -> None:
    """Raises ``UserError`` for a ``learning_rate``, ``weight_decay``, ``adam_epsilon`` or
    ``betas`` among ``settings`` with which no optimiser works.
    """
    for name in ("learning_rate", "weight_decay", "adam_epsilon"):
        value = settings.get(name, 0)
        if not 0 <= value < math.inf:
            raise UserError(f"invalid {name} {value}: expected a finite number >= 0")
    betas = settings.get("betas", ())
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"invalid betas {tuple(betas)}: expected two numbers in [0, 1)")


def card_settings(arguments: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """The rates of an optimiser, and the settings ``more``, that a configuration states: what the
    card of an exported model says of its training.
    """
    names = ("learning_rate", "weight_decay", *more)
    return {name: arguments[name] for name in names if arguments.get(name) is not None}


def build_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """The optimiser ``name`` of ``OPTIMIZERS`` for ``parameters``.

    Raises ``UserError`` as ``optimizer_class``.
    """
    kind = optimizer_class(name)
    return kind(
        parameters, lr=learning_rate, betas=tuple(betas), eps=epsilon, weight_decay=weight_decay
    )
