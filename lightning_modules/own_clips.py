"""A model's own clips and what a reward says of them, made once and kept in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress
from torch import distributed

from lightning_modules.rl.settings import SamplerSettings
from zoo.audio_files import read_audio, write_audio
from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.files import files_written_together
from zoo.generation import generate_each, score
from zoo.generations import INDEX, Sample, read_samples, write_index
from zoo.types import Backbone, Prompt, Reward

_PROMPTS_AT_A_TIME = 8
Prompts = Sequence[Prompt] | tuple[Sequence[Prompt], Sequence[Prompt]]


def make_clips(
    folder: str | Path,
    backbone: Backbone,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    sampler: Sampler,
    batch_size: int = 16,
) -> tuple[Sample, ...]:
    """A clip per prompt and seed in a folder with an index; those that are there are kept.

    Args:
        folder: gets ``<place of the prompt>_<seed>.wav`` and the index.
        backbone: makes the clips.
        prompts: what is asked for.
        seeds: of the noise, which depends on the prompt, too.
        sampler: of the clips.
        batch_size: clips that are made at a time.

    Returns:
        The clips, prompts in order.

    Raises:
        UserError: for a folder whose clips are of other prompts.
    """
    folder = Path(folder)
    known = (
        {one.path.name: one for one in read_samples(folder)} if (folder / INDEX).is_file() else {}
    )
    width = max(3, len(str(len(prompts) - 1)))
    wanted = [
        Sample(folder / f"{place:0{width}d}_{seed}.wav", prompt, seed)
        for place, prompt in enumerate(prompts)
        for seed in seeds
    ]
    for sample in wanted:
        old = known.get(sample.path.name, sample)
        if old.prompt.id != sample.prompt.id:
            raise UserError(
                f"{sample.path} answers {old.prompt.text!r}, not {sample.prompt.text!r}; name"
                " another folder, or remove this one"
            )
    missing = [sample for sample in wanted if sample.path.name not in known]
    step = _PROMPTS_AT_A_TIME * len(seeds)
    with Progress(transient=True) as shown:
        task = shown.add_task("generating clips", total=len(missing))
        for start in range(0, len(missing), step):
            rows = missing[start : start + step]
            jobs = [(row.prompt, row.seed) for row in rows]
            waves = generate_each(backbone, jobs, sampler, batch_size)
            with files_written_together(folder) as part:  # a file and its row, or none of them
                for row, wave in zip(rows, waves, strict=True):
                    write_audio(part / row.path.name, wave)
                write_index(folder, rows, part)
            shown.advance(task, len(rows))
    return tuple(wanted)


def training_prompts(prompts: Prompts) -> tuple[Prompt, ...]:
    """A list of prompts, or the former of (training prompts, held-out prompts).

    Raises ``UserError`` where there are none.
    """
    is_split = len(prompts) == 2 and not isinstance(prompts[0], Prompt)
    found = tuple(prompts[0] if is_split else prompts)
    if not found:
        raise UserError("prompts: there are none to make clips for")
    return found


class OwnClips:
    """Clips of a model, made when they are first asked for and then kept, and a reward's scores.

    ``folder`` gets the clips and their index ``samples.json``. Who gives the clips labels:
    ``datamodules.preferences.stand_in``.

    Args:
        backbone: makes the clips.
        reward: scores them.
        prompts: a list, or (training prompts, held-out prompts): the former are taken.
        folder: of the clips.
        clips: per prompt.
        sampler: of the clips.
        seed: of the noise; clip i of a prompt has ``seed * clips + i``.

    Raises:
        UserError: for no clip or no prompt; when used, for several processes, a folder with clips
            of other prompts, and a score that is not a number.
    """

    def __init__(
        self,
        backbone: Backbone,
        reward: Reward,
        prompts: Prompts,
        folder: str,
        clips: int = 4,
        sampler: SamplerSettings = SamplerSettings(steps=16, guidance_scale=1.0, eta=0.0),
        seed: int = 0,
    ) -> None:
        self.prompts = training_prompts(prompts)
        if clips < 1:
            raise UserError(f"invalid clips {clips}: expected a whole number >= 1")
        self.backbone = backbone
        self.reward = reward
        self.folder = Path(folder)
        self.clips = clips
        self.sampler = sampler
        self.seed = seed

    @property
    def scorer(self) -> str:
        """The name of the reward."""
        return getattr(self.reward, "name", type(self.reward).__name__)

    def samples(self) -> tuple[Sample, ...]:
        """The clips; makes those that are missing."""
        if distributed.is_available() and distributed.is_initialized():
            if distributed.get_world_size() > 1:
                raise UserError(
                    "clips are made on one process; start once with trainer.devices=1"
                    " trainer.num_nodes=1"
                )
        seeds = [self.seed * self.clips + index for index in range(self.clips)]
        size = self.sampler.batch_size
        return make_clips(self.folder, self.backbone, self.prompts, seeds, self.sampler, size)

    def scores(self) -> list[float]:
        """What the reward says of ``samples()``, in order."""
        samples = self.samples()
        found: list[float] = []
        size = self.sampler.batch_size
        with Progress(transient=True) as shown:
            task = shown.add_task(f"{self.scorer} listens", total=len(samples))
            for start in range(0, len(samples), size):
                rows = samples[start : start + size]
                waves = [read_audio(row.path) for row in rows]
                found += score(self.reward, waves, [row.prompt for row in rows]).score_B.tolist()
                shown.advance(task, len(rows))
        bad = [sample for sample, value in zip(samples, found, strict=True) if value != value]
        if bad:
            raise UserError(f"{self.scorer} gives no number for {bad[0].path}")
        return found
