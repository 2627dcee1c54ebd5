"""Crops of long recordings decode only their part, and equal crops of the whole file bitwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from datamodules.audio import crop, mix_channels, prepare, read_crop
from zoo.audio_files import opened_audio, read_audio, resampling
from zoo.audio_files.resampling import resampled, resampled_length, source_span

PLACES = (0.0, 0.013, 0.5, 0.87, 1 - 2**-48)


def recording(path: Path, rate_hz: int, channels: int, seconds: float, subtype: str) -> Path:
    draw = np.random.default_rng(0)
    samples = draw.uniform(-0.9, 0.9, (round(seconds * rate_hz), channels))
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


def compare(path: Path, rate_hz: int, channels: int, samples: int) -> None:
    whole_CN = prepare(read_audio(path), rate_hz, channels)
    for place in PLACES:
        part_CN = read_crop(path, rate_hz, channels, samples, place)
        assert torch.equal(part_CN, crop(whole_CN, samples, place)), (path, place)


@pytest.mark.parametrize("from_hz", [8000, 11025, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("to_hz", [16_000, 44_100])
def test_crops_are_those_of_the_whole_file(tmp_path: Path, from_hz: int, to_hz: int) -> None:
    for channels in (1, 2):
        path = recording(tmp_path / f"{channels}.wav", from_hz, channels, 3.3, "PCM_16")
        for own in (1, 2):
            compare(path, to_hz, own, to_hz // 2)
    compare(path, to_hz, 2, 7)


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [
        ("wav", "PCM_24"),
        ("wav", "FLOAT"),
        ("wav", "ULAW"),
        ("wav", "MS_ADPCM"),
        ("wav", "GSM610"),  # cannot seek
        ("flac", "PCM_16"),
        ("aiff", "PCM_16"),
        ("au", "PCM_16"),
        ("caf", "PCM_16"),
        ("w64", "PCM_16"),
        ("ogg", "VORBIS"),  # seeks inexactly in its last page
        ("ogg", "OPUS"),
        ("mp3", "MPEG_LAYER_III"),
    ],
)
def test_crops_of_every_format(tmp_path: Path, suffix: str, subtype: str) -> None:
    channels = 1 if subtype == "GSM610" else 2
    path = recording(tmp_path / f"a.{suffix}", 48_000, channels, 3.0, subtype)
    compare(path, 16_000, 1, 16_000)
    compare(path, 48_000, 2, 1000)


@pytest.mark.parametrize("seconds", [0.001, 0.2, 0.5, 0.7])
def test_recordings_shorter_than_the_crop_end_in_silence(tmp_path: Path, seconds: float) -> None:
    path = recording(tmp_path / "a.wav", 44_100, 1, seconds, "PCM_16")
    compare(path, 16_000, 1, 8000)
    part_CN = read_crop(path, 16_000, 1, 16_000, 0.9)
    assert part_CN.shape == (1, 16_000)
    assert not part_CN[:, resampled_length(round(seconds * 44_100), 44_100, 16_000) :].any()


def test_every_part_of_an_exact_format_is_that_of_the_whole(tmp_path: Path) -> None:
    for suffix, subtype in (("flac", "PCM_16"), ("ogg", "VORBIS"), ("wav", "GSM610")):
        # at this rate a page of ogg is long, and a seek into the last one is far off
        path = recording(tmp_path / f"a.{suffix}", 8000, 1, 7.0, subtype)
        with opened_audio(path) as audio:
            whole_CN = audio.read().samples_CN
            assert audio.has_exact_length and whole_CN.shape[1] == audio.facts.samples
        for first in range(0, whole_CN.shape[1], 1301):
            with opened_audio(path) as audio:
                part_CN = audio.read(first, 2000).samples_CN
            assert torch.equal(part_CN, whole_CN[:, first : first + 2000]), (suffix, first)


def test_only_the_part_around_a_crop_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recording(tmp_path / "a.wav", 44_100, 2, 20.0, "PCM_16")
    decoded = []
    read = soundfile.SoundFile.read
    counting = lambda file, size, **how: decoded.append(size) or read(file, size, **how)
    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    for place in PLACES:
        decoded.clear()
        read_crop(path, 16_000, 1, 16_000, place)
        assert sum(decoded) < 1.03 * 44_100
    decoded.clear()
    read_crop(path, 44_100, 2, 1000, 0.5)
    assert decoded == [1000]


def test_damage_is_found_where_the_crop_is(tmp_path: Path) -> None:
    samples = np.zeros(44_100 * 4, np.float32)
    samples[-1000:] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")
    assert not read_crop(tmp_path / "a.wav", 16_000, 1, 16_000, 0.0).any()
    with pytest.raises(ValueError, match="a.wav holds NaN"):
        read_crop(tmp_path / "a.wav", 16_000, 1, 16_000, 0.999)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44_100, 16_000), (16_000, 44_100), (3, 2)])
def test_spans_hold_what_a_resampled_part_depends_on(from_hz: int, to_hz: int) -> None:
    wave_CN = torch.randn(1, 70_000, generator=torch.Generator().manual_seed(0))
    whole_CN = resampled(wave_CN, from_hz, to_hz)
    assert whole_CN.shape[1] == resampled_length(70_000, from_hz, to_hz)
    for start in (0, 1, 159, 160, 161, 20_000, whole_CN.shape[1] - 50):
        span = source_span(start, 50, 70_000, from_hz, to_hz)
        assert 0 <= span.first < span.last <= 70_000
        part_CN = resampled(wave_CN[:, span.first : span.last], from_hz, to_hz)
        part_CN = part_CN[:, span.skip :][:, :50]
        assert torch.equal(part_CN, whole_CN[:, start : start + 50])


def test_rates_without_a_table_of_filters_give_equal_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "_TABLE", 0)
    path = recording(tmp_path / "a.wav", 44_100, 1, 3.0, "PCM_16")
    compare(path, 16_000, 1, 8000)
    odd = recording(tmp_path / "b.wav", 44_101, 2, 3.0, "PCM_16")
    compare(odd, 16_000, 2, 8000)


def test_many_channels_are_mixed_alike_at_every_place() -> None:
    wave_CN = torch.rand(6, 37, generator=torch.Generator().manual_seed(1))
    mixed_CN = mix_channels(wave_CN, 1)
    assert torch.allclose(mixed_CN, wave_CN.mean(0, keepdim=True))
    for first in range(30):
        assert torch.equal(mix_channels(wave_CN[:, first:], 1), mixed_CN[:, first:])
