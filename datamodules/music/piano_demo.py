"""A rendered piano set in EMOPIA's layout, for machines that have no EMOPIA audio:

``python tools/piano_demo.py --to DIR``.

It is synthetic: rule-made pieces, one synthesiser, moods that are what their rules say and what no
listener has judged. A classifier that knows these moods has shown that the training works, not that
it knows EMOPIA's. A song takes each lever (mode with harmony, tempo, loudness, register,
articulation, density, accompaniment) from its mood, or with probability ``ambiguity`` from another
mood, so that moods overlap. All segments of a song vary one theme of four bars, in one key, tempo
and recording: who splits by segments instead of songs measures memory.
"""

from __future__ import annotations

import csv
import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchaudio.functional as AF

from datamodules.emopia import MOOD_OF_QUADRANT, SPLITS
from datamodules.music.render import _RENDER_RATE_HZ, RENDERERS, find_font
from datamodules.music.score import MOODS, RULES, MoodRules, Note, compose
from zoo.audio_files import write_audio
from zoo.audio_files.resampling import resampled
from zoo.errors import UserError
from zoo.files import folder_written_beside
from zoo.types import Waveform

SAMPLE_RATE_HZ = 22_050
FORMATS = ("flac", "wav", "mp3")
SMALLEST = len(MOODS) * len(SPLITS)  # songs: one of every mood in every split
_SHARES = {"val": 0.15, "test": 0.25}  # of a mood's songs; the others are for training
_THEME_BARS = 4
_RMS = 0.06  # of a segment before its own gain


@dataclass(frozen=True)
class PianoSong:
    """One song:

    ``id`` in the place of a YouTube id, quadrant (Q1..Q4), split, the rules that it follows, the
    mood whose accompaniment it has (``pattern``), and how it was recorded: signal-to-noise ratio in
    dB, low-pass cutoff in Hz.
    """

    id: str
    quadrant: str
    split: str
    seed: int
    rules: MoodRules
    pattern: str
    snr_db: float
    cutoff_hz: float


def drawn_rules(mood: str, ambiguity: float, rng: random.Random) -> tuple[MoodRules, str]:
    """The levers of one song of ``mood``, and the mood of its accompaniment: each from another mood
    with that probability.
    """

    def donor() -> MoodRules:
        return RULES[source()]

    def source() -> str:
        return (
            rng.choice([name for name in MOODS if name != mood])
            if rng.random() < ambiguity
            else mood
        )

    harmony, register = donor(), donor()
    tempo_bpm = rng.uniform(*donor().tempo_bpm) * rng.uniform(0.82, 1.2)
    low, high = donor().velocity
    shift, octave_part = rng.randint(-12, 8), rng.randint(-5, 5)
    rules = replace(
        RULES[mood],
        scale=harmony.scale,
        progression=harmony.progression,
        tempo_bpm=(tempo_bpm, tempo_bpm),
        velocity=(max(20, low + shift), min(127, high + shift)),
        melody_pitch=register.melody_pitch + octave_part,
        bass_pitch=register.bass_pitch + octave_part,
        articulation=donor().articulation * rng.uniform(0.85, 1.15),
        notes_per_beat=donor().notes_per_beat,
    )
    return rules, source()


def plan_songs(songs: int, ambiguity: float, seed: int) -> list[PianoSong]:
    """``songs`` songs, moods in turn, each mood shared out over the splits alike.

    Raises ``UserError`` for too few songs.
    """
    if songs < SMALLEST:
        raise UserError(
            f"a demo set needs at least {SMALLEST} songs (one of every mood in every split), got"
            f" {songs}"
        )
    if not 0 <= ambiguity <= 0.75:
        raise UserError(
            f"ambiguity is a probability, 0..0.75 (there any mood is as likely), got {ambiguity}"
        )
    planned = []
    for number in range(songs):
        quadrant = list(MOOD_OF_QUADRANT)[number % 4]
        of_mood, place = len(range(number % 4, songs, 4)), number // 4
        val, test = (max(1, round(share * of_mood)) for share in _SHARES.values())
        split = "val" if place < val else "test" if place < val + test else "train"
        rng = random.Random(f"piano/{seed}/{number}")
        rules, pattern = drawn_rules(MOOD_OF_QUADRANT[quadrant], ambiguity, rng)
        recording = {"snr_db": rng.uniform(15, 45), "cutoff_hz": 2000 * 5 ** rng.random()}
        planned.append(
            PianoSong(
                f"demo-{number:06d}",
                quadrant,
                split,
                seed * 1_000_003 + number,
                rules,
                pattern,
                **recording,
            )
        )
    return planned


