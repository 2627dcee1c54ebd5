"""A check for headphones: which of three tones is the quietest?

One of the tones is quieter by 6 dB, and another one has opposite phase in the two ears. In the air
between two loudspeakers that one cancels itself and seems to be the quietest; over headphones it
does not (Woods, Siegel, Traer and McDermott 2017). Needs stereo all the way.
"""

from __future__ import annotations

import math
import random

import torch

from zoo.types import Waveform

QUESTIONS, NEEDED = 6, 5
ATTEMPTS = 2
_RATE_HZ = 44_100
_TONE_HZ = 200.0
_TONE_S, _RAMP_S, _GAP_S = 1.0, 0.1, 0.5
_LEVEL = 0.25
_QUIETER_DB = -6.0


def headphone_questions(seed: str) -> tuple[tuple[int, int], ...]:
    """(place of the quietest tone, place of the one in opposite phase) of every question.

    Every place is right equally often.
    """
    draw = random.Random(f"headphones/{seed}")
    right = [i % 3 for i in range(QUESTIONS)]
    draw.shuffle(right)
    return tuple((quiet, draw.choice([i for i in range(3) if i != quiet])) for quiet in right)


def three_tones(quietest: int, opposite: int) -> Waveform:
    """The sound (2, N) of one question."""
    time_N = torch.arange(round(_TONE_S * _RATE_HZ)) / _RATE_HZ
    ramp_N = (torch.minimum(time_N, _TONE_S - time_N) / _RAMP_S).clamp(0, 1)
    tone_N = _LEVEL * torch.sin(2 * math.pi * _TONE_HZ * time_N) * ramp_N
    silence_CN = torch.zeros(2, round(_GAP_S * _RATE_HZ))
    parts = []
    for place in range(3):
        level = 10 ** (_QUIETER_DB / 20) if place == quietest else 1.0
        right_N = -tone_N if place == opposite else tone_N
        parts += [level * torch.stack([tone_N, right_N]), silence_CN]
    return Waveform(torch.cat(parts[:-1], dim=1), _RATE_HZ)


def right_answers(seed: str, answers: list[int]) -> int:
    """How many answers (places from 0) name the quietest tone."""
    return sum(
        answer == quiet
        for answer, (quiet, _) in zip(answers, headphone_questions(seed), strict=True)
    )
