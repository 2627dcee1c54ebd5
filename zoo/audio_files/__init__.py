"""Reads and writes audio files (wav, flac, ogg, mp3). Shapes: ``CN`` channels, samples."""

from __future__ import annotations

import base64
import io
import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy
import soundfile
import torch
from torch import Tensor

from zoo.audio_files.headers import examined
from zoo.audio_files.resampling import resampled
from zoo.errors import UserError, did_you_mean
from zoo.files import AUDIO_FORMATS as FORMATS
from zoo.files import written_beside

# containers in which a cut-off end is detected
_READ = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "MP3")
_BLOCK = 2**20  # numbers decoded at a time
# samples encoded at a time: libsndfile crashes on a minute of ogg in one piece
_WRITTEN = 2**16
# decoded and dropped: an mp3 frame needs up to 511 bytes before it, 20 frames of a quiet file
_PRE_ROLL_S = 0.6


@dataclass(frozen=True)
class Waveform:
    """Audio: ``samples_CN`` in [-1, 1] (float32) and the rate in Hz; a player in a notebook."""

    samples_CN: Tensor
    sample_rate_hz: int

    def save(self, path: str | PathLike[str]) -> None:
        """Writes an audio file (``zoo.audio_files.write_audio``).

        Raises ``UserError`` and ``OSError``.
        """
        write_audio(fspath(path), self)

    def _repr_html_(self) -> str:
        sound = base64.b64encode(encoded(self, ".flac")).decode()
        return f'<audio controls src="data:audio/flac;base64,{sound}"></audio>'


@dataclass(frozen=True)
class AudioFacts:
    """Sample rate, channels and ``samples`` per channel of a file."""

    sample_rate_hz: int
    channels: int
    samples: int

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate_hz


@dataclass(frozen=True)
class AudioReader:
    """An open audio file: what it holds, and any part of it (see ``opened_audio``)."""

    path: Path
    file: soundfile.SoundFile

    @property
    def facts(self) -> AudioFacts:
        return AudioFacts(self.file.samplerate, self.file.channels, self.file.frames)

    @property
    def has_exact_length(self) -> bool:
        """Whether ``facts.samples`` is exact: that of an mp3 may be an estimate."""
        return self.file.format != "MP3"

    def read(self, first: int = 0, samples: int | None = None) -> Waveform:
        """``samples`` samples from the sample ``first`` on (None: all that follow), in float32.

        Those of a file with an exact length are bit for bit the same in every part that holds them.
        Raises as ``read_audio``.
        """
        with _named(self.path):
            return _part(self.file, first, samples)


@contextmanager
def opened_audio(path: str | Path) -> Iterator[AudioReader]:
    """A file to read parts of. Raises as ``audio_facts``."""
    path = _checked(path)
    with ExitStack() as stack:
        with _named(path):
            file = stack.enter_context(_opened(path))
        yield AudioReader(path, file)


def audio_facts(path: str | Path) -> AudioFacts:
    """Rate, channels and length of a file, without decoding it.

    Finds a missing end, but no damage in the middle. Raises like ``read_audio``, except for NaN and
    infinity.
    """
    with opened_audio(path) as audio:
        if audio.file.format == "FLAC":
            with _named(audio.path):
                _touch_end(audio.file)
        return audio.facts


def read_audio(
    path: str | Path,
    sample_rate_hz: int | None = None,
    start_s: float = 0.0,
    seconds: float | None = None,
) -> Waveform:
    """Reads a file in float32, or ``seconds`` of it from ``start_s`` on.

    Resamples to ``sample_rate_hz`` if given, and decodes only the requested part. A file without a
    length in its header is read to its end. Raises ``FileNotFoundError``, and ``UserError`` for a
    file that is not a regular file, empty, cut off, not audio, without samples (in that part), or
    holds NaN or infinity.
    """
    with opened_audio(path) as audio:
        rate_hz = audio.facts.sample_rate_hz
        samples = None if seconds is None else round(seconds * rate_hz)
        wave = audio.read(round(start_s * rate_hz), samples)
    return wave if sample_rate_hz is None else resample(wave, sample_rate_hz)


def decoded(content: bytes) -> Waveform:
    """Reads the bytes of a file at its own rate, like ``read_audio``.

    The ``UserError`` does not name the file: the caller puts the name before it.
    """
    with _opened(content) as file:
        return _part(file, 0, None)


def _part(file: soundfile.SoundFile, start: int, samples: int | None) -> Waveform:
    first = min(start, file.frames)
    last = file.frames if samples is None else min(file.frames, first + samples)
    if file.format == "MP3":
        lead = min(first, round(_PRE_ROLL_S * file.samplerate))
    else:
        lead = 0 if _seeks_exactly(file) else first
    samples_CN = _samples(file, first, last, lead)
    if samples_CN.shape[1] == 0:
        raise UserError(
            "holds no samples"
            if start == 0
            else f"holds no samples from {start / file.samplerate:g} s on"
        )
    if not torch.isfinite(samples_CN).all():
        raise UserError("holds NaN or infinite samples; render it again")
    return Waveform(samples_CN, file.samplerate)


def _seeks_exactly(file: soundfile.SoundFile) -> bool:
    """Whether a seek arrives at the very sample.

    In the last page of an ogg libsndfile arrives up to a second away.
    """
    return file.seekable() and file.format != "OGG"


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{path} {error}") from error


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file (a pipe or a device)"
        raise UserError(f"{path} is {kind}; name an audio file")
    if not path.is_file():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"there is no audio file {path}; {did_you_mean(path.name, names, limit=4)}"
        )
    return path


