"""Stable Audio Open from a folder in diffusers layout, strict: every tensor accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoo.importers.diffusers_folders import check_folders, read_part, read_tokenizer
from zoo.safety import read_json

if TYPE_CHECKING:
    from zoo.backbones.stable_audio import StableAudio

# argument -> folder
FOLDERS = {"transformer": "transformer", "vae": "vae", "text_encoder": "text_encoder", "projection": "projection_model"}
_SCHEDULER = "CosineDPMSolverMultistepScheduler"


def pulled_stable_audio(name: str, folder: Path) -> StableAudio:
    """The model of a zoo entry from its pulled folder."""
    return read_folder(folder)


def read_folder(folder: Path, **settings: Any) -> StableAudio:
    """The model of a folder: float32, frozen, in eval mode. ``settings``: knobs of ``StableAudio`` (``frame_window`` ...).

    Raises ``FileNotFoundError`` for a missing part and ``ValueError`` when tensors are missing, left over or of another shape.
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

    from zoo.backbones.audioldm2 import settings_of

    kinds = {
        "transformer": diffusers.StableAudioDiTModel, "vae": diffusers.AutoencoderOobleck,
        "text_encoder": transformers.T5Config, "projection": diffusers.StableAudioProjectionModel,
    }  # fmt: skip
    said = {name: read_json(folder / place / "config.json") for name, place in FOLDERS.items()}
    if said["text_encoder"].get("model_type") != "t5":
        raise ValueError(f"{folder / 'text_encoder'} is a {said['text_encoder'].get('model_type')}, expected t5")
    configs = {}
    for name, kind in kinds.items():  # without what the libraries note about themselves
        known = settings_of(kind)
        configs[name] = {key: value for key, value in said[name].items() if key in known}
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    if scheduler.get("_class_name") != _SCHEDULER:
        raise ValueError(f"{folder / 'scheduler'} is a {scheduler.get('_class_name')}, expected {_SCHEDULER}")
    tokenizer, max_tokens = read_tokenizer(folder / "tokenizer", "T5Tokenizer")
    return {
        **configs,
        "scheduler": {key: value for key, value in scheduler.items() if not key.startswith("_")},
        "tokenizer": tokenizer,
        "max_tokens": max_tokens,
    }
