"""A small stereo codec: learned latents of the log-magnitude spectrogram, phase rebuilt by rule.

Encoder and decoder see no phase, so latents are smooth in time and easy for a diffusion model. The
decoder's magnitudes get their phase from the phase-gradient theorem (Prusa, Balazs, Sondergaard
2017, "A noniterative method for reconstruction of phase from STFT magnitude", eq. 19, integrated
along time), polished by a few fast Griffin-Lim projections (Perraudin et al. 2013): notes stay in
tune without any adversarial training. Stereo is parametric (Breebaart et al. 2005): level
difference and complex coherence in bands. Every operation is differentiable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import UserError

# added to magnitudes before the logarithm: about -90 dB of a full-scale sine in a window of 1536
# samples
_FLOOR = 1e-2
# time-frequency ratio of the Gaussian nearest to a Hann window, times the squared window length
_HANN_GAMMA = 0.25645


class ConvNeXtBlock(nn.Module):
    """(B, C, T) -> (B, C, T): depthwise convolution and pointwise perceptron, residual.

    Liu et al. 2022.
    """

    def __init__(self, width: int, kernel: int = 7) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, hidden_BCT: Tensor) -> Tensor:
        update = self.norm(self.depthwise(hidden_BCT).transpose(1, 2))
        return hidden_BCT + self.project(F.gelu(self.expand(update))).transpose(1, 2)


class SpectralCodec(nn.Module):
    """Stereo waves (B, 2, N) <-> latents (B, latent_channels, ceil(N / (frames_per_latent * hop))).

    Args:
        sample_rate_hz: of the waves.
        window, hop: of the spectrogram, in samples.
        frames_per_latent: frames that one latent frame stands for.
        bands: stereo bands.
        latent_channels, width, encoder_depth, decoder_depth: sizes of the networks.
        phase_iterations: Griffin-Lim projections at decoding (0: the integrated phase alone).

    Raises: ``UserError`` for waves that are not stereo.
    """

    def __init__(
        self,
        sample_rate_hz: int = 16_000,
        window: int = 1536,
        hop: int = 256,
        frames_per_latent: int = 2,
        bands: int = 32,
        latent_channels: int = 32,
        width: int = 256,
        encoder_depth: int = 2,
        decoder_depth: int = 5,
        phase_iterations: int = 4,
    ) -> None:
        super().__init__()
        self.sample_rate_hz = sample_rate_hz
        self.window = window
        self.hop = hop
        self.frames_per_latent = frames_per_latent
        self.bins = window // 2 + 1
        self.bands = bands
        self.phase_iterations = phase_iterations
        self.samples_per_latent = hop * frames_per_latent
        features = frames_per_latent * (self.bins + 3 * bands)
        self.encoder = nn.Sequential(
            nn.Conv1d(features, width, 1), *[ConvNeXtBlock(width) for _ in range(encoder_depth)]
        )
        self.to_latent = nn.Conv1d(width, 2 * latent_channels, 1)
        self.from_latent = nn.Conv1d(latent_channels, width, 3, padding=1)
        self.decoder = nn.Sequential(*[ConvNeXtBlock(width) for _ in range(decoder_depth)])
        self.head = nn.Sequential(nn.GroupNorm(1, width), nn.Conv1d(width, features, 1))
        self.register_buffer("latent_mean_C", torch.zeros(latent_channels))
        self.register_buffer("latent_std_C", torch.ones(latent_channels))
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        pooling_KF, spread_FK = _stereo_bands(bands, self.bins, sample_rate_hz)
        self.register_buffer("pooling_KF", pooling_KF, persistent=False)
        self.register_buffer("spread_FK", spread_FK, persistent=False)
        decorrelation = (
            torch.rand(self.bins, generator=torch.Generator().manual_seed(0)).cumsum(0) * math.pi
        )
        self.register_buffer("decorrelation_F", decorrelation, persistent=False)

    # -- waves <-> features
    # -------------------------------------------------------------------------------------------

    def features(self, wave_B2N: Tensor) -> tuple[Tensor, Tensor]:
        """Computes log-magnitudes (B, F, frames) and stereo parameters (B, 3K, frames).

        The log-magnitude is that of both channels' power mean.
        """
        if wave_B2N.ndim != 3 or wave_B2N.shape[1] != 2:
            raise UserError(
                "the codec takes stereo waves (batch, 2, samples), got shape"
                f" {tuple(wave_B2N.shape)}"
            )
        wave_B2N = F.pad(wave_B2N, (0, -wave_B2N.shape[-1] % self.samples_per_latent))
        spectrum = self._stft(wave_B2N.flatten(0, 1))[..., :-1].unflatten(0, (-1, 2))
        left, right = spectrum[:, 0], spectrum[:, 1]
        power_left, power_right = _power(left), _power(right)
        log_magnitude = torch.log(torch.sqrt((power_left + power_right) / 2 + 1e-12) + _FLOOR)
        band_left = self.pooling_KF @ power_left
        band_right = self.pooling_KF @ power_right
        cross = left * right.conj()
        scale = torch.rsqrt(band_left * band_right + 1e-12)
        level = 0.5 * torch.log((band_left + 1e-8) / (band_right + 1e-8))
        stereo = [
            level,
            (self.pooling_KF @ cross.real) * scale,
            (self.pooling_KF @ cross.imag) * scale,
        ]
        return log_magnitude, torch.cat(stereo, dim=1)

    def synthesize(self, log_magnitude_BFT: Tensor, stereo_BKT: Tensor) -> Tensor:
        """Synthesizes the stereo wave (B, 2, frames * hop) of features.

        It runs in the codec's precision, under autocast too.
        """
        dtype = self.hann.dtype  # too coarse in bfloat16, where there is no STFT
        with torch.autocast(self.hann.device.type, enabled=False):
            return self._synthesize(log_magnitude_BFT.to(dtype), stereo_BKT.to(dtype))

    def _synthesize(self, log_magnitude_BFT: Tensor, stereo_BKT: Tensor) -> Tensor:
        log_magnitude_BFT = torch.cat([log_magnitude_BFT, log_magnitude_BFT[..., -1:]], dim=-1)
        stereo_BKT = torch.cat([stereo_BKT, stereo_BKT[..., -1:]], dim=-1)
        length = (log_magnitude_BFT.shape[-1] - 1) * self.hop
        magnitude = (torch.exp(log_magnitude_BFT) - _FLOOR).clamp(min=0)
        mono = torch.polar(magnitude, self._integrated_phase(log_magnitude_BFT))
        previous = torch.zeros_like(mono)
        for _ in range(self.phase_iterations):  # fast Griffin-Lim with momentum 0.99 / 1.99
            consistent = self._stft(self._istft(mono, length))
            direction = consistent - 0.4975 * previous
            previous = consistent
            mono = magnitude * direction * torch.rsqrt(_power(direction) + 1e-12)
        level, real, imaginary = (self.spread_FK @ part for part in stereo_BKT.chunk(3, dim=1))
        coherence = torch.sqrt(real**2 + imaginary**2 + 1e-8)
        turn = torch.complex(real / coherence, imaginary / coherence)
        together = torch.sqrt((1 + coherence.clamp(max=1)) / 2)
        apart = torch.sqrt((1 - coherence).clamp(min=0) / 2 + 1e-8)
        diffuse = (
            mono * torch.polar(torch.ones_like(self.decorrelation_F), self.decorrelation_F)[:, None]
        )
        gain_left = torch.sqrt(2 * torch.sigmoid(2 * level))
        gain_right = torch.sqrt(2 * torch.sigmoid(-2 * level))
        left = gain_left * (together * mono + apart * diffuse) * turn
        right = gain_right * (together * mono - apart * diffuse)
        return torch.stack([self._istft(left, length), self._istft(right, length)], dim=1)

    def _stft(self, wave_BN: Tensor) -> Tensor:
        return torch.stft(wave_BN, self.window, self.hop, window=self.hann, return_complex=True)

    def _istft(self, spectrum_BFT: Tensor, length: int) -> Tensor:
        return torch.istft(spectrum_BFT, self.window, self.hop, window=self.hann, length=length)

    def _integrated_phase(self, log_magnitude_BFT: Tensor) -> Tensor:
        """Phase in radians, by integrating over time.

        The advance per frame is the bin's own plus a term of the slope of log-magnitude over
        frequency.
        """
        slope = F.pad((log_magnitude_BFT[:, 2:] - log_magnitude_BFT[:, :-2]) / 2, (0, 0, 1, 1))
        bin_advance = (
            2
            * math.pi
            * self.hop
            / self.window
            * torch.arange(self.bins, device=slope.device, dtype=slope.dtype)
        )
        offset = slope * (self.hop / (_HANN_GAMMA * self.window))
        increments = 0.5 * (offset[..., 1:] + offset[..., :-1]) + bin_advance[:, None]
        return F.pad(torch.remainder(increments, 2 * math.pi).cumsum(-1), (1, 0))

    # -- features <-> latents
    # -----------------------------------------------------------------------------------------

    def _pack(self, log_magnitude: Tensor, stereo: Tensor) -> Tensor:
        """Frames side by side as channels; log-magnitudes scaled to about unit deviation."""
        both = torch.cat([(log_magnitude + 2.0) / 2.5, stereo], dim=1)
        batch, channels, frames = both.shape
        return (
            both.reshape(batch, channels, -1, self.frames_per_latent)
            .transpose(2, 3)
            .reshape(batch, -1, frames // self.frames_per_latent)
        )

    def _unpack(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        batch, _, frames = packed.shape
        both = (
            packed.reshape(batch, -1, self.frames_per_latent, frames)
            .transpose(2, 3)
            .reshape(batch, -1, frames * self.frames_per_latent)
        )
        return both[:, : self.bins] * 2.5 - 2.0, both[:, self.bins :]

    def posterior(self, log_magnitude: Tensor, stereo: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance before normalisation, each (B, latent_channels, T)."""
        mean, log_variance = self.to_latent(self.encoder(self._pack(log_magnitude, stereo))).chunk(
            2, dim=1
        )
        return mean, log_variance.clamp(-12, 4)

    def features_of(self, raw_latent_BCT: Tensor) -> tuple[Tensor, Tensor]:
        """Decoded features of latents before normalisation."""
        return self._unpack(self.head(self.decoder(self.from_latent(raw_latent_BCT))))

    def encode(self, wave_B2N: Tensor) -> Tensor:
        """Encodes waves as normalised latents (the posterior's mean).

        Each channel has about zero mean and unit variance.
        """
        mean, _ = self.posterior(*self.features(wave_B2N))
        return (mean - self.latent_mean_C[:, None]) / self.latent_std_C[:, None]

    def decode(self, latent_BCT: Tensor) -> Tensor:
        """The wave of normalised latents."""
        raw = latent_BCT * self.latent_std_C[:, None] + self.latent_mean_C[:, None]
        return self.synthesize(*self.features_of(raw))


def _power(spectrum: Tensor) -> Tensor:
    return spectrum.real.square() + spectrum.imag.square()


def _stereo_bands(bands: int, bins: int, sample_rate_hz: int) -> tuple[Tensor, Tensor]:
    """Pooling (K, F) into bands on the ERB-rate scale, and its inverse.

    The scale is that of Glasberg and Moore (1990).
    """
    frequency_hz = torch.linspace(0, sample_rate_hz / 2, bins, dtype=torch.float64)
    erb = 21.4 * torch.log10(1 + 0.00437 * frequency_hz)
    place = erb / erb[-1] * (bands - 1)
    triangles_KF = (1 - (place[None] - torch.arange(bands)[:, None]).abs()).clamp(min=0)
    pooling = triangles_KF / triangles_KF.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return pooling.float(), triangles_KF.T.contiguous().float()
