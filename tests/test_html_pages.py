"""Players and spectrograms of pages that open offline."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from zoo.audio_files import write_audio
from zoo.html_pages import clip, log_spectrogram
from zoo.types import Waveform


def tone(hz: float, rate_hz: int, seconds: float = 1.0, level: float = 0.5) -> Waveform:
    time = torch.arange(round(rate_hz * seconds)) / rate_hz
    return Waveform(level * torch.sin(2 * torch.pi * hz * time).expand(2, -1), rate_hz)


@pytest.mark.parametrize(("hz", "rate_hz"), [(440, 16_000), (3000, 44_100)])
def test_a_tone_lies_at_its_frequency_and_level(hz: int, rate_hz: int) -> None:
    edges_s, edges_hz, level_db = log_spectrogram(tone(hz, rate_hz))
    band = int(np.median(level_db.argmax(0)))
    assert edges_hz[band - 1] <= hz <= edges_hz[band + 2]
    assert np.median(level_db.max(0)) == pytest.approx(-9.0, abs=1.5)  # amplitude 0.5; Hann
    assert edges_s[-1] == pytest.approx(1.0)
    assert level_db.shape == (len(edges_hz) - 1, len(edges_s) - 1)


def test_two_channels_out_of_phase_cancel() -> None:
    wave = tone(440, 16_000)
    opposite = Waveform(wave.samples_CN * torch.tensor([[1.0], [-1.0]]), 16_000)
    assert log_spectrogram(opposite)[2].max() == pytest.approx(-120)


def test_a_long_clip_has_as_few_frames_as_a_picture_shows() -> None:
    assert log_spectrogram(tone(440, 16_000, seconds=60))[2].shape[1] <= 400


@pytest.mark.parametrize(
    "wave",
    [tone(440, 16_000, 4.0), Waveform(torch.zeros(1, 8), 8), tone(9_000, 44_100)],
    ids=["music", "eight samples of silence", "high rate"],
)
def test_a_clip_is_a_picture_and_a_lossless_player(wave: Waveform, tmp_path: Path) -> None:
    write_audio(tmp_path / "clip.wav", wave)
    drawn, played = re.findall(r'src="data:[a-z/]+;base64,([^"]+)"', clip(tmp_path / "clip.wav"))
    picture = base64.b64decode(drawn)
    assert picture.startswith(b"\xff\xd8") and len(picture) < 30_000
    samples_NC, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(played)), always_2d=True)
    assert rate_hz == wave.sample_rate_hz
    assert np.abs(samples_NC.T - wave.samples_CN.numpy()).max() <= 1 / 2**15
