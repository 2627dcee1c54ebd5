"""LAION-CLAP's checkpoints (.pt) as weights of transformers' ``ClapModel``.

HTSAT-tiny and HTSAT-base with RoBERTa, fusion off.

Source: Wu et al., arXiv 2211.06687, and the layout of the files published with
github.com/LAION-AI/CLAP. Strict: every tensor of a file goes to a named place, is known to play no
part in an embedding, or is named in an error. Sizes are read from the tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchaudio
from torch import Tensor

from zoo.errors import UserError
from zoo.importers.pickles import load_pickle_weights

TOKENIZER = "roberta-base"  # of all released checkpoints; the files do not hold it
_AUDIO = "audio_model.audio_encoder."
_BLOCK = r"(layers\.\d+\.blocks\.\d+)"
_ENDS = r"(weight|bias)"
_QKV = re.compile(rf"audio_branch\.{_BLOCK}\.attn\.qkv\.{_ENDS}")
_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(logit_scale_[at])", r"\1"),
        (rf"(text|audio)_projection\.0\.{_ENDS}", r"\1_projection.linear1.\2"),
        (rf"(text|audio)_projection\.2\.{_ENDS}", r"\1_projection.linear2.\2"),
        (r"text_branch\.(embeddings\.(?:position|token_type)_ids)", r"text_model.\1"),
        (
            r"text_branch\.(embeddings\.(?:word|position|token_type)_embeddings\.weight)",
            r"text_model.\1",
        ),
        (rf"text_branch\.(embeddings\.LayerNorm|pooler\.dense)\.{_ENDS}", r"text_model.\1.\2"),
        (
            rf"text_branch\.(encoder\.layer\.\d+\.(?:attention\.self\.(?:query|key|value)|(?:attention\.)?output\.(?:dense|LayerNorm)"
            rf"|intermediate\.dense))\.{_ENDS}",
            r"text_model.\1.\2",
        ),
        (
            r"audio_branch\.bn0\.(weight|bias|running_mean|running_var|num_batches_tracked)",
            rf"{_AUDIO}batch_norm.\1",
        ),
        (
            rf"audio_branch\.(patch_embed\.(?:proj|norm)|norm|layers\.\d+\.downsample\.(?:norm|reduction))\.{_ENDS}",
            rf"{_AUDIO}\1.\2",
        ),
        (rf"audio_branch\.{_BLOCK}\.norm1\.{_ENDS}", rf"{_AUDIO}\1.layernorm_before.\2"),
        (rf"audio_branch\.{_BLOCK}\.norm2\.{_ENDS}", rf"{_AUDIO}\1.layernorm_after.\2"),
        (rf"audio_branch\.{_BLOCK}\.mlp\.fc1\.{_ENDS}", rf"{_AUDIO}\1.intermediate.dense.\2"),
        (rf"audio_branch\.{_BLOCK}\.mlp\.fc2\.{_ENDS}", rf"{_AUDIO}\1.output.dense.\2"),
        (rf"audio_branch\.{_BLOCK}\.attn\.proj\.{_ENDS}", rf"{_AUDIO}\1.attention.output.dense.\2"),
        (
            rf"audio_branch\.{_BLOCK}\.attn\.(relative_position_(?:bias_table|index))",
            rf"{_AUDIO}\1.attention.self.\2",
        ),
    )
)
# Computed tables, the class head of the audio tower, and two layers of a loss that was tried: no
# embedding depends on them.
_UNUSED = tuple(
    re.compile(pattern)
    for pattern in (
        r"audio_branch\.spectrogram_extractor\.stft\.conv_(real|imag)\.weight",
        r"audio_branch\.logmel_extractor\.melW",
        rf"audio_branch\.{_BLOCK}\.attn_mask",
        rf"audio_branch\.(head|tscam_conv)\.{_ENDS}",
        rf"(text|audio)_transform\.sequential\.\d+\.{_ENDS}",
    )
)
_MEL = "audio_branch.logmel_extractor.melW"
_FUSION = (
    "audio_branch.patch_embed.mel_conv2d.",
    "audio_branch.patch_embed.fusion_model.",
    "audio_branch.mel_conv1d.",
)


@dataclass(frozen=True)
class ImportedClap:
    """``config``: of ``transformers.ClapConfig``.

    ``state``: of its ``ClapModel``. ``unused``: the rest, by original name.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    unused: dict[str, Tensor]


