"""The embedded backbone: a stereo latent diffusion model at 16 kHz, small enough to ship."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.backbones.spectral_codec import SpectralCodec
from zoo.backbones.tiny_denoiser import DiffusionTransformer
from zoo.conditioners.duration import DurationToken
from zoo.conditioners.spatial import SpatialTokens
from zoo.conditioners.text import TextEncoder, tokenize
from zoo.conditioners.tokenizer import refused
from zoo.diffusion import VPCosine
from zoo.errors import UserError
from zoo.types import Conditioning, Prompt

_DECODE_BATCH = 4  # clips; 2.5 times faster than 48 at once on two cores


class TinyAudio(nn.Module):
    """Text, length and directions to stereo audio.

    All arguments are plain JSON values; the defaults are the shipped size.

    v-prediction on the cosine-angle path; latents are (latent_channels, frames), ``sample_rate_hz /
    512`` frames per second.

    Args:
        sample_rate_hz: of the audio.
        latent_channels: of the codec.
        width, depth, heads, patch: of the denoiser.
        text_width, text_depth: of the text encoder.
        codec_width, codec_encoder_depth, codec_decoder_depth, codec_window, phase_iterations: of
            the codec (``SpectralCodec``).
    """

    channels = 2

    def __init__(
        self,
        sample_rate_hz: int = 16_000,
        latent_channels: int = 32,
        width: int = 208,
        depth: int = 6,
        heads: int = 4,
        patch: int = 2,
        text_width: int = 128,
        text_depth: int = 2,
        codec_width: int = 256,
        codec_encoder_depth: int = 2,
        codec_decoder_depth: int = 5,
        codec_window: int = 1536,
        phase_iterations: int = 4,
    ) -> None:
        super().__init__()
        self.arguments = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        self.sample_rate_hz = sample_rate_hz
        self.latent_channels = latent_channels
        self.path = VPCosine("v")
        self.codec = SpectralCodec(
            sample_rate_hz=sample_rate_hz,
            window=codec_window,
            latent_channels=latent_channels,
            width=codec_width,
            encoder_depth=codec_encoder_depth,
            decoder_depth=codec_decoder_depth,
            phase_iterations=phase_iterations,
        )
        self.text = TextEncoder(text_width, text_depth)
        self.duration = DurationToken(text_width)
        self.spatial = SpatialTokens(text_width)
        self.denoiser = DiffusionTransformer(
            latent_channels, width, depth, heads, text_width, patch
        )

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Tokens [length, words..., sources...] and their mask; an empty text has its own token."""
        text, text_mask = self.text([prompt.text for prompt in prompts])
        length = self.duration([prompt.seconds for prompt in prompts])
        where, where_mask = self.spatial([prompt.sources for prompt in prompts])
        always = torch.ones_like(text_mask[:, :1])
        tokens_BLD = torch.cat([length, text, where], dim=1)
        return Conditioning(
            {"tokens_BLD": tokens_BLD, "mask_BL": torch.cat([always, text_mask, where_mask], dim=1)}
        )

    def too_long(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Prompt id -> what the tokenizer says of its text if that has too many tokens."""
        return refused(
            {prompt.id: prompt.text for prompt in prompts},
            partial(tokenize, max_tokens=self.text.max_tokens),
        )

    def predict(self, latent_BCT: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser(
            latent_BCT, time_B, conditioning["tokens_BLD"], conditioning["mask_BL"]
        )

    def encode(self, wave_BCN: Tensor) -> Tensor:
        return self.codec.encode(wave_BCN)

    def decode(self, latent_BCT: Tensor) -> Tensor:
        """Waves (B, 2, N), decoded a few clips at a time to fit the processor's cache."""
        return torch.cat([self.codec.decode(part) for part in latent_BCT.split(_DECODE_BATCH)])

    def latent_shape(self, seconds: float) -> tuple[int, ...]:
        """(channels, frames) that cover ``seconds``."""
        frames = math.ceil(seconds * self.sample_rate_hz / self.codec.samples_per_latent - 1e-6)
        return (self.latent_channels, max(1, frames))


def from_codec(
    codec: str,
    width: int = 208,
    depth: int = 6,
    heads: int = 4,
    patch: int = 2,
    codec_width: int = 256,
    codec_window: int = 1536,
    latent_channels: int = 32,
    text_width: int = 128,
) -> TinyAudio:
    """A ``TinyAudio`` with an untrained denoiser and the weights of a trained codec.

    Args:
        codec: its safetensors file, loaded strictly.
        width, depth, heads, patch, text_width: of the denoiser and the text encoder.
        codec_width, codec_window, latent_channels: as the codec was trained; a wrong window shows
            only in the sound (it has no weights).

    Raises: ``FileNotFoundError`` when the file is missing, ``UserError`` when its tensors do not
        fit.
    """
    from safetensors.torch import load_file

    if not Path(codec).is_file():
        raise FileNotFoundError(
            f"no codec weights at {codec}; train them with configs/embedded/codec.yaml or name"
            " another file"
        )
    sizes = {
        "codec_width": codec_width,
        "codec_window": codec_window,
        "latent_channels": latent_channels,
    }
    backbone = TinyAudio(
        width=width, depth=depth, heads=heads, patch=patch, text_width=text_width, **sizes
    )
    try:
        backbone.codec.load_state_dict(load_file(codec))
    except RuntimeError as error:
        given = ", ".join(f"{name} {value}" for name, value in sizes.items())
        raise UserError(
            f"the weights in {codec} do not fit this codec ({given}): {error}"
        ) from error
    return backbone
