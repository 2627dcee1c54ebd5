"""The short-chunk ResNet of the mood classifiers (chunk to logits), and cutting into chunks.

Sources: Won et al., "Evaluation of CNN-based automatic music tagging models" (arXiv 2006.00751,
short-chunk CNN with residual connections); Hung et al., "EMOPIA" (arXiv 2108.01374), whose
checkpoint layout the submodule names follow.

Shapes: ``K`` classes, ``M`` mel bins, ``F`` spectrogram frames; ``BN`` is a batch of mono clips.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import UserError

CHUNK_RULES = ("full", "upstream", "overlap")
STAGES = 7  # each halves the spectrogram in both directions
_DB_FLOOR = 1e-10  # power below this is -100 dB


class ResidualStage(nn.Module):
    """Two convolutions 3x3 with batch norms (stride 2) and a strided shortcut, then ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)
        self.bn_1 = nn.BatchNorm2d(channels_out)
        self.conv_2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.bn_2 = nn.BatchNorm2d(channels_out)
        self.conv_3 = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)
        self.bn_3 = nn.BatchNorm2d(channels_out)

    def forward(self, map_BCMF: Tensor) -> Tensor:
        main = self.bn_2(self.conv_2(functional.relu(self.bn_1(self.conv_1(map_BCMF)))))
        return functional.relu(main + self.bn_3(self.conv_3(map_BCMF)))


class ShortChunkResNet(nn.Module):
    """One chunk of mono audio to class logits.

    With ``n_fft=1024, hop_samples=512, n_mels=128, channels=(128, 128, 256, 256, 256, 256, 512)``
    at 22,050 Hz it is the EMOPIA audio classifier (12.08 M parameters), whose sigmoid is left to
    the caller.
    """

    def __init__(
        self,
        sample_rate_hz: int,
        n_fft: int,
        hop_samples: int,
        n_mels: int,
        channels: Sequence[int],
        n_classes: int,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if len(channels) != STAGES:
            raise UserError(
                f"channels needs one width for each of the 7 stages, got {len(channels)}:"
                f" {list(channels)}"
            )
        if not 1 <= n_mels <= 128:
            raise UserError(f"n_mels must be 1..128 (seven halvings leave one row), got {n_mels}")
        self.spec = torchaudio.transforms.MelSpectrogram(
            sample_rate=sample_rate_hz,
            n_fft=n_fft,
            hop_length=hop_samples,
            n_mels=n_mels,
            f_min=0.0,
            f_max=sample_rate_hz / 2,
        )
        self.spec_bn = nn.BatchNorm2d(1)
        widths = [1, *channels]
        for stage, (width_in, width_out) in enumerate(zip(widths[:-1], widths[1:]), start=1):
            self.add_module(f"layer{stage}", ResidualStage(width_in, width_out))
        self.dense1 = nn.Linear(channels[-1], channels[-1])
        self.bn = nn.BatchNorm1d(channels[-1])
        self.dropout = nn.Dropout(dropout)
        self.dense2 = nn.Linear(channels[-1], n_classes)

    def log_mel(self, wave_BN: Tensor) -> Tensor:
        """(B, 1, M, F) power in dB (HTK mel, floor -100 dB), always in float32."""
        spectrogram = self.spec.spectrogram
        with torch.autocast(wave_BN.device.type, enabled=False):
            spectrum = torch.stft(
                wave_BN.float(),
                spectrogram.n_fft,
                spectrogram.hop_length,
                window=spectrogram.window.float(),
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )
            power_BFM = (spectrum.real.square() + spectrum.imag.square()).transpose(
                1, 2
            ) @ self.spec.mel_scale.fb.float()
            return 10 * torch.log10(power_BFM.clamp(min=_DB_FLOOR)).transpose(1, 2).unsqueeze(1)

    def forward(self, wave_BN: Tensor) -> Tensor:
        """(B, K) logits of chunks (B, N)."""
        x = self.spec_bn(self.log_mel(wave_BN).to(self.dense1.weight.dtype))
        for stage in range(1, STAGES + 1):
            x = getattr(self, f"layer{stage}")(x)
        x = x.amax(dim=(2, 3))
        return self.dense2(self.dropout(functional.relu(self.bn(self.dense1(x)))))


def chunk_starts(length: int, chunk: int, rule: str = "full", hop: int | None = None) -> list[int]:
    """First samples of the chunks that are scored in a clip of ``length`` samples.

    ``full``: every whole chunk (a shorter clip is one padded chunk). ``upstream``: as the released
    EMOPIA code, which leaves out the last one. ``overlap``: one every ``hop`` samples, and one that
    ends with the clip. Raises ``UserError`` when a rule leaves no chunk (EMOPIA's code returns NaN
    there).
    """
    if rule == "full":
        return [index * chunk for index in range(max(1, length // chunk))]
    if rule == "upstream":
        count = (length - chunk) // chunk
        if count < 1:
            raise UserError(
                f"chunk rule 'upstream' leaves out the last chunk, so a clip of {length} samples"
                f" has none of {chunk} samples; use chunk_rule='full' or clips of at least two"
                " chunks"
            )
        return [index * chunk for index in range(count)]
    if rule == "overlap":
        if hop is None or hop < 1:
            raise UserError(f"chunk rule 'overlap' needs a positive hop_s, got {hop} samples")
        last = max(0, length - chunk)
        starts = list(range(0, last + 1, hop))
        return starts if starts[-1] == last else [*starts, last]
    raise UserError(f"unknown chunk rule {rule!r}; choose from {', '.join(CHUNK_RULES)}")


def cut_chunks(wave_BN: Tensor, starts: Sequence[int], chunk: int) -> Tensor:
    """(B, len(starts), chunk); samples beyond the end are zero."""
    missing = max(0, max(starts) + chunk - wave_BN.shape[-1])
    padded = functional.pad(wave_BN, (0, missing))
    return torch.stack([padded[:, start : start + chunk] for start in starts], dim=1)
