"""Saves held-out prompts with the same noise before, during and after training, as wav files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.batches import PromptBatch
from lightning_modules.report import INDEX, UNCHANGED
from lightning_modules.rl.rollouts import ScoredSamples
from zoo.audio_files import write_audio
from zoo.backbones.lora import reference
from zoo.errors import UserError
from zoo.files import finite, folder_written_beside
from zoo.types import Prompt, Waveform

LARGEST = 4  # samples that changed most, kept for the report


def spread(batch: PromptBatch, count: int, class_label: str = "mood") -> PromptBatch:
    """Chooses ``count`` rows of a batch, evenly spread over classes and prompts.

    All rows if there are fewer. Classes are ``labels[class_label]``. A prompt occurs a second time
    only when all have occurred, next to its first row.

    A prompt gets a second row, next to its first, only when every prompt has one.
    """
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(batch.prompts):
        rows_of.setdefault(prompt.id, []).append(row)
    chosen: list[tuple[int, int]] = []  # (prompt's first row, row)
    for repeat in range(max(map(len, rows_of.values()), default=0)):
        classes: dict[str, list[tuple[int, int]]] = {}
        for rows in rows_of.values():
            if repeat < len(rows):
                name = str(batch.prompts[rows[0]].labels.get(class_label))
                classes.setdefault(name, []).append((rows[0], rows[repeat]))
        chosen += _evenly(list(classes.values()), count - len(chosen))
    rows = [row for _, row in sorted(chosen)]
    return PromptBatch(
        tuple(batch.prompts[i] for i in rows),
        tuple(batch.sample_index[i] for i in rows),
        batch.round_index,
    )


def _evenly(groups: list[list[tuple[int, int]]], count: int) -> list[tuple[int, int]]:
    """Chooses ``count`` members, with equal shares of the groups as far as their sizes allow.

    Members are evenly spaced in their group. Of more groups than ``count``, evenly spaced ones are
    chosen.
    """
    if len(groups) > count:
        groups = [groups[i * len(groups) // count] for i in range(count)]
    shares = [0] * len(groups)
    for _ in range(min(count, sum(map(len, groups)))):
        open_groups = [i for i, group in enumerate(groups) if shares[i] < len(group)]
        shares[min(open_groups, key=lambda i: shares[i])] += 1
    return [
        group[i * len(group) // share]
        for group, share in zip(groups, shares, strict=True)
        for i in range(share)
    ]


def joined(batches: Iterable[PromptBatch]) -> PromptBatch | None:
    """All rows of evaluation batches (they share one round index); None when there are none."""
    batches = list(batches)
    if not batches:
        return None
    prompts = tuple(prompt for batch in batches for prompt in batch.prompts)
    return PromptBatch(
        prompts, tuple(i for batch in batches for i in batch.sample_index), batches[0].round_index
    )


@dataclass(frozen=True)
class Played:
    """One sample of an evaluation: ``wave_CN`` on the CPU, ``score`` NaN where it is not finite."""

    prompt: Prompt
    wave_CN: Tensor
    score: float


def played(samples: ScoredSamples) -> list[Played]:
    """The rows of samples whose waves were kept."""
    return [
        Played(prompt, wave_CN, score)
        for prompt, wave_CN, score in zip(
            samples.prompts, samples.wave_BCN, samples.score_B.tolist(), strict=True
        )
    ]


def write_samples(folder: str | Path, samples: Sequence[Played], sample_rate_hz: int) -> Path:
    """Writes one 16-bit wav per sample and ``samples.json``, replacing an older folder at the end.

    ``samples.json`` holds file, prompt and score, which is null where it is not finite.

    Raises ``OSError``, and ``UserError`` for a wave with NaN or infinity; then the older folder
    stays.
    """
    folder = Path(folder)
    index = []
    with folder_written_beside(folder, replace=True) as part:
        for i, sample in enumerate(samples):
            prompt = sample.prompt
            file = f"{i:02d}_{re.sub(r'[^A-Za-z0-9_-]+', '-', prompt.id)[:60]}.wav"
            write_audio(part / file, Waveform(sample.wave_CN, sample_rate_hz))
            index.append(
                {
                    "file": file,
                    "id": prompt.id,
                    "text": prompt.text,
                    "negative": prompt.negative,
                    "seconds": prompt.seconds,
                    "labels": dict(prompt.labels),
                    "score": sample.score,
                }
            )
        text = json.dumps(finite(index), indent=1, default=str, allow_nan=False)
        (part / INDEX).write_text(text, encoding="utf-8")
    return folder


class AudioSamples(Callback):
    """Writes ``before/``, ``after/`` and, after each evaluation, ``round_<n>/`` in ``folder``.

    ``before/`` is where the run started (the base model, with ``start_adapter`` if given),
    ``after/`` the trained model.

    They are ``count`` held-out prompts, evenly spread, with the noise of their evaluation; without
    held-out prompts, prompts of the first training round. What an evaluation has played at the same
    step is taken from it. The base model is the adapter switched off, so its ``before/`` can be
    made at any time; that of a whole denoiser, or of ``adapter.start``, only before the first
    update.

    A run that was evaluated before its first update and after its last one also has ``largest/``,
    with its own ``before`` and ``after``: the samples of the evaluation whose scores changed most.
    They are chosen by their scores, so they are for the report and not for a listening test.

    Args:
        folder: where the folders are made.
        count: samples per folder.
        every_evaluation: whether evaluations during training are written, too.
    """

    def __init__(self, folder: str | Path, count: int = 8, every_evaluation: bool = True) -> None:
        if count < 1:
            raise UserError(f"the number of audio samples must be at least 1, got {count}")
        self.folder = Path(folder)
        self.count = count
        self.every_evaluation = every_evaluation
        self.batch: PromptBatch | None = None
        self.heard: dict[tuple[str, int], Played] = {}  # (prompt id, sample index), last evaluation
        self.heard_step = -1
        self.first: dict[tuple[str, int], Played] = {}  # as heard, before the first update

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.heard = {}
        self.heard_step = trainer.global_step

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ScoredSamples,
        batch: PromptBatch,
        *_: Any,
    ) -> None:
        if not trainer.is_global_zero:
            return
        self.heard.update(zip(_keys(batch), played(outputs), strict=True))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        if self.batch is not None or not trainer.is_global_zero:
            return
        pl_module.check_round(batch)  # a run that cannot train writes nothing
        self.batch = spread(
            self._held_out(trainer) or PromptBatch(batch.prompts, batch.sample_index, -1),
            self.count,
            pl_module.scoring.class_label,
        )
        fresh = trainer.global_step == 0
        if fresh:
            self._forget()
            if self.heard_step == trainer.global_step:
                self.first = self.heard
        if fresh or not (self.folder / "before" / INDEX).is_file():
            adapter = pl_module.adapter
            from_base = adapter.rank > 0 and adapter.start is None
            if not fresh:
                self.heard = {}  # of the trained model
            if from_base or fresh:  # only an adapter can be switched off
                with reference(pl_module.backbone) if from_base else nullcontext():
                    self._write(trainer, pl_module, "before")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_evaluation and self.batch is not None and not trainer.sanity_checking:
            round_index = int(trainer.callback_metrics.get("round", 0))
            self._write(trainer, pl_module, f"round_{round_index:05d}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        has_trained = self.batch is not None
        if not has_trained and trainer.is_global_zero and trainer.datamodule is not None:
            held_out = joined(trainer.datamodule.val_dataloader())
            if held_out is not None:
                self.batch = spread(held_out, self.count, pl_module.scoring.class_label)
        if self.batch is not None:
            self._write(trainer, pl_module, "after")
        if has_trained:
            shutil.rmtree(self.folder / "largest", ignore_errors=True)  # of before it was resumed
            if self.heard_step == trainer.global_step:
                self._write_largest(pl_module.backbone.sample_rate_hz)

    def _held_out(self, trainer: Trainer) -> PromptBatch | None:
        loaders: Any = trainer.val_dataloaders
        if loaders is None:
            return None
        loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
        return joined(batch for loader in loaders for batch in loader)

    def _forget(self) -> None:
        for old in (
            *(self.folder / name for name in ("before", "after", "largest")),
            *self.folder.glob("round_*"),
        ):
            shutil.rmtree(old, ignore_errors=True)

    def _write(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        """Takes the samples from the evaluation at this step, or plays them."""
        keys = _keys(self.batch)
        if self.heard_step == trainer.global_step and all(key in self.heard for key in keys):
            samples = [self.heard[key] for key in keys]
        else:
            samples = played(pl_module.evaluate(self.batch))
        write_samples(self.folder / name, samples, pl_module.backbone.sample_rate_hz)

    def _write_largest(self, sample_rate_hz: int) -> None:
        """Writes the samples whose scores changed most between the first and the last evaluation.

        At most one per prompt.
        """
        changes: dict[str, tuple[float, Played, Played]] = {}
        for key in sorted(self.first.keys() & self.heard.keys()):
            first, last = self.first[key], self.heard[key]
            size = abs(last.score - first.score)
            known = changes.get(first.prompt.id)
            if size > (UNCHANGED if known is None else known[0]):  # NaN is not greater
                changes[first.prompt.id] = (size, first, last)
        largest = sorted(changes.values(), key=lambda change: -change[0])[:LARGEST]
        for name, place in (("before", 1), ("after", 2)):
            if largest:
                samples = [change[place] for change in largest]
                write_samples(self.folder / "largest" / name, samples, sample_rate_hz)


def _keys(batch: PromptBatch) -> list[tuple[str, int]]:
    prompts = (prompt.id for prompt in batch.prompts)
    return list(zip(prompts, batch.sample_index, strict=True))
