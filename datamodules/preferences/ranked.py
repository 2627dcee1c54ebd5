"""Preference pairs as latents, from label files or from what a model makes while it is trained."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import lightning as L
import torch
from torch.utils.data import DataLoader

from datamodules.batches import ClipPair, ClipPairs, LatentBatch, LatentPairBatch
from datamodules.cache import encode_clips
from datamodules.latent_store import LatentStore
from datamodules.preferences.recorded import RecordedSet
from datamodules.preferences.streams import PairRows, Rows, Stream
from datamodules.preferences.weighted import encoder_of, place_of
from zoo.errors import UserError
from zoo.types import Backbone, Prompt

log = logging.getLogger(__name__)
_EQUAL = "pairs of equal clips"


class PairSource(Protocol):
    """Where pairs come from (``LabelPairs``).

    ``epochs``: there are other pairs after so many epochs, an iteration; None: never.
    """

    epochs: int | None

    def pairs(self, iteration: int) -> ClipPairs: ...


class MadePairs(PairSource, Protocol):
    """Pairs of a model's own clips, made anew in every iteration (``OwnRounds``).

    ``prompts``: all that clips may be made for; ``prompts_of(iteration)``: those of an iteration.
    ``prepare`` makes the clips of an iteration that are missing; at its start the model is the one
    that makes them. All processes call it.
    """

    prompts: tuple[Prompt, ...]

    def prompts_of(self, iteration: int) -> Sequence[Prompt]: ...

    def prepare(self, iteration: int, backbone: Any, is_start: bool) -> None: ...


class RankedClips(L.LightningDataModule):
    """Preference pairs as ``LatentPairBatch``, or their winners alone as ``LatentBatch``.

    A source of label files is encoded once, in ``setup``. One that makes clips is asked at the
    first batch of every iteration; then an epoch has one pair per prompt, and where prompts gave no
    pair, others are seen again. What gave no pair is counted in the log, and so are pairs whose
    clips are the same sound.

    Batches are a pure function of (seed, epoch, number, process).

    Args:
        source: of the pairs: ``LabelPairs``, or ``lightning_modules.own_rounds.OwnRounds``.
        seconds: length of the clips; longer ones are cut, shorter ones padded.
        batches: "pairs", or "winners": each clip that won, once.
        batch_size: pairs or winners per batch and process.
        cache_dir: keeps latents from run to run, by encoder and content; None: in memory only.
        encoder: whose codec encodes the clips; None: the backbone of the module that is trained.
        seed: of the order.

    Raises:
        UserError: for settings out of range; from ``setup``, or the first batch of an iteration,
            when there is no pair, and as the source does.
    """

    EXPORTED = ("seconds",)  # settings for the card of an exported model

    def __init__(
        self,
        source: PairSource | MadePairs,
        seconds: float,
        batches: Literal["pairs", "winners"] = "pairs",
        batch_size: int = 4,
        cache_dir: str | None = None,
        encoder: Backbone | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"invalid batch_size {batch_size}: expected a whole number >= 1")
        made = {prompt.seconds for prompt in getattr(source, "prompts", ())}
        if made - {seconds}:
            raise UserError(f"data.seconds is {seconds}, but clips of {max(made)} s are made")
        self.batch_type = LatentPairBatch if batches == "pairs" else LatentBatch
        self.source = source
        self.seconds = seconds
        self.batches = batches
        self.batch_size = batch_size
        self.cache_dir = cache_dir
        self.encoder = encoder
        self.seed = seed
        self.left_out: dict[str, int] = {}  # reason -> count, of the pairs of now
        self._iteration: int | None = None
        self._train: Rows | PairRows | None = None
        self._val: Rows | PairRows | None = None

    def check_files(self) -> None:
        """Reads label files; makes and encodes nothing. Raises as ``setup``."""
        if self.source.epochs is None:
            self._checked(self.source.pairs(0))

    def setup(self, stage: str | None = None) -> None:
        if self.source.epochs is None and self._iteration is None:
            self._fill(0)

    def starts_iteration(self, epoch: int) -> bool:
        """Whether clips are made again at the start of this epoch, after those of iteration 0."""
        epochs = self.source.epochs
        return epochs is not None and epoch > 0 and epoch % epochs == 0

    def all_prompts(self) -> tuple[Prompt, ...]:
        """Every prompt of training and validation; of label files after ``setup``."""
        if self.source.epochs is not None:
            return tuple(self.source.prompts)
        return tuple(
            p for rows in (self._train, self._val) if rows is not None for p in rows.prompts
        )

    def rows_of(self, epoch: int) -> Rows | PairRows:
        """The encoded training pairs of an epoch; at the start of an iteration they are made."""
        epochs = self.source.epochs
        iteration = 0 if epochs is None else epoch // epochs
        if iteration != self._iteration:
            backbone = self.trainer.lightning_module.backbone
            was_training = backbone.training
            backbone.eval()
            self.source.prepare(iteration, backbone, epoch % epochs == 0)
            self._fill(iteration)
            backbone.train(was_training)
        return self._train

    def _fill(self, iteration: int) -> None:
        encoder = encoder_of(self)
        found = self._checked(self.source.pairs(iteration))
        store = None if self.cache_dir is None else LatentStore(self.cache_dir, encoder)
        self.left_out = dict(found.left_out)
        self._train = self._encoded(found.train, encoder, store)
        self._val = self._encoded(found.val, encoder, store) if found.val else None
        self._iteration = iteration
        lost = "".join(f"; left out {n}: {why}" for why, n in self.left_out.items())
        told = "".join(f"; {name} {value:.4f}" for name, value in found.measures.items())
        log.info("iteration %d: %d %s%s%s", iteration, len(self._train), self.batches, told, lost)
        if found.measures and self.trainer is not None:
            measures = {f"iteration/{name}": value for name, value in found.measures.items()}
            for logger in self.trainer.loggers:
                logger.log_metrics(measures, self.trainer.global_step)

    def _checked(self, found: ClipPairs) -> ClipPairs:
        if not found.train:
            lost = ", ".join(f"{count} {why}" for why, count in found.left_out.items())
            raise UserError(f"there is no pair to learn from ({lost or 'no labels'}); give others")
        return found

    def _encoded(
        self, pairs: Sequence[ClipPair], encoder: Backbone, store: LatentStore | None
    ) -> Rows | PairRows:
        files = {file: pair.prompt for pair in pairs for file in (pair.rejected, pair.chosen)}
        shape = (encoder.sample_rate_hz, encoder.channels, self.seconds)
        texts = [prompt.text for prompt in files.values()]
        latents = encode_clips(encoder, RecordedSet(list(files), texts, *shape), store=store)
        place = {file: row for row, file in enumerate(files)}
        found = [(place[pair.chosen], place[pair.rejected]) for pair in pairs]
        differs = [not torch.equal(latents[a], latents[b]) for a, b in found]
        equal = differs.count(False)
        if equal:
            self.left_out["pairs of equal clips"] = equal + self.left_out.get(
                "pairs of equal clips", 0
            )
        kept = [row for row, is_other in enumerate(differs) if is_other]
        if not kept:
            raise UserError(f"the two clips of all {equal} pairs are the same sound; give others")
        prompts = tuple(replace(pairs[row].prompt, seconds=self.seconds) for row in kept)
        if self.batches == "pairs":
            return PairRows(latents, tuple(found[row] for row in kept), prompts)
        winners = {
            (found[row][0], prompt.text): prompt for row, prompt in zip(kept, prompts, strict=True)
        }
        return Rows(latents[[clip for clip, _ in winners]], tuple(winners.values()))

    def batch_count(self) -> int:
        """Batches per epoch and process; the same for every epoch."""
        world = place_of(self.trainer).world
        epochs = self.source.epochs
        count = len(self._train) if epochs is None else len(self.source.prompts_of(0))
        return math.ceil(count / (self.batch_size * world))

    def train_dataloader(self) -> _Epoch:
        return _Epoch(self)

    def val_dataloader(self) -> DataLoader | list:
        """Held-out pairs in order, ``batch_size`` at a time."""
        if self._val is None:
            return []
        starts = range(0, len(self._val), self.batch_size)
        ends = [min(start + self.batch_size, len(self._val)) for start in starts]
        batches = [self._val.batch(range(a, b)) for a, b in zip(starts, ends, strict=True)]
        return DataLoader(batches, batch_size=None)


class _Epoch:
    """The training batches of an epoch. Nothing is made before the first of them is asked for."""

    def __init__(self, data: RankedClips) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.batch_count()

    def __iter__(self) -> Iterator[LatentBatch | LatentPairBatch]:
        place = place_of(self.data.trainer)
        rows = self.data.rows_of(place.epoch)
        stream = Stream([(rows, self.data.batch_size)], "ranked", self.data.seed, place)
        passes = itertools.chain.from_iterable(stream for _ in itertools.count())
        yield from itertools.islice(passes, len(self))
