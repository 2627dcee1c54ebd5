"""Audio files in and out (wav, flac, ogg, mp3) through soundfile. Shapes: ``CN`` channels, samples."""

from __future__ import annotations

import io
from pathlib import Path

import soundfile
import torch

from zoo.errors import did_you_mean
from zoo.files import AUDIO_FORMATS as FORMATS
from zoo.files import written_beside
from zoo.types import Waveform


def read_audio(path: str | Path, sample_rate_hz: int | None = None) -> Waveform:
    """The whole file, float32; resampled to ``sample_rate_hz`` if given.

    Raises ``FileNotFoundError``, and ``ValueError`` for a file without samples, cut off, not audio, or holding NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"there is no audio file {path}; {did_you_mean(path.name, names, limit=4)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); it may be an interrupted copy")
    try:
        with soundfile.SoundFile(str(path)) as file:
            promised, rate_hz = file.frames, file.samplerate
            samples_NC = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as audio ({error}); expected one of {', '.join(FORMATS)}") from error
    if len(samples_NC) == 0:
        raise ValueError(f"{path} holds no samples")
    if len(samples_NC) < promised and path.suffix.lower() != ".mp3":  # an mp3's length is an estimate
        raise ValueError(f"{path} is cut off: {len(samples_NC)} of {promised} samples are there; copy or render it again")
    samples_CN = torch.from_numpy(samples_NC.T.copy())
    if not torch.isfinite(samples_CN).all():
        raise ValueError(f"{path} holds NaN or infinite samples; render it again")
    wave = Waveform(samples_CN, rate_hz)
    return wave if sample_rate_hz is None else resample(wave, sample_rate_hz)


def resample(wave: Waveform, sample_rate_hz: int) -> Waveform:
    """At another rate (windowed sinc, torchaudio). Raises ``ValueError`` unless the rate is positive."""
    if sample_rate_hz <= 0:
        raise ValueError(f"a sample rate is a positive number of Hz, got {sample_rate_hz}")
    if sample_rate_hz == wave.sample_rate_hz:
        return wave
    from torchaudio.functional import resample as sinc_resample

    return Waveform(sinc_resample(wave.samples_CN, wave.sample_rate_hz, sample_rate_hz), sample_rate_hz)


def write_audio(path: str | Path, wave: Waveform) -> None:
    """Writes beside and moves, in the format that the suffix names (16 bit for wav and flac); louder than 1 is clipped.

    Raises ``ValueError`` for another suffix, an empty wave, NaN or infinity, or a rate that the format cannot hold; ``OSError``.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; use one of {', '.join(FORMATS)}")
    samples = wave.samples_CN.detach().float().cpu()
    if samples.ndim != 2 or samples.numel() == 0:
        raise ValueError(f"{path}: expected samples (channels, samples), at least one, got shape {tuple(samples.shape)}")
    if not torch.isfinite(samples).all():
        raise ValueError(f"{path}: the wave holds NaN or infinity and was not written")
    kind, subtype = FORMATS[path.suffix.lower()]
    encoded = io.BytesIO()  # written by Python, which names a full disk; libsndfile calls it a "System error"
    try:
        soundfile.write(encoded, samples.clamp(-1, 1).T.numpy(), wave.sample_rate_hz, format=kind, subtype=subtype)
    except soundfile.SoundFileError as error:
        rate, channels = wave.sample_rate_hz, samples.shape[0]
        raise ValueError(f"{path}: {channels} channels at {rate} Hz cannot be written as {kind} ({error})") from error
    with written_beside(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())
