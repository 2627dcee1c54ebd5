"""TangoFlux as its authors released it:

``config.json``, ``tangoflux.safetensors`` and ``vae.safetensors``, strict.

The tokenizer is not in it (google/flan-t5-large). The codec's file has diffusers' own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.backbones.tangoflux import TEXT_ENCODER, TRANSFORMER, VAE, TangoFlux
from zoo.conditioners.tokenizer import pack_tokenizer
from zoo.errors import UserError
from zoo.hub.resolve import Located
from zoo.hub.untrusted import check_safetensors_header, file_inside, read_json
from zoo.hub.weights import blobs_of, refuse_wrong_numbers
from zoo.importers.tango import TEXT_ENCODER_REPO, tokenizer_text, with_both_names

CONFIG_FILE = "config.json"
MAIN_FILE = "tangoflux.safetensors"
VAE_FILE = "vae.safetensors"
# prefix in their file -> in ours (the third is spelt like this there)
_PREFIXES = {
    "transformer": "denoiser",
    "text_encoder": "text.encoder",
    "fc": "fc",
    "duration_emebdder": "duration",
}
_SIZES = (
    "num_layers",
    "num_single_layers",
    "in_channels",
    "attention_head_dim",
    "joint_attention_dim",
    "num_attention_heads",
)


def open_tangoflux(
    located: Located,
    *,
    checkpoint_activations: bool = False,
    frame_window: Literal["heard", "bewo"] | None = None,
    tokenizer: str | Path | None = None,
) -> TangoFlux:
    """The model of a released folder, float32.

    Args:
        located: the folder, by ``zoo.hub.resolve``.
        checkpoint_activations: the model's ``set_checkpointing``.
        frame_window: as ``TangoFlux`` takes it.
        tokenizer: the tokenizer.json of google/flan-t5-large, or its folder; by default one that
            is in the model's folder, else the Hub's.

    Raises: as ``load_tangoflux``.
    """
    model = load_tangoflux(located.folder, tokenizer, frame_window=frame_window)
    model.set_checkpointing(checkpoint_activations)
    return model


def load_tangoflux(
    folder: str | Path,
    tokenizer: str | Path | None = None,
    *,
    text_encoder: Mapping[str, Any] = TEXT_ENCODER,
    vae: Mapping[str, Any] = VAE,
    transformer: Mapping[str, Any] = TRANSFORMER,
    frame_window: Literal["heard", "bewo"] | None = None,
) -> TangoFlux:
    """The model of a released folder, float32 on the CPU, frozen and in eval mode.

    Every tensor of its files is accounted for.

    Args:
        folder: the released folder.
        tokenizer: see ``zoo.importers.tango.tokenizer_text``.
        text_encoder, vae, transformer: sizes that the folder does not state; as released, unless
            you trained others.
        frame_window: as ``TangoFlux`` takes it.

    Raises: ``FileNotFoundError`` for missing files, ``UserError`` for tensors that are missing,
        unknown or of another shape, and for another text encoder.
    """
    folder = Path(folder)
    config = read_json(_file(folder, CONFIG_FILE))
    if config.get("text_encoder_name", TEXT_ENCODER_REPO) != TEXT_ENCODER_REPO:
        raise UserError(
            f"{folder / CONFIG_FILE}: text_encoder_name is {config['text_encoder_name']!r}; the"
            f" released model has {TEXT_ENCODER_REPO!r}, and no other is known here"
        )
    sizes = {**transformer, **{key: int(config[key]) for key in _SIZES if key in config}}
    words = pack_tokenizer(tokenizer_text(folder, tokenizer))
    with torch.device("meta"):
        model = TangoFlux(
            {**sizes, "pooled_projection_dim": text_encoder["d_model"]},
            text_encoder,
            vae,
            words,
            frames=int(config.get("audio_seq_len", 645)),
            max_seconds=config.get("max_duration", 30),
            frame_window=frame_window,
        )
    state = main_state(_tensors(folder, MAIN_FILE), str(folder / MAIN_FILE))
    state |= {f"codec.vae.{name}": tensor for name, tensor in _tensors(folder, VAE_FILE).items()}
    refuse_wrong_numbers(state, model.state_dict(), str(folder))
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(f"the tensors in {folder} do not fit this TangoFlux: {error}") from error
    return model.float().eval().requires_grad_(False)


def main_state(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """State of ``TangoFlux`` without its codec, from ``tangoflux.safetensors``.

    Raises ``UserError`` for other names.
    """
    state = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in _PREFIXES:
            raise UserError(
                f"{where}: the tensor {name!r} belongs to none of {', '.join(_PREFIXES)}"
            )
        state[f"{_PREFIXES[part]}.{rest}"] = tensor
    return with_both_names(state, "text.encoder", where)


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = _file(folder, name)
    check_safetensors_header(path)
    return load_file(str(path))


def _file(folder: Path, name: str) -> Path:
    return file_inside(folder, name, blobs_of(folder))
