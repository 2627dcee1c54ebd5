"""The length in a header is compared with the file, in any container."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from datamodules.audio import AudioDataModule
from datamodules.emopia import duration_s, read_mono
from datamodules.sounds.clips import decode
from zoo import audio_files
from zoo.audio_files import audio_facts, read_audio
from zoo.audio_files.frames import _mp3_frame
from zoo.audio_files.headers import examined
from zoo.html_pages import player

RATE_HZ, SAMPLES = 16_000, 40_000
KINDS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("NIST", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def sound(channels: int = 2) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((SAMPLES, channels)) * 0.05
    return (0.3 * np.sin(np.arange(SAMPLES) * 0.1)[:, None] + noise).astype("float32")


def encoded(kind: str, subtype: str, wave: np.ndarray | None = None, **options) -> bytes:
    file = io.BytesIO()
    wave = sound() if wave is None else wave
    soundfile.write(file, wave, RATE_HZ, format=kind, subtype=subtype, **options)
    return file.getvalue()


def plainly_read(data: bytes) -> torch.Tensor:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        return torch.from_numpy(file.read(dtype="float32", always_2d=True).T.copy())


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_whole_files_are_read_and_cut_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, subtype: str
) -> None:
    monkeypatch.setattr(audio_files, "_BLOCK", 2**14)  # several blocks
    data = encoded(kind, subtype)
    path = tmp_path / "clip.any"
    path.write_bytes(data)
    wave, facts = read_audio(path), audio_facts(path)
    assert torch.equal(wave.samples_CN, plainly_read(data))
    assert (facts.sample_rate_hz, facts.channels, facts.samples) == (
        RATE_HZ,
        2,
        wave.samples_CN.shape[1],
    )
    assert len(read_mono(path, RATE_HZ, 0.5, 1.0)) == RATE_HZ
    has_tail = subtype == "ALAC_16"  # its table of packets stands behind the sound
    cuts = [] if has_tail else [len(data) - 1, len(data) - 700]
    for kept in (*cuts, len(data) * 3 // 4, len(data) // 2):
        path.write_bytes(data[:kept])
        for reader in (read_audio, audio_facts, duration_s, player):
            with pytest.raises(ValueError, match=r"clip\.any (is cut off|cannot be read)"):
                reader(path)
        with pytest.raises(ValueError, match="^(is cut off|cannot be read)"):
            decode(data[:kept], RATE_HZ, "clip", {})


def with_size(kind: str, mark: bytes, skip: int, value: bytes) -> Callable[[], bytes]:
    def made() -> bytes:
        data = bytearray(encoded(kind, "PCM_16"))
        place = data.find(mark) + skip
        data[place : place + len(value)] = value
        return bytes(data)

    return made


def flac_of(samples: int) -> bytes:
    data = bytearray(encoded("FLAC", "PCM_16"))
    data[21:26] = bytes([data[21] & 0xF0 | samples >> 32]) + struct.pack(">I", samples & 0xFFFFFFFF)
    return bytes(data)


UNKNOWN = {
    "wav 0": with_size("WAV", b"data", 4, bytes(4)),
    "wav ffffffff": with_size("WAV", b"data", 4, b"\xff" * 4),
    "wav 7ffff000": with_size("WAV", b"data", 4, struct.pack("<I", 0x7FFFF000)),
    "wav 80000000": with_size("WAV", b"data", 4, struct.pack("<I", 0x80000000)),
    "rf64 0": with_size("RF64", b"ds64", 16, bytes(8)),
    "rf64 -1": with_size("RF64", b"ds64", 16, b"\xff" * 8),
    "w64": with_size("W64", b"data", 16, struct.pack("<Q", 2**63 - 1)),
    "au": with_size("AU", b".snd", 8, b"\xff" * 4),
    "caf": with_size("CAF", b"data", 4, b"\xff" * 8),
    "aiff": with_size("AIFF", b"SSND", 4, b"\xff" * 4),
    "flac 0": lambda: flac_of(0),
    "flac too few": lambda: flac_of(777),
    "flac 0, then a tag": lambda: flac_of(0) + b"TAG".ljust(128, b" "),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_lengths_are_read_to_their_end(tmp_path: Path, name: str) -> None:
    path = tmp_path / "clip.any"
    path.write_bytes(UNKNOWN[name]())
    wave = read_audio(path)
    assert wave.samples_CN.shape == (2, SAMPLES) and audio_facts(path).samples == SAMPLES
    kind = name.split()[0].upper()
    assert torch.equal(wave.samples_CN, plainly_read(encoded(kind, "PCM_16")))
    if "tag" not in name:  # the true number is written where the header has none
        assert examined(path.read_bytes()).corrected == encoded(kind, "PCM_16")


def test_an_unknown_length_of_many_frames_is_found(tmp_path: Path) -> None:
    """Frame numbers take two bytes from 128 on, three from 2048 on."""
    for samples in (600_001, 9_000_000):
        data = bytearray(encoded("FLAC", "PCM_16", np.zeros((samples, 1), "float32")))
        data[21:26] = bytes([data[21] & 0xF0]) + bytes(4)
        (tmp_path / "a.flac").write_bytes(data)
        assert audio_facts(tmp_path / "a.flac").samples == samples


def test_an_unknown_length_that_was_cut_is_named(tmp_path: Path) -> None:
    data = flac_of(0)
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="a.flac is cut off"):
        read_audio(tmp_path / "a.flac")


def test_a_wav_without_sound_is_empty_and_not_of_unknown_length(tmp_path: Path) -> None:
    data = encoded("WAV", "PCM_16", sound()[:0]) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(ValueError, match="a.wav holds no samples"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("kept", [242, None])
def test_a_header_that_claims_hours_costs_no_memory(tmp_path: Path, kept: int | None) -> None:
    (tmp_path / "a.flac").write_bytes(flac_of(2**36 - 1)[:kept])
    tracemalloc.start()
    for reader in (audio_facts, read_audio, duration_s, player):
        with pytest.raises(ValueError, match=r"a.flac is cut off.* of 68719476735 samples"):
            reader(tmp_path / "a.flac")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_mp3_without_a_count_is_read_whole(tmp_path: Path) -> None:
    """libsndfile guesses the length from the first frame: a loud one loses the quiet end."""
    noise = 0.3 * np.random.default_rng(0).standard_normal(80_000)
    wave = np.concatenate([noise, np.zeros(160_000)]).astype("float32")
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.5}
    data = encoded("MP3", "MPEG_LAYER_III", wave, **options)
    bare = data[data.find(data[:2], 4) :]  # without the first frame, which counts the others
    assert b"Xing" in data[:200] and b"Xing" not in bare
    (tmp_path / "a.mp3").write_bytes(bare)
    found = read_audio(tmp_path / "a.mp3").samples_CN[0]
    assert len(wave) <= len(found) < len(wave) + 3000
    assert audio_facts(tmp_path / "a.mp3").samples == len(found)
    assert len(read_mono(tmp_path / "a.mp3", RATE_HZ, 14.0, 0.5)) == RATE_HZ // 2


def frames_of(data: bytes) -> list[int]:
    """Positions of the frames of an mp3."""
    found = []
    position = 0
    while (frame := _mp3_frame(data, position)) is not None:
        found.append(position)
        position += frame[0]
    return found


def pages_of(data: bytes) -> list[int]:
    """Positions of the pages of an ogg."""
    found = []
    position = data.find(b"OggS")
    while position >= 0:
        found.append(position)
        position = data.find(b"OggS", position + 1)
    return found


def test_a_cut_between_two_frames_or_pages_is_named(tmp_path: Path) -> None:
    wave = np.concatenate([sound()] * 8)
    mp3, ogg = encoded("MP3", "MPEG_LAYER_III", wave), encoded("OGG", "VORBIS", wave)
    frames, pages = frames_of(mp3), pages_of(ogg)
    assert len(frames) > 100 and len(pages) > 4
    cuts = [(mp3, frames[3]), (mp3, frames[-5]), (ogg, pages[3]), (ogg, pages[-1])]
    for data, kept in cuts:
        (tmp_path / "a").write_bytes(data[:kept])
        for reader in (audio_facts, read_audio):
            with pytest.raises(ValueError, match="a is cut off"):
                reader(tmp_path / "a")
    (tmp_path / "a").write_bytes(ogg + b"a tag of somebody else's")
    assert read_audio(tmp_path / "a").samples_CN.shape[1] == len(wave)


def test_mp3_with_a_false_count_takes_no_more_than_it_has(tmp_path: Path) -> None:
    data = encoded("MP3", "MPEG_LAYER_III")
    place = data.find(b"Xing") + 8
    (tmp_path / "a.mp3").write_bytes(data[:place] + b"\x7f\xff\xff\xff" + data[place + 4 :])
    assert abs(audio_facts(tmp_path / "a.mp3").samples - SAMPLES) < 2000
    assert abs(read_audio(tmp_path / "a.mp3").samples_CN.shape[1] - SAMPLES) < 2000


def test_containers_without_detectable_cuts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.voc").write_bytes(encoded("VOC", "PCM_16"))
    with pytest.raises(ValueError, match="a.voc .*convert it to wav or flac"):
        read_audio(tmp_path / "a.voc")


def test_a_part_equals_that_part_of_the_whole(tmp_path: Path) -> None:
    for kind, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")):
        (tmp_path / "a").write_bytes(encoded(kind, subtype))
        whole = read_audio(tmp_path / "a").samples_CN
        part = read_audio(tmp_path / "a", start_s=1.5, seconds=0.5).samples_CN
        assert torch.equal(part, whole[:, 24_000:32_000])
        assert read_audio(tmp_path / "a", start_s=2.0, seconds=9.0).samples_CN.shape[1] == 8000
    with pytest.raises(ValueError, match="no samples from 3 s on"):
        read_audio(tmp_path / "a", start_s=3.0)


def test_training_sets_cut_clips_aside_at_the_start(tmp_path: Path) -> None:
    for name, kind in (("a.wav", "WAV"), ("b.wav", "WAV"), ("c.flac", "FLAC"), ("d.ogg", "OGG")):
        data = encoded(kind, "VORBIS" if kind == "OGG" else "PCM_16")
        (tmp_path / name).write_bytes(data if name == "a.wav" else data[: len(data) // 2])
    (tmp_path / "e.flac").write_bytes(flac_of(0))
    data = AudioDataModule(str(tmp_path), RATE_HZ, 1, 1.0, 1, check="header")
    data.setup()
    assert [clip.name for clip in data.train_clips] == ["a.wav", "e.flac"]
    assert set(data.quarantined) == {"b.wav", "c.flac", "d.ogg"}
    assert len(list(data.train_dataloader())) == 2


def test_damaged_headers_raise_a_user_error(tmp_path: Path) -> None:
    draw = random.Random(0)
    whole = [encoded(*kind, sound()[:2000]) for kind in KINDS]
    refused = 0
    for _ in range(400):
        data = bytearray(draw.choice(whole))
        for _ in range(draw.choice([1, 2, 9])):
            place = draw.randrange(min(len(data), draw.choice([60, 300])))
            data[place : place + 4] = draw.choice([b"\xff" * 4, bytes(4), draw.randbytes(4)])
        (tmp_path / "a.any").write_bytes(data)
        for reader in (audio_facts, read_audio):
            try:
                reader(tmp_path / "a.any")
            except ValueError as error:  # anything else is a fault of the reader
                assert "a.any" in str(error)
                refused += 1
    assert refused > 200