def read_laion_clap(path: str | Path) -> ImportedClap:
    """A released file: a state dict, or one under ``state_dict``.

    Raises as ``load_pickle_weights`` and ``converted``.
    """
    try:
        return converted(laion_tensors(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def laion_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a released file by their names in the model, without ``module.``."""
    content = load_pickle_weights(path)
    found = content.get("state_dict", content)
    if not isinstance(found, dict):
        raise UserError(f"state_dict is a {type(found).__name__}, expected a dictionary of tensors")
    wrong = [
        str(name)
        for name, value in found.items()
        if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if wrong:
        raise UserError(f"not a LAION-CLAP checkpoint: {_listed(wrong)} is not a tensor")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def converted(tensors: Mapping[str, Tensor]) -> ImportedClap:
    """``tensors`` of the authors' model as configuration and state of ``transformers.ClapModel``.

    Raises ``UserError`` for a checkpoint with feature fusion, for tensors that have no place (they
    are named), for missing ones that sizes are read from, and for a mel filter bank that is not the
    one that the front end here has.
    """
    if any(name.startswith(_FUSION) for name in tensors):
        raise UserError(
            "this checkpoint has feature fusion, which is not supported; use one without"
            " (630k-best, 630k-audioset-best, music_audioset_epoch_15_esc_90.14, ...)"
        )
    state: dict[str, Tensor] = {}
    unused: dict[str, Tensor] = {}
    left: list[str] = []
    for name, tensor in tensors.items():
        renamed = [
            pattern.sub(target, name) for pattern, target in _RENAMED if pattern.fullmatch(name)
        ]
        if found := _QKV.fullmatch(name):
            if not tensor.ndim or tensor.shape[0] % 3:
                raise UserError(
                    f"{name} has shape {tuple(tensor.shape)}, expected rows of query, key and value"
                    " in equal parts"
                )
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[f"{_AUDIO}{found[1]}.attention.self.{part}.{found[2]}"] = rows.clone()
        elif renamed:
            state[renamed[0]] = tensor
        elif any(pattern.fullmatch(name) for pattern in _UNUSED):
            unused[name] = tensor
        else:
            left.append(name)
    if left:
        what = f"{len(left)} tensors have no place: {_listed(left)}"
        raise UserError(f"not a LAION-CLAP checkpoint with HTSAT and RoBERTa: {what}")
    config = _config(state)
    _check_mel_bank(unused.get(_MEL))
    return ImportedClap(config, state, unused)


def _config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of both towers, from the shapes of their tensors."""

    def shape(name: str, axis: int) -> int:
        if name not in state or state[name].ndim <= axis:
            raise UserError(
                f"not a LAION-CLAP checkpoint: it has no {name} (by its name in transformers)"
            )
        if not state[name].numel():
            raise UserError(
                f"not a LAION-CLAP checkpoint: {name} (by its name in transformers) is empty"
            )
        return state[name].shape[axis]

    def count(pattern: str) -> int:
        return len({found[0] for name in state if (found := re.match(pattern, name))})

    stages = count(rf"{re.escape(_AUDIO)}layers\.\d+\.")
    depths = [count(rf"{re.escape(_AUDIO)}layers\.{i}\.blocks\.\d+\.") for i in range(stages)]
    tables = [
        f"{_AUDIO}layers.{i}.blocks.0.attention.self.relative_position_bias_table"
        for i in range(stages)
    ]
    heads = [shape(table, 1) for table in tables]
    width = shape(f"{_AUDIO}patch_embed.proj.weight", 0)
    text_width = shape("text_model.embeddings.word_embeddings.weight", 1)
    first = "text_model.encoder.layer.0.intermediate.dense.weight"
    return {
        "projection_dim": shape("audio_projection.linear1.weight", 0),
        "audio_config": {
            "num_mel_bins": shape(f"{_AUDIO}batch_norm.weight", 0),
            "patch_embeds_hidden_size": width,
            "hidden_size": shape(f"{_AUDIO}norm.weight", 0),
            "depths": depths,
            "num_attention_heads": heads,
            "window_size": (math.isqrt(shape(tables[0], 0)) + 1) // 2 if tables else 8,
            "mlp_ratio": shape(f"{_AUDIO}layers.0.blocks.0.intermediate.dense.weight", 0) / width,
            "enable_fusion": False,
        },
        "text_config": {
            "vocab_size": shape("text_model.embeddings.word_embeddings.weight", 0),
            "hidden_size": text_width,
            "num_hidden_layers": count(r"text_model\.encoder\.layer\.\d+\."),
            "num_attention_heads": max(1, text_width // 64),  # RoBERTa's heads are 64 wide
            "intermediate_size": shape(first, 0),
            "max_position_embeddings": shape("text_model.embeddings.position_embeddings.weight", 0),
            "type_vocab_size": shape("text_model.embeddings.token_type_embeddings.weight", 0),
            "layer_norm_eps": 1e-5,
        },
    }


def _check_mel_bank(bank_KM: Tensor | None) -> None:
    """The files hold the filter bank of their training: 48 kHz, 50 to 14000 Hz, Slaney."""
    if bank_KM is None:
        return
    n_fft = 2 * (bank_KM.shape[0] - 1)
    n_mels = bank_KM.shape[-1]
    ours_KM = torchaudio.functional.melscale_fbanks(
        bank_KM.shape[0], 50.0, 14_000.0, n_mels, 48_000, norm="slaney", mel_scale="slaney"
    )
    if n_fft != 1024 or not torch.allclose(bank_KM.float(), ours_KM, rtol=1e-3, atol=1e-5):
        raise UserError(
            f"its mel filter bank ({n_mels} bins, n_fft {n_fft}) is not that of 48 kHz, n_fft 1024,"
            " 50 to 14000 Hz; such a checkpoint is not known here"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
