"""Encode once, train many epochs: a data module of latents of another one's clips."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Protocol

import lightning as L
import torch
from rich.progress import track
from torch import Tensor

from datamodules.batches import LatentBatch
from zoo.types import Backbone, Prompt


class ClipSet(Protocol):
    """Whole clips of one length:

    ``wave(i)`` is (C, N) float32; ``prompt(i, rng)`` may word the caption anew each time.
    """

    def __len__(self) -> int: ...

    def wave(self, index: int) -> Tensor: ...

    def prompt(self, index: int, rng: random.Random) -> Prompt: ...


class ClipSource(Protocol):
    """A data module that can hand out its clips."""

    batch_size: int
    batches_per_epoch: int
    seed: int

    def clip_sets(self) -> tuple[ClipSet, ClipSet]: ...


@torch.no_grad()
def encode_clips(backbone: Backbone, clips: ClipSet, batch_size: int = 32) -> Tensor:
    """Latents (n, *latent) of all clips, float16 on the CPU: 8 kB for a clip of 4 s on the embedded
    codec.
    """
    starts = range(0, len(clips), batch_size)
    parts = []
    for start in track(starts, description="encoding clips", transient=True):
        waves = torch.stack(
            [clips.wave(i) for i in range(start, min(start + batch_size, len(clips)))]
        )
        parts.append(backbone.encode(waves).half().cpu())
    return torch.cat(parts)


class _Latents:
    """Batches as a pure function of (seed, epoch, batch number, rank).

    It has a length, so the trainer draws nothing ahead of an epoch: a resumed run would else begin
    with the old epoch's batches.
    """

    def __init__(self, module: LatentCache, clips: ClipSet, latents: Tensor, train: bool) -> None:
        self.module, self.clips, self.latents, self.train = module, clips, latents, train

    def __len__(self) -> int:
        source = self.module.source
        return (
            source.batches_per_epoch if self.train else max(1, len(self.clips) // source.batch_size)
        )

    def __iter__(self) -> Iterator[LatentBatch]:
        source, trainer = self.module.source, self.module.trainer
        epoch, rank = (
            (trainer.current_epoch, trainer.global_rank) if trainer is not None else (0, 0)
        )
        size = min(source.batch_size, len(self.clips))
        for number in range(len(self)):
            rng = random.Random(
                f"{source.seed}/{epoch}/{number}/{rank}" if self.train else f"val/{number}"
            )
            if self.train:
                rows = rng.sample(range(len(self.clips)), size)
            else:
                rows = list(range(number * size, (number + 1) * size))
            prompts = tuple(self.clips.prompt(row, rng) for row in rows)
            yield LatentBatch(self.latents[rows].float(), prompts)


class LatentCache(L.LightningDataModule):
    """``LatentBatch`` of ``source``'s clips, encoded once by ``backbone`` at set-up.

    Batch sizes and seed are the source's.
    """

    batch_type = LatentBatch

    def __init__(self, source: ClipSource, backbone: Backbone) -> None:
        super().__init__()
        self.source, self.backbone = source, backbone
        self._sets: list[tuple[ClipSet, Tensor]] = []

    def setup(self, stage: str | None = None) -> None:
        if not self._sets:
            self._sets = [
                (clips, encode_clips(self.backbone, clips)) for clips in self.source.clip_sets()
            ]

    def train_dataloader(self) -> _Latents:
        return _Latents(self, *self._sets[0], train=True)

    def val_dataloader(self) -> _Latents:
        return _Latents(self, *self._sets[1], train=False)
