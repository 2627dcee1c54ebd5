"""The steps of BATON's chain on embedded/sounds, each by the project's own commands.

Captions, clips of the base model, labels of a rater, the reward model, its scores, fine-tuning,
evaluation clips. ``benchmarks/baton_sounds.py`` puts them together.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluation import Clips
from benchmarks.sound_scores import both_in_top3, class_scores
from datamodules.preferences.dialects import write_labels
from datamodules.sounds.scene_prompts import scene_prompts
from lightning_modules import run
from zoo.audio_files import read_audio, write_audio
from zoo.configuration import read_configuration
from zoo.diffusion import Sampler
from zoo.generations import Sample
from zoo.types import Preference, Prompt, Waveform

ROOT = Path(__file__).resolve().parents[1]
CLASSES = (
    "bird_other",
    "bubble",
    "car_horn",
    "choir",
    "cow",
    "crow",
    "electric_spark",
    "explosion",
    "glass",
    "hammer",
    "jackhammer",
    "lion",
    "sheep",
    "ship_horn",
    "train_horn",
    "whistle",
)
BASE = "embedded/sounds"
SAMPLER = Sampler(steps=16, guidance_scale=1.0, eta=0.0)  # of the data and of every evaluation
CLIPS_PER_CAPTION = 6
EVALUATION_CLIPS = 3
EVALUATION_SEED = 1_000_003
SCENES = 2000  # real scenes of the pretraining data
SCENE_SEED = 32_000_000  # training of the model and of the judges counts from elsewhere
PARTS = ("head", "head_val", "scored")


@dataclass(frozen=True)
class Captions:
    """Training captions by the part that their pair of sounds plays, and held-out ones.

    ``parts``: "head" and "head_val" are labelled by the rater and train the reward model and choose
    its epoch; "scored" are scored by it. No pair of sounds is in two parts, or held out.
    """

    parts: Mapping[str, tuple[Prompt, ...]]
    held_out: tuple[Prompt, ...]

    @property
    def train(self) -> tuple[Prompt, ...]:
        return tuple(prompt for part in PARTS for prompt in self.parts[part])


def pair_of(prompt: Prompt) -> tuple[str, ...]:
    """The sounds of a caption, in alphabetical order."""
    return tuple(sorted(prompt.labels["events"]))


def captions(classes: Sequence[str] = CLASSES) -> Captions:
    """All captions: a quarter of the pairs held out, a third of the others for the reward model.

    Of the pairs that the rater labels, one in six chooses the epoch of the reward model.
    """
    train, held_out = scene_prompts(
        classes,
        relations=("together", "then"),
        held_out_share=0.25,
        sources=("opensfx", "sonic-pi", "gcompris"),
        seed=1,
    )
    pairs = sorted({pair_of(prompt) for prompt in train})
    random.Random("baton/parts/1").shuffle(pairs)
    labelled = round(len(pairs) * 2 / 3)
    of_part = {
        "scored": pairs[labelled:],
        "head_val": pairs[: labelled // 6],
        "head": pairs[labelled // 6 : labelled],
    }
    parts = {
        part: tuple(prompt for prompt in train if pair_of(prompt) in of_part[part])
        for part in PARTS
    }
    return Captions(parts, held_out)


def clip_seeds(seed: int) -> list[int]:
    """Seeds of the noise of a seed's clips; those of evaluation are above 1,000,000."""
    return [1000 * seed + index for index in range(CLIPS_PER_CAPTION)]


def part_of_prompts(found: Captions) -> dict[str, str]:
    """Id of a training caption -> its part."""
    return {prompt.id: part for part in PARTS for prompt in found.parts[part]}


