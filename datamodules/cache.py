"""Encodes the clips of another data module once and serves their latents for many epochs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Protocol

import lightning as L
import torch
from rich.progress import track
from torch import Tensor, nn

from datamodules.batches import LatentBatch
from datamodules.latent_store import LatentStore, wave_key
from zoo.errors import UserError
from zoo.types import Backbone, Prompt


class ClipSet(Protocol):
    """Whole clips of one length.

    ``wave(i)`` is (C, N) float32; ``prompt(i, rng)`` may return another caption each time.
    """

    def __len__(self) -> int: ...

    def wave(self, index: int) -> Tensor: ...

    def prompt(self, index: int, rng: random.Random) -> Prompt: ...


class ClipSets(Protocol):
    """What gives access to its clips: those of training and of validation (which may be none)."""

    def clip_sets(self) -> tuple[ClipSet, ClipSet]: ...


class ClipSource(ClipSets, Protocol):
    """A data module that gives access to its clips."""

    batch_size: int
    batches_per_epoch: int
    seed: int


@torch.no_grad()
def encode_clips(
    backbone: Backbone,
    clips: ClipSet,
    batch_size: int = 4,
    store: LatentStore | None = None,
    refused: dict[int, str] | None = None,
) -> Tensor:
    """Encodes all clips to latents (n, *latent), float16 on the CPU.

    A clip of 4 s takes 8 kB with the embedded codec. Batches of 4 are faster than batches of 32 on
    a CPU, because they fit its cache. The batch size changes a latent by a few units in the last
    place of float32, so by at most one of float16.

    Args:
        backbone: whose ``encode`` is used, on its own device.
        clips: to encode.
        batch_size: of those that are encoded at once.
        store: gives the latents that it holds, and keeps the others.
        refused: filled with row -> reason for clips that cannot be read, whose latents are left
            out; None: such a clip raises.

    Raises:
        UserError: as ``clips.wave`` does, where ``refused`` is None, and when no clip is left.
    """
    weight = next(iter(backbone.parameters()), None) if isinstance(backbone, nn.Module) else None
    device = torch.device("cpu") if weight is None else weight.device
    made: dict[int, Tensor] = {}
    waiting: dict[int, tuple[str, Tensor]] = {}

    def encode() -> None:
        waves_BCN = torch.stack([wave for _, wave in waiting.values()]).to(device)
        latents = backbone.encode(waves_BCN).half().cpu()
        for (row, (key, _)), latent in zip(waiting.items(), latents, strict=True):
            made[row] = latent
            if store is not None:
                store.add(key, latent)
        waiting.clear()

    for row in track(range(len(clips)), description="encoding clips", transient=True):
        try:
            wave_CN = clips.wave(row)
        except (UserError, OSError) as error:
            if refused is None:
                raise
            refused[row] = str(error)
            continue
        key = ""
        if store is not None:
            key = wave_key(wave_CN)
            known = store.get(key)
            if known is not None:
                made[row] = known
                continue
        waiting[row] = (key, wave_CN)
        if len(waiting) == batch_size:
            encode()
    if waiting:
        encode()
    if store is not None:
        store.flush()
    if not made:
        reason = next(iter((refused or {}).values()), "there are none")
        raise UserError(f"none of {len(clips)} clips can be encoded ({reason})")
    return torch.stack([made[row] for row in sorted(made)])


class _Latents:
    """Batches as a pure function of (seed, epoch, batch number, rank).

    Its length keeps the trainer from reading ahead into the next epoch: a resumed run would
    otherwise begin with the old epoch's batches.
    """

    def __init__(self, module: LatentCache, clips: ClipSet, latents: Tensor, train: bool) -> None:
        self.module = module
        self.clips = clips
        self.latents = latents
        self.train = train

    def __len__(self) -> int:
        source = self.module.source
        if self.train:
            return source.batches_per_epoch
        return max(1, len(self.clips) // source.batch_size)

    def __iter__(self) -> Iterator[LatentBatch]:
        source = self.module.source
        trainer = self.module.trainer
        epoch = 0 if trainer is None else trainer.current_epoch
        rank = 0 if trainer is None else trainer.global_rank
        size = min(source.batch_size, len(self.clips))
        for number in range(len(self)):
            if self.train:
                rng = random.Random(f"{source.seed}/{epoch}/{number}/{rank}")
                rows = rng.sample(range(len(self.clips)), size)
            else:
                rng = random.Random(f"val/{number}")
                rows = list(range(number * size, (number + 1) * size))
            prompts = tuple(self.clips.prompt(row, rng) for row in rows)
            yield LatentBatch(self.latents[rows].float(), prompts)


class LatentCache(L.LightningDataModule):
    """Serves the clips of ``source`` as ``LatentBatch``; ``setup`` encodes them once.

    Batch size and seed are those of ``source``.

    Args:
        source: of the clips.
        backbone: whose codec encodes them.
        cache_dir: keeps latents from run to run, by encoder and content; None: in memory only.
    """

    EXPORTED = ("source",)  # settings for the card of an exported model
    batch_type = LatentBatch

    def __init__(
        self, source: ClipSource, backbone: Backbone, cache_dir: str | None = None
    ) -> None:
        super().__init__()
        self.source = source
        self.backbone = backbone
        self.cache_dir = cache_dir
        self._sets: list[tuple[ClipSet, Tensor]] = []

    def check_files(self) -> None:
        """Checks the files of ``source``, where it reads any, and encodes nothing."""
        if hasattr(self.source, "check_files"):
            self.source.check_files()

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        store = None if self.cache_dir is None else LatentStore(self.cache_dir, self.backbone)
        for clips in self.source.clip_sets():
            self._sets.append((clips, encode_clips(self.backbone, clips, store=store)))

    def train_dataloader(self) -> _Latents:
        return _Latents(self, *self._sets[0], train=True)

    def val_dataloader(self) -> _Latents:
        return _Latents(self, *self._sets[1], train=False)
