"""Audio files: round trips, and errors that name broken files."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
from toy_disk import no_file_above

from zoo.audio_files import FORMATS, read_audio, resample, write_audio
from zoo.types import Waveform


def tone(seconds: float = 0.5, rate_hz: int = 16_000, channels: int = 2) -> Waveform:
    time = torch.arange(round(seconds * rate_hz)) / rate_hz
    return Waveform(
        torch.stack(
            [0.5 * torch.sin(2 * torch.pi * (440 + 220 * c) * time) for c in range(channels)]
        ),
        rate_hz,
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_keeps_rate_channels_and_sound(tmp_path, suffix):
    wave = tone()
    write_audio(tmp_path / f"a{suffix}", wave)
    back = read_audio(tmp_path / f"a{suffix}")
    assert (
        back.sample_rate_hz == 16_000
        and back.samples_CN.shape[0] == 2
        and back.samples_CN.dtype == torch.float32
    )
    power = [
        torch.fft.rfft(w.samples_CN[:, :8000]).abs().argmax(dim=1).tolist() for w in (wave, back)
    ]
    assert power[0] == power[1] == [220, 330]  # bins of 2 Hz
    if suffix in (".wav", ".flac"):
        assert torch.allclose(back.samples_CN, wave.samples_CN, atol=2**-15)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_loud_samples_are_clipped_not_wrapped(tmp_path):
    write_audio(tmp_path / "a.wav", Waveform(torch.tensor([[0.0, 1.5, -1.5, 0.25]]), 8000))
    assert torch.allclose(
        read_audio(tmp_path / "a.wav").samples_CN,
        torch.tensor([[0.0, 1.0, -1.0, 0.25]]),
        atol=2**-14,
    )


def test_resampling_keeps_pitch(tmp_path):
    write_audio(tmp_path / "a.wav", tone(1.0, 44_100, 1))
    back = read_audio(tmp_path / "a.wav", 16_000)
    assert back.sample_rate_hz == 16_000 and back.samples_CN.shape == (1, 16_000)
    assert torch.fft.rfft(back.samples_CN[0]).abs().argmax() == 440
    assert resample(back, 16_000) is back
    with pytest.raises(ValueError, match="sample rate 0: expected a positive"):
        resample(back, 0)


def test_files_that_cannot_be_read(tmp_path):
    write_audio(tmp_path / "song.wav", tone())
    with pytest.raises(FileNotFoundError, match=r"sonh\.wav.*'song\.wav'"):
        read_audio(tmp_path / "sonh.wav")
    with pytest.raises(FileNotFoundError, match="nothing to choose from"):
        read_audio(tmp_path / "nowhere" / "song.wav")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(ValueError, match=r"empty\.wav.*0 bytes"):
        read_audio(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("not audio at all " * 20)
    with pytest.raises(ValueError, match=r"text\.wav.*\.wav, \.flac"):
        read_audio(tmp_path / "text.wav")
    soundfile.write(tmp_path / "none.wav", numpy.zeros((0, 1)), 8000)
    with pytest.raises(ValueError, match=r"none\.wav.*no samples"):
        read_audio(tmp_path / "none.wav")
    soundfile.write(tmp_path / "nan.wav", numpy.array([0.0, numpy.nan]), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav.*NaN"):
        read_audio(tmp_path / "nan.wav")


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    write_audio(tmp_path / "a.flac", tone(4.0))
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.flac.*\d+ of 64000"):
        read_audio(tmp_path / "a.flac")


@pytest.mark.parametrize(
    ("name", "wave", "message"),
    [
        ("a.aac", tone(), r"cannot write .aac; use one of .wav"),
        ("a", tone(), "cannot write a file without suffix"),
        ("a.wav", Waveform(torch.zeros(0, 5), 8000), r"expected samples \(channels, samples\)"),
        ("a.wav", Waveform(torch.zeros(5), 8000), r"got shape \(5,\)"),
        ("a.wav", Waveform(torch.full((1, 4), torch.nan), 8000), r"a.wav: .*NaN or infinity"),
        (
            "a.mp3",
            Waveform(torch.zeros(1, 400), 12_345),
            "1 channels at 12345 Hz cannot be written as MP3",
        ),
    ],
)
def test_waves_that_cannot_be_written_leave_nothing(tmp_path, name, wave, message):
    with pytest.raises(ValueError, match=message):
        write_audio(tmp_path / name, wave)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_audio(path, tone())
    before = path.read_bytes()
    with pytest.raises(OSError) as caught, no_file_above(64):
        write_audio(path, tone(0.1))
    assert caught.value.filename == str(path) and path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    write_audio(tmp_path / "a.wav", tone())
    before = (tmp_path / "a.wav").read_bytes()

    def write(path, content):
        with path.open("wb") as file:
            file.write(content[:4])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space left"):  # and not libsndfile's "System error"
        write_audio(tmp_path / "a.wav", tone(0.1))
    assert (tmp_path / "a.wav").read_bytes() == before and [
        path.name for path in tmp_path.iterdir()
    ] == ["a.wav"]


def test_long_waves_are_written_in_every_format(tmp_path):
    wave = Waveform(
        torch.rand(2, 2_700_000, generator=torch.Generator().manual_seed(0)) - 0.5, 44_100
    )
    write_audio(tmp_path / "a.ogg", wave)  # in one piece this crashes libsndfile
    assert read_audio(tmp_path / "a.ogg").samples_CN.shape == wave.samples_CN.shape
    short = Waveform(wave.samples_CN[:, : 2**16 + 1000], 44_100)
    samples_NC = short.samples_CN.T.numpy()
    for suffix in (".wav", ".flac", ".mp3"):
        write_audio(tmp_path / f"a{suffix}", short)
        kind, subtype = FORMATS[suffix]
        soundfile.write(tmp_path / "b", samples_NC, 44_100, format=kind, subtype=subtype)
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / "b").read_bytes()
