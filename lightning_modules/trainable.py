"""What a method trains of a backbone (an adapter, or its denoiser) and checkpoints of that."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_modules.training_settings import AdapterSettings
from zoo.backbones.lora import add_lora
from zoo.errors import UserError
from zoo.hub.adapter_files import read_adapter
from zoo.hub.adapters import fill_adapter
from zoo.types import Backbone


def make_trainable(backbone: Backbone, adapter: AdapterSettings) -> None:
    """Freezes ``backbone``, in place, but for an adapter or, with rank 0, but for its denoiser.

    Raises ``UserError`` as ``add_lora`` does, for a rank that no layer has, for a whole denoiser in
    half precision, and for an ``adapter.start`` that does not fit.
    """
    backbone.requires_grad_(False)
    if adapter.start is not None:
        _check_start(adapter.start, adapter)
    if adapter.rank == 0:
        _train_denoiser(backbone.denoiser)
        return
    layers = [m for m in backbone.denoiser.modules() if isinstance(m, nn.Linear)]
    widest = max((min(m.weight.shape) for m in layers), default=adapter.rank)
    if adapter.rank > widest:
        raise UserError(
            f"invalid adapter.rank {adapter.rank}: no layer of this backbone has a rank above"
            f" {widest}; usual are 4 to 64, and 0 trains the whole denoiser"
        )
    add_lora(backbone, adapter.rank, adapter.alpha, adapter.targets, adapter.init)
    if adapter.start is not None:
        fill_adapter(backbone.denoiser, adapter.start)


def learned(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that learns."""
    named = module.named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def learned_state(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Of the whole ``state`` of ``module`` what learns; ``prefix`` comes before its names."""
    names = {prefix + name for name in learned(module)}
    return {name: value for name, value in state.items() if name in names}


@torch.no_grad()
def fill_learned(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts what ``learned_state`` gave back. Raises ``UserError`` as ``check_weights``."""
    own = learned(module)
    check_weights(own, state)
    for name, parameter in own.items():
        parameter.copy_(state[name])


def check_weights(own: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    """Every trainable weight must be in the checkpoint and fit.

    Raises ``UserError`` naming the first that does not.
    """
    wrong = sorted(own.keys() ^ saved.keys()) or [
        name for name in own if own[name].shape != saved[name].shape
    ]
    if wrong:
        raise UserError(
            f"the checkpoint does not fit this run: {len(wrong)} trainable weights differ, first"
            f" {wrong[0]}; resume with the same backbone, adapter.rank and adapter.targets"
        )


def _train_denoiser(denoiser: nn.Module) -> None:
    denoiser.requires_grad_(True)
    if any(p.dtype not in (torch.float32, torch.float64) for p in denoiser.parameters()):
        raise UserError(
            "adapter.rank=0 trains the whole denoiser, whose weights must be float32; load it in"
            " float32"
        )


def _check_start(folder: str, adapter: AdapterSettings) -> None:
    """Raises ``UserError`` naming the setting that differs from the adapter in ``folder``."""
    config = read_adapter(folder)[0]
    if config.use_rslora:
        raise UserError(f"adapter.start {folder} uses rslora, which is not trained here")
    alpha = adapter.rank if adapter.alpha is None else adapter.alpha
    for name, own, found in (
        ("rank", adapter.rank, config.r),
        ("alpha", alpha, config.lora_alpha),
    ):
        if own != found:
            raise UserError(
                f"adapter.start {folder} was trained with {name} {found}, this run has {own}; set"
                f" module.adapter.{name}={found}"
            )
