"""The steps of BATON's chain on embedded/sounds, each by the project's own commands.

Captions, clips of the base model, labels of a rater, the reward model, its scores, fine-tuning,
evaluation clips. ``benchmarks/baton_sounds.py`` puts them together.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.sounds.scene_prompts import scene_prompts
from zoo.audio_files import write_audio
from zoo.diffusion import Sampler
from zoo.files import files_written_together
from zoo.generation import generate_each
from zoo.generations import INDEX, Sample, read_samples, write_index
from zoo.types import Backbone, Prompt

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
CAPTIONS_AT_A_TIME = 8
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


def make_clips(
    folder: Path, backbone: Backbone, prompts: Sequence[Prompt], seeds: Sequence[int]
) -> None:
    """Writes a clip per prompt and seed with an index; what the index has is not made again."""
    known = (
        {sample.path.name for sample in read_samples(folder)} if (folder / INDEX).exists() else {}
    )
    for start in range(0, len(prompts), CAPTIONS_AT_A_TIME):
        rows = [
            Sample(folder / f"{start + place:03d}_{seed}.wav", prompt, seed)
            for place, prompt in enumerate(prompts[start : start + CAPTIONS_AT_A_TIME])
            for seed in seeds
        ]
        rows = [row for row in rows if row.path.name not in known]
        if not rows:
            continue
        waves = generate_each(backbone, [(row.prompt, row.seed) for row in rows], SAMPLER, 16)
        with files_written_together(folder) as part:
            for row, wave in zip(rows, waves, strict=True):
                write_audio(part / row.path.name, wave)
            write_index(folder, rows, part)
