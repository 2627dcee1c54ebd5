"""Optimisers by name: AdamW (arXiv 1711.05101), also with eight-bit moments (2110.02861).

Eight bits save 6 of the 8 bytes that AdamW keeps per trained weight, but only in tensors of at
least 4096 weights; smaller ones stay in 32 bits. For a whole AudioLDM 2 denoiser (347 million
weights) that is 2.1 GB; for a LoRA adapter it is megabytes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

import torch
from torch import nn

from zoo.errors import UserError, did_you_mean

# name -> (module, class, what installs it); a module is imported when its optimiser is used
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
            f" {command}, or use 'adamw'"
        ) from error


def build_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """The optimiser ``name`` of ``OPTIMIZERS`` for ``parameters``.

    Args:
        name: a key of ``OPTIMIZERS``.
        parameters: the weights to train.
        learning_rate: step size.
        betas: decay of the averages of gradient and squared gradient.
        epsilon: added to the denominator.
        weight_decay: decoupled decay, as in AdamW.

    Raises ``UserError`` as ``optimizer_class``.
    """
    kind = optimizer_class(name)
    return kind(
        parameters, lr=learning_rate, betas=tuple(betas), eps=epsilon, weight_decay=weight_decay
    )
