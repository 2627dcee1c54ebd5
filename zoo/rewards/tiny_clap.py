"""Towers of a small CLAP for CPUs: windows of 4.096 s at 16 kHz, about 0.8 M parameters.

Sources: CLIP (Radford et al., arXiv 2103.00020) for two towers and a learned temperature;
LAION-CLAP (Wu et al., arXiv 2211.06687) for audio. The audio tower keeps one token every 64 ms
until its transformer and pools with several learned queries, so that it can tell the order of
events; the text tower has positions for the same reason.

Shapes: ``N`` samples, ``M`` mel bins, ``F`` spectrogram frames, ``T`` audio tokens, ``Q`` pooling
queries, ``E`` embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.tiny_denoiser import sinusoid
from zoo.conditioners.text import TextEncoder, tokenize
from zoo.errors import UserError
from zoo.rewards.mood import level_normalised

_TIME_STRIDE, _MEL_STRIDE = 4, 16  # of the four convolutions together
# They scale the log-mel of a clip at rms 0.08 to about zero mean and unit deviation.
_DB_CENTRE = -10.0
_DB_SCALE = 20.0
MAX_SCALE = 100.0  # of the cosines, as in CLIP: the temperature stays above 0.01


class LogMel(nn.Module):
    """Waves (B, N) to (B, 1, M, N // hop): power in dB, floored, roughly standardised; float32.

    The tables are not buffers: a cast of the model to half precision leaves them.
    """

    def __init__(
        self, sample_rate_hz: int, n_fft: int, hop_samples: int, n_mels: int, floor_db: float
    ) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.hop_samples = hop_samples
        self.floor_db = floor_db
        bank = torchaudio.functional.melscale_fbanks(
            n_fft // 2 + 1, 0.0, sample_rate_hz / 2, n_mels, sample_rate_hz
        )
        self._tables = (torch.hann_window(n_fft), bank)

    def forward(self, wave_BN: Tensor) -> Tensor:
        if self._tables[0].device != wave_BN.device:
            self._tables = tuple(table.to(wave_BN.device) for table in self._tables)
        window, bank_KM = self._tables
        with torch.autocast(wave_BN.device.type, enabled=False):
            wave_BN = wave_BN.float()
            spectrum = torch.stft(
                wave_BN,
                self.n_fft,
                self.hop_samples,
                window=window,
                return_complex=True,
            )
            power_BFK = (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2)
            power_BFM = power_BFK[:, : wave_BN.shape[1] // self.hop_samples] @ bank_KM
            decibel = 10 * power_BFM.clamp(min=10 ** (self.floor_db / 10)).log10()
            return ((decibel - _DB_CENTRE) / _DB_SCALE).transpose(1, 2).unsqueeze(1)


class AttentionPool(nn.Module):
    """Tokens (B, T, D) to a unit vector (B, E): Q queries take weighted means, joined linearly."""

    def __init__(self, width: int, queries: int, embedding: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, queries, bias=False)
        self.out = nn.Linear(width * queries, embedding)

    def forward(self, tokens_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        weight_BTQ = self.query(tokens_BTD)
        if mask_BT is not None:
            weight_BTQ = weight_BTQ.masked_fill(~mask_BT[..., None], -torch.inf)
        pooled_BQD = weight_BTQ.softmax(dim=1).transpose(1, 2) @ tokens_BTD
        return F.normalize(self.out(pooled_BQD.flatten(1)).float(), dim=-1)


class ConvStage(nn.Module):
    """conv 3x3 (strided over mel and time) - group norm - GELU."""

    def __init__(self, channels_in: int, channels_out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(math.gcd(8, channels_out), channels_out)

    def forward(self, map_BCMF: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(map_BCMF)))


class AudioTower(nn.Module):
    """(B, 1, M, F) to (B, E): convolutions, a transformer over F / 4 tokens, then pooling."""

    def __init__(
        self,
        n_mels: int,
        tokens: int,
        channels: Sequence[int],
        width: int,
        depth: int,
        heads: int,
        queries: int,
        embedding: int,
    ) -> None:
        super().__init__()
        widths = [1, *channels]
        strides = ((2, 2), (2, 2), (2, 1), (2, 1))
        self.stages = nn.Sequential(
            *(ConvStage(a, b, s) for a, b, s in zip(widths, channels, strides, strict=False))
        )
        self.into = nn.Linear(channels[-1] * (n_mels // _MEL_STRIDE), width)
        self.position = nn.Parameter(sinusoid(torch.arange(tokens), width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                2 * width,
                dropout=0.0,
                activation=F.gelu,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPool(width, queries, embedding)

    def forward(self, map_BCMF: Tensor) -> Tensor:
        hidden = self.stages(map_BCMF.to(self.into.weight.dtype))
        hidden = self.into(hidden.flatten(1, 2).transpose(1, 2)) + self.position
        for layer in self.layers:
            hidden = layer(hidden)
        return self.pool(self.norm(hidden))


class TinyClapTowers(nn.Module):
    """Both towers and their learned temperature (``zoo.rewards.clap.ClapTowers``).

    All arguments are plain JSON values.

    Args:
        sample_rate_hz: of what the audio tower hears.
        window_s: seconds that it hears at once.
        n_fft, hop_samples, n_mels: of its spectrogram.
        channels: of the four strided convolutions.
        width, depth, heads: of the audio transformer; ``text_depth``: layers of the text
            transformer.
        max_tokens: the longest text.
        queries: of the attention that pools tokens.
        embedding: numbers per embedding.
        rms: the level of every window, so that loudness earns nothing.
        floor_db: the level below which a mel bin counts as silent, relative to power 1 (a clip of
            white noise at rms 0.08 is near +10).

    Raises: ``UserError`` for sizes that the four strided convolutions do not divide.
    """

    differentiable = True

    def __init__(
        self,
        sample_rate_hz: int = 16_000,
        window_s: float = 4.096,
        n_fft: int = 1024,
        hop_samples: int = 256,
        n_mels: int = 64,
        channels: Sequence[int] = (16, 32, 64, 96),
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        text_depth: int = 2,
        max_tokens: int = 96,
        queries: int = 4,
        embedding: int = 128,
        rms: float = 0.08,
        floor_db: float = -50.0,
    ) -> None:
        super().__init__()
        if len(channels) != 4:
            raise UserError(
                f"channels needs one width for each of the 4 convolutions, got {list(channels)}"
            )
        if n_mels % _MEL_STRIDE:
            raise UserError(f"n_mels must be a multiple of {_MEL_STRIDE}, got {n_mels}")
        self.sample_rate_hz = sample_rate_hz
        self.rms = rms
        self.window_samples = round(window_s * sample_rate_hz)
        if self.window_samples < n_fft or self.window_samples % (hop_samples * _TIME_STRIDE):
            raise UserError(
                f"a window of {self.window_samples} samples (window_s={window_s}) must hold"
                f" n_fft={n_fft} samples and be a multiple of {_TIME_STRIDE} * hop_samples ="
                f" {_TIME_STRIDE * hop_samples}"
            )
        self.log_mel = LogMel(sample_rate_hz, n_fft, hop_samples, n_mels, floor_db)
        tokens = self.window_samples // (hop_samples * _TIME_STRIDE)
        self.audio = AudioTower(
            n_mels, tokens, tuple(channels), width, depth, heads, queries, embedding
        )
        self.text = TextEncoder(width, text_depth, heads, max_tokens)
        # Positions as strong as the words from the start, in both towers: else neither the order of
        # sounds nor that of words is heard, and as each is only of use together with the other,
        # training stays there (order accuracy .45 after 600 steps).
        self.text.position.data.copy_(sinusoid(torch.arange(max_tokens), width))
        self.text_pool = AttentionPool(width, queries, embedding)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """The factor of cosines in training: 1 / temperature, at most ``MAX_SCALE``."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)

    def embed_audio(self, window_BN: Tensor) -> Tensor:
        """(B, E) float32 unit vectors of mono windows (B, window_samples) at ``sample_rate_hz``."""
        return self.audio(self.log_mel(level_normalised(window_BN, self.rms)))

    def check_text(self, text: str) -> None:
        """Raises ``UserError`` for a text of more than ``max_tokens`` tokens."""
        tokenize(text, self.text.max_tokens)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(B, E) float32 unit vectors.

        Raises ``UserError`` for a text of more than ``max_tokens`` tokens.
        """
        return self.text_pool(*self.text(texts))