def rater_labels(clips: Sequence[Sample], rater: Any, batch_size: int = 20) -> list[float]:
    """1 where both asked sounds are among the rater's three likeliest classes, else 0.

    Of "then" captions, too: the rater is asked for presence, not for order.
    """
    labels: list[float] = []
    for start in range(0, len(clips), batch_size):
        rows = clips[start : start + batch_size]
        waves = [read_audio(row.path) for row in rows]
        wave_BCN = torch.stack([wave.samples_CN for wave in waves])
        score_BK = class_scores(rater.hear(wave_BCN, waves[0].sample_rate_hz))
        labels += both_in_top3(score_BK, [row.prompt for row in rows]).tolist()
    return labels


def records(
    clips: Sequence[Sample], labels: Sequence[float], parts: Mapping[str, str]
) -> list[Preference]:
    """A record per clip with its label; the clips of "head_val" are in the split "val"."""
    return [
        Preference(
            prompt=clip.prompt.text,
            audio=clip.path.name,
            task="integrity",
            label=label,
            split="val" if parts[clip.prompt.id] == "head_val" else "train",
            model=BASE,
            seconds=clip.prompt.seconds,
        )
        for clip, label in zip(clips, labels, strict=True)
    ]


def write_label_files(
    folder: Path, clips: Sequence[Sample], labels: Sequence[float], found: Captions
) -> None:
    """Writes what the steps of a seed read, in the dialect attune.

    - ``rater.jsonl``: the rater's labels of all clips; ``positives.jsonl``: the clips it accepts.
    - ``scored.jsonl``: the clips that the reward model will score, without a label.
    - ``head.jsonl``: the labelled clips in two splits, of which the reward model learns.
    - ``hd.jsonl``: the same, all for fine-tuning.
    """
    everything = records(clips, labels, part_of_prompts(found))
    scored = {prompt.text for prompt in found.parts["scored"]}
    labelled = [one for one in everything if one.prompt not in scored]
    files = {
        "rater": everything,
        "positives": [replace(one, split="train") for one in everything if one.label == 1],
        "scored": [
            replace(one, label=None, source="RD") for one in everything if one.prompt in scored
        ],
        "head": labelled,
        "hd": [replace(one, split="train") for one in labelled],
    }
    for name, rows in files.items():
        write_labels(rows, folder / f"{name}.jsonl", "attune")


def write_scenes(folder: Path, scenes: Iterable[Clips]) -> None:
    """Writes real scenes as files, and last ``pd.jsonl`` with their captions."""
    rows = []
    for clips in scenes:
        for wave_CN, prompt in zip(clips.wave_BCN, clips.prompts, strict=True):
            name = f"{prompt.id}.wav"
            write_audio(folder / name, Waveform(wave_CN, clips.sample_rate_hz))
            rows.append(Preference(prompt.text, name, "integrity", source="PD"))
    write_labels(rows, folder / "pd.jsonl", "attune")


def fitted(config: str, overrides: Sequence[str]) -> None:
    """What ``python tools/fit.py --config CONFIG OVERRIDES`` does, in this process."""
    files = [ROOT / "configs" / "baton" / config]
    run.fit(read_configuration(files, list(overrides)), ["python", "tools/fit.py", *overrides])


def train_head(folder: Path, seed: int) -> None:
    """Trains the reward model on ``head.jsonl`` into ``head/``."""
    fitted(
        "quickstart_reward.yaml",
        [
            f"data.source.files={folder / 'head.jsonl'}",
            f"data.source.audio_root={folder / 'clips'}",
            f"module.features.cache_dir={folder / 'features'}",
            f"out_dir={folder / 'head'}",
            f"seed={seed}",
        ],
    )


def annotate(folder: Path) -> None:
    """Scores ``scored.jsonl`` by the head into ``rd.jsonl``, with the project's tool."""
    command = [sys.executable, str(ROOT / "tools" / "annotate.py"), str(folder / "scored.jsonl")]
    command += ["--audio-root", str(folder / "clips"), "--reward", str(folder / "head" / "model")]
    subprocess.run([*command, "--out", str(folder / "rd.jsonl")], check=True, cwd=ROOT)
