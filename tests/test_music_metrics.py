"""Benchmark measures on sounds with known answers."""

import math

import pytest
import torch

from benchmarks.music_metrics import in_tune_share, onset_rate, side_to_mid_db

RATE = 16_000


def tone(frequency_hz: float, seconds: float = 2.0) -> torch.Tensor:
    time = torch.arange(round(seconds * RATE)) / RATE
    return 0.1 * torch.sin(2 * math.pi * frequency_hz * time)


def chord(shift_cents: float) -> torch.Tensor:
    return sum(
        tone(440 * 2 ** ((semitone + shift_cents / 100) / 12)) for semitone in (-9, -5, -2, 3, 10)
    )


@pytest.mark.parametrize(
    ("shift_cents", "low", "high"), [(0, 0.99, 1.0), (12, 0.99, 1.0), (20, 0, 0.02), (50, 0, 0.02)]
)
def test_chords_are_in_tune_within_the_tolerance(shift_cents, low, high):
    assert low <= float(in_tune_share(chord(shift_cents).unsqueeze(0), RATE)) <= high


def test_noise_is_in_tune_by_chance_and_silence_not_at_all():
    assert float(in_tune_share(torch.randn(1, 8 * RATE), RATE)) == pytest.approx(0.30, abs=0.06)
    assert float(in_tune_share(torch.zeros(1, RATE), RATE)) == 0
    assert in_tune_share(torch.zeros(2, 100), RATE).shape == (2,)


def test_energy_weights_the_share():
    mixed = chord(0) + 3 * chord(50)
    assert float(in_tune_share(mixed.unsqueeze(0), RATE)) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("rate_hz", [1.0, 4.0, 8.0])
@pytest.mark.parametrize("level", [1.0, 0.001])
def test_clicks_at_a_known_rate(rate_hz, level):
    wave = torch.zeros(1, 4 * RATE)
    wave[0, (torch.arange(0.06, 4, 1 / rate_hz) * RATE).long()] = level
    assert float(onset_rate(wave, RATE)) == pytest.approx(rate_hz, rel=0.05)


def test_notes_with_decay_at_a_known_rate():
    time = torch.arange(4 * RATE) / RATE
    since = (time - 0.05) % 0.25
    wave = torch.exp(-6 * since) * torch.sin(2 * math.pi * 440 * time) * (since < 0.24)
    assert float(onset_rate(wave.unsqueeze(0), RATE)) == pytest.approx(4, abs=0.3)


def test_silence_has_no_onsets_and_a_held_tone_one_at_most():
    assert float(onset_rate(torch.zeros(1, RATE), RATE)) == 0
    assert float(onset_rate(tone(440, 4.0).unsqueeze(0), RATE)) <= 0.5  # its start and its end


def test_side_level():
    left = tone(300)
    right = torch.zeros_like(tone(300))
    assert float(side_to_mid_db(torch.stack([left, right]).unsqueeze(0))) == pytest.approx(
        0, abs=1e-3
    )
    uneven = torch.stack([left, left * 0.8]).unsqueeze(0)
    assert float(side_to_mid_db(uneven)) == pytest.approx(20 * math.log10(0.2 / 1.8), abs=0.01)
    for narrow in (left.expand(1, 2, -1), left.view(1, 1, -1), torch.zeros(1, 2, 100)):
        assert float(side_to_mid_db(narrow)) == -100
