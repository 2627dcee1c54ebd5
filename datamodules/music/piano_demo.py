"""Renders a synthetic piano data set in EMOPIA's layout (``python tools/piano_demo.py --to DIR``).

It is for machines without EMOPIA's audio. Pieces are composed by rules and played by one
synthesiser, and no listener has confirmed their moods: a classifier that recognises them shows that
training works, not that it recognises EMOPIA's moods. A song takes each trait (mode with harmony,
tempo, loudness, register, articulation, density, accompaniment) from its mood, or with probability
``ambiguity`` from another mood, so that moods overlap. Trap: all segments of a song vary one theme
of four bars, in one key, tempo and recording, so a split by segments instead of songs measures
memory.
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
    """One song.

    - ``id``: takes the place of a YouTube id.
    - ``quadrant``: Q1..Q4.
    - ``rules``: of the composition.
    - ``pattern``: the mood of its accompaniment.
    - ``snr_db``, ``cutoff_hz``: signal-to-noise ratio and low-pass cutoff of its recording.
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
    """The rules of one song of ``mood`` and the mood of its accompaniment.

    Each trait is taken from another mood with the probability ``ambiguity``.
    """

    def donor() -> MoodRules:
        return RULES[source()]

    def source() -> str:
        if rng.random() < ambiguity:
            return rng.choice([name for name in MOODS if name != mood])
        return mood

    harmony = donor()
    register = donor()
    tempo_bpm = rng.uniform(*donor().tempo_bpm) * rng.uniform(0.82, 1.2)
    low, high = donor().velocity
    shift = rng.randint(-12, 8)
    octave_part = rng.randint(-5, 5)
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
    """Plans ``songs`` songs with moods in turn and the same shares of splits for every mood.

    Raises ``UserError`` for too few songs and an ``ambiguity`` outside 0..0.75.
    """
    if songs < SMALLEST:
        raise UserError(
            f"a demo set needs at least {SMALLEST} songs (one of every mood in every split), got"
            f" {songs}"
        )
    if not 0 <= ambiguity <= 0.75:
        raise UserError(
            f"invalid ambiguity {ambiguity}: expected a probability of 0 to 0.75, where all moods"
            " are equally likely"
        )
    planned = []
    for number in range(songs):
        quadrant = list(MOOD_OF_QUADRANT)[number % 4]
        of_mood = len(range(number % 4, songs, 4))
        place = number // 4
        val, test = (max(1, round(share * of_mood)) for share in _SHARES.values())
        if place < val:
            split = "val"
        elif place < val + test:
            split = "test"
        else:
            split = "train"
        rng = random.Random(f"piano/{seed}/{number}")
        rules, pattern = drawn_rules(MOOD_OF_QUADRANT[quadrant], ambiguity, rng)
        planned.append(
            PianoSong(
                id=f"demo-{number:06d}",
                quadrant=quadrant,
                split=split,
                seed=seed * 1_000_003 + number,
                rules=rules,
                pattern=pattern,
                snr_db=rng.uniform(15, 45),
                cutoff_hz=2000 * 5 ** rng.random(),
            )
        )
    return planned


def segment_notes(song: PianoSong, segment: int, seconds: float) -> list[Note]:
    """A variation of the song's theme that fills ``seconds``.

    It starts at another bar, leaves out some notes and plays unevenly.
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
    """Renders a segment (N,), mono at 22,050 Hz, at a random level within +-6 dB.

    The noise and the low-pass filter are those of the song's recording.
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
    """Writes clips in ``audio/``, ``train.csv``, ``val.csv``, ``test.csv`` and ``about.json``.

    The same arguments give the same files, and ``folder`` appears only when it is complete.

    Args:
        folder: to write; must not exist or be empty.
        songs: at least 12.
        segments: clips per song.
        seconds: length of a clip.
        ambiguity: 0 to 0.75, the probability of a trait from another mood.
        renderer: a key of ``RENDERERS``.
        audio_format: flac, wav or mp3.
        seed: of the songs.

    Returns:
        Split -> how many clips it has.

    Raises:
        UserError: for arguments out of range.
        FileNotFoundError: without a SoundFont.
        FileExistsError: where ``folder`` is not empty.
    """
    from rich.progress import track

    planned = plan_songs(songs, ambiguity, seed)
    for name, given, choices in (
        ("renderer", renderer, RENDERERS),
        ("audio_format", audio_format, FORMATS),
    ):
        if given not in choices:
            raise UserError(f"{name} {given!r} is unknown: expected one of {', '.join(choices)}")
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
                "synthetic piano music, composed by rules and rendered; not EMOPIA, and not rated"
                " by listeners"
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
