"""EMOPIA's three tasks (arXiv 2108.01374): their classes, and an untrained classifier for each.

Quadrants: Q1 happy (high valence, high arousal), Q2 angry (low, high), Q3 sad (low, low), Q4 tender
(high, low).
"""

from __future__ import annotations

from collections.abc import Sequence

from zoo.errors import UserError, did_you_mean
from zoo.rewards.mood import MOODS, EmotionReward

RATE_HZ = 22_050
CHUNK_S = 3.0
TASKS = {
    "ar_va": MOODS,
    "arousal": ("HA", "LA"),
    "valence": ("HV", "LV"),
}  # the classes in the order of the outputs
QUADRANTS = dict(zip(("Q1", "Q2", "Q3", "Q4"), MOODS))
_CLASS_OF_MOOD = {
    "ar_va": dict(zip(MOODS, MOODS)),
    "arousal": {"happy": "HA", "angry": "HA", "sad": "LA", "tender": "LA"},
    "valence": {"happy": "HV", "angry": "LV", "sad": "LV", "tender": "HV"},
}


def classes_of(task: str) -> dict[str, str]:
    """The class of every quadrant and of every mood in a task.

    Raises ``UserError`` for an unknown task.
    """
    if task not in TASKS:
        raise UserError(f"there is no EMOPIA task {task!r}; {did_you_mean(task, TASKS)}")
    return {
        word: _CLASS_OF_MOOD[task][mood]
        for quadrant, mood in QUADRANTS.items()
        for word in (mood, quadrant)
    }


def untrained_classifier(
    task: str = "ar_va",
    value: str = "value",
    activation: str = "sigmoid",
    sample_rate_hz: int = RATE_HZ,
    chunk_s: float = CHUNK_S,
    n_fft: int = 1024,
    hop_samples: int = 512,
    n_mels: int = 128,
    channels: Sequence[int] = (128, 128, 256, 256, 256, 256, 512),
    dropout: float = 0.5,
    chunk_rule: str = "full",
    hop_s: float = 1.0,
    label_key: str = "mood",
) -> EmotionReward:
    """An ``EmotionReward`` with random weights for one EMOPIA task, by default of EMOPIA's size.

    12.08 M parameters.

    Prompts' labels may be moods or quadrants in every task, so one data module serves all three.
    Clips keep their own level, as in EMOPIA.

    Args:
        task: a key of ``TASKS``.
        value, activation, sample_rate_hz, chunk_s, n_fft, hop_samples, n_mels, channels, dropout,
            chunk_rule, hop_s, label_key: as ``EmotionReward`` takes them.

    Raises: ``UserError`` for an unknown task.
    """
    words = classes_of(task)
    return EmotionReward(
        value=value,
        class_names=list(TASKS[task]),
        sample_rate_hz=sample_rate_hz,
        chunk_s=chunk_s,
        n_fft=n_fft,
        hop_samples=hop_samples,
        n_mels=n_mels,
        channels=list(channels),
        dropout=dropout,
        activation=activation,
        rms=None,
        chunk_rule=chunk_rule,
        hop_s=hop_s,
        label_key=label_key,
        classes_of=words,
    )
