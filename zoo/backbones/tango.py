"""Tango (arXiv 2304.13731) and Tango 2 (arXiv 2404.09956): text to mono audio at 16 kHz.

The parts are those of diffusers and transformers, built from the constants below: nothing is
fetched to build one. The noise schedule is that of Stable Diffusion 2.1 (v-prediction), whose
repository Tango's own configuration names and which is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.backbones.frozen_parts import FrozenParts
from zoo.backbones.library_networks import checked
from zoo.backbones.mel_codec import MelCodec
from zoo.conditioners.prompt_memory import PromptMemory
from zoo.conditioners.t5 import fitting_tokenizer, t5_states
from zoo.diffusion import VPDiscrete
from zoo.errors import UserError
from zoo.types import Conditioning, Prompt

# The released sizes. ``attention_head_dim`` holds counts of heads, as diffusers reads it here.
UNET: dict[str, Any] = {
    "sample_size": [32, 2],
    "in_channels": 8,
    "out_channels": 8,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "up_block_types": [
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    ],
    "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
}
TEXT_ENCODER: dict[str, Any] = {  # google/flan-t5-large
    "vocab_size": 32128,
    "d_model": 1024,
    "d_kv": 64,
    "d_ff": 2816,
    "num_layers": 24,
    "num_heads": 16,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": 0,
    "eos_token_id": 1,
}
VAE: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [128, 256, 512],
    "layers_per_block": 2,
    "latent_channels": 8,
    "norm_num_groups": 32,
    "scaling_factor": 0.9227914214134216,
}
VOCODER: dict[str, Any] = {
    "model_in_dim": 64,
    "sampling_rate": 16_000,
    "upsample_initial_channel": 1024,
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "leaky_relu_slope": 0.1,
}


class Tango(FrozenParts):
    """Text to mono audio at 16 kHz, of any length.

    All arguments are plain JSON values; None is the released size.

    Latents are (8, frames, 16), 25 frames per second. Every part runs on its own device.

    Only ``denoiser`` learns: everything else is frozen and stays in eval mode, whatever
    ``train`` says.

    Args:
        unet, text_encoder, vae, vocoder: settings of ``UNet2DConditionModel``, ``T5Config``,
            ``AutoencoderKL`` and ``SpeechT5HifiGanConfig``.
        tokenizer: that of the text encoder, by ``pack_tokenizer`` (``zoo.conditioners.tokenizer``);
            without one prompts cannot be read.
        max_tokens: the longest prompt.

    Raises: ``UserError`` for settings that a part does not have, and for parts that do not fit each
        other.
    """

    offloadable = {"text": ("text_encoder",), "decoder": ("codec",)}

    def __init__(
        self,
        unet: Mapping[str, Any] | None = None,
        text_encoder: Mapping[str, Any] | None = None,
        vae: Mapping[str, Any] | None = None,
        vocoder: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        max_tokens: int = 512,
    ) -> None:
        from diffusers import UNet2DConditionModel
        from transformers import T5Config, T5EncoderModel

        super().__init__()
        released = {"unet": UNET, "text_encoder": TEXT_ENCODER, "vae": VAE, "vocoder": VOCODER}
        given = {"unet": unet, "text_encoder": text_encoder, "vae": vae, "vocoder": vocoder}
        parts = {
            name: dict(released[name] if chosen is None else chosen)
            for name, chosen in given.items()
        }
        self.arguments: dict[str, Any] | None = {
            **parts,
            "tokenizer": tokenizer,
            "max_tokens": max_tokens,
        }
        self.denoiser = UNet2DConditionModel(
            **checked(UNet2DConditionModel, parts["unet"], "the U-Net")
        )
        self.text_encoder = T5EncoderModel(
            T5Config(**checked(T5Config, parts["text_encoder"], "the text encoder"))
        )
        self.codec = MelCodec(parts["vae"], parts["vocoder"])
        self.sample_rate_hz = self.codec.sample_rate_hz
        self.channels = self.codec.channels
        with torch.device("cpu"):  # a table, also when the networks are made without memory
            self.path = VPDiscrete.from_betas(0.00085, 0.012, "v", steps_offset=1, ends_clean=True)
        wanted = (self.text_encoder.config.d_model, self.codec.vae.config.latent_channels)
        found = (self.denoiser.config.cross_attention_dim, self.denoiser.config.in_channels)
        if wanted != found:
            raise UserError(
                f"the U-Net takes texts of width {found[0]} and {found[1]} latent channels, but the"
                f" text encoder gives {wanted[0]} and the autoencoder {wanted[1]}"
            )
        words = (
            None
            if tokenizer is None
            else fitting_tokenizer(tokenizer, max_tokens, self.text_encoder.config)
        )
        self.memory = PromptMemory(self._encode, words)
        self.train(self.training)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """``tokens_BLD`` (0 beyond a prompt's end) and ``mask_BL``; each text is encoded once.

        Lengths in seconds and sources do not reach the model. Raises ``UserError`` without a
        tokenizer, for a prompt of too many tokens, and for a text that was not encoded before the
        encoder was dropped.
        """
        rows = Conditioning.cat([self.memory(prompt) for prompt in prompts])
        return rows.to(self.denoiser.conv_in.weight.device)

    def _encode(self, text: str, _: None) -> Conditioning:
        ids_BL = torch.tensor([self.memory.tokens(text)])
        return self.encode_tokens(ids_BL, torch.ones_like(ids_BL, dtype=torch.bool)).to("cpu")

    def encode_tokens(self, ids_BL: Tensor, mask_BL: Tensor) -> Conditioning:
        """The conditioning of token ids (long) whose mask (bool) is true.

        Raises ``UserError`` when the encoder overflows.
        """
        states_BLD = t5_states(self.text_encoder, ids_BL, mask_BL)
        mask_BL = mask_BL.to(states_BLD.device, torch.bool)
        return Conditioning(
            {"tokens_BLD": states_BLD.masked_fill(~mask_BL[..., None], 0), "mask_BL": mask_BL}
        )

    def predict(self, latent_BCTF: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        """alpha * noise - sigma * clean, float32; computed in the denoiser's own type."""
        dtype = self.denoiser.conv_in.weight.dtype
        output = self.denoiser(
            latent_BCTF.to(dtype),
            time_B,
            encoder_hidden_states=conditioning["tokens_BLD"].to(dtype),
            encoder_attention_mask=conditioning["mask_BL"],
            return_dict=False,
        )
        return output[0].float()
