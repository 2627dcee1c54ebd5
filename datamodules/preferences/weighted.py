"""Labelled clips as weighted latents, paired with recordings that keep the model what it was.

The data of reward-weighted fine-tuning (BATON, arXiv 2402.00744): docs/reward_weighted.md.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batches import LatentBatch, PairedBatch, RatedClip
from datamodules.cache import ClipSet, ClipSets, encode_clips
from datamodules.latent_store import LatentStore
from datamodules.preferences.clips import log_quarantined
from datamodules.preferences.recorded import RecordedSet
from datamodules.preferences.reward_weights import RewardTransform
from datamodules.preferences.streams import PAIRINGS, PairedEpoch, Place, Rows, Stream
from datamodules.rated_clips import RatedTable, by_split
from datamodules.sounds.mixing import joined, mixed
from zoo.errors import UserError, did_you_mean
from zoo.types import Backbone, Prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MixingSettings:
    """Tango's mixtures of two clips (arXiv 2304.13731, 2.3) in the pretraining stream.

    Args:
        pool: so many mixtures are drawn once by the seed, and encoded like the clips; 0: none.
        per_batch: of them, in addition to the clips of a batch.
    """

    pool: int = 0
    per_batch: int = 0

    def __post_init__(self) -> None:
        for name in ("pool", "per_batch"):
            if getattr(self, name) < 0:
                raise UserError(f"invalid {name} {getattr(self, name)}: expected a number >= 0")
        if bool(self.pool) != bool(self.per_batch):
            raise UserError(
                f"pool {self.pool} and per_batch {self.per_batch}: give both, or 0 for both"
            )


class Mixtures:
    """``count`` mixtures of two different mono clips, drawn by ``seed`` (a ``ClipSet``)."""

    def __init__(self, clips: ClipSet, count: int, sample_rate_hz: int, seed: int) -> None:
        if len(clips) < 2:
            raise UserError("a mixture needs two clips; set mixing.pool=0 mixing.per_batch=0")
        rng = random.Random(f"mixtures/{seed}")
        self.clips = clips
        self.pairs = [rng.sample(range(len(clips)), 2) for _ in range(count)]
        self.sample_rate_hz = sample_rate_hz

    def __len__(self) -> int:
        return len(self.pairs)

    def wave(self, index: int) -> Tensor:
        first_CN, second_CN = (self.clips.wave(row) for row in self.pairs[index])
        if len(first_CN) != 1:
            raise UserError(
                f"mixtures are of mono clips, got {len(first_CN)} channels; set mixing.pool=0"
                " mixing.per_batch=0"
            )
        return mixed(first_CN[0], second_CN[0], self.sample_rate_hz)[None]

    def prompt(self, index: int, rng: random.Random) -> Prompt:
        first, second = (self.clips.prompt(row, rng) for row in self.pairs[index])
        text = joined(first.text, second.text)
        return replace(first, id=f"{first.id}+{second.id}", text=text, labels={})


def encoder_of(data: Any) -> Any:
    """What encodes the clips of a data module: its ``encoder``, or the backbone that is trained.

    It is moved to the trainer's device. Raises ``UserError`` where there is neither.
    """
    encoder = data.encoder
    if encoder is None:
        encoder = getattr(getattr(data.trainer, "lightning_module", None), "backbone", None)
    if encoder is None:
        raise UserError("there is no backbone that could encode the clips; set data.encoder")
    if data.trainer is not None:
        encoder.to(data.trainer.strategy.root_device)
    return encoder


def place_of(trainer: L.Trainer | None) -> Place:
    """Epoch, process and number of processes of a trainer."""
    if trainer is None:
        return Place()
    return Place(trainer.current_epoch, trainer.global_rank, trainer.world_size)


class WeightedClips(L.LightningDataModule):
    """Labelled clips with weights as ``LatentBatch``; with ``pretrain`` as ``PairedBatch``.

    All clips are encoded once, in ``setup``, so that training needs no codec; ``all_prompts`` then
    knows every caption, so that it needs no text encoder either. Only clips of the split "train",
    or of no split, are learned. Clips that cannot be read are left out, named in ``quarantined``
    and counted in the log. Validation batches are the validation clips of ``pretrain``, if any.

    Batches are a pure function of (seed, epoch, number, process); a fit that is resumed at the end
    of an epoch continues exactly.

    Args:
        labelled: where labels come from (``LabelFiles``).
        seconds: length of the labelled clips; longer ones are cut, shorter ones padded.
        pretrain: the other stream's clips (``CaptionedFiles``, scenes, music); None: no such
            stream. Each has one caption, drawn once.
        rewards: how labels become weights.
        mixing: Tango's mixtures in the pretraining stream.
        batch_size: labelled clips per batch and process.
        pretrain_batch_size: pretraining clips per batch and process, without mixtures.
        pairing: when the streams differ in length: "max_size_cycle" repeats the shorter one (in a
            new order) until the longer one ends, "min_size" stops at the end of the shorter one.
        cache_dir: keeps latents from run to run, by encoder and content; None: in memory only.
        encoder: whose codec encodes the clips; None: the backbone of the module that is trained.
        seed: of captions, mixtures and the order.

    Raises:
        UserError: for settings out of range; from ``setup`` for bad, doubled or crossing labels, a
            training split without clips, clips at another rate than the encoder, and when all
            weights are 0.
    """

    EXPORTED = ("seconds",)  # settings for the card of an exported model

    def __init__(
        self,
        labelled: RatedTable,
        seconds: float,
        pretrain: ClipSets | None = None,
        rewards: RewardTransform = RewardTransform(),
        mixing: MixingSettings = MixingSettings(),
        batch_size: int = 2,
        pretrain_batch_size: int = 6,
        pairing: str = "max_size_cycle",
        cache_dir: str | None = None,
        encoder: Backbone | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("pretrain_batch_size", pretrain_batch_size),
        ):
            if value < 1:
                raise UserError(f"invalid {name} {value}: expected a whole number >= 1")
        if pairing not in PAIRINGS:
            raise UserError(f"invalid pairing {pairing!r}; {did_you_mean(pairing, PAIRINGS)}")
        if mixing.pool and pretrain is None:
            raise UserError("mixing is of pretraining clips; give data.pretrain, or leave it out")
        self.batch_type = LatentBatch if pretrain is None else PairedBatch
        self.labelled = labelled
        self.seconds = seconds
        self.pretrain = pretrain
        self.rewards = rewards
        self.mixing = mixing
        self.batch_size = batch_size
        self.pretrain_batch_size = pretrain_batch_size
        self.pairing = pairing
        self.cache_dir = cache_dir
        self.encoder = encoder
        self.seed = seed
        self.quarantined: dict[str, str] = {}
        self.clips: tuple[RatedClip, ...] = ()  # that are learned, in the order of ``rows``
        self.rows: Mapping[str, Rows] = {}  # labelled, pretrain, mixtures, val

    def check_files(self) -> None:
        """Reads labels, and the tables of ``pretrain``; encodes nothing. Raises as ``setup``."""
        self._labelled_clips()
        if hasattr(self.pretrain, "check_files"):
            self.pretrain.check_files()

    def _labelled_clips(self) -> tuple[RatedClip, ...]:
        rows = self.labelled.rated_clips()
        if any(clip.pair for _, clip in rows):
            raise UserError(
                "the labels say which of two clips is better, and a weight is of a clip by itself;"
                " give other labels, or scores by tools/annotate.py"
            )
        splits = by_split(rows, self.seed, 0.0, 0.0, needed=("train",))
        kept = splits["train"]
        if len(kept) < len(rows):
            left_out = len(rows) - len(kept)
            log.info("%d of %d labelled clips are not for training", left_out, len(rows))
        return kept

    def setup(self, stage: str | None = None) -> None:
        if self.rows:
            return
        encoder = encoder_of(self)
        store = None if self.cache_dir is None else LatentStore(self.cache_dir, encoder)
        rows = {"labelled": self._labelled_rows(encoder, store)}
        if self.pretrain is not None:
            self._check_rate(encoder)
            train, val = self.pretrain.clip_sets()
            rows["pretrain"] = self._plain_rows(encoder, store, train, "pretrain")
            if self.mixing.pool:
                rate_hz = encoder.sample_rate_hz
                mixtures = Mixtures(train, self.mixing.pool, rate_hz, self.seed)
                rows["mixtures"] = self._plain_rows(encoder, store, mixtures, "mixtures")
            if len(val):
                rows["val"] = self._plain_rows(encoder, store, val, "val")
        self.rows = rows
        if self.encoder is not None:  # it is not needed any more
            encoder.to("cpu")

    def _labelled_rows(self, encoder: Backbone, store: LatentStore | None) -> Rows:
        clips = self._labelled_clips()
        files = [clip.audio for clip in clips]
        captions = [clip.prompt for clip in clips]
        shape = (encoder.sample_rate_hz, encoder.channels, self.seconds)
        recorded = RecordedSet(files, captions, *shape)
        refused: dict[int, str] = {}
        latents = encode_clips(encoder, recorded, store=store, refused=refused)
        unreadable = {str(files[row]): why for row, why in refused.items()}
        log_quarantined(unreadable)
        self.quarantined = {**getattr(self.labelled, "quarantined", {}), **unreadable}
        kept = [row for row in range(len(clips)) if row not in refused]
        self.clips = tuple(clips[row] for row in kept)
        weights = torch.tensor(self.rewards.weights(self.clips), dtype=torch.float32)
        log.info(
            "%d labelled clips; weights %.3f on average, %d of them 0, %d below",
            len(kept),
            float(weights.mean()),
            int((weights == 0).sum()),
            int((weights < 0).sum()),
        )
        rng = random.Random()  # a recorded clip has one caption
        return Rows(latents, tuple(recorded.prompt(row, rng) for row in kept), weights)

    def _plain_rows(
        self, encoder: Backbone, store: LatentStore | None, clips: ClipSet, name: str
    ) -> Rows:
        latents = encode_clips(encoder, clips, store=store)
        prompts = tuple(
            clips.prompt(row, random.Random(f"{self.seed}/{name}/{row}"))
            for row in range(len(clips))
        )
        return Rows(latents, prompts)

    def _check_rate(self, encoder: Backbone) -> None:
        rate_hz = getattr(self.pretrain, "sample_rate_hz", encoder.sample_rate_hz)
        if rate_hz != encoder.sample_rate_hz:
            raise UserError(
                f"the pretraining clips have {rate_hz} Hz, the backbone"
                f" {encoder.sample_rate_hz} Hz; set data.pretrain.sample_rate_hz"
            )

    def all_prompts(self) -> tuple[Prompt, ...]:
        """Every prompt of training and validation, after ``setup``."""
        return tuple(prompt for rows in self.rows.values() for prompt in rows.prompts)

    def _streams(self) -> list[Stream]:
        place = place_of(self.trainer)
        rows = self.rows
        parts = [[(rows["labelled"], self.batch_size)]]
        if "pretrain" in rows:
            parts.append([(rows["pretrain"], self.pretrain_batch_size)])
        if "mixtures" in rows:
            parts[1].append((rows["mixtures"], self.mixing.per_batch))
        names = ("labelled", "pretrain")
        return [
            Stream(own, name, self.seed, place) for own, name in zip(parts, names, strict=False)
        ]

    def train_dataloader(self) -> PairedEpoch:
        return PairedEpoch(self._streams, self.pairing)

    def val_dataloader(self) -> DataLoader | list:
        """Batches of ``pretrain_batch_size`` in the order of the clips; the last one is longer."""
        val = self.rows.get("val")
        if val is None:
            return []
        size = self.pretrain_batch_size
        count = max(1, len(val) // size)
        ends = [*(size * number for number in range(1, count)), len(val)]
        starts = [0, *ends[:-1]]
        batches = [val.batch(range(a, b)) for a, b in zip(starts, ends, strict=True)]
        return DataLoader(batches, batch_size=None)
