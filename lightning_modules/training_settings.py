"""Settings of training on clean audio, and the checks that all records of settings share.

Each record is one node of a configuration.

Every record checks itself when it is built (``UserError``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_modules.optimizers import optimizer_class
from zoo.errors import UserError, did_you_mean

TRAINABLE = ("denoiser", "text", "duration", "spatial")  # parts that learn by default
SCHEDULES = ("cosine", "linear", "constant")
EncoderPlace = Literal["keep", "offload", "drop"]
DecoderPlace = Literal["keep", "offload"]


@dataclass(frozen=True)
class ScheduleSettings:
    """How weights follow their gradients, and how the learning rate changes from step to step.

    Args:
        name: one of ``lightning_modules.optimizers.OPTIMIZERS``.
        learning_rate: the highest one.
        schedule: after the warm-up the rate falls along a "cosine" to 2 %, falls in a straight line
            to 0 ("linear"), or stays ("constant").
        total_steps: optimiser steps until it has fallen; None: all that the trainer will take.
        warmup_steps: of them, those in which the rate rises; 0: it begins at its highest.
        betas, epsilon, weight_decay: of AdamW; the decay is of all weights.
        max_grad_norm: the norm of the gradient is cut to this before each step; None: never.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    total_steps: int | None = 3000
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        optimizer_class(self.name)
        require_choice(self, "schedule", SCHEDULES)
        require_not_negative(self, "learning_rate", "epsilon", "weight_decay", "warmup_steps")
        require_positive(self, "total_steps", otherwise="null (all steps of the run)")
        require_positive(self, "max_grad_norm", otherwise="null (gradients are not cut)")
        require_betas(self)
        if self.total_steps is not None and self.warmup_steps >= self.total_steps:
            raise UserError(
                f"warmup_steps must be less than total_steps, got {self.warmup_steps} and"
                f" {self.total_steps}"
            )


@dataclass(frozen=True)
class AdapterSettings:
    """What is trained.

    Args:
        rank: of the LoRA adapter; 0: the whole denoiser, without an adapter.
        alpha: scale of the adapter; None: the rank.
        targets: "cross", "all", or names of layers, as ``zoo.backbones.lora.add_lora`` takes them.
        init: how the adapter begins, as ``add_lora`` takes it.
        start: folder of another run's ``adapter/`` to begin with; it must have been trained on the
            same base with the same rank, alpha and targets. The reference model of the KL stays the
            base model.
    """

    rank: int = 8
    alpha: float | None = None
    targets: str | list[str] = "cross"
    init: str = "gaussian"
    start: str | None = None

    def __post_init__(self) -> None:
        require_not_negative(self, "rank")


@dataclass(frozen=True)
class MemorySettings:
    """The place of parts of the backbone that are not always needed.

    Args:
        text_encoders: once all prompts are encoded: "keep" them, "offload" them to main memory, or
            "drop" them.
        decoder: during updates: "keep" it, or "offload" it to main memory.
    """

    text_encoders: EncoderPlace = "keep"
    decoder: DecoderPlace = "keep"

    def __post_init__(self) -> None:
        require_choice(self, "text_encoders", get_args(EncoderPlace))
        require_choice(self, "decoder", get_args(DecoderPlace))


@dataclass(frozen=True)
class Degradations:
    """What training does to recordings, so that a judge of generated audio has heard worse ones.

    Args:
        noise_share: share of a batch that gets white noise.
        snr_db: range of its signal-to-noise ratio.
        codec_share: share of a batch that goes through the codec.
        codec_latent_noise: largest noise on its latents, as a share of their standard deviation.
    """

    noise_share: float = 0.2
    snr_db: tuple[float, float] = (5.0, 40.0)
    codec_share: float = 0.25
    codec_latent_noise: float = 0.3

    def __post_init__(self) -> None:
        require_share(self, "noise_share", "codec_share")
        require_range(self, "snr_db")


def require_share(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise UserError(f"invalid {name} {value}: expected a share of the batch, 0 to 1")


def require_range(settings: Any, *names: str) -> None:
    for name in names:
        low, high = getattr(settings, name)
        if not low <= high:
            raise UserError(f"invalid {name} {[low, high]}: expected a lower and an upper bound")


def require_positive(settings: Any, *names: str, otherwise: str | None = None) -> None:
    """``otherwise``: what None means, where a setting may be None."""
    for name in names:
        value = getattr(settings, name)
        if value is None and otherwise is not None:
            continue
        if value is None or not value > 0:
            expected = "a number > 0" + (f", or {otherwise}" if otherwise else "")
            raise UserError(f"invalid {name} {value}: expected {expected}")


def require_finite(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not math.isfinite(value):
            raise UserError(f"invalid {name} {value}: expected a finite number")


def require_not_negative(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value < math.inf:
            raise UserError(f"invalid {name} {value}: expected a number >= 0")


def require_betas(settings: Any) -> None:
    if not all(0 <= beta < 1 for beta in settings.betas):
        raise UserError(f"invalid betas {tuple(settings.betas)}: expected two numbers >= 0 and < 1")


def require_choice(settings: Any, name: str, choices: Collection[str]) -> None:
    value = getattr(settings, name)
    if value not in choices:
        raise UserError(f"invalid {name} {value!r}; {did_you_mean(str(value), choices)}")


# Where settings were before they were grouped: old key -> new one.
MOVED_OPTIMIZER: Mapping[str, str] = {
    "optimizer": "optimizer.name",
    "learning_rate": "optimizer.learning_rate",
    "total_steps": "optimizer.total_steps",
    "warmup_steps": "optimizer.warmup_steps",
    "weight_decay": "optimizer.weight_decay",
    "max_grad_norm": "optimizer.max_grad_norm",
}
MOVED_DEGRADATIONS: Mapping[str, str] = {
    "noise_share": "degradations.noise_share",
    "snr_db": "degradations.snr_db",
    "codec_share": "degradations.codec_share",
    "codec_latent_noise": "degradations.codec_latent_noise",
}


ON_CARD = ("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.total_steps")


def card_settings(arguments: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The settings at dotted ``keys`` that a configuration states, for the card of an export."""
    found: dict[str, Any] = {}
    for key in keys:
        node, _, name = key.rpartition(".")
        value = (arguments.get(node) or {} if node else arguments).get(name)
        if value is not None:
            found[key] = value
    return found
