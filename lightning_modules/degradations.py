"""Degradations of audio as pure functions: noise, low-pass, crop, and a codec round trip.

Shapes: ``BN`` mono clips, ``BCN`` clips as they come.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zoo.audio_files.resampling import resampled
from zoo.types import Backbone


def add_noise(wave_BN: Tensor, noise_BN: Tensor, snr_db_B: Tensor) -> Tensor:
    """Adds noise at a signal-to-noise ratio in dB over the whole clip; silence stays silent."""
    power = wave_BN.square().mean(dim=1) / noise_BN.square().mean(dim=1).clamp(min=1e-12)
    return wave_BN + noise_BN * (power * 10 ** (-snr_db_B / 10)).sqrt().unsqueeze(1)


def low_pass(wave_BN: Tensor, cutoff_hz_B: Tensor, sample_rate_hz: int, order: int = 4) -> Tensor:
    """Zero-phase Butterworth-shaped low-pass, -3 dB at each clip's own cutoff."""
    frequency = torch.fft.rfftfreq(wave_BN.shape[1], 1 / sample_rate_hz).to(wave_BN.device)
    response = (1 + (frequency / cutoff_hz_B.unsqueeze(1)) ** (2 * order)).rsqrt()
    return torch.fft.irfft(torch.fft.rfft(wave_BN) * response, wave_BN.shape[1])


def crop(wave_BN: Tensor, start_B: Tensor, length: int) -> Tensor:
    """Crops (B, length) from each clip at its own start; samples beyond the end are zero."""
    padded = functional.pad(wave_BN, (0, max(0, int(start_B.max()) + length - wave_BN.shape[1])))
    return padded.gather(1, start_B.unsqueeze(1) + torch.arange(length, device=wave_BN.device))


def codec_round_trip(
    codec: Backbone, wave_BCN: Tensor, sample_rate_hz: int, noise_scale_B: Tensor
) -> Tensor:
    """Encodes audio, disturbs the latents and decodes (B, C', N') at the codec's rate, no gradient.

    ``noise_scale_B``: standard deviation of the latent noise as a share of the batch's latent
    standard deviation.
    """
    with torch.no_grad():
        wave = resampled(wave_BCN, sample_rate_hz, codec.sample_rate_hz)
        if wave.shape[1] != codec.channels:
            wave = wave.mean(dim=1, keepdim=True).expand(-1, codec.channels, -1)
        latent = codec.encode(wave)
        scale = (noise_scale_B * latent.std()).view(-1, *[1] * (latent.ndim - 1))
        return codec.decode(latent + scale * torch.randn_like(latent))[..., : wave.shape[-1]]
