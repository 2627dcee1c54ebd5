"""A bank of recordings that differ in pitch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datamodules.sounds.bank import BankClip, SoundBank
from datamodules.sounds.captions import class_words

RATE_HZ = 4000
CLASSES = {
    "dog": 250,
    "bell": 500,
    "siren": 750,
    "car_horn": 1000,
    "train": 1250,
}  # class -> pitch of its training recordings
TEST_SHIFT_HZ = 125  # test recordings are that much higher


def tone(frequency_hz: float, seconds: float) -> Tensor:
    time = torch.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return 0.3 * torch.sin(2 * math.pi * frequency_hz * time)


def tone_bank(
    seconds: float = 6.0, classes: dict[str, int] | None = None, licence: str = "CC0-1.0"
) -> SoundBank:
    """One training tone and one test tone per class; those of "train" are the same."""
    clips = []
    waves = {}
    for name, pitch in (CLASSES if classes is None else classes).items():
        for split in ("both",) if name == "train" else ("train", "test"):
            clip_id = f"tones/{name}-{split}"
            about = (
                clip_id,
                name,
                f"a {class_words(name)} sounding",
                "object",
                (name.title(),),
                licence,
                "",
                split,
            )
            clips.append(BankClip(*about, seconds, split != "both", clip_id))
            waves[clip_id] = tone(pitch + TEST_SHIFT_HZ * (split == "test"), seconds)
    return SoundBank(clips, waves, RATE_HZ)
