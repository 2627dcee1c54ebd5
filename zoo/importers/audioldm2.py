"""AudioLDM 2 from a folder in diffusers layout (``model_index.json``, one folder a part), strict: every tensor accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoo.backbones.settings import settings_of
from zoo.importers.diffusers_folders import check_folders, read_part, read_scheduler, read_settings, read_tokenizer
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
    import transformers as tf

    from zoo.backbones.mel_codec import VOCODER_KEYS

    kinds = {
        "unet": diffusers.AudioLDM2UNet2DConditionModel, "vae": diffusers.AutoencoderKL, "vocoder": tf.SpeechT5HifiGanConfig,
        "projection": diffusers.AudioLDM2ProjectionModel, "clap_text": tf.ClapTextConfig, "gpt2": tf.GPT2Config,
    }  # fmt: skip
    configs = {name: read_settings(folder / FOLDERS[name], kind) for name, kind in kinds.items()}
    configs["t5"] = read_settings(folder / FOLDERS["t5"], tf.T5Config, "t5")
    clap, vocoder, gpt2 = (read_json(folder / FOLDERS[name] / "config.json") for name in ("clap_text", "vocoder", "gpt2"))
    if "text_config" in clap:  # the whole CLAP is there
        known = settings_of(tf.ClapTextConfig)
        configs["clap_text"] = {key: value for key, value in clap["text_config"].items() if key in known}
        configs["clap_text"]["projection_dim"] = clap.get("projection_dim", 512)
    if vocoder.get("normalize_before", True):
        raise ValueError(f"{folder / 'vocoder'} normalises its mels first (normalize_before), which AudioLDM's vocoder does not")
    vocoder = tf.SpeechT5HifiGanConfig(**configs["vocoder"]).to_dict()  # values by default are not in the file
    clap_tokenizer, clap_max_tokens = read_tokenizer(folder / "tokenizer", "RobertaTokenizer")
    t5_tokenizer, t5_max_tokens = read_tokenizer(folder / "tokenizer_2", "T5Tokenizer")
    return {
        **configs,
        "vocoder": {key: vocoder[key] for key in VOCODER_KEYS},
        "scheduler": read_scheduler(folder),
        "clap_tokenizer": clap_tokenizer,
        "t5_tokenizer": t5_tokenizer,
        "clap_max_tokens": clap_max_tokens,
        "t5_max_tokens": t5_max_tokens,
        "loa_count": int(gpt2.get("max_new_tokens") or 8),
    }
