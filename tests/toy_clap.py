"""A small CLAP of transformers' classes, its tokenizer, and its weights under LAION's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = (
    "a",
    "dog",
    "barks",
    "rain",
    "falls",
    "on",
    "leaves",
    "then",
    "wind",
    "and",
    "thunder",
    "barking",
    "piano",
    "solo",
)
VOCABULARY = {
    "<s>": 0,
    "<pad>": 1,
    "</s>": 2,
    "<unk>": 3,
    **{word: i + 4 for i, word in enumerate(WORDS)},
}
TEXT = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 16,
    "max_position_embeddings": 130,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
AUDIO = {
    "patch_embeds_hidden_size": 4,
    "hidden_size": 32,
    "depths": [1, 2, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "window_size": 2,
}
# the real front end (10 s, 64 mels, 1024 frames), and one of 1.25 s
CONFIG: dict[str, Any] = {"text_config": TEXT, "audio_config": AUDIO, "projection_dim": 8}
SHORT: dict[str, Any] = {
    "config": {**CONFIG, "audio_config": {**AUDIO, "spec_size": 64, "num_mel_bins": 32}},
    "n_mels": 32,
    "window_s": 1.25,
}


def tokenizer_file(folder: Path, words: Mapping[str, int] = VOCABULARY) -> Path:
    """tokenizer.json of whole words, with start and end tokens as RoBERTa has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(dict(words), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def random_clap(seed: int = 0) -> Any:
    """A ``ClapModel`` with random norms and biases too, so that a lost one is noticed."""
    from transformers import ClapConfig, ClapModel

    model = ClapModel(ClapConfig(**CONFIG)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim:
                noise = 0.1 * torch.randn(tensor.shape, generator=generator)
                scale = name.endswith(
                    (
                        "running_var",
                        "norm.weight",
                        "LayerNorm.weight",
                        "before.weight",
                        "after.weight",
                    )
                )
                tensor.copy_(1 + noise.abs() if scale else noise)
        for (
            name,
            weight,
        ) in (
            model.named_parameters()
        ):  # words outweigh positions and biases: captions can be told apart
            if re.search(
                r"word_embeddings|(text_model.*(value|output\.dense|pooler\.dense)|text_projection.*)\.weight",
                name,
            ):
                weight.mul_(5)
        model.audio_model.audio_encoder.batch_norm.running_mean.fill_(-40.0)
        model.audio_model.audio_encoder.batch_norm.running_var.fill_(400.0)
    return model


def laion_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a ``ClapModel`` as LAION's files name them, with what those hold besides."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = re.sub(
            r"_projection\.linear1",
            "_projection.0",
            re.sub(r"_projection\.linear2", "_projection.2", name),
        )
        new = new.replace("text_model.", "text_branch.").replace(
            "audio_model.audio_encoder.", "audio_branch."
        )
        if new.startswith("audio_branch."):
            for ours, theirs in (
                ("batch_norm", "bn0"),
                ("layernorm_before", "norm1"),
                ("layernorm_after", "norm2"),
                ("attention.output.dense", "attn.proj"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
                ("attention.self", "attn"),
            ):
                new = new.replace(f".{ours}.", f".{theirs}.")
        named[new] = tensor
    for query in [name for name in named if ".attn.query." in name]:
        rows = [named.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        named[query.replace("query", "qkv")] = torch.cat(rows)
    del named["text_branch.embeddings.token_type_ids"]
    audio = {
        "tscam_conv.weight": (5, 32, 2, 3),
        "tscam_conv.bias": (5,),
        "head.weight": (5, 5),
        "head.bias": (5,),
        "spectrogram_extractor.stft.conv_real.weight": (513, 1, 1024),
        "layers.1.blocks.1.attn_mask": (4, 4, 4),
    }
    extra = {f"audio_branch.{name}": torch.zeros(shape) for name, shape in audio.items()}
    transforms = ("text_transform.sequential.0.bias", "audio_transform.sequential.3.bias")
    return named | extra | {name: torch.zeros(8) for name in transforms}
