"""Stereo waves <-> latents at 21.5 Hz:

Stable Audio's autoencoder (Oobleck, arXiv 2407.14358), a clip at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.library_networks import checked
from zoo.diffusion.paths import require_known
from zoo.errors import UserError
from zoo.types import Prompt

FRAME_WINDOWS = ("heard", "bewo")


class OobleckCodec(nn.Module):
    """(B, channels, N) waves <-> latents (B, C, frames).

    ``vae``: arguments of diffusers' ``AutoencoderOobleck``.

    ``clip_frames``: of the clips that its denoiser was trained on. ``frame_window``: what
    of them is denoised, None for all, "heard" for those that cover the requested seconds, "bewo"
    for one less where the last is not whole. It runs on its own device; gradients flow both
    ways. Raises ``UserError`` for settings that it does not have.
    """

    def __init__(
        self, vae: Mapping[str, Any], clip_frames: int = 1024, frame_window: str | None = None
    ) -> None:
        from diffusers import AutoencoderOobleck

        super().__init__()
        if frame_window is not None:
            require_known("frame_window", frame_window, FRAME_WINDOWS)
        self.clip_frames = int(clip_frames)
        self.frame_window = frame_window
        self.vae = AutoencoderOobleck(**checked(AutoencoderOobleck, vae, "vae"))
        config = self.vae.config
        self.sample_rate_hz = int(config.sampling_rate)
        self.channels = int(config.audio_channels)
        self.samples_per_latent = int(self.vae.hop_length)
        self.latent_channels = int(config.decoder_input_channels)
        if config.encoder_hidden_size != 2 * self.latent_channels:  # mean and scale
            raise UserError(
                "vae: encoder_hidden_size must be twice decoder_input_channels, got"
                f" {config.encoder_hidden_size} and {self.latent_channels}"
            )

    def frames(self, seconds: float, whole: bool = True) -> int:
        """Latent frames that cover ``seconds``, or that it covers (``whole=False``).

        216 or 215 for 10 s at 44.1 kHz.
        """
        exact = seconds * self.sample_rate_hz / self.samples_per_latent
        return max(1, math.ceil(exact - 1e-6) if whole else math.floor(exact + 1e-6))

    def latent_shape(self, seconds: float) -> tuple[int, int]:
        """(C, frames) of what is denoised for ``seconds``.

        Raises ``UserError`` for more than ``clip_frames`` are.
        """
        frames = self.frames(seconds, whole=self.frame_window != "bewo")
        if frames > self.clip_frames:
            longest = self.clip_frames * self.samples_per_latent / self.sample_rate_hz
            raise UserError(
                f"{seconds:g} s are more than the {longest:.3f} s of this model's clips; ask for"
                " less"
            )
        return (self.latent_channels, self.clip_frames if self.frame_window is None else frames)

    def scored_mask(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """Marks the frames within a prompt's ``seconds``: (B, 1, clip_frames) bool.

        None with a frame window.
        """
        if self.frame_window is not None:
            return None
        heard_B1 = torch.tensor([[self.frames(prompt.seconds)] for prompt in prompts])
        return (torch.arange(self.clip_frames)[None] < heard_B1)[:, None]

    def encode(self, wave_BCN: Tensor) -> Tensor:
        """The posterior's means (B, C, frames), float32, of waves padded with silence.

        Raises ``UserError`` for other channels, no samples, whole numbers, NaN, infinity, and more
        than ``clip_frames``.
        """
        if wave_BCN.ndim != 3 or wave_BCN.shape[1] != self.channels or wave_BCN.shape[-1] == 0:
            raise UserError(
                f"this codec takes waves (batch, {self.channels}, samples), got shape"
                f" {tuple(wave_BCN.shape)}; a mono wave becomes stereo by wave.expand(-1, 2, -1)"
            )
        if not wave_BCN.is_floating_point():
            raise UserError(
                f"expected waves as floating-point numbers in [-1, 1], got {wave_BCN.dtype}"
            )
        if not torch.isfinite(wave_BCN).all():
            raise UserError("the wave holds NaN or infinity")
        vae = self._network()
        samples = (
            self.latent_shape(wave_BCN.shape[-1] / self.sample_rate_hz)[1] * self.samples_per_latent
        )
        wave_BCN = F.pad(wave_BCN, (0, max(0, samples - wave_BCN.shape[-1])))[..., :samples]
        clips = wave_BCN.to(vae.device, vae.dtype).split(1)
        return torch.cat([vae.encode(clip).latent_dist.mean.float() for clip in clips]).to(
            wave_BCN.device
        )

    def decode(self, latent_BCT: Tensor) -> Tensor:
        """Waves (B, channels, frames * samples_per_latent), float32."""
        vae = self._network()
        clips = latent_BCT.to(vae.device, vae.dtype).split(1)
        return torch.cat([vae.decode(clip).sample.float() for clip in clips]).to(latent_BCT.device)

    def drop(self) -> None:
        """Frees the network; ``frames`` still works, encoding and decoding are refused."""
        self.vae = None

    def _network(self) -> nn.Module:
        if self.vae is None:
            raise UserError(
                "the autoencoder of this model was dropped; load it again to hear or encode audio"
            )
        return self.vae
