"""Settings of DDPO: what they may be, and the samplers they describe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.optimizers import check_rates, optimizer_class
from zoo.backbones.lora import add_lora
from zoo.diffusion import Sampler
from zoo.errors import UserError, did_you_mean
from zoo.hub.adapter_files import read_adapter
from zoo.hub.adapters import fill_adapter
from zoo.types import Backbone

CLIP_REFERENCE_ELEMENTS = (
    16384  # Stable Diffusion's 4 x 64 x 64, for which DDPO's clip range of 1e-4 was found
)

_POSITIVE = (
    "sample_steps",
    "sample_batch_size",
    "train_batch_size",
    "updates_per_round",
    "inner_epochs",
    "learning_rate",
    "max_grad_norm",
    "train_step_share",
    "clip_range",
    "advantage_clip",
)
_CHOICES = {
    "train_step_draw": ("sample", "batch"),
    "advantage": ("prompt", "batch", "group", "group_global"),
    "on_bad_reward": ("stop", "drop"),
    "long_prompts": ("stop", "drop"),
    "text_encoders": ("keep", "offload", "drop"),
    "decoder": ("keep", "offload"),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises ``UserError`` naming the first setting that cannot work."""
    check_rates(settings)
    if settings["detach_unconditional"] and settings["guidance_scale"] == 0:
        raise UserError(
            "guidance_scale 0 uses the unconditional branch alone, and detach_unconditional=true "
            "keeps gradients out of it: nothing would be trained; change one of them"
        )
    for name in _POSITIVE:
        if not settings[name] > 0:
            raise UserError(f"{name} must be positive, got {settings[name]}")
    for name, allowed in _CHOICES.items():
        if settings[name] not in allowed:
            raise UserError(
                f"{name} {settings[name]!r} is unknown;"
                f" {did_you_mean(str(settings[name]), allowed)}"
            )
    if settings["decay_rounds"] is not None and settings["decay_rounds"] < 1:
        raise UserError(
            "decay_rounds must be at least 1 (or null for a constant rate), got"
            f" {settings['decay_rounds']}"
        )
    if settings["clip_reference_elements"] is not None and settings["clip_reference_elements"] < 1:
        raise UserError(
            "clip_reference_elements must be at least 1 (or null to take clip_range as it is), got "
            f"{settings['clip_reference_elements']}"
        )
    if settings["train_step_share"] > 1:
        raise UserError(
            "train_step_share is a share of the steps, at most 1, got"
            f" {settings['train_step_share']}"
        )
    optimizer_class(settings["optimizer"])
    for name in ("kl_weight", "lora_rank", "reward_workers"):
        if not 0 <= settings[name] < math.inf:
            raise UserError(f"{name} must be at least 0, got {settings[name]}")
    if settings["lora_rank"] == 0 and settings["kl_weight"] > 0:
        raise UserError(
            "kl_weight > 0 compares with the base model, which is the adapter switched off; set"
            " lora_rank >= 1"
        )
    check = settings["ratio_check"]
    if check != "auto" if isinstance(check, str) else not check >= 0:
        raise UserError(f"ratio_check must be auto, true, false or a tolerance, got {check!r}")


def _plain(eta: float | Sequence[float]) -> float | tuple[float, ...]:
    return float(eta) if isinstance(eta, (int, float)) else tuple(float(value) for value in eta)


def samplers(settings: Mapping[str, Any]) -> tuple[Sampler, Sampler]:
    """(of training, of evaluation); what evaluation leaves as None is as in training.

    Raises ``UserError``.
    """
    s = settings
    training = Sampler(
        s["sample_steps"],
        s["guidance_scale"],
        _plain(s["eta"]),
        s["rule"],
        s["detach_unconditional"],
    )
    steps, scale, eta = s["eval_sample_steps"], s["eval_guidance_scale"], s["eval_eta"]
    if eta is None and steps not in (None, training.steps) and isinstance(training.eta, tuple):
        raise UserError(
            "eval_sample_steps differs from sample_steps while eta is one number a step; give"
            " eval_eta too"
        )
    evaluation = Sampler(
        training.steps if steps is None else steps,
        training.guidance_scale if scale is None else scale,
        training.eta if eta is None else _plain(eta),
        (
            training.rule if s["eval_rule"] is None else s["eval_rule"]
        ),  # also a solver, which cannot be trained
        training.detach_unconditional,
    )
    return training, evaluation


def make_trainable(
    backbone: Backbone,
    rank: int,
    alpha: float | None,
    targets: str | Sequence[str],
    init: str,
    start: str | None = None,
) -> None:
    """Freezes ``backbone`` but for an adapter or, with ``rank`` 0, but for its denoiser.

    Args:
        backbone: changed in place.
        rank, alpha, targets, init: of the adapter, as ``zoo.backbones.lora.add_lora`` takes them.
        start: folder of a saved adapter whose weights the new one begins with; it must have been
            trained on this base with the same rank, alpha and targets.

    Raises:
        UserError: as ``add_lora`` does, for a whole denoiser in half precision, and for a start
            that does not fit.
    """
    backbone.requires_grad_(False)
    if start is not None:
        _check_start(start, rank, alpha)
    if rank:
        layers = [m for m in backbone.denoiser.modules() if isinstance(m, nn.Linear)]
        widest = max((min(m.weight.shape) for m in layers), default=rank)
        if rank > widest:
            raise UserError(
                f"invalid lora_rank {rank}: no layer of this backbone has a rank above {widest}; "
                "usual are 4 to 64, and 0 trains the whole denoiser"
            )
        add_lora(backbone, rank, alpha, targets, init)
        if start is not None:
            fill_adapter(backbone.denoiser, start)
        return
    backbone.denoiser.requires_grad_(True)
    if any(p.dtype not in (torch.float32, torch.float64) for p in backbone.denoiser.parameters()):
        raise UserError(
            "lora_rank=0 trains the whole denoiser, whose weights must be float32; load it in"
            " float32"
        )


def _check_start(folder: str, rank: int, alpha: float | None) -> None:
    """Raises ``UserError`` naming the setting that differs from the adapter's in ``folder``."""
    config = read_adapter(folder)[0]
    if config.use_rslora:
        raise UserError(f"start_adapter {folder} uses rslora, which is not trained here")
    own_alpha = rank if alpha is None else alpha
    for name, own, found in (
        ("lora_rank", rank, config.r),
        ("lora_alpha", own_alpha, config.lora_alpha),
    ):
        if own != found:
            raise UserError(
                f"start_adapter {folder} was trained with {name} {found}, this run has {own}; "
                f"set module.{name}={found}"
            )


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
            f" {wrong[0]}; resume with the same backbone, lora_rank and lora_targets"
        )
