"""AudioLDM 2 from a folder in diffusers layout (``model_index.json``, one folder a part), strict: every tensor accounted for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.safety import check_safetensors_header, read_json
from zoo.table import ENTRIES

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
# buffers of older versions and the head of the language model: no weights of the networks used here
_NO_WEIGHTS = re.compile(r"(^|\.)(position_ids|attn\.(masked_)?bias|num_batches_tracked)$|^lm_head\.weight$")
_CLAP_AUDIO = re.compile(r"^(audio_model|audio_projection|logit_scale)")


def folder_of(source: str) -> Path:
    """The folder of a zoo name, an ``owner/name`` (pulled when it is not here) or a path. Raises as ``zoo.pull``."""
    from zoo.generation import find_or_pull

    if Path(source).is_dir():
        return Path(source)
    names = [entry.name for entry in ENTRIES.values() if entry.repo_id == source and entry.architecture == "audioldm2"]
    return find_or_pull(names[0] if names else source)


def pulled_audioldm2(name: str, folder: Path) -> AudioLDM2:
    """The model of a zoo entry from its pulled folder."""
    return read_folder(folder)


def read_folder(folder: Path, truncate_prompts: bool = False) -> AudioLDM2:
    """The model of a folder in diffusers layout: float32, frozen, in eval mode.

    Raises ``FileNotFoundError`` for a missing part and ``ValueError`` when tensors are missing, left over or of another shape.
    """
    from zoo.backbones.audioldm2 import AudioLDM2

    missing = [name for name in (*FOLDERS.values(), "scheduler", "tokenizer", "tokenizer_2") if not (folder / name).is_dir()]
    if missing:
        raise FileNotFoundError(f"{folder} is no AudioLDM 2 in diffusers layout: it has no folder {', '.join(missing)}")
    arguments = _arguments(folder)
    with torch.device("meta"):  # the networks come with their weights below
        model = AudioLDM2(**arguments, truncate_prompts=truncate_prompts)
    for name, place in FOLDERS.items():
        owner, attribute = (model.codec if name in ("vae", "vocoder") else model), "denoiser" if name == "unet" else name
        setattr(owner, attribute, _part(getattr(owner, attribute), folder / place))
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
        raise ValueError(f"{folder / 'text_encoder_2'} is a {said['t5'].get('model_type')}, expected t5; speech models read "
                         "phonemes and are not supported")
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
    clap_tokenizer, clap_max_tokens = _tokenizer(folder / "tokenizer", "RobertaTokenizer")
    t5_tokenizer, t5_max_tokens = _tokenizer(folder / "tokenizer_2", "T5Tokenizer")
    return {
        **configs,
        "scheduler": {key: value for key, value in scheduler.items() if not key.startswith("_")},
        "clap_tokenizer": clap_tokenizer,
        "t5_tokenizer": t5_tokenizer,
        "clap_max_tokens": clap_max_tokens,
        "t5_max_tokens": t5_max_tokens,
        "loa_count": int(said["gpt2"].get("max_new_tokens") or 8),
    }


def _tokenizer(folder: Path, kind: str) -> tuple[str, int]:
    """(packed tokenizer, its longest sequence in tokens)."""
    import transformers

    from zoo.conditioners.tokenizer import pack_tokenizer

    tokenizer = getattr(transformers, kind).from_pretrained(str(folder), local_files_only=True)
    return pack_tokenizer(tokenizer.backend_tokenizer.to_str()), min(int(tokenizer.model_max_length), 512)


def _loaded(empty: nn.Module, folder: Path, settings: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    if hasattr(empty, "config_name"):  # diffusers: reads its configuration from the folder, which has been looked at
        return type(empty).from_pretrained(str(folder), torch_dtype=torch.float32, **settings)
    return type(empty).from_pretrained(str(folder), config=empty.config, dtype=torch.float32, **settings)


def _part(empty: nn.Module, folder: Path) -> nn.Module:
    """A network of the class and configuration of ``empty`` with the weights of ``folder``, which are safetensors."""
    from transformers.utils import logging

    for file in folder.glob("*.safetensors"):
        check_safetensors_header(file)
    settings: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it lists CLAP's audio tower as unexpected; what counts is looked at below
    try:
        part, said = _loaded(empty, folder, settings)
    finally:
        logging.set_verbosity(level)
    audio = _CLAP_AUDIO if folder.name == FOLDERS["clap_text"] else re.compile("$^")
    left = [key for key in said["unexpected_keys"] if not _NO_WEIGHTS.search(key) and not audio.match(key)]
    wrong = [f"{len(names)} {what} ({', '.join(map(str, list(names)[:3]))})"
             for what, names in (("missing", sorted(said["missing_keys"])), ("left over", sorted(left)),
                                 ("of another shape", list(said["mismatched_keys"]))) if names]
    if wrong:
        raise ValueError(f"the tensors in {folder} do not fit {type(empty).__name__}: {'; '.join(wrong)}")
    return part
