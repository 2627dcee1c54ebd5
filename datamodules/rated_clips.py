"""Clips with people's labels, as batches of clips or of pairs, split by prompt."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import lightning as L
from torch.utils.data import DataLoader

from datamodules.batches import PreferenceBatch, RatedClip
from datamodules.preferences.pairs import ordered_pairs
from zoo.errors import UserError

SPLITS = ("train", "val", "test")
NO_SPLIT = ""  # of a clip whose labels name none


class RatedTable(Protocol):
    """Where labels come from: ``rated_clips()`` gives (split, clip) of each row, in order.

    The split is one of ``SPLITS``, or ``NO_SPLIT``.
    """

    def rated_clips(self) -> Sequence[tuple[str, RatedClip]]: ...


def split_of(group: str, seed: int, val_share: float, test_share: float) -> str:
    """The split of a group of clips, by its name: new groups move no old one."""
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test_share:
        return "test"
    return "val" if place < test_share + val_share else "train"


def by_split(
    rows: Sequence[tuple[str, RatedClip]],
    seed: int,
    val_share: float,
    test_share: float,
    needed: Collection[str] = ("train", "val"),
) -> dict[str, tuple[RatedClip, ...]]:
    """Split -> its clips, by the table's splits or, where it has none, by ``split_of``.

    Args:
        rows: (split, clip), as ``RatedTable`` gives them.
        seed: of ``split_of``.
        val_share, test_share: of the groups, where the table names no split.
        needed: splits that must not be empty.

    Raises ``UserError`` for an unknown split, a group or a file in two splits, a file that is
    judged twice by the same listener, splits in some rows only, and an empty split of ``needed``.
    """
    named = {split for split, _ in rows}
    if NO_SPLIT in named and len(named) > 1:
        raise UserError(
            "some rows name a split and others do not; name one in every row, or in none"
        )
    found: dict[str, list[RatedClip]] = {split: [] for split in SPLITS}
    home: dict[str, str] = {}
    seen: set[tuple[Path, str]] = set()
    for split, clip in rows:
        if split not in (*SPLITS, NO_SPLIT):
            raise UserError(
                f"the split of {clip.audio} is {split!r}, expected one of {', '.join(SPLITS)};"
                " draw splits with tools/labels.py split"
            )
        split = split or split_of(clip.group, seed, val_share, test_share)
        for what, name in (("prompt", clip.group), ("clip", str(clip.audio))):
            if home.setdefault(f"{what} {name}", split) != split:
                other = home[f"{what} {name}"]
                raise UserError(
                    f"the {what} {name!r} is in the splits {other} and {split}; a prompt and all"
                    " its clips belong to one"
                )
        if (clip.audio, clip.compared_in) in seen:
            by = f" by {clip.listener!r}" if clip.listener else ""
            raise UserError(f"{clip.audio} is judged twice{by}; aggregate the votes first")
        seen.add((clip.audio, clip.compared_in))
        found[split].append(clip)
    for split in needed:
        if not found[split]:
            raise UserError(
                f"the split {split} is empty ({len(home)} prompts and clips in all); give more"
                " prompts, or other shares"
            )
    return {split: tuple(clips) for split, clips in found.items()}


class _Batches:
    """Batches as a pure function of (seed, epoch): of clips, or of pairs."""

    def __init__(self, data: RatedClips) -> None:
        self.data = data

    def __len__(self) -> int:
        count = len(self.data.pairs("train")) if self.data.has_pairs else len(self.data.train)
        return math.ceil(count / self.data.batch_size)

    def __iter__(self) -> Iterator[PreferenceBatch]:
        data = self.data
        epoch = 0 if data.trainer is None else data.trainer.current_epoch
        items = list(data.pairs("train") if data.has_pairs else range(len(data.train)))
        random.Random(f"{data.seed}/{epoch}").shuffle(items)
        for start in range(0, len(items), data.batch_size):
            chosen = items[start : start + data.batch_size]
            if not data.has_pairs:
                yield PreferenceBatch(tuple(data.train[row] for row in chosen))
                continue
            rows = list(dict.fromkeys(row for pair in chosen for row in pair))
            place = {row: index for index, row in enumerate(rows)}
            yield PreferenceBatch(
                tuple(data.train[row] for row in rows),
                tuple((place[better], place[worse]) for better, worse in chosen),
            )


class RatedClips(L.LightningDataModule):
    """Labels as ``PreferenceBatch``; validation and test are one batch each.

    Args:
        source: where labels come from.
        batches: "clips", or "pairs" of a prompt with different labels.
        batch_size: clips or pairs per batch.
        val_share, test_share: of the prompts, where the table names no split.
        seed: of the split and the order.

    Raises:
        UserError: for shares that leave nothing to train on; from ``setup`` as ``by_split``.
    """

    batch_type = PreferenceBatch

    def __init__(
        self,
        source: RatedTable,
        batches: Literal["clips", "pairs"] = "clips",
        batch_size: int = 32,
        val_share: float = 0.15,
        test_share: float = 0.15,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"invalid batch_size {batch_size}: expected a whole number >= 1")
        if not (val_share >= 0 and test_share >= 0 and val_share + test_share < 1):
            raise UserError(
                f"invalid val_share {val_share} and test_share {test_share}: expected shares"
                " whose sum is below 1"
            )
        self.source = source
        self.has_pairs = batches == "pairs"
        self.batch_size = batch_size
        self.val_share = val_share
        self.test_share = test_share
        self.seed = seed
        self.splits: dict[str, tuple[RatedClip, ...]] = {}
        self._pairs: dict[str, list[tuple[int, int]]] = {}

    @property
    def train(self) -> tuple[RatedClip, ...]:
        return self.splits["train"]

    def check_files(self) -> None:
        """Reads the table and splits it; the audio is not read. Raises as ``setup``."""
        self.setup("fit")

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            rows = self.source.rated_clips()
            self.splits = by_split(rows, self.seed, self.val_share, self.test_share)
            self._check_pairs()

    def drop_clips(self, audio: Collection[Path]) -> None:
        """Leaves out the clips of these files.

        Raises ``UserError`` where training or validation would be empty.
        """
        dropped = set(audio)
        rows = [(s, c) for s, clips in self.splits.items() for c in clips if c.audio not in dropped]
        self.splits = by_split(rows, self.seed, self.val_share, self.test_share)
        self._pairs = {}
        self._check_pairs()

    def _check_pairs(self) -> None:
        if not self.has_pairs and any(
            clip.pair for clips in self.splits.values() for clip in clips
        ):
            raise UserError(
                "the labels say which of two clips is better, not how good a clip is; set"
                " data.batches=pairs module.loss=bradley_terry (or pairwise)"
            )
        for split in ("train", "val") if self.has_pairs else ():
            if not self.pairs(split):
                raise UserError(
                    f"the split {split} has no pairs: no prompt in it has two clips with different"
                    " labels; train on batches=clips, or give more labels"
                )

    def pairs(self, split: str) -> list[tuple[int, int]]:
        """(better, worse) of a split, as indices into its clips."""
        if split not in self._pairs:
            clips = self.splits[split]
            groups = [clip.compared_in for clip in clips]
            self._pairs[split] = ordered_pairs([clip.label for clip in clips], groups)
        return self._pairs[split]

    def train_dataloader(self) -> _Batches:
        return _Batches(self)

    def val_dataloader(self) -> DataLoader:
        return self._whole("val")

    def test_dataloader(self) -> DataLoader:
        return self._whole("test")

    def _whole(self, split: str) -> DataLoader:
        pairs = tuple(self.pairs(split)) if self.has_pairs else ()
        whole = [PreferenceBatch(self.splits[split], pairs)] if self.splits[split] else []
        return DataLoader(whole, batch_size=None)
