"""Stable Audio Open from a folder in diffusers layout, strict: every tensor accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from zoo.hub.resolve import Located
from zoo.importers.diffusers_folders import (
    check_folders,
    read_part,
    read_scheduler,
    read_settings,
    read_tokenizer,
)

if TYPE_CHECKING:
    from zoo.backbones.stable_audio import StableAudio

# argument -> folder
FOLDERS = {
    "transformer": "transformer",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "projection": "projection_model",
}
_SCHEDULER = "CosineDPMSolverMultistepScheduler"


def open_stable_audio(
    located: Located,
    *,
    checkpoint_activations: bool = False,
    frame_window: Literal["heard", "bewo"] | None = None,
    seconds_start: float = 0.0,
    seconds_total: float | None = None,
    truncate_prompts: bool = False,
) -> StableAudio:
    """The model of a folder in diffusers layout, float32.

    Args:
        located: the folder, by ``zoo.hub.resolve``.
        checkpoint_activations: the model's ``set_checkpointing``.
        frame_window, seconds_start, seconds_total, truncate_prompts: as ``StableAudio`` takes them.

    Raises: as ``read_folder``.
    """
    model = read_folder(
        located.folder,
        frame_window=frame_window,
        seconds_start=seconds_start,
        seconds_total=seconds_total,
        truncate_prompts=truncate_prompts,
    )
    model.set_checkpointing(checkpoint_activations)
    return model


def read_folder(folder: Path, **settings: Any) -> StableAudio:
    """The model of a folder: float32, frozen, in eval mode.

    ``settings``: knobs of ``StableAudio`` (``frame_window`` ...).

    Raises ``FileNotFoundError`` for a missing part and ``UserError`` when tensors are missing,
    left over or of another shape.
    """
    from zoo.backbones.stable_audio import StableAudio

    check_folders(folder, (*FOLDERS.values(), "scheduler", "tokenizer"), "Stable Audio")
    arguments = _arguments(folder)
    with torch.device("meta"):  # the networks come with their weights below
        model = StableAudio(**arguments, **settings)
    model.denoiser = read_part(model.denoiser, folder / FOLDERS["transformer"])
    model.codec.vae = read_part(model.codec.vae, folder / FOLDERS["vae"])
    model.text.encoder = read_part(model.text.encoder, folder / FOLDERS["text_encoder"])
    model.projection = read_part(model.projection, folder / FOLDERS["projection"])
    return model.eval().requires_grad_(False)


def _arguments(folder: Path) -> dict[str, Any]:
    import diffusers
    import transformers

    kinds = {
        "transformer": diffusers.StableAudioDiTModel,
        "vae": diffusers.AutoencoderOobleck,
        "projection": diffusers.StableAudioProjectionModel,
    }
    tokenizer, max_tokens = read_tokenizer(folder / "tokenizer", "T5Tokenizer")
    return {
        **{name: read_settings(folder / FOLDERS[name], kind) for name, kind in kinds.items()},
        "text_encoder": read_settings(
            folder / FOLDERS["text_encoder"], transformers.T5Config, "t5"
        ),
        "scheduler": read_scheduler(folder, _SCHEDULER),
        "tokenizer": tokenizer,
        "max_tokens": max_tokens,
    }
