"""Low-rank adapters (LoRA, arXiv 2106.09685) on a backbone's denoiser, through peft.

With the adapter off, the backbone is its base model.

``zoo.hub.adapters`` saves, loads, stacks and merges them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from zoo.errors import UserError, did_you_mean
from zoo.types import Backbone

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

# Of alpha / rank. More is a mistake, or made to do harm: the model gives noise then.
LARGEST_SCALE = 1000.0
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out", "to_out.0")


def attention_linears(denoiser: nn.Module, *, cross_only: bool = False) -> list[str]:
    """Full names of the linear layers ``to_q``, ``to_k``, ``to_v``, ``to_out`` of all attentions.

    ``to_out`` may be ``to_out.0``.

    ``cross_only``: of blocks whose attribute ``is_cross_attention`` is true (diffusers sets it; so
    does ``zoo.backbones.tiny``).
    """
    modules = dict(denoiser.named_modules())
    names = []
    for name, module in modules.items():
        suffix = next((p for p in PROJECTIONS if name == p or name.endswith("." + p)), None)
        if suffix is None or not isinstance(module, nn.Linear):
            continue
        parent = modules[name[: -len(suffix)].rstrip(".")]
        if not cross_only or getattr(parent, "is_cross_attention", False):
            names.append(name)
    return names


def _target_names(denoiser: nn.Module, targets: str | Sequence[str]) -> list[str]:
    if isinstance(targets, str):
        if targets not in ("cross", "all"):
            raise UserError(
                f"targets {targets!r} is unknown; expected 'cross', 'all' or a list of layer names"
            )
        names = attention_linears(denoiser, cross_only=targets == "cross")
        if not names:
            kind = "cross-attention" if targets == "cross" else "attention"
            raise UserError(
                f"{type(denoiser).__name__} has no {kind} layer named {', '.join(PROJECTIONS)}"
                + (" in a block with is_cross_attention" if targets == "cross" else "")
                + "; give targets as a list of layer names"
            )
        return names
    if not targets:
        raise UserError(
            "targets is an empty list, so nothing would learn; expected 'cross', 'all' or names of"
            " layers"
        )
    linears = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in linears):
            raise UserError(
                f"{type(denoiser).__name__} has no linear layer {target!r};"
                f" {did_you_mean(target, linears)}"
            )
    return [name for name in linears if any(name == t or name.endswith("." + t) for t in targets)]


def add_lora(
    backbone: Backbone,
    rank: int,
    alpha: float | None = None,
    targets: str | Sequence[str] = "cross",
    init: str = "default",
    dropout: float = 0.0,
) -> None:
    """Puts a new adapter on ``backbone.denoiser`` in place; only its weights need gradients.

    Adapter weights are float32 also on a half-precision denoiser. The adapter changes nothing at
    first.

    Args:
        backbone: whose denoiser is wrapped.
        rank: width of the two thin matrices.
        alpha: scales the adapter by alpha / rank (None: alpha = rank).
        targets: "cross" (cross-attention), "all" (every attention) or names of linear layers.
        init: "default" (Kaiming, zero) or "gaussian" (Gaussian, zero).
        dropout: other than 0 it makes importance ratios leave 1 in train mode.

    Raises: ``UserError`` for invalid numbers, when no layer matches, or when an adapter is there
        already.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(backbone.denoiser, PeftModel):
        raise UserError(
            "this backbone already has an adapter; load it without one (DDPO continues training a"
            " saved adapter with module.adapter.start=FOLDER)"
        )
    if int(rank) != rank or rank < 1:
        raise UserError(f"the LoRA rank must be a whole number of at least 1, got {rank}")
    alpha = rank if alpha is None else alpha
    check_alpha(alpha, rank, "the LoRA alpha")
    if not 0 <= dropout < 1:
        raise UserError(f"the LoRA dropout must be in [0, 1), got {dropout}")
    if init not in ("default", "gaussian"):
        raise UserError(
            f"the LoRA init {init!r} is unknown; {did_you_mean(init, ('default', 'gaussian'))}"
        )
    config = LoraConfig(
        r=int(rank),
        lora_alpha=alpha,
        target_modules=_target_names(backbone.denoiser, targets),
        lora_dropout=dropout,
        init_lora_weights=True if init == "default" else init,
        bias="none",
    )
    training = backbone.denoiser.training
    backbone.denoiser = get_peft_model(
        backbone.denoiser, config, autocast_adapter_dtype=True
    ).train(training)


def check_alpha(alpha: float, rank: int, what: str) -> None:
    """Raises ``UserError`` unless alpha / rank of an adapter is in (0, ``LARGEST_SCALE``]."""
    if not (math.isfinite(alpha) and 0 < alpha <= LARGEST_SCALE * rank):
        raise UserError(
            f"{what} must be a positive number of at most {LARGEST_SCALE:g} times the rank {rank},"
            f" got {alpha}: the adapter counts alpha / rank times, usually 1 or 2"
        )


def adapted(backbone: Backbone) -> PeftModel:
    """The denoiser with its live adapter. Raises ``UserError`` without one."""
    from peft import PeftModel

    if not isinstance(backbone.denoiser, PeftModel):
        raise UserError("this backbone has no adapter; call add_lora or load_adapter first")
    return backbone.denoiser


@dataclass(frozen=True)
class AdapterSwitch:
    """Turns a backbone's adapter off for a while: ``with adapter_off(): ...``.

    Inside, the backbone is bitwise its base model. The modules are searched once, when the switch
    is made, so it leaves adapters that are added later as they are.
    """

    layers: tuple[BaseTunerLayer, ...]
    frozen: tuple[nn.Parameter, ...]  # peft makes all of an adapter trainable when it comes back

    @staticmethod
    def of(backbone: Backbone) -> AdapterSwitch:
        """Raises ``UserError`` without an adapter."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        model = adapted(backbone)
        layers = tuple(layer for layer in model.modules() if isinstance(layer, BaseTunerLayer))
        own = [
            parameter
            for layer in layers
            for name in layer.adapter_layer_names
            for parameter in getattr(layer, name).parameters()
        ]
        return AdapterSwitch(layers, tuple(p for p in own if not p.requires_grad))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        on = [layer for layer in self.layers if not layer.disable_adapters]
        try:
            for layer in on:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in on:
                layer.enable_adapters(True)
            for parameter in self.frozen:
                parameter.requires_grad_(False)


def reference(backbone: Backbone) -> AbstractContextManager[None]:
    """Inside, the adapter is off: the backbone is bitwise its base model.

    Raises ``UserError`` without an adapter.
    """
    return AdapterSwitch.of(backbone)()
