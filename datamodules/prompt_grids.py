"""Named lists of words for prompts: emotions (mood -> words for it) and instruments.

The lists of 4 and 16 emotions and of 1, 3 and 10 instruments are those of the public code of "RLHF
on conditional music generation". Its 59 emotions (14 + 15 + 15 + 15 for the four quadrants of
valence and arousal) and 30 instruments are not public: the lists of these sizes were written for
this project and begin with the shorter ones.
"""

from __future__ import annotations

from zoo.errors import UserError, did_you_mean

_16 = {  # the quadrants of EMOPIA (arXiv 2108.01374) and four words for each
    "happy": ["happy", "joyful", "cheerful", "upbeat"],  # Q1: high valence, high arousal
    "angry": ["angry", "aggressive", "intense", "ferocious"],  # Q2: low valence, high arousal
    "sad": ["sad", "mournful", "somber", "sorrowful"],  # Q3: low valence, low arousal
    "tender": ["tender", "gentle", "soft", "soothing"],  # Q4: high valence, low arousal
}
_MORE = {
    "happy": [
        "excited",
        "festive",
        "playful",
        "lively",
        "bright",
        "bouncy",
        "triumphant",
        "energetic",
        "jubilant",
        "merry",
    ],
    "angry": [
        "furious",
        "fierce",
        "violent",
        "hostile",
        "tense",
        "menacing",
        "frantic",
        "agitated",
        "raging",
        "stormy",
        "anxious",
    ],
    "sad": [
        "melancholic",
        "gloomy",
        "lonely",
        "depressed",
        "grieving",
        "bleak",
        "tragic",
        "despairing",
        "tearful",
        "wistful",
        "weary",
    ],
    "tender": [
        "calm",
        "peaceful",
        "relaxed",
        "serene",
        "tranquil",
        "warm",
        "dreamy",
        "mellow",
        "quiet",
        "sweet",
        "delicate",
    ],
}
EMOTIONS: dict[str, dict[str, list[str]]] = {
    "emotions_4": {mood: [mood] for mood in _16},
    "emotions_16": _16,
    "emotions_59": {mood: [*words, *_MORE[mood]] for mood, words in _16.items()},
}
_10 = [
    "guitar",
    "piano",
    "violin",
    "flute",
    "trumpet",
    "drums",
    "saxophone",
    "cello",
    "ukulele",
    "acoustic guitar",
]
INSTRUMENTS: dict[str, list[str]] = {
    "instruments_1": ["piano"],
    "instruments_2": ["piano", "violin"],
    "instruments_3": ["guitar", "piano", "violin"],
    "instruments_10": _10,
    "instruments_30": [
        *_10,
        "harp",
        "clarinet",
        "oboe",
        "bassoon",
        "trombone",
        "tuba",
        "french horn",
        "viola",
        "double bass",
        "electric guitar",
        "bass guitar",
        "banjo",
        "mandolin",
        "accordion",
        "harmonica",
        "organ",
        "harpsichord",
        "xylophone",
        "marimba",
        "vibraphone",
    ],
}


def emotion_words(words: dict[str, list[str]] | str) -> dict[str, list[str]]:
    """Mood -> words: as given, or a copy of the named list.

    Raises ``UserError`` with the nearest name.
    """
    if not isinstance(words, str):
        return words
    if words not in EMOTIONS:
        raise UserError(
            f"unknown list of words {words!r}; {did_you_mean(words, EMOTIONS)} (or give mood ->"
            " list of words)"
        )
    return {mood: list(chosen) for mood, chosen in EMOTIONS[words].items()}


def instrument_names(instruments: list[str] | str) -> list[str]:
    """The instruments as given, or a copy of the named list.

    Raises ``UserError`` with the nearest name.
    """
    if not isinstance(instruments, str):
        return instruments
    if instruments not in INSTRUMENTS:
        near = did_you_mean(instruments, INSTRUMENTS)
        raise UserError(
            f"unknown list of instruments {instruments!r}; {near} (or give the instruments as a"
            " list)"
        )
    return list(INSTRUMENTS[instruments])
