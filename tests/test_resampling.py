"""Other sample rates: ordinary ones bitwise as in torchaudio, all others in bounded memory."""

from __future__ import annotations

import pytest
import torch
import torchaudio.functional as AF

from zoo.audio_files import resample, resampling
from zoo.audio_files.resampling import resampled
from zoo.rewards.waves import mono_at
from zoo.types import Waveform

KAISER = {
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "resampling_method": "sinc_interp_kaiser",
    "beta": 14.769656459379492,
}


def noise(samples: int, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44_100, 16_000), (48_000, 44_100), (8000, 48_000)])
@pytest.mark.parametrize("settings", [{}, KAISER])
def test_ordinary_rates_are_bitwise_as_torchaudio_has_them(
    from_hz: int, to_hz: int, settings: dict
) -> None:
    wave = noise(5000)
    assert torch.equal(
        resampled(wave, from_hz, to_hz, **settings), AF.resample(wave, from_hz, to_hz, **settings)
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("old", "new"), [(441, 160), (160, 441), (7, 480), (3, 2), (2000, 1999), (1, 90)]
)
@pytest.mark.parametrize("settings", [{}, KAISER])
def test_blocks_give_what_the_table_gives(
    monkeypatch: pytest.MonkeyPatch, old: int, new: int, settings: dict
) -> None:
    monkeypatch.setattr(resampling, "_TABLE", 0)
    monkeypatch.setattr(resampling, "_BLOCK", 2**14)
    wave = noise(501)
    found = resampled(wave, old, new, **settings)
    expected = AF.resample(wave.double(), old, new, **settings)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).abs().max() < 3e-6
    assert resampled(wave[None, 0], old, new, **settings).shape == (1, found.shape[1])


@pytest.mark.long
@pytest.mark.parametrize("from_hz", [44_101, 22_254, 999_983, 2**31 - 1])
def test_unusual_rates_take_bounded_memory(from_hz: int) -> None:
    """torchaudio's table would be 16,000 filters of ``from_hz`` numbers, 64 GB for 999,983 Hz."""
    seconds = 0.2 if from_hz < 10**6 else 0.001
    time_N = torch.arange(round(from_hz * seconds), dtype=torch.float64) / from_hz
    wave = torch.sin(2 * torch.pi * 1000 * time_N).float()[None]
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    with Watch():
        found = resampled(wave, from_hz, 16_000)
    assert max(sizes) < max(4 * 2**20, 3 * wave.numel())
    time_N = torch.arange(found.shape[1]) / 16_000
    middle = slice(len(time_N) // 4, 3 * len(time_N) // 4)
    assert (found[0] - torch.sin(2 * torch.pi * 1000 * time_N)).abs()[middle].max() < 2e-3


@pytest.mark.long
def test_every_entry_point_takes_unusual_rates() -> None:
    wave = noise(44_101)
    assert resample(Waveform(wave, 44_101), 16_000).samples_CN.shape == (2, 16_000)
    assert mono_at(wave[None], 44_101, 48_000, "x", **KAISER).shape == (1, 48_000)


def test_gradients_pass() -> None:
    wave = noise(4000).requires_grad_()
    resampled(wave, 44_101, 16_000).square().sum().backward()
    assert wave.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("from_hz", "to_hz", "message"),
    [(0, 8000, "rate 0"), (8000, -1, "rate -1"), (1, 16_000, "1 Hz")],
)
def test_invalid_rates_are_named(from_hz: int, to_hz: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resampled(noise(10), from_hz, to_hz)
    with pytest.raises(ValueError, match="resampling_method 'x'"):
        resampled(noise(10), 44_101, 16_000, resampling_method="x")
