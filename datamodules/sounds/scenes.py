"""Streams scenes of one to three recorded sounds with captions and truth; stores no scene."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import lightning as L
import torch
from torch import Tensor

from datamodules.batches import AudioBatch, check_clip_length
from datamodules.sounds.bank import SoundBank
from datamodules.sounds.captions import (
    MAX_CAPTION_BYTES,
    RELATIONS,
    Scene,
    check_relations,
    recaption,
    replace_class,
    scene_labels,
)
from datamodules.sounds.scene_audio import SHARES, by_class, check_room, compose
from zoo.errors import UserError
from zoo.types import Prompt

_VAL_SEED = 2**50  # seeds of validation scenes start here, above the 48 bits of training scenes


class SceneSet:
    """``count`` scenes, composed again at each access (``datamodules.cache.ClipSet``).

    Args:
        make: composes a scene from its seed.
        phrases: class -> captions of its recordings.
        count: how many scenes.
        first_seed: seed of scene 0; scene ``i`` has ``first_seed + i``.
        seconds: length of a scene.
        max_caption_bytes: longer captions fall back to the names of the classes.
    """

    def __init__(
        self,
        make: Callable[[int], tuple[Tensor, Scene]],
        phrases: Mapping[str, Sequence[str]],
        count: int,
        first_seed: int,
        seconds: float,
        max_caption_bytes: int = MAX_CAPTION_BYTES,
    ) -> None:
        self.make = make
        self.phrases = phrases
        self.count = count
        self.first_seed = first_seed
        self.seconds = seconds
        self.max_caption_bytes = max_caption_bytes
        # the truth of composed scenes, a few hundred bytes each
        self._scenes: dict[int, Scene] = {}

    def __len__(self) -> int:
        return self.count

    def wave(self, index: int) -> Tensor:
        wave_CN, self._scenes[index] = self.make(self.first_seed + index)
        return wave_CN

    def prompt(self, index: int, rng: random.Random) -> Prompt:
        if index not in self._scenes:
            self.wave(index)
        return self.request(recaption(self._scenes[index], rng, self.max_caption_bytes), rng)

    def request(self, scene: Scene, rng: random.Random) -> Prompt:
        """A prompt with the caption of a scene.

        Its labels are ``scene_labels`` and ``negatives``: at most one caption with a wrong class.
        """
        replaced = replace_class(scene, self.phrases, rng, self.max_caption_bytes)
        labels = {**scene_labels(scene), "negatives": [] if replaced is None else [replaced]}
        return Prompt(f"scene-{scene.seed}", scene.caption, seconds=self.seconds, labels=labels)


class _Stream:
    """Batches as a pure function of (seed, epoch, batch number, rank).

    Its length keeps the trainer from reading ahead into the next epoch: a resumed run would
    otherwise begin with the old epoch's batches.
    """

    def __init__(self, module: SceneDataModule, scenes: SceneSet, train: bool) -> None:
        self.module = module
        self.scenes = scenes
        self.train = train

    def __len__(self) -> int:
        if self.train:
            return self.module.batches_per_epoch
        return max(1, len(self.scenes) // self.module.batch_size)

    def __iter__(self) -> Iterator[AudioBatch]:
        m = self.module
        epoch = 0 if m.trainer is None else m.trainer.current_epoch
        rank = 0 if m.trainer is None else m.trainer.global_rank
        size = m.batch_size if self.train else min(m.batch_size, len(self.scenes))
        for number in range(len(self)):
            waves = []
            prompts = []
            for row in range(size):
                seed = self.scenes.first_seed + number * size + row
                if self.train:
                    seed = _seed_of(f"{m.seed}/{epoch}/{number}/{rank}/{row}")
                wave_CN, scene = self.scenes.make(seed)
                waves.append(wave_CN)
                prompts.append(self.scenes.request(scene, random.Random(f"negatives/{scene.seed}")))
            yield AudioBatch(torch.stack(waves), m.bank.sample_rate_hz, tuple(prompts))


def _seed_of(name: str) -> int:
    """A seed of 48 bits from a hash, so that two scenes of a run almost never share one."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")