@contextmanager
def _opened(source: Path | bytes) -> Iterator[soundfile.SoundFile]:
    """Opens a file or bytes that are whole; the ``UserError`` does not name the file."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size == 0:
        raise UserError("is empty (0 bytes); it may be an interrupted copy")
    if isinstance(source, bytes):
        found = examined(source)
    else:
        with source.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = examined(data)
    if found.problem:
        raise UserError(found.problem)
    content = source if found.corrected is None else found.corrected
    try:
        file = soundfile.SoundFile(
            io.BytesIO(content) if isinstance(content, bytes) else str(content)
        )
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise UserError(
            f"cannot be read as audio ({_message(error)}); expected one of {', '.join(FORMATS)}"
        ) from error
    with file:
        if file.format not in _READ:
            raise UserError(
                f"is {file.format_info}, where a cut-off file is not detected; "
                "convert it to wav or flac"
            )
        if file.frames == 0:
            raise UserError("holds no samples")
        yield file


def _message(error: Exception) -> str:
    return getattr(error, "error_string", "") or str(error)


def _touch_end(file: soundfile.SoundFile) -> None:
    try:
        file.seek(file.frames - 1)
        is_there = len(file.read(1)) == 1
    except (soundfile.SoundFileError, RuntimeError):
        is_there = False
    if not is_there:
        raise UserError(
            f"is cut off or damaged: the last of {file.frames} samples cannot be read; "
            "copy or render it again"
        )


def _samples(file: soundfile.SoundFile, first: int, last: int, lead: int) -> torch.Tensor:
    """Decodes the samples (C, N) from ``first`` to ``last`` in blocks, and drops ``lead`` before.

    An mp3 is decoded in one piece, because every seek of soundfile restarts its decoder.

    Blocks need memory for the samples in the file, not for those that the header claims. An mp3 is
    decoded in one piece, because every seek of soundfile restarts its decoder. Raises ``UserError``
    for fewer samples, except for mp3, whose length may be an estimate.
    """
    blocks: list[numpy.ndarray] = []
    position = first - lead
    broken = ""
    try:
        if position:
            file.seek(position)
        while position < last:
            size = last - position
            if file.format != "MP3":
                size = min(size, max(1, _BLOCK // file.channels))
            block_NC = file.read(size, dtype="float32", always_2d=True)
            if not len(block_NC):
                break
            if position + len(block_NC) > first:
                blocks.append(block_NC[max(0, first - position) :])
            position += len(block_NC)
    except (soundfile.SoundFileError, RuntimeError) as error:
        broken = f" ({_message(error)})"
    if broken or (position < last and file.format != "MP3"):
        raise UserError(
            f"is cut off or damaged: {position} of {file.frames} samples can be read{broken}; "
            "copy or render it again"
        )
    samples_CN = numpy.empty((file.channels, sum(map(len, blocks))), "float32")
    start = 0
    for block_NC in blocks:
        samples_CN[:, start : start + len(block_NC)] = block_NC.T
        start += len(block_NC)
    return torch.from_numpy(samples_CN)


def resample(wave: Waveform, sample_rate_hz: int) -> Waveform:
    """Resamples a wave (windowed sinc, ``zoo.audio_files.resampling``).

    Raises ``UserError`` unless the rate is positive.
    """
    samples_CN = resampled(wave.samples_CN, wave.sample_rate_hz, sample_rate_hz)
    return wave if samples_CN is wave.samples_CN else Waveform(samples_CN, sample_rate_hz)


def write_audio(path: str | Path, wave: Waveform) -> None:
    """Writes an audio file in the format of its suffix (wav and flac with 16 bits).

    Clips samples beyond 1 and never leaves a half-written file. Raises ``UserError`` for another
    suffix, an empty wave, NaN or infinity, or a rate that the format cannot hold; ``OSError``.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"{path}: cannot write {path.suffix or 'a file without suffix'}; "
            f"use one of {', '.join(FORMATS)}"
        )
    try:
        content = encoded(wave, path.suffix)
    except UserError as error:
        raise UserError(f"{path}: {error}; nothing was written") from error
    with written_beside(path) as temporary:
        temporary.write_bytes(content)  # libsndfile would call a full disk a "System error"


def encoded(wave: Waveform, suffix: str) -> bytes:
    """The bytes of an audio file in the format of ``suffix`` (a key of ``FORMATS``).

    Raises ``UserError`` for an empty wave, NaN or infinity, or a rate that the format cannot hold.
    """
    samples = wave.samples_CN.detach().float().cpu()
    if samples.ndim != 2 or samples.numel() == 0:
        raise UserError(
            f"expected samples (channels, samples), at least one, got shape {tuple(samples.shape)}"
        )
    if not torch.isfinite(samples).all():
        raise UserError("the wave holds NaN or infinity")
    kind, subtype = FORMATS[suffix.lower()]
    file = io.BytesIO()
    samples_NC = samples.clamp(-1, 1).T.numpy()
    rate_hz = wave.sample_rate_hz
    channels = samples.shape[0]
    try:
        with soundfile.SoundFile(file, "w", rate_hz, channels, subtype, format=kind) as target:
            for start in range(0, len(samples_NC), _WRITTEN):
                target.write(samples_NC[start : start + _WRITTEN])
    except soundfile.SoundFileError as error:
        raise UserError(
            f"{channels} channels at {rate_hz} Hz cannot be written as {kind} ({error})"
        ) from error
    return file.getvalue()
