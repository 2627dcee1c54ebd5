"""Resamples with torchaudio's windowed sinc, in bounded memory for any two rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import UserError

_WIDTH = 6  # zero crossings of the sinc on each side
_ROLLOFF = 0.99  # where the filter cuts off, as a share of the lower Nyquist frequency
# the largest table of torchaudio's filters, in numbers: the product of the reduced rates
_TABLE = 10**7
_BLOCK = 2**20  # numbers held at a time where the table would be larger
# for fewer input samples torch takes another convolution, which gives other last bits
_LEAST = 2**15
_MOST_UP = 100  # a file of 1 MB that claims 1 Hz would become one of 16 GB


def resampled(
    wave: Tensor,
    from_hz: int,
    to_hz: int,
    lowpass_filter_width: int = _WIDTH,
    rolloff: float = _ROLLOFF,
    resampling_method: str = "sinc_interp_hann",
    beta: float | None = None,
) -> Tensor:
    """Resamples a wave to another rate.

    torchaudio keeps one filter for each output sample of the common period of both rates, which
    takes gigabytes for 44,101 Hz to 16,000 Hz. Where its table would exceed 10 million numbers, the
    same filters are computed in blocks of 1 million numbers (equal up to rounding).

    Args:
        wave: (..., N) floating point, on any device.
        from_hz: whole number of Hz, at least 1.
        to_hz: whole number of Hz, at least 1.
        lowpass_filter_width: zero crossings of the sinc on each side.
        rolloff: where the filter cuts off, as a share of the lower Nyquist frequency.
        resampling_method: ``sinc_interp_hann`` or ``sinc_interp_kaiser``.
        beta: of the Kaiser window.

    Returns:
        (..., ceil(N * to_hz / from_hz)), or ``wave`` itself where the rates are equal.

    Raises:
        UserError: for a rate that is not positive, and for more than 100 times as many samples
            (the header with such a rate is damaged).
    """
    from torchaudio.functional import resample

    for rate in (from_hz, to_hz):
        if rate <= 0:
            raise UserError(f"invalid sample rate {rate}: expected a positive number of Hz")
    if to_hz > _MOST_UP * from_hz:
        raise UserError(
            f"cannot resample from {from_hz} Hz to {to_hz} Hz: more than {_MOST_UP} times as many"
            " samples; the sample rate in the file is probably wrong"
        )
    divisor = math.gcd(from_hz, to_hz)
    old = from_hz // divisor
    new = to_hz // divisor
    if old == new:
        return wave
    if old * new <= _TABLE:
        return resample(
            wave, from_hz, to_hz, lowpass_filter_width, rolloff, resampling_method, beta
        )
    return _by_blocks(wave, old, new, lowpass_filter_width, rolloff, resampling_method, beta)


def resampled_length(samples: int, from_hz: int, to_hz: int) -> int:
    """How many samples ``resampled`` makes of ``samples``."""
    return -(-samples * to_hz // from_hz)


@dataclass(frozen=True)
class Span:
    """The samples ``first`` to ``last`` of a wave, to be resampled.

    The first ``skip`` resampled samples precede the wanted ones.
    """

    first: int
    last: int
    skip: int


def source_span(start: int, count: int, samples: int, from_hz: int, to_hz: int) -> Span:
    """The part of a wave that decides ``count`` samples of the resampled one, from ``start`` on.

    ``resampled(wave[:, span.first : span.last], ...)[:, span.skip :][:, :count]`` is bit for bit
    ``resampled(wave, ...)[:, start : start + count]``: the span begins at a whole period of the two
    rates, and has the width of the filter on both sides.

    Args:
        start: first sample wanted, at ``to_hz``.
        count: samples wanted, at ``to_hz``.
        samples: length of the wave, at ``from_hz``.
        from_hz: rate of the wave.
        to_hz: rate that it is resampled to.
    """
    if from_hz == to_hz:
        return Span(start, min(samples, start + count), 0)
    divisor = math.gcd(from_hz, to_hz)
    old, new = from_hz // divisor, to_hz // divisor
    reach = math.ceil(_WIDTH * old / (min(old, new) * _ROLLOFF))
    last = min(samples, max(0, start + count - 1) // new * old + old + reach + 1)
    period = max(0, start // new - math.ceil(reach / old))
    last = min(samples, max(last, period * old + _LEAST))
    period = min(period, max(0, (last - _LEAST) // old))
    return Span(period * old, last, start - period * new)


def _by_blocks(
    wave: Tensor, old: int, new: int, width: int, rolloff: float, method: str, beta: float | None
) -> Tensor:
    """y[j] = sum over k of x[k] * h(k / old - j / new), with h a windowed sinc."""
    cutoff = min(old, new) * rolloff
    reach = math.ceil(width * old / cutoff)  # input samples on each side
    flat = wave.reshape(-1, wave.shape[-1])
    count = -(-wave.shape[-1] * new // old)
    padded = torch.nn.functional.pad(flat, (reach, reach + 1))
    taps = torch.arange(-reach, reach + 2, device=wave.device)
    size = max(1, _BLOCK // (len(taps) * max(1, len(flat))))
    parts = []
    for start in range(0, count, size):
        place = torch.arange(start, min(start + size, count), device=wave.device) * old
        first = place // new
        phase = (place % new).double() / new  # exact, because place is a whole number
        t = (taps.double() - phase[:, None]) * (cutoff / old)
        filters = (_windowed_sinc(t, width, method, beta) * (cutoff / old)).to(wave.dtype)
        near = padded[:, first[:, None] + (taps + reach)]  # (rows, block, taps)
        parts.append((near * filters).sum(dim=-1))
    out = torch.cat(parts, dim=-1) if parts else flat[:, :0]
    return out.reshape(*wave.shape[:-1], count)


def _windowed_sinc(t: Tensor, width: int, method: str, beta: float | None) -> Tensor:
    share = (t / width).clamp(-1, 1)
    if method == "sinc_interp_hann":
        window = torch.cos(share * (math.pi / 2)) ** 2
    elif method == "sinc_interp_kaiser":
        beta = 14.769656459379492 if beta is None else beta  # torchaudio's default
        window = torch.i0(beta * (1 - share**2).sqrt()) / torch.i0(
            torch.tensor(float(beta), dtype=t.dtype, device=t.device)
        )
    else:
        raise UserError(
            f"unknown resampling_method {method!r}: expected sinc_interp_hann or sinc_interp_kaiser"
        )
    return torch.sinc(share * width) * window