class SceneDataModule(L.LightningDataModule):
    """Scenes of recorded sounds as ``AudioBatch``: (B, 2, N) at the bank's rate.

    Training batches are always new scenes. They use the bank's training recordings, validation
    scenes its test recordings. The labels of a prompt hold the truth (``captions.scene_labels``)
    and wrong captions: ``swapped`` (another order; None unless one sound follows another) and
    ``negatives`` (a wrong class).

    Args:
        bank: the recordings.
        licences: those to use; None: all.
        classes: those to use; None: all.
        families: those to use; None: all.
        seconds: length of a scene.
        relations: relation ("single", "together", "overlap", "then") -> its share of scenes.
        three_share: share of scenes with three sounds among those with more than one.
        noise_db: level of white noise relative to the scene (such as -50); None: no noise.
        max_caption_bytes: longer captions fall back to the names of the classes.
        clips: scenes in ``clip_sets``, which ``LatentCache`` encodes.
        val_clips: scenes in validation.
        batch_size: scenes per batch.
        batches_per_epoch: training batches per epoch.
        seed: of all scenes.

    Raises:
        UserError: for shares that do not sum to 1, unknown names, too few classes or seconds, and
            filters that leave nothing.
    """

    EXPORTED = (
        "classes",
        "licences",
        "relations",
        "seconds",
    )  # settings for the card of an exported model
    batch_type = AudioBatch

    def __init__(
        self,
        bank: SoundBank,
        licences: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        families: Sequence[str] | None = None,
        seconds: float = 4.096,
        relations: dict[str, float] | None = None,
        three_share: float = 0.2,
        noise_db: float | None = None,
        max_caption_bytes: int = MAX_CAPTION_BYTES,
        clips: int = 4096,
        val_clips: int = 192,
        batch_size: int = 32,
        batches_per_epoch: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        shares = dict(SHARES if relations is None else relations)
        check_relations(list(shares))
        if min(shares.values(), default=0.0) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
            given = ", ".join(f"{name} {share}" for name, share in shares.items())
            raise UserError(
                f"relations: shares must be 0 or more and sum to 1, got {given} (sum"
                f" {sum(shares.values()):g})"
            )
        if not 0 <= three_share <= 1:
            raise UserError(f"invalid three_share {three_share}: expected a share of 0 to 1")
        check_clip_length("seconds", seconds, bank.sample_rate_hz)
        for name, value in (("clips", clips), ("val_clips", val_clips), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if (licences, classes, families) != (None, None, None):
            bank = bank.select(licences=licences, classes=classes, families=families)
        self.bank = bank
        self.sample_rate_hz = bank.sample_rate_hz
        self.seconds = seconds
        self.max_caption_bytes = max_caption_bytes
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.seed = seed
        self._sets = []
        for split, count, first_seed in (
            ("train", clips, seed * 1_000_003),
            ("test", val_clips, _VAL_SEED),
        ):
            recordings = by_class(bank.clips, split)
            for relation in (name for name in RELATIONS if shares.get(name)):
                most_sounds = 3 if three_share else 2
                sounds = 1 if relation == "single" else most_sounds
                check_room(relation, sounds, len(recordings), seconds, split)
            make = partial(
                compose,
                bank,
                seconds=seconds,
                relations=shares,
                three_share=three_share,
                split=split,
                noise_db=noise_db,
                max_caption_bytes=max_caption_bytes,
            )
            phrases = {name: [clip.caption for clip in mine] for name, mine in recordings.items()}
            self._sets.append(
                SceneSet(make, phrases, count, first_seed, seconds, max_caption_bytes)
            )

    def clip_sets(self) -> tuple[SceneSet, SceneSet]:
        """Training and validation scenes."""
        return self._sets[0], self._sets[1]

    def train_dataloader(self) -> _Stream:
        return _Stream(self, self._sets[0], train=True)

    def val_dataloader(self) -> _Stream:
        return _Stream(self, self._sets[1], train=False)
