"""Musical measures: share in tune, onsets per second and stereo width; pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TINY = 1e-12


def in_tune_share(
    wave_BN: Tensor,
    sample_rate_hz: int,
    tolerance_cents: float = 15.0,
    low_hz: float = 200.0,
    high_hz: float = 4000.0,
    reference_hz: float = 440.0,
) -> Tensor:
    """The energy-weighted share (B,) of spectral peaks that are in tune.

    By chance it is 2 * tolerance / 100 = .30. Peaks are local maxima of an 8x zero-padded Hann
    spectrum (256 ms frames, 64 ms apart) within 40 dB of the strongest in their frame, refined by a
    parabola through the log magnitudes. A clip without a peak scores 0.

    Args:
        wave_BN: mono waves.
        sample_rate_hz: of the waves.
        tolerance_cents: largest distance from a semitone of the equal temperament.
        low_hz: lowest frequency of a peak.
        high_hz: highest frequency of a peak.
        reference_hz: of the temperament.
    """
    window = 2 ** round(math.log2(0.256 * sample_rate_hz))
    wave = torch.nn.functional.pad(wave_BN.double(), (0, max(0, window - wave_BN.shape[1])))
    spectrum = _padded_spectra(wave, window)
    power_BFT = spectrum.abs().square()
    log_BFT = power_BFT.clamp(min=_TINY).log()
    left = log_BFT[:, :-2]
    middle = log_BFT[:, 1:-1]
    right = log_BFT[:, 2:]
    bend = left - 2 * middle + right
    offset = torch.where(
        bend.abs() > _TINY, 0.5 * (left - right) / bend, torch.zeros_like(bend)
    ).clamp(-0.5, 0.5)
    bins = torch.arange(1, power_BFT.shape[1] - 1, dtype=torch.float64).view(1, -1, 1)
    frequency = (bins + offset) * sample_rate_hz / (8 * window)
    power = power_BFT[:, 1:-1]
    is_peak = (middle > left) & (middle >= right) & (frequency >= low_hz) & (frequency <= high_hz)
    strongest = (power * is_peak).amax(dim=1, keepdim=True)
    weight = power * (is_peak & (power > 1e-4 * strongest) & (power > _TINY))
    semitones = 12 * torch.log2(frequency / reference_hz)
    tuned = (semitones - semitones.round()).abs() * 100 <= tolerance_cents
    return ((weight * tuned).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp(min=_TINY)).float()


def _padded_spectra(wave_BN: Tensor, window: int) -> Tensor:
    """Spectra (B, F, T) of Hann frames of ``window`` samples, zero-padded to 8 windows."""
    frames = wave_BN.unfold(1, window, window // 4) * torch.hann_window(window, dtype=wave_BN.dtype)
    return torch.fft.rfft(frames, 8 * window).transpose(1, 2)


def onset_rate(
    wave_BN: Tensor, sample_rate_hz: int, threshold: float = 0.2, gap_s: float = 0.05
) -> Tensor:
    """Note onsets per second (B,) by spectral flux.

    Flux: the summed rise of log(1 + 100 magnitude) of 32 ms frames every 8 ms, after clips are
    scaled to one level. An onset is the largest flux within ``gap_s`` on either side that exceeds
    the median of the 0.4 s around it by ``threshold`` of the clip's 98th percentile, and is at
    least 5 % of the clip's mean summed magnitude (so that the ripple of a held tone does not
    count). Against the scores of rendered piano, guitar and harp (1.6 to 10.6 onsets/s by mood):
    within 12 % for happy and tender, 10-20 % low for angry, 20-55 % high for sad, whose long chords
    beat.
    """
    size = round(0.032 * sample_rate_hz)
    hop = round(0.008 * sample_rate_hz)
    level = wave_BN.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-8)
    padded = torch.nn.functional.pad(wave_BN / level * 0.1, (size, size))
    frames = padded.unfold(1, size, hop) * torch.hann_window(size)
    log_BTF = torch.log1p(100 * torch.fft.rfft(frames).abs() / size)
    flux_BT = (log_BTF[:, 1:] - log_BTF[:, :-1]).clamp(min=0).sum(dim=2)
    reach = max(1, round(gap_s * sample_rate_hz / hop))
    around = round(0.2 * sample_rate_hz / hop)
    pad = torch.nn.functional.pad
    highest_BT = pad(flux_BT, (reach, reach)).unfold(1, 2 * reach + 1, 1).amax(dim=2)
    around_BTK = (
        pad(flux_BT.unsqueeze(1), (around, around), mode="replicate")
        .squeeze(1)
        .unfold(1, 2 * around + 1, 1)
    )
    needed_BT = around_BTK.median(dim=2).values + threshold * torch.quantile(
        flux_BT, 0.98, dim=1, keepdim=True
    )
    loudness_B1 = log_BTF.sum(dim=2).mean(dim=1, keepdim=True)
    onset_BT = (flux_BT >= highest_BT) & (flux_BT > needed_BT) & (flux_BT > 0.05 * loudness_B1)
    return onset_BT.sum(dim=1) / (wave_BN.shape[1] / sample_rate_hz)


def side_to_mid_db(wave_B2N: Tensor) -> Tensor:
    """Level (B,) of the side (L - R) against the mid (L + R) signal in dB, at least -100.

    Mono and silence have -100.
    """
    if wave_B2N.shape[1] == 1:
        return torch.full((len(wave_B2N),), -100.0)
    mid = (wave_B2N[:, 0] + wave_B2N[:, 1]).square().mean(dim=1)
    side = (wave_B2N[:, 0] - wave_B2N[:, 1]).square().mean(dim=1)
    return (
        (10 * torch.log10((side + _TINY) / (mid + _TINY)))
        .where(mid + side > _TINY, torch.tensor(-100.0))
        .clamp(min=-100.0)
    )
