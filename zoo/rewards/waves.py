"""Shared by rewards: checks of waves, one channel and rate, and permanent eval mode."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor, nn

from zoo.audio_files.resampling import resampled
from zoo.errors import UserError


class StaysInEvalMode(nn.Module):
    """A reward, which is deterministic also inside a module that is in train mode.

    Its trainer sets train mode by ``set_train_mode``.
    """

    def train(self, mode: bool = True) -> StaysInEvalMode:
        """Eval mode, whatever ``mode`` is."""
        return super().train(False)

    def set_train_mode(self) -> None:
        """Train mode for the reward and all its parts, until ``eval`` is called."""
        for module in self.modules():
            module.training = True


def check_waves(wave_BCN: Tensor, sample_rate_hz: Any, who: str, prompts: int | None = None) -> int:
    """The rate as an int. ``who`` hears them; ``prompts``: how many came with them.

    Raises ``UserError`` for other shapes and types, no waves, no samples, no rate, and another
    number of prompts.
    """
    if not isinstance(wave_BCN, Tensor) or not wave_BCN.is_floating_point():
        got = wave_BCN.dtype if isinstance(wave_BCN, Tensor) else type(wave_BCN).__name__
        raise UserError(
            f"{who} takes waves as a tensor of floating point, full scale at 1, got {got}"
        )
    if wave_BCN.ndim != 3 or not wave_BCN.shape[1]:
        raise UserError(
            f"{who} takes waves (batch, channels, samples), got shape {tuple(wave_BCN.shape)}"
        )
    if 0 in wave_BCN.shape:
        what = "waves of 0 samples" if len(wave_BCN) else "0 waves"
        raise UserError(f"{who} was given {what}; it needs audio")
    if prompts is not None and prompts != len(wave_BCN):
        raise UserError(
            f"{len(wave_BCN)} waves came with {prompts} prompts; every wave needs its own"
        )
    is_number = isinstance(sample_rate_hz, numbers.Real) and not isinstance(sample_rate_hz, bool)
    if not is_number or not 0 < sample_rate_hz < math.inf or sample_rate_hz != int(sample_rate_hz):
        raise UserError(
            f"{who} needs the sample rate of the waves, a whole number of Hz, got"
            f" {sample_rate_hz!r}"
        )
    return int(sample_rate_hz)


def mono_at(
    wave_BCN: Tensor, sample_rate_hz: int, wanted_hz: int, who: str, **resampler: Any
) -> Tensor:
    """(B, N) float32, the mean of the channels at ``wanted_hz``.

    ``resampler``: settings of torchaudio's ``resample``.

    Raises ``UserError`` as ``zoo.audio_files.resampling.resampled``, naming who hears.
    """
    try:
        return resampled(wave_BCN.float().mean(dim=1), sample_rate_hz, wanted_hz, **resampler)
    except UserError as error:
        raise UserError(f"{who} hears {wanted_hz} Hz: {error}") from error


def finite_rows(wave_BCN: Tensor) -> Tensor:
    """(B,) whether every sample of a wave is finite, also those that a reward would not hear."""
    return torch.isfinite(wave_BCN).all(dim=(1, 2))
