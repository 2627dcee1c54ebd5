"""What a run of ``Denoising`` leaves: its facts, its best weights, and its model or adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.training_settings import (
    ON_CARD,
    TRAINABLE,
    AdapterSettings,
    card_settings,
)
from zoo.errors import UserError
from zoo.files import written_beside
from zoo.hub.adapter_files import base_hashes, check_base
from zoo.hub.adapters import save_adapter
from zoo.hub.artifact import save_artifact, save_weights
from zoo.hub.run_facts import AdapterFacts, RunFacts
from zoo.signatures import plain_defaults
from zoo.types import Backbone

_ON_CARD = (
    *ON_CARD,
    "optimizer.schedule",
    "adapter.rank",
    "min_snr_gamma",
    "min_snr_form",
    "pretrain_weight",
    "beta",
    "winner_weight",
    "sft_epochs",
    "ema_decay",
)


def denoising_facts(kind: type, arguments: Mapping[str, Any]) -> RunFacts:
    """What a run of ``kind`` with these ``arguments`` (plain values) states about itself."""
    memory = arguments.get("memory") or {}
    given = arguments.get("adapter")
    settings = card_settings(arguments, *_ON_CARD)
    if given is None:
        learned = tuple(arguments.get("trainable", TRAINABLE))
        is_whole = memory.get("text_encoders") != "drop"
        kept = "whole" if is_whole else "learned"
        return RunFacts(kind.__name__, learned=learned, checkpoint=kept, settings=settings)
    adapter = {**plain_defaults(AdapterSettings), **given}
    names = ("rank", "alpha", "targets", "init")
    return RunFacts(
        kind.__name__,
        learned=("denoiser",),
        adapter=AdapterFacts(*(adapter[name] for name in names)) if adapter["rank"] else None,
        checkpoint="learned",
        settings=settings,
        started_from=adapter["start"],
    )


def best_state(error: float, epoch: int, parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """The weights of an epoch, and their error, as plain values for a checkpoint."""
    weights = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    return {"error": error, "epoch": epoch, "weights": weights}


def checked_best(
    saved: dict[str, Any] | None, parameters: Sequence[nn.Parameter]
) -> dict[str, Any] | None:
    """What ``best_state`` gave, from a checkpoint. Raises ``UserError`` where it does not fit."""
    if saved is None:
        return None
    shapes = [tuple(weight.shape) for weight in saved["weights"]]
    if shapes != [tuple(parameter.shape) for parameter in parameters]:
        raise UserError(
            "the best weights in the checkpoint are of other parameters; resume with the same"
            " backbone, trainable and adapter"
        )
    return saved


def same_base(backbone: Backbone, recorded: Mapping[str, str]) -> dict[str, str]:
    """The hashes of the base of an adapter.

    Raises ``UserError`` where ``recorded``, those of the first start of a resumed run, differ.
    """
    first = "the base of its first start"
    check_base(backbone.denoiser, recorded, "the run to resume", first)
    return base_hashes(backbone.denoiser)


def write_model(
    backbone: Backbone, out_dir: Path, adapter: AdapterSettings | None, learned_only: bool
) -> None:
    """Writes what was learned, so that ``zoo.open_model(out_dir)`` plays it.

    - with an adapter: ``adapter/`` in peft's layout;
    - with ``learned_only`` otherwise: ``denoiser.safetensors``, the weights of the denoiser;
    - a backbone of ``zoo.backbones.BACKBONES``: ``model/``, whole, in half precision;
    - any other backbone has no artefact form: ``backbone.safetensors``, all its weights, and the
      run's config.yaml says how to build it.
    """
    if adapter is not None and adapter.rank:
        save_adapter(backbone, out_dir / "adapter")
        return
    if learned_only:
        from safetensors.torch import save_model

        with written_beside(out_dir / "denoiser.safetensors") as part:
            save_model(backbone.denoiser, str(part))
        return
    architecture = _architecture(backbone)
    if architecture is None or not hasattr(backbone, "arguments"):
        state: dict[str, Tensor] = backbone.state_dict()
        save_weights(state, out_dir / "backbone.safetensors")
        return
    save_artifact(
        out_dir / "model",
        kind="backbone",
        architecture=architecture,
        arguments=backbone.arguments,
        module=backbone,
        dtype=torch.float16,
    )


def _architecture(backbone: Backbone) -> str | None:
    from zoo.backbones import BACKBONES

    here = f"{type(backbone).__module__}:{type(backbone).__name__}"
    return next((key for key, place in BACKBONES.items() if place == here), None)
