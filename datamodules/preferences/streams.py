"""Two streams of encoded clips, and how their batches are paired.

Batches are a pure function of (seed, epoch, number, process).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from datamodules.batches import LatentBatch, LatentPairBatch, PairedBatch
from zoo.types import Prompt

PAIRINGS = ("max_size_cycle", "min_size")  # modes of Lightning's CombinedLoader


@dataclass(frozen=True)
class Rows:
    """Encoded clips: latents (n, *latent), float16; a prompt and perhaps a weight for each."""

    latents: Tensor
    prompts: tuple[Prompt, ...]
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, rows: Sequence[int]) -> LatentBatch:
        index = list(rows)
        weight_B = None if self.weights is None else self.weights[index]
        prompts = tuple(self.prompts[row] for row in index)
        return LatentBatch(self.latents[index].float(), prompts, weight_B)


@dataclass(frozen=True)
class PairRows:
    """Preference pairs of encoded clips: latents (n, *latent), float16, and a prompt per pair.

    ``pairs``: (chosen, rejected) as indices into ``latents``.
    """

    latents: Tensor
    pairs: tuple[tuple[int, int], ...]
    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, rows: Sequence[int]) -> LatentPairBatch:
        chosen, rejected = ([self.pairs[row][side] for row in rows] for side in (0, 1))
        prompts = tuple(self.prompts[row] for row in rows)
        return LatentPairBatch(
            self.latents[chosen].float(), self.latents[rejected].float(), prompts
        )


@dataclass(frozen=True)
class Place:
    """Where a batch is drawn: epoch of the run, process, number of processes."""

    epoch: int = 0
    rank: int = 0
    world: int = 1


class Stream:
    """Passes over clips in a new order each: a pure function of (seed, epoch, pass, rank).

    A pass deals every clip of the first part to the processes. What is missing to fill the last
    batch of every process is taken from the beginning of the pass, so that all batches have one
    size and every process has as many.

    Args:
        parts: (clips, how many of them per batch and process); the first sets the length of a pass.
        name: with ``seed`` and place the seed of the order.
        seed: of the order.
        place: of the batches.
    """

    def __init__(
        self, parts: Sequence[tuple[Rows | PairRows, int]], name: str, seed: int, place: Place
    ) -> None:
        self.parts = parts
        self.name = name
        self.seed = seed
        self.place = place
        self._passes = 0

    def __len__(self) -> int:
        rows, size = self.parts[0]
        return math.ceil(len(rows) / (size * self.place.world))

    def __iter__(self) -> Iterator[LatentBatch]:
        number = self._passes
        self._passes += 1
        orders = [self._order(part, number) for part in range(len(self.parts))]
        return (self._batch(orders, batch) for batch in range(len(self)))

    def _order(self, part: int, number: int) -> list[int]:
        rows = list(range(len(self.parts[part][0])))
        name = f"{self.seed}/{self.name}.{part}/{self.place.epoch}/{number}"
        random.Random(name).shuffle(rows)
        return rows

    def _batch(self, orders: Sequence[list[int]], batch: int) -> LatentBatch:
        found = []
        for order, (rows, size) in zip(orders, self.parts, strict=True):
            first = (batch * self.place.world + self.place.rank) * size
            found.append(rows.batch([order[(first + i) % len(order)] for i in range(size)]))
        if len(found) == 1:
            return found[0]
        latents = torch.cat([one.latent_BCT for one in found])
        return LatentBatch(latents, tuple(prompt for one in found for prompt in one.prompts))


class PairedEpoch:
    """The training batches of an epoch, the same in every iteration.

    Its length keeps the trainer from reading ahead into the next epoch: a resumed run would
    otherwise begin with the old epoch's batches.
    """

    def __init__(self, streams: Callable[[], list[Stream]], pairing: str) -> None:
        self.streams = streams
        self.pairing = pairing

    def __len__(self) -> int:
        sizes = [len(stream) for stream in self.streams()]
        return min(sizes) if self.pairing == "min_size" else max(sizes)

    def __iter__(self) -> Iterator[LatentBatch | PairedBatch]:
        streams = self.streams()
        if len(streams) == 1:
            yield from streams[0]
            return
        names = ("labelled", "pretrain")
        loader = CombinedLoader(dict(zip(names, streams, strict=True)), self.pairing)
        for batch, _, _ in loader:
            yield PairedBatch(**batch)
