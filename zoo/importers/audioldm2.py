"""AudioLDM 2 from a folder in diffusers layout (``model_index.json``, one folder a part), strict: every tensor accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoo.importers.diffusers_folders import check_folders, read_part, read_tokenizer
from zoo.safety import read_json

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
_CLAP_AUDIO = r"^(audio_model|audio_projection|logit_scale)"  # in CLAP's folder: its other tower


def pulled_audioldm2(name: str, folder: Path) -> AudioLDM2:
    """The model of a zoo entry from its pulled folder."""
    return read_folder(folder)


def read_folder(folder: Path, truncate_prompts: bool = False) -> AudioLDM2:
    """The model of a folder in diffusers layout: float32, frozen, in eval mode.

    Raises ``FileNotFoundError`` for a missing part and ``ValueError`` when tensors are missing, left over or of another shape.
    """
    from zoo.backbones.audioldm2 import AudioLDM2

    check_folders(folder, (*FOLDERS.values(), "scheduler", "tokenizer", "tokenizer_2"), "AudioLDM 2")
    arguments = _arguments(folder)
    with torch.device("meta"):  # the networks come with their weights below
        model = AudioLDM2(**arguments, truncate_prompts=truncate_prompts)
    for name, place in FOLDERS.items():
        owner, attribute = (model.codec if name in ("vae", "vocoder") else model), "denoiser" if name == "unet" else name
        others = _CLAP_AUDIO if name == "clap_text" else "$^"
        setattr(owner, attribute, read_part(getattr(owner, attribute), folder / place, others))
    return model.eval().requires_grad_(False)


def _arguments(folder: Path) -> dict[str, Any]:
    import diffusers
    import transformers

    from zoo.backbones.audioldm2 import settings_of
    from zoo.backbones.mel_codec import _VOCODER_KEYS

    kinds = {
        "unet": diffusers.AudioLDM2UNet2DConditionModel, "vae": diffusers.AutoencoderKL,
        "vocoder": transformers.SpeechT5HifiGanConfig, "projection": diffusers.AudioLDM2ProjectionModel,
        "clap_text": transformers.ClapTextConfig, "t5": transformers.T5Config, "gpt2": transformers.GPT2Config,
    }  # fmt: skip
    said = {name: read_json(folder / place / "config.json") for name, place in FOLDERS.items()}
    if said["t5"].get("model_type") != "t5":
        raise ValueError(
            f"{folder / 'text_encoder_2'} is a {said['t5'].get('model_type')}, expected t5; speech models read "
            "phonemes and are not supported"
        )
    if said["vocoder"].get("normalize_before", True):
        raise ValueError(f"{folder / 'vocoder'} normalises its mels first (normalize_before), which AudioLDM's vocoder does not")
    if "text_config" in said["clap_text"]:
        clap = said["clap_text"]
        said["clap_text"] = {**clap["text_config"], "projection_dim": clap.get("projection_dim", 512)}
    configs = {}
    for name, kind in kinds.items():  # without what the libraries note about themselves
        known = settings_of(kind)
        configs[name] = {key: value for key, value in said[name].items() if key in known}
    vocoder = transformers.SpeechT5HifiGanConfig(**configs["vocoder"]).to_dict()  # values by default are not in the file
    configs["vocoder"] = {key: vocoder[key] for key in _VOCODER_KEYS}
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    clap_tokenizer, clap_max_tokens = read_tokenizer(folder / "tokenizer", "RobertaTokenizer")
    t5_tokenizer, t5_max_tokens = read_tokenizer(folder / "tokenizer_2", "T5Tokenizer")
    return {
        **configs,
        "scheduler": {key: value for key, value in scheduler.items() if not key.startswith("_")},
        "clap_tokenizer": clap_tokenizer,
        "t5_tokenizer": t5_tokenizer,
        "clap_max_tokens": clap_max_tokens,
        "t5_max_tokens": t5_max_tokens,
        "loa_count": int(said["gpt2"].get("max_new_tokens") or 8),
    }
