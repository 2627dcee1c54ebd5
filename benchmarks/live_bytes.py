"""Counts peak memory without a GPU: what autograd keeps for the backward pass, and all tensors.

Each storage counts once, however many tensors view it, so the counts depend only on shapes, not on
the machine, its allocator or its load.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Tally:
    """The bytes of distinct storages now, and their peak; storages of ``own`` do not count."""

    def __init__(self, own: Sequence[Tensor]) -> None:
        self.own = {tensor.untyped_storage()._cdata for tensor in own}
        self.live = 0
        self.peak = 0
        self.counts: dict[int, int] = {}

    def enter(self, key: int, size: int) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1
        if self.counts[key] == 1:
            self.live += size
            self.peak = max(self.peak, self.live)

    def leave(self, key: int, size: int) -> None:
        self.counts[key] -= 1
        if self.counts[key] == 0:
            del self.counts[key]
            self.live -= size


class _Saved:
    """A tensor that a graph holds; it counts until the graph releases it."""

    def __init__(self, tensor: Tensor, tally: _Tally) -> None:
        self.tensor = tensor
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        if key not in tally.own:
            tally.enter(key, size)
            weakref.finalize(self, tally.leave, key, size)


class _Alive(TorchDispatchMode):
    """Counts each storage that an operator creates until it is freed."""

    def __init__(self, tally: _Tally) -> None:
        super().__init__()
        self.tally = tally

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        size = storage.nbytes()
        if size and key not in given and key not in self.tally.own and key not in self.tally.counts:
            self.tally.enter(key, size)
            weakref.finalize(storage, self.tally.leave, key, size)


@contextmanager
def peak_saved_bytes(*modules: nn.Module) -> Iterator[Callable[[], int]]:
    """Yields a function that returns the peak bytes that autograd held, without ``modules``."""
    tally = _Tally(
        [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    )
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: _Saved(tensor, tally), lambda saved: saved.tensor
    ):
        yield lambda: tally.peak


@contextmanager
def peak_live_bytes() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the peak bytes of live tensors created in the block."""
    tally = _Tally([])
    with _Alive(tally):
        yield lambda: tally.peak
