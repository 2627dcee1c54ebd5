"""AudioLDM from a folder in diffusers layout, strict; shared with AudioLDM 2's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.backbones.library_networks import settings_of
from zoo.errors import UserError
from zoo.hub.resolve import Located
from zoo.hub.untrusted import read_json
from zoo.importers.diffusers_folders import (
    check_folders,
    read_part,
    read_scheduler,
    read_settings,
    read_tokenizer,
)

if TYPE_CHECKING:
    from zoo.backbones.audioldm import AudioLDM

# name of the argument and of the part -> folder
FOLDERS = {"unet": "unet", "vae": "vae", "vocoder": "vocoder", "clap_text": "text_encoder"}
_CLAP_AUDIO = (  # where CLAP's folder holds its other tower too
    r"^(audio_model|audio_projection|logit_scale)"
)


def open_audioldm(
    located: Located, *, checkpoint_activations: bool = False, truncate_prompts: bool = False
) -> AudioLDM:
    """The model of a folder in diffusers layout, float32.

    Args:
        located: the folder, by ``zoo.hub.resolve``.
        checkpoint_activations: the model's ``set_checkpointing``.
        truncate_prompts: texts that are too long are cut instead of refused.

    Raises: as ``read_folder``.
    """
    model = read_folder(located.folder, truncate_prompts)
    model.set_checkpointing(checkpoint_activations)
    return model


def read_folder(folder: Path, truncate_prompts: bool = False) -> AudioLDM:
    """The model of a folder in diffusers layout: float32, frozen, in eval mode.

    Raises ``FileNotFoundError`` for a missing part and ``UserError`` when tensors are missing,
    left over or of another shape.
    """
    import diffusers

    from zoo.backbones.audioldm import AudioLDM

    check_folders(folder, (*FOLDERS.values(), "scheduler", "tokenizer"), "AudioLDM")
    tokenizer, max_tokens = read_tokenizer(folder / "tokenizer", "RobertaTokenizer")
    with torch.device("meta"):  # the networks come with their weights below
        model = AudioLDM(
            unet=read_settings(folder / "unet", diffusers.UNet2DConditionModel),
            vae=read_settings(folder / "vae", diffusers.AutoencoderKL),
            vocoder=vocoder_settings(folder / "vocoder"),
            clap_text=clap_text_settings(folder / "text_encoder"),
            scheduler=read_scheduler(folder),
            clap_tokenizer=tokenizer,
            max_tokens=max_tokens,
            truncate_prompts=truncate_prompts,
        )
    return filled(model, folder, FOLDERS)


def filled(model: nn.Module, folder: Path, folders: Mapping[str, str]) -> nn.Module:
    """``model`` with the weights of its parts (name -> place in ``folder``).

    Raises ``UserError`` as ``read_part``.
    """
    for name, place in folders.items():
        owner = model.codec if name in ("vae", "vocoder") else model
        attribute = "denoiser" if name == "unet" else name
        others = _CLAP_AUDIO if name == "clap_text" else "$^"
        setattr(owner, attribute, read_part(getattr(owner, attribute), folder / place, others))
    return model.eval().requires_grad_(False)


def clap_text_settings(folder: Path) -> dict[str, Any]:
    """The configuration of CLAP's text tower, also from the folder of a whole CLAP."""
    from transformers import ClapTextConfig

    config = read_json(folder / "config.json")
    if "text_config" not in config:
        return read_settings(folder, ClapTextConfig)
    known = settings_of(ClapTextConfig)
    settings = {key: value for key, value in config["text_config"].items() if key in known}
    return settings | {"projection_dim": config.get("projection_dim", 512)}


def vocoder_settings(folder: Path) -> dict[str, Any]:
    """The configuration of the vocoder, defaults filled in.

    Raises ``UserError`` for one that normalises its mels.
    """
    from transformers import SpeechT5HifiGanConfig

    from zoo.backbones.mel_codec import VOCODER_KEYS

    if read_json(folder / "config.json").get("normalize_before", True):
        raise UserError(
            f"{folder} normalises its mels first (normalize_before), which AudioLDM's vocoder"
            " does not"
        )
    whole = SpeechT5HifiGanConfig(
        **read_settings(folder, SpeechT5HifiGanConfig)
    ).to_dict()  # defaults are not in the file
    return {key: whole[key] for key in VOCODER_KEYS}
