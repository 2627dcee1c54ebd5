"""Adapters of a backbone: saved, loaded, stacked with strengths, and merged into the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from zoo.backbones.lora import adapted
from zoo.errors import UserError
from zoo.hub.adapter_files import check_base, read_adapter, write_adapter
from zoo.hub.resolve import Located
from zoo.types import Backbone

if TYPE_CHECKING:
    from peft import LoraConfig, LoraModel, PeftModel
    from torch import Tensor


def save_adapter(backbone: Backbone, folder: str | Path) -> Path:
    """Writes the adapter (peft's config and safetensors, and its base); replaces an older folder.

    Raises ``UserError`` without an adapter or with several, ``OSError`` when writing fails (the
    older folder stays then).
    """
    return write_adapter(adapted(backbone), folder)


def load_adapter(backbone: Backbone, folder: str | Path, strength: float = 1.0) -> None:
    """Puts a saved adapter on ``backbone`` (frozen), or into a present one of the same kind.

    An adapter that is already there stays trainable.

    ``strength`` scales its effect: 0 is the base model, 1 the adapter as trained. Every tensor must
    fit. Raises ``UserError`` when files are missing, or made for another denoiser or another base
    (both hashes are named).
    """
    from peft import PeftModel

    if isinstance(backbone.denoiser, PeftModel):
        fill_adapter(backbone.denoiser, folder, strength)
    else:
        stack_adapters(backbone, [(folder, strength)])


def stack_adapters(
    backbone: Backbone,
    adapters: Sequence[tuple[str | Path | Located, float]],
    base_name: str | None = None,
    check_bases: bool = True,
) -> None:
    """Puts saved adapters on ``backbone.denoiser`` in place, frozen.

    y = W x + sum of strength_i * scale_i * B_i A_i x.

    ``adapters``: (folder, strength) pairs; strength 0 is the base model, 1 the adapter as trained,
    negative turns it round.
    ``base_name``: what messages call this base. ``check_bases=False``: no comparison with the base
    an adapter was trained on.
    Leaves torch's random state as it was. Raises ``UserError`` when a file is missing or damaged,
    when an adapter was made for
    another denoiser or another base (both hashes are named), or when there is an adapter already;
    the backbone is unchanged then.
    """
    from peft import PeftModel, get_peft_model

    if isinstance(backbone.denoiser, PeftModel):
        raise UserError(
            "this backbone already has an adapter; load another copy of it, or give all adapters at"
            " once"
        )
    if not adapters:
        raise UserError("no adapter is given; expected (folder, strength) pairs")
    read = []
    for place, strength in adapters:
        if isinstance(place, Located):
            folder, known = place.folder, place.config
        else:
            folder = Path(place)
            known = None
        _check_strength(folder, strength)
        read.append((folder, strength, *read_adapter(folder, known)))
    layers = {
        name: module
        for name, module in backbone.denoiser.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    for folder, _, config, weights, facts in read:
        lost = [
            target
            for target in sorted(config.target_modules or ())
            if not any(name == target or name.endswith("." + target) for name in layers)
        ]
        if lost:
            kind = type(backbone.denoiser).__name__
            raise UserError(
                f"the adapter in {folder} is for another denoiser: {kind} has no {lost[0]!r}"
            )
        _check_shapes(folder, config, weights, layers)
        base = facts.get("base") or {}
        if check_bases:
            check_base(
                backbone.denoiser,
                base.get("sha256") or {},
                f"the adapter in {folder}",
                base.get("name"),
                base_name,
            )
    training = backbone.denoiser.training
    with torch.random.fork_rng(devices=[]):
        _, _, config, *_ = read[0]
        model = cast(
            "PeftModel",
            get_peft_model(
                backbone.denoiser, config, adapter_name=_name(0), autocast_adapter_dtype=True
            ),
        )
        for i, (folder, strength, config, weights, _) in enumerate(read):
            if i > 0:
                model.add_adapter(_name(i), config)
            _fill(model, _name(i), folder, weights, strength)
    tuner = cast("LoraModel", model.base_model)
    tuner.set_adapter([_name(i) for i in range(len(read))], inference_mode=True)
    backbone.denoiser = model.train(training).requires_grad_(False)


def fill_adapter(model: PeftModel, folder: str | Path, strength: float = 1.0) -> None:
    """Loads a saved adapter into the adapter of the same kind that is there, which stays trainable.

    Raises ``UserError`` when it does not fit, or when it was trained on another base.
    """
    _check_strength(folder, strength)
    _, weights, facts = read_adapter(folder)
    base = facts.get("base") or {}
    check_base(model, base.get("sha256") or {}, f"the adapter in {folder}", base.get("name"))
    _fill(model, "default", folder, weights, strength)


def merge_adapters(backbone: Backbone) -> None:
    """Adds the live adapters, at their strengths, to the base weights in place, and removes them.

    Raises ``UserError`` without an adapter, or when merged weights are not finite.
    """
    backbone.denoiser = adapted(backbone).merge_and_unload(safe_merge=True).requires_grad_(False)


def _name(i: int) -> str:
    return "default" if i == 0 else f"adapter_{i}"


def _check_strength(folder: str | Path, strength: float) -> None:
    if (
        isinstance(strength, bool)
        or not isinstance(strength, (int, float))
        or not math.isfinite(strength)
    ):
        raise UserError(
            f"the strength of {folder} must be a finite number (0 the base, 1 as trained), got"
            f" {strength!r}"
        )


def _check_shapes(
    folder: str | Path,
    config: LoraConfig,
    weights: dict[str, Tensor],
    layers: dict[str, torch.nn.Linear],
) -> None:
    """Raises unless every tensor belongs to a target layer of the denoiser and has its shape."""
    targets = config.target_modules or ()
    wanted = {}
    for name, layer in layers.items():
        if any(name == target or name.endswith("." + target) for target in targets):
            wanted[f"base_model.model.{name}.lora_A.weight"] = (config.r, layer.in_features)
            wanted[f"base_model.model.{name}.lora_B.weight"] = (layer.out_features, config.r)
    differing = sorted(wanted.keys() ^ weights.keys()) or [
        name for name in wanted if tuple(weights[name].shape) != wanted[name]
    ]
    if differing:
        raise UserError(
            f"the adapter in {folder} is for another denoiser or rank: {differing[0]} differs"
        )


def _fill(
    model: PeftModel, name: str, folder: str | Path, weights: dict[str, Tensor], strength: float
) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    differing = sorted(own.keys() ^ weights.keys()) or [
        key for key in own if own[key].shape != weights[key].shape
    ]
    if differing:
        raise UserError(
            f"the adapter in {folder} is for another denoiser or rank: {differing[0]} differs"
        )
    set_peft_model_state_dict(model, weights, adapter_name=name)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(name, strength)
