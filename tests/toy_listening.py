"""Two folders of short clips from the same prompts, like those of a run or tools/generate.py."""

from __future__ import annotations

from pathlib import Path

import torch

from zoo.audio_files import write_audio
from zoo.generations import Sample, write_index
from zoo.types import Prompt, Waveform

RATE_HZ = 8000

NAMES = ("base", "tuned")  # of the two systems


def tone(level: float, hz: float, seconds: float = 0.1) -> Waveform:
    return Waveform(
        level
        * torch.sin(2 * torch.pi * hz * torch.arange(round(seconds * RATE_HZ)) / RATE_HZ)[None],
        RATE_HZ,
    )


def folders(
    root: Path, count: int = 4, seeds: tuple[int | None, ...] = (None,), tuned_level: float = 0.5
) -> tuple[Path, Path]:
    """(base, fine-tuned): ``count`` prompts with every seed; the base's tones have level 0.25."""
    for name, level in (("before", 0.25), ("after", tuned_level)):
        samples = []
        for i in range(count):
            for seed in seeds:
                path = root / name / f"{i:02d}_{seed}.wav"
                write_audio(path, tone(level, 200 + 50 * i + (seed or 0)))
                samples.append(
                    Sample(path, Prompt(f"p{i}", f"sound number {i}", seconds=0.1), seed)
                )
        write_index(root / name, samples)
    return root / "before", root / "after"
