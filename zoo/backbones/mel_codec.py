"""Mono waves <-> latents of log-mel spectrograms:

AudioLDM's front end, KL autoencoder and HiFi-GAN vocoder (arXiv 2301.12503).

Tango uses these parts as they were released with AudioLDM: 16 kHz, 1024-sample Hann frames every
160 samples, 64 Slaney mels up to 8 kHz of the magnitude spectrum, natural logarithm. Everything
after the wave's normalisation is differentiable both ways.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.library_networks import checked, only_known
from zoo.errors import UserError

FFT = 1024  # samples: window and transform
LOG_FLOOR = 1e-5  # of a mel band's magnitude
LEVEL = 0.5  # peak of a normalised wave
SILENT = 1e-6  # peak (-120 dBFS) up to which a wave is silence and is not made louder
_CLIPS_AT_ONCE = 4  # bounds the memory of convolutions at wave rate
VOCODER_KEYS = (
    "model_in_dim",
    "sampling_rate",
    "upsample_initial_channel",
    "upsample_rates",
    "upsample_kernel_sizes",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
    "initializer_range",
    "leaky_relu_slope",
)


@functools.lru_cache(maxsize=8)
def slaney_mel_bank(sample_rate_hz: int, mels: int) -> Tensor:
    """Triangles (mels, FFT // 2 + 1) of equal area on Slaney's mel scale, float32 on the CPU.

    They reach from 0 Hz to half the rate.

    The scale is linear up to 1 kHz (200/3 Hz a mel) and logarithmic above (Slaney, Auditory
    Toolbox, 1998).
    """
    step = math.log(6.4) / 27
    top = sample_rate_hz / 2
    top_mel = 15 + math.log(top / 1000) / step if top >= 1000 else top * 3 / 200
    mel = torch.linspace(0, top_mel, mels + 2, dtype=torch.float64, device="cpu")
    hz = torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp(step * (mel - 15)))
    low = hz[:-2, None]
    centre = hz[1:-1, None]
    high = hz[2:, None]
    bins = torch.linspace(0, top, FFT // 2 + 1, dtype=torch.float64, device="cpu")
    triangles = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(
        min=0
    )
    return (triangles * 2 / (high - low)).float()


def normalised(wave_BN: Tensor) -> Tensor:
    """Each row without its mean, its peak at ``LEVEL``; silence (also a constant) becomes zeros.

    Raises ``UserError`` for waves with NaN or infinity, or without samples.
    """
    if wave_BN.ndim != 2 or wave_BN.shape[-1] == 0 or not torch.isfinite(wave_BN).all():
        wrong = (
            "NaN or infinity in it"
            if wave_BN.ndim == 2 and wave_BN.shape[-1]
            else f"shape {tuple(wave_BN.shape)}"
        )
        raise UserError(f"expected waves (batch, samples) of finite numbers, got one with {wrong}")
    centred = wave_BN.float() - wave_BN.float().mean(dim=-1, keepdim=True)
    peak = centred.abs().amax(dim=-1, keepdim=True)
    return torch.where(peak > SILENT, LEVEL * centred / (peak + 1e-8), torch.zeros_like(centred))


def prepared(wave_BN: Tensor, samples: int) -> Tensor:
    """Normalises waves, cuts or pads them to (B, samples), and normalises again by the new peak."""
    wave_BN = normalised(wave_BN)
    wave_BN = F.pad(wave_BN, (0, max(0, samples - wave_BN.shape[-1])))[:, :samples]
    peak = wave_BN.abs().amax(dim=-1, keepdim=True)
    return torch.where(
        peak > SILENT, LEVEL * wave_BN / peak.clamp(min=SILENT), torch.zeros_like(wave_BN)
    )


def magnitudes(wave_BN: Tensor, hop: int) -> Tensor:
    """Magnitude spectra (B, FFT // 2 + 1, N // hop + 1).

    Frames are centred on every ``hop``-th sample, with reflected ends.
    """
    window = torch.hann_window(FFT, device=wave_BN.device)
    return torch.stft(
        wave_BN.float(),
        FFT,
        hop,
        window=window,
        center=True,
        pad_mode="reflect",
        return_complex=True,
    ).abs()


def log_mel(
    wave_BN: Tensor, sample_rate_hz: int = 16_000, hop: int = 160, mels: int = 64
) -> Tensor:
    """Natural logarithm (B, N // hop + 1, mels) of mel magnitudes, at least ``LOG_FLOOR``.

    N must exceed FFT / 2.
    """
    bank = slaney_mel_bank(sample_rate_hz, mels).to(wave_BN.device)
    return torch.log((bank @ magnitudes(wave_BN, hop)).clamp(min=LOG_FLOOR)).transpose(1, 2)


class MelCodec(nn.Module):
    """Converts waves (B, 1, N) to and from latents (B, channels, frames, mels / f).

    The factor f is 2 ** (levels of the VAE - 1).

    ``vae``: arguments of diffusers' ``AutoencoderKL`` (1 channel in and out; ``scaling_factor``
    scales latents to unit deviation).
    ``vocoder``: of transformers' ``SpeechT5HifiGan`` (``model_in_dim`` mels, hop = product of
    ``upsample_rates``).
    Raises ``UserError`` for settings that these do not have.
    """

    def __init__(self, vae: Mapping[str, Any], vocoder: Mapping[str, Any]) -> None:
        from diffusers import AutoencoderKL
        from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

        super().__init__()
        self.channels = 1
        self.vae = AutoencoderKL(**checked(AutoencoderKL, vae, "the autoencoder"))
        vocoder = only_known(vocoder, VOCODER_KEYS, "the vocoder")
        self.vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(**vocoder, normalize_before=False))
        self.sample_rate_hz = int(vocoder["sampling_rate"])
        self.mels = int(vocoder["model_in_dim"])
        self.hop = math.prod(vocoder["upsample_rates"])
        self.shrinkage = 2 ** (len(self.vae.config.block_out_channels) - 1)  # of frames and of mels
        self.samples_per_latent = self.hop * self.shrinkage
        self.latent_channels = int(self.vae.config.latent_channels)
        if self.mels % self.shrinkage:
            raise UserError(
                f"the mels ({self.mels}) must be a multiple of {self.shrinkage}, for the levels of"
                " the autoencoder"
            )

    def latent_shape(self, seconds: float) -> tuple[int, int, int]:
        """(channels, frames, mels / f) of a clip of any length; the last frame is whole."""
        frames = max(1, math.ceil(seconds * self.sample_rate_hz / self.samples_per_latent - 1e-6))
        return (self.latent_channels, frames, self.mels // self.shrinkage)

    def drop(self) -> None:
        """Frees both networks; ``latent_shape`` still works, encoding and decoding are refused."""
        self.vae = self.vocoder = None

    def _networks(self) -> tuple[nn.Module, nn.Module]:
        if self.vae is None:
            raise UserError(
                "the autoencoder and the vocoder of this model were dropped; load it again to hear"
                " or encode audio"
            )
        return self.vae, self.vocoder

    def encode(self, wave_BCN: Tensor) -> Tensor:
        """Encodes normalised waves as the posterior's mean, in float32.

        Waves are padded with zeros to a whole latent frame.

        Raises ``UserError`` for waves that are not mono, or hold NaN.
        """
        if wave_BCN.ndim != 3 or wave_BCN.shape[1] != 1 or wave_BCN.shape[-1] == 0:
            raise UserError(
                "this codec takes mono waves (batch, 1, samples), got shape"
                f" {tuple(wave_BCN.shape)}; mix the channels down first (wave.mean(1,"
                " keepdim=True))"
            )
        samples = self.samples_per_latent * math.ceil(wave_BCN.shape[-1] / self.samples_per_latent)
        parts = []
        for part in wave_BCN[:, 0].split(_CLIPS_AT_ONCE):
            mel = log_mel(prepared(part, samples), self.sample_rate_hz, self.hop, self.mels)[:, :-1]
            mean, _ = self.posterior(mel[:, None])
            parts.append(mean)
        return torch.cat(parts).to(wave_BCN.device)

    def posterior(self, mel_B1FM: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents of log-mels (B, 1, frames, mels).

        Both are float32, at unit scale.
        """
        vae, _ = self._networks()
        found = vae.encode(mel_B1FM.to(vae.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return scale * found.mean.float(), scale * found.std.float()

    def to_mel(self, latent_BCFM: Tensor) -> Tensor:
        """Log-mels (B, 1, frames, mels) of latents, float32."""
        vae, _ = self._networks()
        scaled = latent_BCFM.to(vae.device, vae.dtype) / vae.config.scaling_factor
        return vae.decode(scaled).sample.float()

    def vocode(self, mel_BFM: Tensor) -> Tensor:
        """Waves (B, N) in [-1, 1] of log-mels (B, frames, mels), float32.

        They are 32 samples longer than frames * hop at 16 kHz.
        """
        _, vocoder = self._networks()
        return vocoder(mel_BFM.to(vocoder.device, vocoder.dtype)).float()

    def decode(self, latent_BCFM: Tensor) -> Tensor:
        """Waves (B, 1, frames * f * hop), a few clips at a time.

        What the vocoder adds beyond the last frame is cut off.
        """
        samples = latent_BCFM.shape[2] * self.samples_per_latent
        waves = [
            self.vocode(self.to_mel(part)[:, 0])[:, :samples]
            for part in latent_BCFM.split(_CLIPS_AT_ONCE)
        ]
        return torch.cat(waves)[:, None].to(latent_BCFM.device)
