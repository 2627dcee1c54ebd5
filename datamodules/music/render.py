"""Renders notes to stereo audio with a SoundFont or a small additive synthesiser.

The shipped weights were trained on ``FluidR3_GM.sf2`` (MIT; Debian's ``fluid-soundfont-gm``).
Without apt, the ``pretty_midi`` wheel contains ``TimGM6mb.sf2`` (GPL-2).
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.music.score import Note

PROGRAMS = {
    "piano": 0,
    "electric piano": 4,
    "music box": 10,
    "vibraphone": 11,
    "marimba": 12,
    "guitar": 24,
    "harp": 46,
}
_RENDER_RATE_HZ = 48_000
_FLUID = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
_STEREO_SPLIT_PITCH = 60  # notes from here up are panned right, the others left


def find_font() -> Path:
    """``ATTUNE_SOUNDFONT``, else FluidR3 of Debian, else the font in ``pretty_midi``.

    Raises ``FileNotFoundError``, which says how to get one.
    """
    named = os.environ.get("ATTUNE_SOUNDFONT")
    if named:
        if not Path(named).is_file():
            raise FileNotFoundError(f"ATTUNE_SOUNDFONT names {named!r}, which is not a file")
        return Path(named)
    if _FLUID.is_file():
        return _FLUID
    spec = importlib.util.find_spec("pretty_midi")
    if spec and spec.origin and (font := Path(spec.origin).parent / "TimGM6mb.sf2").is_file():
        return font
    raise FileNotFoundError(
        "no SoundFont found: `apt-get install fluid-soundfont-gm`, or `pip install --no-deps"
        " pretty_midi==0.2.11.post0`, or set ATTUNE_SOUNDFONT to an .sf2 file; renderer='additive'"
        " needs none"
    )


@functools.lru_cache(maxsize=1)
def _synth(font: str):
    try:
        import tinysoundfont
    except ImportError as error:
        raise ImportError(
            "rendering with a SoundFont needs tinysoundfont: `pip install --no-deps"
            " tinysoundfont==0.3.7`; renderer='additive' needs nothing"
        ) from error
    synth = tinysoundfont.Synth(gain=-6, samplerate=_RENDER_RATE_HZ)
    return synth, synth.sfload(font)


def render_soundfont(notes: Sequence[Note], instrument: str, seconds: float) -> np.ndarray:
    """Renders (2, seconds * 48000) float32 with the SoundFont.

    High and low notes use two channels of the synthesiser, panned apart.
    """
    synth, font = _synth(str(find_font()))
    if hasattr(synth, "sounds_off_all"):
        synth.sounds_off_all()
    for channel, pan in ((0, 44), (1, 84)):
        synth.program_select(channel, font, 0, PROGRAMS[instrument])
        synth.control_change(channel, 10, pan)
    events = []
    for note in notes:
        channel = int(note.pitch >= _STEREO_SPLIT_PITCH)
        events.append((note.start_s, 1, channel, note.pitch, note.velocity))
        events.append((note.start_s + note.length_s, 0, channel, note.pitch, 0))
    total = round(seconds * _RENDER_RATE_HZ)
    done = 0
    blocks = []
    for time_s, is_on, channel, pitch, velocity in sorted(events):
        until = min(total, round(time_s * _RENDER_RATE_HZ))
        if until > done:
            blocks.append(
                np.frombuffer(synth.generate(until - done), np.float32).reshape(-1, 2).copy()
            )
            done = until
        if is_on:
            synth.noteon(channel, pitch, velocity)
        else:
            synth.noteoff(channel, pitch)
    if done < total:
        blocks.append(np.frombuffer(synth.generate(total - done), np.float32).reshape(-1, 2).copy())
    for channel in (0, 1):
        synth.sounds_off(channel)
    synth.generate(4800)  # let the last voices end, so that a clip never depends on the one before
    return np.concatenate(blocks).T


def render_additive(notes: Sequence[Note], instrument: str, seconds: float) -> np.ndarray:
    """Renders (2, seconds * 48000) float32 from decaying harmonics, for tests and first tries.

    It needs no font and no further package.
    """
    total = round(seconds * _RENDER_RATE_HZ)
    wave = np.zeros((2, total), np.float32)
    brightness = 0.3 + 0.05 * (PROGRAMS[instrument] % 7)
    for note in notes:
        start = round(note.start_s * _RENDER_RATE_HZ)
        count = min(total - start, round((note.length_s + 0.3) * _RENDER_RATE_HZ))
        if count <= 0:
            continue
        time = np.arange(count, dtype=np.float32) / _RENDER_RATE_HZ
        frequency = 440.0 * 2 ** ((note.pitch - 69) / 12)
        envelope = np.exp(-3.0 * time / max(note.length_s, 0.05)) * np.minimum(1, time / 0.005)
        tone = sum(
            brightness**k * np.sin(2 * np.pi * frequency * (k + 1) * time)
            for k in range(6)
            if frequency * (k + 1) < 8000
        )
        right = 0.65 if note.pitch >= _STEREO_SPLIT_PITCH else 0.35
        wave[:, start : start + count] += np.outer(
            [1 - right, right], tone * envelope * note.velocity / 127 * 0.2
        )
    return wave


RENDERERS = {"soundfont": render_soundfont, "additive": render_additive}
