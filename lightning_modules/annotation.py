"""Scores clips, and makes them first where asked, by Lightning's ``predict``.

Every process takes its share of the clips, each clip by itself: the scores do not depend on how
many processes there are or on what else is scored.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

from datamodules.batches import ClipFile
from lightning_modules.score_journal import Journal, Scored, score_key
from zoo.audio_files import Waveform, decoded, write_audio
from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.generation import generate_each, score
from zoo.types import Backbone, Prompt, Scorer

LINE_EVERY_S = 30.0  # where there is no terminal


@dataclass(frozen=True)
class HeardClip:
    """A clip whose file was read.

    - ``row``: its place among all clips; ``audio``: its name.
    - ``key``: of its score in the journal.
    - ``wave``: None where its score is known, and where there is a ``fault``.
    """

    row: int
    audio: str
    prompt: Prompt
    key: str = ""
    wave: Waveform | None = None
    fault: str = ""

    def to(self, device: torch.device | str) -> HeardClip:
        if self.wave is None:
            return self
        moved = Waveform(self.wave.samples_CN.to(device), self.wave.sample_rate_hz)
        return replace(self, wave=moved)


class HeardClips(Dataset):
    """Reads the clips that have a file.

    Args:
        clips: the clips.
        reward_id: of the reward that will be asked.
        known: keys of scores that need no wave.
    """

    def __init__(
        self, clips: Sequence[ClipFile], reward_id: str, known: Mapping[str, Scored]
    ) -> None:
        self.clips = clips
        self.rows = [row for row, clip in enumerate(clips) if not clip.fault]
        self.reward_id = reward_id
        self.known = known

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> HeardClip:
        row = self.rows[index]
        clip = self.clips[row]
        heard = HeardClip(row, clip.record.audio, clip.prompt)
        try:
            content = clip.path.read_bytes()
        except OSError as error:
            return replace(heard, fault=f"{clip.path}: {error.strerror or error}")
        digest = hashlib.sha256(content).hexdigest()
        heard = replace(heard, key=score_key(digest, clip.prompt, self.reward_id))
        if heard.key in self.known:
            return heard
        try:
            return replace(heard, wave=decoded(content))
        except UserError as error:
            return replace(heard, fault=f"{clip.path} {error}")


class Shares(L.LightningDataModule):
    """Gives every process of ``predict`` its share of a data set, one item per batch.

    Process r of n takes the items r, r + n, r + 2n ...: none twice, none left out. The trainer
    needs ``use_distributed_sampler=False``.

    Args:
        items: has a length, and its items have ``to(device)``.
        workers: processes that read ahead.
    """

    def __init__(self, items: Any, workers: int = 0) -> None:
        super().__init__()
        # with fewer items than processes
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.items = items
        self.workers = workers

    def predict_dataloader(self) -> DataLoader:
        share = range(self.trainer.global_rank, len(self.items), self.trainer.world_size)
        own = torch.utils.data.Subset(self.items, share)
        return DataLoader(own, batch_size=None, num_workers=self.workers)


class Annotation(L.LightningModule):
    """Scores ``HeardClip`` by a reward; ``scores`` and ``faults`` are by row.

    A clip whose score is in the journal is not scored again. One that the reward refuses, or whose
    score is not finite, is a fault.

    Args:
        reward: the reward.
        reward_id: names class, settings and weights of the reward in the journal.
        journal: where scores are kept.
        known: what the journal holds.
    """

    title = "scoring"

    def __init__(
        self, reward: Scorer, reward_id: str, journal: Journal, known: dict[str, Scored]
    ) -> None:
        super().__init__()
        self.reward = reward
        self.reward_id = reward_id
        self.journal = journal
        self.known = known
        self.scores: dict[int, float] = {}
        self.faults: dict[int, str] = {}

    def on_predict_start(self) -> None:
        self.journal.open(self.global_rank)

    def on_predict_end(self) -> None:
        self.journal.close()

    def predict_step(self, clip: HeardClip, batch_index: int) -> bool:
        """Returns whether the clip has a score."""
        scored = self.known.get(clip.key)
        if scored is not None:
            self.scores[clip.row] = scored.score
            return True
        fault = clip.fault
        if not fault:
            scored, fault = self._scored(clip)
        if fault:
            self.faults[clip.row] = fault
            return False
        self.journal.add(scored)
        self.known[clip.key] = scored
        self.scores[clip.row] = scored.score
        return True

    def _scored(self, clip: HeardClip) -> tuple[Scored | None, str]:
        """(score, fault) of a clip."""
        try:
            output = score(self.reward, clip.wave, clip.prompt)
        except UserError as error:
            return None, f"the reward refuses it: {error}"
        parts = {name: float(part[0]) for name, part in output.parts.items()}
        value = float(output.score_B[0])
        for name, number in {"score": value, **parts}.items():
            if not math.isfinite(number):
                return None, f"the reward gives no finite {name} ({number})"
        return Scored(clip.key, clip.audio, self.reward_id, value, parts), ""


@dataclass(frozen=True)
class ClipJobs:
    """Clips that are made in one batch: files, prompts and seeds."""

    paths: tuple[Path, ...]
    jobs: tuple[tuple[Prompt, int], ...]

    def to(self, device: torch.device | str) -> ClipJobs:
        return self


def clip_jobs(
    paths: Sequence[Path], jobs: Sequence[tuple[Prompt, int]], batch_size: int
) -> list[ClipJobs]:
    """Batches of ``batch_size`` clips in their order; they are the same on every process."""
    return [
        ClipJobs(tuple(paths[start : start + batch_size]), tuple(jobs[start : start + batch_size]))
        for start in range(0, len(jobs), batch_size)
    ]


class MakeClips(L.LightningModule):
    """Makes the files of ``ClipJobs``, unless all of a batch are there.

    Args:
        backbone: the model.
        sampler: steps and guidance.
    """

    title = "making clips"

    def __init__(self, backbone: Backbone, sampler: Sampler) -> None:
        super().__init__()
        self.backbone = backbone
        self.sampler = sampler

    def predict_step(self, batch: ClipJobs, batch_index: int) -> bool:
        """Returns whether something was made."""
        if all(path.is_file() for path in batch.paths):
            return False
        waves = generate_each(self.backbone, batch.jobs, self.sampler, len(batch.jobs))
        for path, wave in zip(batch.paths, waves, strict=True):
            write_audio(path, wave)
        return True


class CpuThreads(Callback):
    """Computes with ``threads`` threads per process on a CPU.

    Their number may change the last digits of a score, so it must not follow from the machine.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._before = 0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before = torch.get_num_threads()
        if pl_module.device.type == "cpu":
            torch.set_num_threads(self.threads)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        torch.set_num_threads(self._before or torch.get_num_threads())


class CountProgress(Callback):
    """Shows how far ``predict`` is: a bar in a terminal, else a line every 30 seconds.

    Only the first process shows its share. The module's ``title`` says what is done.

    Args:
        console: by default the standard output.
        clock: the time in seconds.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console()
        self.clock = clock
        self._bar: Progress | None = None
        self._total = 0
        self._started = 0.0
        self._said = 0.0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._total = int(sum(trainer.num_predict_batches))
        self._started = self._said = self.clock()
        if self.console.is_terminal:
            self._bar = Progress(console=self.console)
            self._bar.start()
            self._bar.add_task(pl_module.title, total=self._total)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, i: int, *_
    ) -> None:
        if not trainer.is_global_zero:
            return
        now = self.clock()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=i + 1)
        elif now - self._said >= LINE_EVERY_S:
            self._said = now
            left_s = (now - self._started) / (i + 1) * (self._total - i - 1)
            of = f" (process 1 of {trainer.world_size})" if trainer.world_size > 1 else ""
            self._say(f"{pl_module.title} {i + 1}/{self._total}{of}, about {left_s:.0f} s left")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)
        self.console.file.flush()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None
