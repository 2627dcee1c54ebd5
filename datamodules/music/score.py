"""Composes solo-instrument music in four moods by rules, as timed notes.

The rules vary what listeners (and the EMOPIA labels) agree on: mode, tempo, register, loudness,
articulation, note density and harmony. Quadrants as in EMOPIA (Hung et al. 2021): happy = Q1, angry
= Q2, sad = Q3, tender = Q4. Every piece is a pure function of (mood, seed); nothing is copied from
an existing composition.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from zoo.errors import UserError

MOODS = ("happy", "angry", "sad", "tender")
WORDS = {
    "happy": ("happy", "joyful", "cheerful", "upbeat"),
    "angry": ("angry", "aggressive", "intense", "ferocious"),
    "sad": ("sad", "mournful", "somber", "sorrowful"),
    "tender": ("tender", "gentle", "soft", "soothing"),
}

_MAJOR = (0, 2, 4, 5, 7, 9, 11)
_MINOR = (0, 2, 3, 5, 7, 8, 10)
_PHRYGIAN = (0, 1, 3, 5, 7, 8, 10)
_LOWEST_PITCH, _HIGHEST_PITCH = 28, 100


@dataclass(frozen=True)
class Note:
    """One note: start and length in seconds, MIDI pitch (69 = A4) and velocity (1..127)."""

    start_s: float
    length_s: float
    pitch: int
    velocity: int


@dataclass(frozen=True)
class MoodRules:
    """The rules of a mood.

    ``tempo_bpm`` and ``velocity`` are ranges; ``progression`` holds scale degrees, one chord per
    bar.
    """

    scale: tuple[int, ...]
    progression: tuple[int, ...]
    tempo_bpm: tuple[float, float]
    velocity: tuple[int, int]
    melody_pitch: int
    bass_pitch: int
    articulation: float  # sounding share of the time to the next melody note; above 1 = overlapping
    notes_per_beat: int | float
    rest_probability: float


RULES = {
    "happy": MoodRules(
        _MAJOR, (0, 3, 4, 0, 5, 3, 4, 0), (138, 160), (88, 110), 72, 48, 0.5, 2, 0.12
    ),
    "angry": MoodRules(
        _PHRYGIAN, (0, 1, 0, 5, 0, 1, 6, 0), (152, 180), (112, 127), 50, 34, 0.45, 4, 0.12
    ),
    "sad": MoodRules(
        _MINOR, (0, 5, 3, 0, 5, 6, 4, 0), (54, 64), (40, 58), 60, 41, 1.15, 0.75, 0.15
    ),
    "tender": MoodRules(_MAJOR, (0, 5, 3, 4, 0, 3, 4, 0), (66, 78), (42, 60), 69, 50, 1.1, 1, 0.15),
}


def compose(
    mood: str, seed: int, seconds: float, rules: MoodRules | None = None, pattern: str | None = None
) -> list[Note]:
    """Composes notes that fill ``seconds``; starts on the beat, at a random bar of the progression.

    Args:
        mood: a key of ``RULES``.
        seed: of everything that is drawn.
        seconds: length of the piece.
        rules: replaces the rules of the mood.
        pattern: the mood whose accompaniment is played (None: ``mood``).

    Raises:
        UserError: for an unknown mood.
    """
    for name in (mood, pattern or mood):
        if name not in RULES:
            raise UserError(f"mood {name!r} is unknown: expected one of {', '.join(RULES)}")
    rules = rules or RULES[mood]
    rng = random.Random(f"{mood}/{seed}")
    beat_s = 60.0 / rng.uniform(*rules.tempo_bpm)
    key = rng.randrange(-3, 4)
    first_bar = rng.randrange(8)
    degree = rng.randrange(5)
    notes: list[Note] = []
    bar = 0
    while bar * 4 * beat_s < seconds:
        chord = rules.progression[(first_bar + bar) % 8]
        beats = list(_accompaniment(pattern or mood, rules, chord, key, rng))
        melody, degree = _melody(rules, chord, key, degree, rng)
        for beat, length, pitch, velocity in beats + melody:
            start_s = (bar * 4 + beat) * beat_s
            if start_s < seconds:
                notes.append(
                    Note(start_s, length * beat_s, _in_range(pitch), max(1, min(127, velocity)))
                )
        bar += 1
    return sorted(notes, key=lambda note: (note.start_s, note.pitch))


def _in_range(pitch: int) -> int:
    while pitch < _LOWEST_PITCH:
        pitch += 12
    while pitch > _HIGHEST_PITCH:
        pitch -= 12
    return pitch


def _pitch(rules: MoodRules, degree: int, base: int, key: int) -> int:
    return base + key + rules.scale[degree % 7] + 12 * (degree // 7)


def _accompaniment(mood: str, rules: MoodRules, chord: int, key: int, rng: random.Random):
    """(beat, length in beats, pitch, velocity) of the notes of the left hand in one bar."""

    def velocity() -> int:
        return rng.randint(*rules.velocity)

    def bass(degree: int) -> int:
        return _pitch(rules, degree, rules.bass_pitch, key)

    # angry: octaves hammered in eighths, a tritone cluster on the last eighth of each half bar
    if mood == "angry":
        for eighth in range(8):
            yield eighth / 2, 0.4, bass(chord), velocity()
            yield eighth / 2, 0.4, bass(chord) + 12, velocity()
            if eighth % 4 == 3:
                yield eighth / 2, 0.3, bass(chord) + 18, velocity()
                yield eighth / 2, 0.3, bass(chord) + 13, velocity()
    elif mood == "happy":  # bass on the beat, chord on the off-beat
        for beat in range(4):
            yield beat, 0.4, bass(chord if beat % 2 == 0 else chord + 4), velocity()
            for step in (0, 2, 4):
                yield beat + 0.5, 0.3, bass(chord + step) + 12, velocity() - 12
    elif mood == "sad":  # a low open chord, broken slowly, every note held to the end of the bar
        for beat, step in enumerate((0, 4, 9, 7)):
            yield beat, 3.9 - beat, bass(chord + step), velocity() - 8
    else:  # tender: a rocking broken chord in eighths
        for eighth, step in enumerate((0, 4, 7, 9, 7, 4, 9, 4)):
            yield eighth / 2, 1.2, bass(chord + step), velocity() - 8


def _melody(rules: MoodRules, chord: int, key: int, degree: int, rng: random.Random):
    """One bar of stepwise melody, with chord tones on strong beats, and its last degree."""
    count = max(1, int(4 * rules.notes_per_beat))
    step = 4 / count
    notes = []
    strong = max(1, count // 2)
    for index in range(count):
        if rng.random() < rules.rest_probability:
            continue
        degree = max(-3, min(9, degree + rng.choice((-2, -1, -1, 0, 1, 1, 2))))
        sounding = chord + rng.choice((0, 2, 4)) if index % strong == 0 else degree
        pitch = _pitch(rules, sounding, rules.melody_pitch, key)
        notes.append(
            (index * step, step * rules.articulation, pitch, rng.randint(*rules.velocity) + 6)
        )
    return notes, degree
