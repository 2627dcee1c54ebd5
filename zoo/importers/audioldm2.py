"""AudioLDM 2 from a folder in diffusers layout; every tensor is accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoo.hub.resolve import Located
from zoo.hub.untrusted import read_json
from zoo.importers.audioldm import clap_text_settings, filled, vocoder_settings
from zoo.importers.diffusers_folders import (
    check_folders,
    read_scheduler,
    read_settings,
    read_tokenizer,
)

if TYPE_CHECKING:
    from zoo.backbones.audioldm2 import AudioLDM2

# name of the argument and of the part -> folder
FOLDERS = {
    "unet": "unet",
    "vae": "vae",
    "vocoder": "vocoder",
    "projection": "projection_model",
    "clap_text": "text_encoder",
    "t5": "text_encoder_2",
    "gpt2": "language_model",
}


def open_audioldm2(
    located: Located, *, checkpoint_activations: bool = False, truncate_prompts: bool = False
) -> AudioLDM2:
    """The model of a folder in diffusers layout, float32. As ``open_audioldm``."""
    model = read_folder(located.folder, truncate_prompts)
    model.set_checkpointing(checkpoint_activations)
    return model


def read_folder(folder: Path, truncate_prompts: bool = False) -> AudioLDM2:
    """The model of a folder in diffusers layout: float32, frozen, in eval mode.

    Raises ``FileNotFoundError`` for a missing part and ``UserError`` when tensors are missing,
    left over or of another shape.
    """
    from zoo.backbones.audioldm2 import AudioLDM2

    check_folders(
        folder, (*FOLDERS.values(), "scheduler", "tokenizer", "tokenizer_2"), "AudioLDM 2"
    )
    arguments = _arguments(folder)
    with torch.device("meta"):  # the networks come with their weights below
        model = AudioLDM2(**arguments, truncate_prompts=truncate_prompts)
    return filled(model, folder, FOLDERS)


def _arguments(folder: Path) -> dict[str, Any]:
    import diffusers
    import transformers as tf

    kinds = {
        "unet": diffusers.AudioLDM2UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "projection": diffusers.AudioLDM2ProjectionModel,
        "gpt2": tf.GPT2Config,
    }
    configs = {name: read_settings(folder / FOLDERS[name], kind) for name, kind in kinds.items()}
    clap_tokenizer, clap_max_tokens = read_tokenizer(folder / "tokenizer", "RobertaTokenizer")
    t5_tokenizer, t5_max_tokens = read_tokenizer(folder / "tokenizer_2", "T5Tokenizer")
    return {
        **configs,
        "t5": read_settings(folder / FOLDERS["t5"], tf.T5Config, "t5"),
        "clap_text": clap_text_settings(folder / FOLDERS["clap_text"]),
        "vocoder": vocoder_settings(folder / FOLDERS["vocoder"]),
        "scheduler": read_scheduler(folder),
        "clap_tokenizer": clap_tokenizer,
        "t5_tokenizer": t5_tokenizer,
        "clap_max_tokens": clap_max_tokens,
        "t5_max_tokens": t5_max_tokens,
        "loa_count": int(
            read_json(folder / FOLDERS["gpt2"] / "config.json").get("max_new_tokens") or 8
        ),
    }