def segment_notes(song: PianoSong, segment: int, seconds: float) -> list[Note]:
    """A variation of the song's theme that fills ``seconds``: from another bar on, some notes left
    out, played unevenly.
    """
    beat_s = 60 / song.rules.tempo_bpm[0]
    theme_s = _THEME_BARS * 4 * beat_s
    theme = compose(MOOD_OF_QUADRANT[song.quadrant], song.seed, theme_s, song.rules, song.pattern)
    rng = random.Random(f"segment/{song.seed}/{segment}")
    begin_s = ((segment + rng.randrange(2)) % _THEME_BARS) * 4 * beat_s
    notes = []
    for turn in range(2 + int(seconds / theme_s)):
        for note in theme:
            start_s = turn * theme_s + note.start_s - begin_s + rng.gauss(0, 0.01)
            velocity = max(1, min(127, note.velocity + rng.randint(-6, 6)))
            if rng.random() > 0.12 and 0 <= start_s < seconds:
                notes.append(Note(start_s, note.length_s, note.pitch, velocity))
    return sorted(notes, key=lambda note: (note.start_s, note.pitch))


def render_segment(
    song: PianoSong, segment: int, seconds: float, renderer: str = "soundfont"
) -> torch.Tensor:
    """(N,) mono at 22,050 Hz, at a level of its own within +-6 dB, dulled and under noise as the
    song's recording is.
    """
    notes = segment_notes(song, segment, seconds)
    wave = torch.from_numpy(RENDERERS[renderer](notes, "piano", seconds).copy()).mean(dim=0)
    wave = resampled(wave, _RENDER_RATE_HZ, SAMPLE_RATE_HZ)[: round(seconds * SAMPLE_RATE_HZ)]
    wave = AF.lowpass_biquad(wave, SAMPLE_RATE_HZ, song.cutoff_hz)
    wave = wave * (_RMS / wave.square().mean().sqrt().clamp(min=1e-6))
    generator = torch.Generator().manual_seed(song.seed * 64 + segment)
    wave = wave + torch.randn(wave.shape, generator=generator) * _RMS * 10 ** (-song.snr_db / 20)
    gain_db = float(torch.rand((), generator=generator)) * 12 - 6
    return (wave * 10 ** (gain_db / 20)).clamp(-1, 1)


def write_piano_demo(
    folder: str | Path,
    songs: int = 240,
    segments: int = 3,
    seconds: float = 6.0,
    ambiguity: float = 0.25,
    renderer: str = "soundfont",
    audio_format: str = "flac",
    seed: int = 0,
) -> dict[str, int]:
    """Writes ``audio/Q1_<song>_<segment>.<format>``, ``train.csv``, ``val.csv``, ``test.csv``
    (fname,label) and ``about.json``.

    The same arguments give the same files. Nothing of ``folder`` is there before all of it is.
    Returns the clips of each split. Raises ``UserError`` for arguments out of range,
    ``FileNotFoundError`` without a SoundFont, ``FileExistsError`` where ``folder`` holds something.
    """
    from rich.progress import track

    planned = plan_songs(songs, ambiguity, seed)
    for name, given, choices in (
        ("renderer", renderer, RENDERERS),
        ("audio_format", audio_format, FORMATS),
    ):
        if given not in choices:
            raise UserError(f"{name} must be one of {', '.join(choices)}, got {given!r}")
    if not 1 <= segments <= 64 or not 1 <= seconds < math.inf:
        raise UserError(
            f"segments must be 1..64 and seconds at least 1, got {segments} and {seconds}"
        )
    font = find_font().name if renderer == "soundfont" else None
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    with folder_written_beside(folder) as temporary:
        (temporary / "audio").mkdir()
        for song in track(planned, description="rendering piano", transient=True):
            for segment in range(segments):
                name = f"{song.quadrant}_{song.id}_{segment}"
                wave = render_segment(song, segment, seconds, renderer)
                write_audio(
                    temporary / "audio" / f"{name}.{audio_format}",
                    Waveform(wave[None], SAMPLE_RATE_HZ),
                )
                names[song.split].append(name)
        for split, clips in names.items():
            with (temporary / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(
                    [("fname", "label"), *((name, name[:2]) for name in clips)]
                )
        about = {
            "what": (
                "synthetic piano music made by rules and rendered; not EMOPIA, and judged by no"
                " listener"
            ),
            "arguments": {
                "songs": songs,
                "segments": segments,
                "seconds": seconds,
                "ambiguity": ambiguity,
                "renderer": renderer,
                "seed": seed,
            },
            "soundfont": font,
            "clips": {split: len(clips) for split, clips in names.items()},
        }
        text = json.dumps(about, indent=2, allow_nan=False)
        (temporary / "about.json").write_text(text + "\n", encoding="utf-8")
    return about["clips"]
