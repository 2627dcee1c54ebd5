"""Mixing two captioned clips (``datamodules/sounds/mixing.py``)."""

import math

import pytest
import torch

from datamodules.sounds.mixing import FFT, a_weights_db, first_weight, joined, levels_db, mixed

RATE = 16_000


def tone(hz, amplitude=0.1, seconds=0.5):
    return amplitude * torch.sin(2 * math.pi * hz * torch.arange(int(seconds * RATE)) / RATE)


def test_a_weighting_keeps_1_khz_and_lowers_the_bass():
    weights = a_weights_db(RATE)
    at = {hz: weights[round(hz * FFT / RATE)].item() for hz in (62.5, 1000, 7000)}
    assert (
        at[1000] == pytest.approx(0, abs=0.1)
        and at[62.5] == pytest.approx(-26.2, abs=0.5)
        and at[7000] < 0
    )  # IEC 61672
    assert weights.min() == -80 and weights[0] == -80


def test_ten_times_as_loud_is_20_db():
    loud, soft = levels_db(tone(1000, 0.5), RATE), levels_db(tone(1000, 0.05), RATE)
    torch.testing.assert_close(loud - soft, torch.full_like(loud, 20.0))
    assert levels_db(torch.zeros(FFT), RATE).tolist() == [-80.0]


def test_the_louder_clip_gets_the_smaller_share_and_energy_is_kept():
    soft, loud = tone(900, 0.05), tone(1100, 0.5)
    share = first_weight(soft, loud, RATE)
    assert share == pytest.approx(10 / 11, abs=0.01)  # 20 dB
    both = mixed(tone(1000), tone(1500), RATE)
    energy = both.square().mean().item()
    expected = tone(1000).square().mean().item()
    assert both.dtype == torch.float32 and energy == pytest.approx(expected, rel=0.1)


def test_captions_are_joined():
    assert joined("A dog barks", "Rain falls on TV") == "A dog barks and rain falls on TV"
    assert joined("A dog barks", "") == "A dog barks and "


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.zeros(4000), torch.zeros(4001), "different lengths"),
        (torch.zeros(100), torch.zeros(100), "at least 2048 samples"),
        (torch.zeros(2, 4000), torch.zeros(2, 4000), "one channel"),
    ],
)
def test_invalid_mixtures_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        mixed(first, second, RATE)
