"""A model's own clips, made and scored anew in every iteration, as preference pairs."""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import distributed, nn

from datamodules.batches import ClipPair, ClipPairs
from lightning_modules.own_clips import Prompts, training_prompts
from lightning_modules.rl.distributed import fail_together, world_size
from lightning_modules.rl.settings import SamplerSettings
from zoo.audio_files import Waveform, write_audio
from zoo.errors import UserError, parsing
from zoo.evaluation.scores import fingerprint
from zoo.files import folder_written_beside, parsed_json
from zoo.generation import generate_each, score
from zoo.generations import Sample, read_samples, write_index
from zoo.types import Backbone, Prompt, Reward

log = logging.getLogger(__name__)
SOURCE = "source.json"
_PROMPTS_AT_A_TIME = 8  # in one folder, which is whole or absent
_LINE_EVERY_S = 30.0


def best_and_worst(scores: Sequence[float]) -> tuple[int, int] | None:
    """The places of the highest and the lowest score, of equal ones the first.

    None where there is nothing to prefer: one score, or all of them equal.
    """
    if len(scores) < 2 or max(scores) == min(scores):
        return None
    return scores.index(max(scores)), scores.index(min(scores))


class OwnRounds:
    """Makes ``clips`` clips per prompt every few epochs, and pairs the best with the worst.

    The model that makes them is the one that is trained, as it is when an iteration starts: CRPO
    (arXiv 2412.21037) learns from the pairs, expert iteration from the winners alone.

    Below ``folder`` every iteration has a folder, and in it a folder per eight prompts with clips,
    scores (``samples.json``) and what made them (``source.json``). Such a folder appears whole, so
    that an interrupted iteration goes on where it was: nothing is made or scored twice. Processes
    share the prompts.

    Args:
        reward: scores the clips.
        prompts: a list, or (training prompts, held-out prompts): the former are taken.
        folder: of the clips. Another run needs another one: its later models are others.
        clips: per prompt and iteration.
        prompts_per_iteration: so many are drawn for each; None: all.
        epochs: of training on the clips of an iteration.
        sampler: of the clips.
        seed: of the draw and of the noise, which differ between iterations.

    Raises:
        UserError: for fewer than two clips, and settings out of range; when used, for a folder
            whose clips are of other settings or another model, and a score that is not finite.
    """

    def __init__(
        self,
        reward: Reward,
        prompts: Prompts,
        folder: str,
        clips: int = 5,
        prompts_per_iteration: int | None = None,
        epochs: int = 1,
        sampler: SamplerSettings = SamplerSettings(steps=50, guidance_scale=4.5, eta=0.0),
        seed: int = 0,
    ) -> None:
        self.prompts = training_prompts(prompts)
        for name, value, least in (("clips", clips, 2), ("epochs", epochs, 1)):
            if value < least:
                raise UserError(f"invalid {name} {value}: expected a whole number >= {least}")
        most = len(self.prompts)
        if not 1 <= (most if prompts_per_iteration is None else prompts_per_iteration) <= most:
            raise UserError(
                f"invalid prompts_per_iteration {prompts_per_iteration}: expected 1 to {most}, or"
                " null for all"
            )
        if len({prompt.id for prompt in self.prompts}) < most:
            raise UserError("two prompts have the same id; give each its own")
        self.reward = reward
        self.folder = Path(folder)
        self.clips = clips
        self.prompts_per_iteration = prompts_per_iteration
        self.epochs = epochs
        self.sampler = sampler
        self.seed = seed

    @property
    def scorer(self) -> str:
        """The name of the reward."""
        return getattr(self.reward, "name", type(self.reward).__name__)

    def prompts_of(self, iteration: int) -> tuple[Prompt, ...]:
        """The prompts of an iteration: as many in each."""
        if self.prompts_per_iteration is None:
            return self.prompts
        rng = random.Random(f"own rounds/{self.seed}/{iteration}")
        return tuple(rng.sample(self.prompts, self.prompts_per_iteration))

    def _shares(self, iteration: int) -> list[tuple[Path, tuple[Prompt, ...]]]:
        prompts = self.prompts_of(iteration)
        place = self.folder / f"iteration_{iteration:03d}"
        starts = range(0, len(prompts), _PROMPTS_AT_A_TIME)
        return [(place / f"{a:06d}", prompts[a : a + _PROMPTS_AT_A_TIME]) for a in starts]

    def prepare(self, iteration: int, backbone: Backbone, is_start: bool) -> None:
        """Makes and scores the clips of an iteration that are missing; all processes call it.

        Args:
            iteration: from 0.
            backbone: makes the clips.
            is_start: whether ``backbone`` is still the model of the iteration's start. Otherwise
                nothing can be made, and all must be there.

        Raises:
            UserError: as the class says, on all processes.
        """
        fail_together(lambda: self._prepare(iteration, backbone, is_start), UserError)

    def _prepare(self, iteration: int, backbone: Backbone, is_start: bool) -> None:
        source = {
            "reward": f"{self.scorer} {fingerprint(self.reward)}",
            "sampler": {k: v for k, v in asdict(self.sampler).items() if k != "batch_size"},
            "clips": self.clips,
            "seed": self.seed,
        }
        if is_start:
            source["model"] = fingerprint(backbone.denoiser)
        source = json.loads(json.dumps(source, allow_nan=False))
        shares = self._shares(iteration)
        missing = [number for number, share in enumerate(shares) if not _is_made(*share, source)]
        if missing and not is_start:
            raise UserError(
                f"{shares[missing[0]][0]} is missing, and the model that made the clips of this"
                " iteration has moved on; resume from a checkpoint of the iteration's start, or"
                " start anew"
            )
        rank = distributed.get_rank() if world_size() > 1 else 0
        own = [shares[number] for number in missing if number % world_size() == rank]
        if isinstance(self.reward, nn.Module):
            self.reward.to(next(backbone.denoiser.parameters()).device)
        said = time.monotonic()
        with Progress(transient=True, disable=rank != 0) as shown:
            task = shown.add_task(f"iteration {iteration}: making clips", total=len(own))
            for done, (folder, prompts) in enumerate(own, 1):
                self._make(folder, prompts, iteration, backbone, source)
                shown.advance(task)
                if time.monotonic() - said > _LINE_EVERY_S:
                    said = time.monotonic()
                    log.info("iteration %d: %d of %d folders of clips", iteration, done, len(own))

    def _make(
        self,
        folder: Path,
        prompts: Sequence[Prompt],
        iteration: int,
        backbone: Backbone,
        source: Mapping[str, Any],
    ) -> None:
        first = (self.seed * 100_000 + iteration) * self.clips
        jobs = [(prompt, first + i) for prompt in prompts for i in range(self.clips)]
        size = self.sampler.batch_size
        waves = generate_each(backbone, jobs, self.sampler, size)
        scores: list[float] = []
        for start in range(0, len(jobs), size):
            rows = slice(start, start + size)
            scores += self._scores(waves[rows], [prompt for prompt, _ in jobs[rows]])
        for (prompt, seed), value in zip(jobs, scores, strict=True):
            if not math.isfinite(value):
                raise UserError(
                    f"{self.scorer} gives {value} for a clip of {prompt.text!r} (seed {seed}); it"
                    " cannot be ranked, so nothing of this folder was kept"
                )
        with folder_written_beside(folder) as part:
            samples = []
            for row, (wave, (prompt, seed), value) in enumerate(
                zip(waves, jobs, scores, strict=True)
            ):
                path = part / f"{row // self.clips}_{seed}.flac"
                write_audio(path, wave)
                samples.append(Sample(path, prompt, seed, value))
            write_index(part, samples)
            (part / SOURCE).write_text(json.dumps(source, indent=1, allow_nan=False), "utf-8")

    def _scores(self, waves: Sequence[Waveform], prompts: Sequence[Prompt]) -> list[float]:
        weights = self.reward.parameters() if isinstance(self.reward, nn.Module) else iter(())
        weight = next(weights, torch.zeros(()))
        moved = [Waveform(wave.samples_CN.to(weight.device), wave.sample_rate_hz) for wave in waves]
        return score(self.reward, moved, prompts).score_B.float().cpu().tolist()

    def pairs(self, iteration: int) -> ClipPairs:
        """The best and the worst clip of each prompt of an iteration that was prepared."""
        pairs = []
        left_out: Counter[str] = Counter()
        means = []
        chosen = []
        for folder, prompts in self._shares(iteration):
            samples = read_samples(folder)
            for place, prompt in enumerate(prompts):
                own = samples[place * self.clips : (place + 1) * self.clips]
                scores = [float(sample.score) for sample in own]
                means.append(sum(scores) / len(scores))
                found = best_and_worst(scores)
                if found is None:
                    left_out["prompts whose clips have equal scores"] += 1
                    continue
                best, worst = found
                chosen.append(scores[best] - means[-1])
                pairs.append(ClipPair(prompt, own[best].path, own[worst].path))
        measures = {"score": sum(means) / len(means)}
        if chosen:
            measures["best_above_mean"] = sum(chosen) / len(chosen)
        return ClipPairs(tuple(pairs), (), dict(left_out), measures)


def _is_made(folder: Path, prompts: Sequence[Prompt], source: Mapping[str, Any]) -> bool:
    """Whether the folder is there. Raises ``UserError`` where it is of another source."""
    if not folder.is_dir():
        return False
    path = folder / SOURCE
    with parsing(path, "source of clips"):
        there = parsed_json(path.read_text(encoding="utf-8"))
    for name, value in source.items():
        if there.get(name) != value:
            raise UserError(
                f"{folder} holds clips of other settings ({name}: {there.get(name)} there, {value}"
                " now); name another folder, or remove this one"
            )
    samples = read_samples(folder)
    ids = [sample.prompt.id for sample in samples]
    wanted = [prompt.id for prompt in prompts for _ in range(source["clips"])]
    if ids != wanted:
        raise UserError(f"{folder} holds clips of other prompts; name another folder")
    return True
