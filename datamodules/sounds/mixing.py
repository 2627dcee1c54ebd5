"""Mixes two captioned clips so that both are heard: Tango's augmentation (arXiv 2304.13731, 2.3).

Levels are A-weighted (IEC 61672), because in a mixture by energy low rumble would mask what
listeners notice. The weights are those of between-class learning (Tokozume et al. 2018, arXiv
1711.10282, eq. 2), and the mixture keeps the energy of one clip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import UserError

FFT = 2048  # samples: 128 ms at 16 kHz
FLOOR_DB = -80.0


def a_weights_db(sample_rate_hz: int) -> Tensor:
    """A-weighting (FFT // 2 + 1,) in dB of each frequency, at least ``FLOOR_DB``; float64."""
    square = torch.linspace(0, sample_rate_hz / 2, FFT // 2 + 1, dtype=torch.float64) ** 2
    square[0] = 1.0  # 0 Hz has no logarithm; the floor applies there
    gain = 12194.0**2 * square**2 / ((square + 12194.0**2) * (square + 20.6**2))
    gain = gain / ((square + 107.7**2) * (square + 737.9**2)).sqrt()
    return (20 * torch.log10(gain) + 2.0).clamp(min=FLOOR_DB)


def levels_db(wave_N: Tensor, sample_rate_hz: int) -> Tensor:
    """A-weighted levels (frames,) in dB, at least ``FLOOR_DB``; float64.

    Frames are Hann windows of ``FFT`` samples with half overlap. Raises ``UserError`` for a clip
    that is not one channel of at least ``FFT`` samples.
    """
    if wave_N.ndim != 1 or len(wave_N) < FFT:
        raise UserError(
            f"a level needs one channel of at least {FFT} samples, got shape {tuple(wave_N.shape)}"
        )
    frames = wave_N.double().unfold(0, FFT, FFT // 2) * torch.hann_window(FFT, dtype=torch.float64)
    power = torch.fft.rfft(frames).abs() ** 2 @ 10 ** (a_weights_db(sample_rate_hz) / 10)
    return 10 * torch.log10(power.clamp(min=10 ** (FLOOR_DB / 10)))


def first_weight(first_N: Tensor, second_N: Tensor, sample_rate_hz: int) -> float:
    """The share of the first clip at which both sound equally loud: 1 / (1 + 10^((G1 - G2) / 20)).

    G1 and G2 are the levels of their loudest frames.
    """
    difference_db = (
        levels_db(first_N, sample_rate_hz).max() - levels_db(second_N, sample_rate_hz).max()
    )
    return float(1 / (1 + 10 ** (difference_db / 20)))


def mixed(first_N: Tensor, second_N: Tensor, sample_rate_hz: int) -> Tensor:
    """(p * first + (1 - p) * second) / sqrt(p^2 + (1 - p)^2), (N,) float32, p of ``first_weight``.

    Raises ``UserError`` for clips of different lengths, and as ``levels_db``.
    """
    if first_N.shape != second_N.shape:
        shapes = f"{tuple(first_N.shape)} and {tuple(second_N.shape)}"
        raise UserError(f"cannot mix clips of different lengths {shapes}; cut or pad one")
    share = first_weight(first_N, second_N, sample_rate_hz)
    norm = (share**2 + (1 - share) ** 2) ** 0.5
    return (share / norm * first_N.double() + (1 - share) / norm * second_N.double()).float()


def joined(first: str, second: str) -> str:
    """ "A dog barks" and "Rain falls" give "A dog barks and rain falls"."""
    return f"{first} and {second[:1].lower()}{second[1:]}"
