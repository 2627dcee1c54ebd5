"""Rated clips of tones, and a small random CLAP: labels that a head can learn."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import torch

from datamodules.batches import RatedClip
from zoo.audio_files import Waveform, write_audio
from zoo.rewards.clap import ClapReward
from zoo.rewards.preference import PreferenceReward

TOWERS = {
    "window_s": 0.256,
    "n_fft": 512,
    "n_mels": 32,
    "channels": [4, 4, 4, 8],
    "width": 16,
    "depth": 1,
    "heads": 2,
    "text_depth": 1,
    "embedding": 24,
}
NAMES = ("cow", "dog", "bell", "horn", "rain", "wind", "drum", "crow", "lion", "hen")
RATE_HZ = 16_000


def small_clap(seed: int = 0) -> ClapReward:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ClapReward("untrained", "tiny", dict(TOWERS))


def small_reward(seed: int = 0, **settings) -> PreferenceReward:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PreferenceReward(small_clap(seed), 24, 16, **settings)


def tone(hz: float, seed: int, samples: int = 4096) -> Waveform:
    """A sine with a little noise."""
    noise = torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))
    wave = 0.3 * torch.sin(2 * math.pi * hz / RATE_HZ * torch.arange(samples)) + 0.01 * noise
    return Waveform(wave, RATE_HZ)


def write_labels(folder: Path, prompts: int = 10, per_prompt: int = 4) -> Path:
    """``labels.csv`` and ``audio/``: high tones are good, low ones bad, whatever the prompt."""
    rows = []
    for number in range(prompts):
        prompt = f"a {NAMES[number % len(NAMES)]}, take {number}"
        for take in range(per_prompt):
            label = (number + take) % 2
            name = f"{number:04d}_{take}.wav"
            (folder / "audio").mkdir(parents=True, exist_ok=True)
            write_audio(folder / "audio" / name, tone(3000 if label else 300, 10 * number + take))
            rows.append((name, prompt, label))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "prompt", "label"), *rows])
    return folder / "labels.csv"


def rated(label: float, group: str = "p", name: str = "a.wav", **more) -> RatedClip:
    return RatedClip(prompt=group, audio=Path(name), label=label, group=group, **more)
