"""TangoFlux (arXiv 2412.21037): text to stereo audio at 44.1 kHz by rectified flow.

The parts are those of diffusers and transformers, built from the constants below: nothing is
fetched to build one. Its codec is Stable Audio's. Text and audio attend to each other in one
sequence; text tokens have no positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.backbones.frozen_parts import FrozenParts
from zoo.backbones.library_networks import checked
from zoo.backbones.oobleck_codec import OobleckCodec
from zoo.backbones.tango import TEXT_ENCODER
from zoo.conditioners.prompt_memory import PromptMemory
from zoo.conditioners.t5 import fitting_tokenizer, t5_states
from zoo.diffusion import Straight
from zoo.errors import UserError
from zoo.types import Conditioning, Prompt

TRANSFORMER: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 6,
    "num_single_layers": 18,
    "attention_head_dim": 128,
    "num_attention_heads": 8,
    "joint_attention_dim": 1024,
    "pooled_projection_dim": 1024,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 56, 56],
}
VAE: dict[str, Any] = {
    "encoder_hidden_size": 128,
    "downsampling_ratios": [2, 4, 4, 8, 8],
    "channel_multiples": [1, 2, 4, 8, 16],
    "decoder_channels": 128,
    "decoder_input_channels": 64,
    "audio_channels": 2,
    "sampling_rate": 44_100,
}


class TangoFlux(FrozenParts):
    """Text and duration to stereo audio at 44.1 kHz.

    All arguments are plain JSON values; None is the released size.

    "cross" of ``add_lora`` means the joint attention of the double blocks, where text has
    projections of its own. Latents are (channels, frames).

    Only ``denoiser`` learns: everything else is frozen and stays in eval mode, whatever
    ``train`` says.

    Args:
        transformer, text_encoder, vae: settings of ``FluxTransformer2DModel``, ``T5Config`` and
            ``AutoencoderOobleck``.
        tokenizer: that of the text encoder, by ``pack_tokenizer`` (``zoo.conditioners.tokenizer``);
            without one prompts cannot be read.
        max_tokens: the longest prompt (the model was trained on 64 at most).
        frames: of its clips, 645 for 29.95 s.
        max_seconds: the longest duration that the model takes as input.
        frame_window: which latent frames (21.5 per second) are denoised. None: always ``frames`` of
            them, as it was trained and as its authors sample it; what is not heard is not scored
            (``scored_mask``). "heard": those that cover the clip, 216 for 10 s, less work but
            another length than in training. "bewo": one less where the last is not whole.

    Raises: ``UserError`` for invalid settings and for parts that do not fit each other.
    """

    offloadable = {"text": ("text",), "decoder": ("codec",)}

    def __init__(
        self,
        transformer: Mapping[str, Any] | None = None,
        text_encoder: Mapping[str, Any] | None = None,
        vae: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        max_tokens: int = 512,
        frames: int = 645,
        max_seconds: float = 30,
        frame_window: Literal["heard", "bewo"] | None = None,
    ) -> None:
        from diffusers import FluxTransformer2DModel
        from diffusers.pipelines.stable_audio.modeling_stable_audio import (
            StableAudioNumberConditioner,
        )
        from transformers import T5Config, T5EncoderModel

        super().__init__()
        transformer, text_encoder, vae = (
            dict(released if given is None else given)
            for given, released in (
                (transformer, TRANSFORMER),
                (text_encoder, TEXT_ENCODER),
                (vae, VAE),
            )
        )
        self.arguments: dict[str, Any] | None = {
            "transformer": transformer,
            "text_encoder": text_encoder,
            "vae": vae,
            "tokenizer": tokenizer,
            "max_tokens": max_tokens,
            "frames": frames,
            "max_seconds": max_seconds,
            "frame_window": frame_window,
        }
        self.path = Straight(training="logit_normal")
        self.denoiser = FluxTransformer2DModel(
            **checked(FluxTransformer2DModel, transformer, "transformer")
        )
        for module in self.denoiser.modules():
            if getattr(module, "added_kv_proj_dim", None) is not None:
                module.is_cross_attention = True
        self.codec = OobleckCodec(vae, frames, frame_window)
        encoder = T5EncoderModel(T5Config(**checked(T5Config, text_encoder, "text_encoder")))
        self.text = nn.ModuleDict({"encoder": encoder})
        width = encoder.config.d_model
        config = self.denoiser.config
        found = (config.in_channels, config.joint_attention_dim, config.pooled_projection_dim)
        if found != (self.codec.latent_channels, width, width):
            raise UserError(
                f"the parts do not fit: the transformer takes {found[0]} latent channels, tokens of"
                f" width {found[1]} and pooled texts of {found[2]}; the autoencoder gives"
                f" {self.codec.latent_channels} channels, the text encoder a width of {width}"
            )
        self.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.duration = StableAudioNumberConditioner(width, 0, max_seconds)
        self.sample_rate_hz = self.codec.sample_rate_hz
        self.channels = self.codec.channels
        words = (
            None if tokenizer is None else fitting_tokenizer(tokenizer, max_tokens, encoder.config)
        )
        self.memory = PromptMemory(self._encode, words, in_pairs=True)
        self.train(self.training)

    def scored_mask(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """(B, 1, frames): the frames within a prompt's ``seconds``; None where all are heard."""
        return self.codec.scored_mask(prompts)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encodes each text once: ``tokens_BLD`` (duration, then text), ``mask_BL``, ``pooled_BD``.

        A prompt and its negative are padded to the longer of the two, and the padding is attended,
        as in training; what pads a batch beyond that is masked: what a prompt means does not depend
        on the others of its batch. Raises ``UserError`` for a prompt of too many tokens.
        """
        return Conditioning.cat([self._conditioned(prompt) for prompt in prompts])

    def _conditioned(self, prompt: Prompt) -> Conditioning:
        weight = self.fc[0].weight
        text_LD = self.memory(prompt).to(weight)
        duration_1D = self.duration(torch.tensor([prompt.seconds], device=weight.device))[0]
        pooled_D = self.fc(text_LD[: len(self.memory.tokens(prompt.text))].mean(dim=0))
        mask_L = torch.ones(len(text_LD) + 1, dtype=torch.bool, device=weight.device)
        tokens_LD = torch.cat([duration_1D, text_LD])
        return Conditioning(
            {"tokens_BLD": tokens_LD[None], "mask_BL": mask_L[None], "pooled_BD": pooled_D[None]}
        )

    def _encode(self, text: str, length: int) -> Tensor:
        """States (length, D) of a text and of the padding after it, in main memory."""
        ids = self.memory.tokens(text)
        pad = self.text.encoder.config.pad_token_id
        ids_BL = torch.tensor([ids + [pad] * (length - len(ids))])
        return t5_states(self.text.encoder, ids_BL, torch.arange(length)[None] < len(ids))[0].cpu()

    def predict(self, latent_BCT: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity noise - clean, float32; computed in the denoiser's own type."""
        dtype = self.denoiser.x_embedder.weight.dtype
        device = latent_BCT.device
        frames = latent_BCT.shape[-1]
        tokens_BLD, mask_BL = conditioning["tokens_BLD"], conditioning["mask_BL"]
        attended = torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), frames)], dim=1)
        output = self.denoiser(
            hidden_states=latent_BCT.transpose(1, 2).to(dtype),
            timestep=time_B,
            pooled_projections=conditioning["pooled_BD"].to(dtype),
            encoder_hidden_states=tokens_BLD.to(dtype),
            txt_ids=torch.zeros(tokens_BLD.shape[1], 3, device=device),
            img_ids=torch.arange(frames, device=device)[:, None].expand(-1, 3),
            joint_attention_kwargs={"attention_mask": attended[:, None, None]},
            return_dict=False,
        )
        return output[0].transpose(1, 2).float()
