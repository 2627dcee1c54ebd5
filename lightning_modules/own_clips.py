"""A model's own clips, with a reward's opinion in place of people's labels.

What the quickstart of BATON learns from while nobody has labelled anything.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress
from torch import distributed

from datamodules.batches import RatedClip
from datamodules.cache import ClipSet
from datamodules.preferences.dialects import read_labels, write_labels
from datamodules.preferences.rated import LabelFiles
from datamodules.preferences.recorded import RecordedSet
from lightning_modules.rl.settings import SamplerSettings
from zoo.audio_files import read_audio, write_audio
from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.files import files_written_together
from zoo.generation import generate_each, score
from zoo.generations import INDEX, Sample, read_samples, write_index
from zoo.types import Backbone, Preference, Prompt, Reward, Vote

log = logging.getLogger(__name__)
LABELS = "labels.jsonl"
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


def above_prompt_mean(scores: Sequence[float], prompts: Sequence[str]) -> list[float]:
    """1 for a score above the mean of its prompt, else 0: in each prompt its better clips.

    A prompt whose clips all score alike gets 0 only.
    """
    by_prompt: dict[str, list[float]] = {}
    for value, prompt in zip(scores, prompts, strict=True):
        by_prompt.setdefault(prompt, []).append(value)
    mean = {prompt: sum(own) / len(own) for prompt, own in by_prompt.items()}
    return [float(value > mean[prompt]) for value, prompt in zip(scores, prompts, strict=True)]


class OwnClips:
    """Clips of a model and labels of them, made when they are first asked for and then kept.

    ``folder`` gets the clips, their index ``samples.json``, and ``labels.jsonl`` (docs/labels.md):
    1 for a clip that scores above the mean of its prompt, else 0. **The reward stands in for people
    and is not a judge**: what learns from these labels learns the reward's taste. Labels that are
    there are used as they are, whoever wrote them; remove the file to have the reward label again.

    It is a source of labels (``rated_clips``) and, without any label, of clips to keep a model near
    itself (``clip_sets``; none for validation).

    Args:
        backbone: makes the clips.
        reward: labels them.
        prompts: a list, or (training prompts, held-out prompts): the former are taken.
        folder: of the clips.
        clips: per prompt, at least 2.
        sampler: of the clips.
        seed: of the noise; clip i of a prompt has ``seed * clips + i``.

    Raises:
        UserError: for less than two clips or no prompt; when used, for several processes, a folder
            with clips of other prompts, labels that lack a clip, and a score that is not finite.
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
        is_split = len(prompts) == 2 and not isinstance(prompts[0], Prompt)
        self.prompts = tuple(prompts[0] if is_split else prompts)
        if clips < 2:
            raise UserError(
                f"invalid clips {clips}: expected 2 or more, because the clips of a prompt are"
                " compared"
            )
        if not self.prompts:
            raise UserError("prompts: there are none to make clips for")
        self.backbone = backbone
        self.reward = reward
        self.folder = Path(folder)
        self.clips = clips
        self.sampler = sampler
        self.seed = seed

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

    def rated_clips(self) -> list[tuple[str, RatedClip]]:
        """("", clip) of every clip, with its label."""
        samples = self.samples()
        file = self.folder / LABELS
        if not file.is_file():
            write_labels(self._labelled(samples), file, "attune")
        known = {record.audio for record in read_labels(file).checked()}
        missing = [sample for sample in samples if sample.path.name not in known]
        if missing:
            raise UserError(
                f"{file} has no label of {len(missing)} of {len(samples)} clips, the first"
                f" {missing[0].path.name}; label them, or remove the file and"
                f" {_name(self.reward)} labels all"
            )
        rows = LabelFiles(str(file), str(self.folder)).rated_clips()
        positive = sum(clip.label > 0.5 for _, clip in rows)
        log.info("%d of %d clips are labelled as good in %s", positive, len(rows), file)
        return rows

    def _labelled(self, samples: Sequence[Sample]) -> list[Preference]:
        scores: list[float] = []
        size = self.sampler.batch_size
        with Progress(transient=True) as shown:
            task = shown.add_task(f"{_name(self.reward)} labels", total=len(samples))
            for start in range(0, len(samples), size):
                rows = samples[start : start + size]
                waves = [read_audio(row.path) for row in rows]
                scores += score(self.reward, waves, [row.prompt for row in rows]).score_B.tolist()
                shown.advance(task, len(rows))
        bad = [sample for sample, value in zip(samples, scores, strict=True) if value != value]
        if bad:
            raise UserError(f"{_name(self.reward)} gives no number for {bad[0].path}")
        labels = above_prompt_mean(scores, [sample.prompt.id for sample in samples])
        rater = f"stand-in {_name(self.reward)}"
        return [
            Preference(
                sample.prompt.text,
                sample.path.name,
                "integrity",
                votes=(Vote(rater, label),),
                label=label,
                seconds=sample.prompt.seconds,
            )
            for sample, label in zip(samples, labels, strict=True)
        ]

    def clip_sets(self) -> tuple[ClipSet, ClipSet]:
        """All clips for training, and none for validation."""
        samples = self.samples()
        rate_hz, channels = self.backbone.sample_rate_hz, self.backbone.channels
        seconds = max(sample.prompt.seconds for sample in samples)
        files = [sample.path for sample in samples]
        captions = [sample.prompt.text for sample in samples]
        own = RecordedSet(files, captions, rate_hz, channels, seconds)
        return own, RecordedSet([], [], rate_hz, channels, seconds)


def _name(reward: Reward) -> str:
    return getattr(reward, "name", type(reward).__name__)
