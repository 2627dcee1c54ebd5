"""A small Tango: the smallest sizes of the real classes, and a tokenizer of ten words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zoo.conditioners.tokenizer import pack_tokenizer

if TYPE_CHECKING:
    from zoo.backbones.tango import Tango

WORDS = (
    "<pad>",
    "</s>",
    "<unk>",
    "a",
    "dog",
    "barks",
    "rain",
    "falls",
    "on",
    "roof",
    "sad",
    "piano",
    "bird",
    "and",
)
# what the tokenizers library writes for a tokenizer of whole words that ends each row with </s>
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Whitespace"},
    "decoder": None,
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    },
    "model": {
        "type": "WordLevel",
        "vocab": {word: index for index, word in enumerate(WORDS)},
        "unk_token": "<unk>",
    },
}
SMALL = {
    "unet": {
        "sample_size": [8, 4],
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": [2, 2],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "text_encoder": {
        "vocab_size": 32,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 1,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "vae": {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [4, 8, 16],
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.9,
    },
    "vocoder": {
        "model_in_dim": 16,
        "sampling_rate": 16000,
        "upsample_initial_channel": 32,
        "upsample_rates": [5, 4, 2, 2, 2],
        "upsample_kernel_sizes": [16, 16, 8, 4, 4],
        "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        "initializer_range": 0.2,
    },
    "tokenizer": pack_tokenizer(json.dumps(TOKENIZER)),
}


def small_model(seed: int = 0) -> Tango:
    """The same weights in every call; its text matters more than in a random denoiser."""
    from zoo.backbones.tango import Tango

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Tango(**SMALL).eval().requires_grad_(False)
        for name, parameter in model.denoiser.named_parameters():
            if "attn2.to_out.0.weight" in name:
                parameter.mul_(4)
    return model


def released_folder(tango: Tango, parent: Path) -> Path:
    """A folder in the layout of the released Tangos, with ``tango``'s weights under their names."""
    from zoo.backbones.mel_codec import slaney_mel_bank
    from zoo.importers.tango import codec_name

    folder = parent / "released"
    folder.mkdir()
    state = tango.state_dict()
    main = {f"unet.{name}": tensor for name, tensor in tango.denoiser.state_dict().items()}
    main |= {name: tensor for name, tensor in state.items() if name.startswith("text_encoder.")}
    manifest = json.loads((Path(__file__).parent / "golden/tango/manifest_vae.json").read_text())
    names = {codec_name(name, 3): name for name in manifest["tensors"]}
    codec = {}
    for ours, tensor in tango.codec.state_dict().items():
        if ours not in ("vocoder.mean", "vocoder.scale"):
            is_linear = ".attentions." in ours and tensor.ndim == 2
            codec[names[ours]] = tensor[:, :, None, None] if is_linear else tensor
    fourier = torch.fft.fft(torch.eye(1024))[:513] * torch.hann_window(1024)
    front_end = {
        "mel_basis": slaney_mel_bank(16_000, 16).clone(),
        "stft_fn.forward_basis": torch.cat([fourier.real, fourier.imag])[:, None],
        "stft_fn.inverse_basis": torch.zeros(1026, 1, 1024),
    }
    for file, tensors in (("main", main), ("vae", codec), ("stft", front_end)):
        torch.save(
            {name: tensor.clone() for name, tensor in tensors.items()},
            folder / f"pytorch_model_{file}.bin",
        )
    vae = SMALL["vae"]
    sizes = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "downsample_time": False,
        "in_channels": 1,
        "out_ch": 1,
        "ch": 4,
        "ch_mult": [1, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    configs = {
        "main_config.json": {
            "text_encoder_name": "google/flan-t5-large",
            "scheduler_name": "stabilityai/stable-diffusion-2-1",
            "unet_model_name": None,
            "unet_model_config_path": "configs/diffusion_model_config.json",
            "snr_gamma": 5.0,
        },
        "vae_config.json": {
            "image_key": "fbank",
            "subband": 1,
            "embed_dim": 4,
            "time_shuffle": 1,
            "ddconfig": sizes,
            "scale_factor": vae["scaling_factor"],
        },
        "words.json": TOKENIZER,
    }
    for file, content in configs.items():
        (folder / file).write_text(json.dumps(content))
    return folder


def predicting(unet):
    """``predict`` of a plain diffusers network, as a user of diffusers would call it."""

    def predict(x, time_B, conditioning):
        text, mask = conditioning["tokens_BLD"], conditioning["mask_BL"]
        return unet(
            x, time_B, encoder_hidden_states=text, encoder_attention_mask=mask, return_dict=False
        )[0]

    return predict
