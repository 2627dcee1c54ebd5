"""Scorers by loudness, and folders of sine waves, for tests of the evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zoo.audio_files import write_audio
from zoo.commands import evaluate as command
from zoo.errors import UserError
from zoo.types import Prompt, RewardOutput, Waveform

RATE_HZ = 8000


class LoudnessJudge:
    """p_happy is twice the root mean square, p_sad the rest.

    After ``raise_after`` calls it breaks, like a killed run.
    """

    differentiable = False
    class_names = ("happy", "sad")
    label_key = "mood"
    calls = 0

    def __init__(
        self, checkpoint: str = "loudness", raise_after: int | None = None, nan: bool = False
    ) -> None:
        self.checkpoint = checkpoint
        self.raise_after = raise_after
        self.nan = nan
        self.arguments = {"checkpoint": checkpoint}

    def wanted_classes(self, prompts: Sequence[Prompt]) -> Tensor:
        for prompt in prompts:
            if prompt.labels.get("mood") not in self.class_names:
                raise UserError(
                    f"prompt {prompt.id!r} has the mood {prompt.labels.get('mood')!r}, expected"
                    " happy or sad"
                )
        return torch.tensor([self.class_names.index(prompt.labels["mood"]) for prompt in prompts])

    def __call__(
        self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
    ) -> RewardOutput:
        LoudnessJudge.calls += 1
        if self.raise_after is not None and LoudnessJudge.calls > self.raise_after:
            raise ValueError("killed")
        happy = (2 * wave_BCN.square().mean(dim=(1, 2)).sqrt()).clamp(0, 1)
        p = torch.stack([happy, 1 - happy], dim=1)
        wanted = p.gather(1, self.wanted_classes(prompts).unsqueeze(1)).squeeze(1)
        score = wanted * float("nan") if self.nan else wanted
        return RewardOutput(score, {"p_happy": p[:, 0], "p_sad": p[:, 1]})


class Similarity:
    """A metric that no training can learn from: the root mean square. A CLAP has a name, too."""

    name = "clap/toy"
    checkpoint = "toy"

    def __call__(
        self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
    ) -> RewardOutput:
        score = wave_BCN.square().mean(dim=(1, 2)).sqrt()
        return RewardOutput(score, {self.name: score})


def sine(path: Path, amplitude: float, seconds: float = 0.25) -> None:
    """Root mean square: amplitude / sqrt 2."""
    time_s = torch.arange(round(seconds * RATE_HZ)) / RATE_HZ
    write_audio(path, Waveform((amplitude * torch.sin(2 * torch.pi * 440 * time_s))[None], RATE_HZ))


def sines(
    folder: Path,
    amplitudes: dict[str, Sequence[float]],
    prompts: int = 1,
    table: str = "prompts.csv",
) -> Path:
    """One file per amplitude of each mood, with ``prompts`` prompts per mood, and a CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["file,prompt,label"]
    for mood, levels in amplitudes.items():
        for i, level in enumerate(levels):
            sine(folder / f"{mood}_{i}.wav", level)
            rows.append(f'{mood}_{i}.wav,"a {mood} piano, <take> {i % prompts}",{mood}')
    if table:
        (folder / table).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def reward_file(
    folder: Path, name: str = "judge", target: str = "LoudnessJudge", **arguments: object
) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(
        json.dumps({"_target_": f"toy_evaluation.{target}", **arguments}), encoding="utf-8"
    )
    return str(path)


def evaluate(*words: object) -> None:
    from datamodules.prompt_sources import file_prompts
    from datamodules.tables import read_table

    command.main([str(word) for word in words], file_prompts, read_table)
