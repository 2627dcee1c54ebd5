"""TangoFlux (arXiv 2412.21037): text to stereo audio at 44.1 kHz by rectified flow, under a FLAN-T5 encoder.

The parts are those of diffusers and transformers, built from the constants below: nothing is fetched to build one. Its codec is
Stable Audio's. Text and audio attend to each other in one sequence; text tokens have no positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.backbones.audioldm2 import settings_of
from zoo.backbones.checkpointing import set_checkpointing
from zoo.backbones.mel_codec import only_known
from zoo.backbones.oobleck_codec import FRAME_WINDOWS, OobleckCodec
from zoo.backbones.tango import TEXT_ENCODER
from zoo.conditioners.frozen_t5 import FrozenT5
from zoo.diffusion import Straight
from zoo.diffusion.paths import require_known
from zoo.types import Conditioning, Prompt

TRANSFORMER: dict[str, Any] = {
    "in_channels": 64, "num_layers": 6, "num_single_layers": 18, "attention_head_dim": 128, "num_attention_heads": 8,
    "joint_attention_dim": 1024, "pooled_projection_dim": 1024, "guidance_embeds": False, "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
VAE: dict[str, Any] = {
    "encoder_hidden_size": 128, "downsampling_ratios": [2, 4, 4, 8, 8], "channel_multiples": [1, 2, 4, 8, 16],
    "decoder_channels": 128, "decoder_input_channels": 64, "audio_channels": 2, "sampling_rate": 44_100,
}  # fmt: skip


class TangoFlux(nn.Module):
    """Text and duration to stereo audio. All arguments are plain JSON values; None is the released size.

    ``transformer``, ``text_encoder``, ``vae``: settings of ``FluxTransformer2DModel``, ``T5Config`` and ``AutoencoderOobleck``.
    ``tokenizer``: the text encoder's, by ``pack_tokenizer``; without one prompts cannot be read. ``max_tokens``: of a prompt (it
    was trained on 64 at most). ``frames``: of its clips, 645 for 29.95 s. ``max_seconds``: the longest duration it can be told.

    ``frame_window``: which latent frames (21.5 a second) are denoised. None: always ``frames`` of them, as it was trained and is
    sampled by its authors; what is not heard is not scored (``scored_mask``). "heard": those that cover the clip, 216 for 10 s,
    less work but another length than in training. "bewo": one less where the last is not whole.

    "cross" of ``add_lora`` means the joint attention of the double blocks, where text has projections of its own. Latents are
    (channels, frames). Only ``denoiser`` learns: everything else is frozen by use and stays in eval mode whatever ``train`` says.
    Raises ``ValueError`` for settings that cannot be meant and parts that do not fit.
    """

    parts = {"text": ("text",), "decoder": ("codec",)}

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
        from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioNumberConditioner
        from transformers import T5Config

        super().__init__()
        transformer, text_encoder, vae = (
            dict(released if given is None else given)
            for given, released in ((transformer, TRANSFORMER), (text_encoder, TEXT_ENCODER), (vae, VAE))
        )
        self.arguments: dict[str, Any] | None = {
            "transformer": transformer, "text_encoder": text_encoder, "vae": vae, "tokenizer": tokenizer,
            "max_tokens": max_tokens, "frames": frames, "max_seconds": max_seconds, "frame_window": frame_window,
        }  # fmt: skip
        if frame_window is not None:
            require_known("frame_window", frame_window, FRAME_WINDOWS)
        self.frame_window, self._frames, self.path = frame_window, int(frames), Straight()
        known = inspect.signature(FluxTransformer2DModel.__init__).parameters
        self.denoiser = FluxTransformer2DModel(**only_known(transformer, known, "transformer"))
        for module in self.denoiser.modules():
            if getattr(module, "added_kv_proj_dim", None) is not None:
                module.is_cross_attention = True
        self.codec = OobleckCodec(vae)
        self.text = FrozenT5(only_known(text_encoder, settings_of(T5Config), "text_encoder"), tokenizer, max_tokens)
        width, config = self.text.width, self.denoiser.config
        found = (config.in_channels, config.joint_attention_dim, config.pooled_projection_dim)
        if found != (self.codec.latent_channels, width, width):
            raise ValueError(
                f"the parts do not fit: the transformer takes {found[0]} latent channels, tokens of width {found[1]} and pooled "
                f"texts of {found[2]}; the autoencoder gives {self.codec.latent_channels} channels, the text encoder a width of "
                f"{width}"
            )
        self.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.duration = StableAudioNumberConditioner(width, 0, max_seconds)
        self.sample_rate_hz, self.channels = self.codec.sample_rate_hz, self.codec.channels
        self.register_load_state_dict_post_hook(lambda module, _: module.text.forget())
        self.train(self.training)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: str | None = None,
        checkpoint_activations: bool = False,
        frame_window: Literal["heard", "bewo"] | None = None,
        tokenizer: str | Path | None = None,
    ) -> TangoFlux:
        """The released model of a zoo name ("tangoflux"), an ``owner/name`` on the Hub or a folder in its authors' layout.

        ``dtype`` such as "bfloat16" (default float32). ``checkpoint_activations``: ``set_checkpointing``. ``tokenizer``: the
        ``tokenizer.json`` of google/flan-t5-large, or its folder; by default one that lies in ``source``, else the Hub's. Frozen,
        in eval mode. Raises what ``zoo.importers.tangoflux.load_tangoflux`` and ``zoo.pull`` raise.
        """
        from zoo.generation import as_dtype
        from zoo.importers.diffusers_folders import folder_of
        from zoo.importers.tangoflux import load_tangoflux

        model = load_tangoflux(folder_of(str(source), "tangoflux"), tokenizer, frame_window=frame_window)
        model.set_checkpointing(checkpoint_activations)
        return model.to(dtype=as_dtype(dtype))

    def set_checkpointing(self, enabled: bool = True) -> None:
        """Keeps little of the denoiser's activations for the backward pass, for one more forward. Outputs stay the same."""
        set_checkpointing(self.denoiser, enabled)

    def train(self, mode: bool = True) -> TangoFlux:
        super().train(mode)
        for name, part in self.named_children():
            if name != "denoiser":
                part.eval()
        return self

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """``tokens_BLD`` (duration, then text), ``mask_BL``, and ``pooled_BD``; each text is encoded once and kept.

        A prompt and its negative are padded to the longer of the two, and the padding is attended, as in training; what pads a
        batch beyond that is masked: what a prompt means does not depend on the others of its batch.
        Raises ``ValueError`` for a prompt of too many tokens.
        """
        return Conditioning.cat([self._encoded(prompt) for prompt in prompts])

    def _encoded(self, prompt: Prompt) -> Conditioning:
        weight, length = self.fc[0].weight, self._pair_length(prompt)
        text_LD = self.text.read(prompt.text, length).to(weight)
        told = self.duration(torch.tensor([prompt.seconds], device=weight.device))[0]
        pooled_D = self.fc(text_LD[: len(self.text.tokens(prompt.text))].mean(dim=0))
        mask_L = torch.ones(length + 1, dtype=torch.bool, device=weight.device)
        return Conditioning(
            {"tokens_BLD": torch.cat([told, text_LD])[None], "mask_BL": mask_L[None], "pooled_BD": pooled_D[None]}
        )

    def _pair_length(self, prompt: Prompt) -> int:
        return max(len(self.text.tokens(text)) for text in (prompt.text, prompt.negative))

    def too_long(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompt id -> what the tokenizer says of its text if that has too many tokens."""
        return self.text.too_long(prompts)

    def remember(self, prompts: Sequence[Prompt]) -> None:
        """Encodes ``prompts`` and their negatives, which are kept. Raises ``ValueError`` for more texts than are kept."""
        self.text.remember((text, self._pair_length(p)) for p in prompts for text in (p.text, p.negative))

    def drop_text_encoders(self, prompts: Sequence[Prompt]) -> None:
        """Encodes ``prompts`` and their negatives, then frees the text encoder: no other text can be encoded from then on.

        The model can no longer be saved whole (an adapter can). Raises ``ValueError`` for more prompts than are kept.
        """
        self.remember(prompts)
        self.arguments = None
        self.text.drop()

    def drop_decoder(self) -> None:
        """Frees the autoencoder: latents can be sampled and learned from, but not heard. It cannot be saved whole."""
        self.arguments = None
        self.codec.drop()

    def predict(self, latent_BCT: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity noise - clean, float32; computed in the denoiser's own type."""
        dtype, device, frames = self.denoiser.x_embedder.weight.dtype, latent_BCT.device, latent_BCT.shape[-1]
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

    def encode(self, wave_BCN: Tensor) -> Tensor:
        """Latents of waves at ``sample_rate_hz``, with silence after them up to ``latent_shape``.

        Raises ``ValueError`` for another number of channels, NaN, and waves that are longer than the model's clips.
        """
        return self.codec.encode(wave_BCN, self.latent_shape(max(1, wave_BCN.shape[-1]) / self.sample_rate_hz)[1])

    def decode(self, latent_BCT: Tensor) -> Tensor:
        """Waves (B, 2, N) of all frames, float32, a clip at a time; gradients flow to the latents."""
        return self.codec.decode(latent_BCT)

    def latent_shape(self, seconds: float) -> tuple[int, int]:
        """(channels, frames) of what is denoised for ``seconds``. Raises ``ValueError`` for more than the model's length."""
        return self.codec.latent_shape(seconds, self._frames, self.frame_window)

    def scored_mask(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """(B, 1, frames): the frames that are heard within a prompt's ``seconds``; None with a ``frame_window``: all are."""
        return self.codec.heard(prompts, self._frames, self.frame_window)
