"""Counting memory without a GPU: what autograd holds for the backward pass, and all tensors alive,
at the worst moment.

Storages are counted once however many tensors look at them, so the counts depend on shapes only:
not on the machine, its allocator or its load.
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
    """Bytes of the distinct storages that are counted now, and the most there ever were.

    ``own`` storages do not count.
    """

    def __init__(self, own: Sequence[Tensor]) -> None:
        self.own = {tensor.untyped_storage()._cdata for tensor in own}
        self.live = self.peak = 0
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
    """A tensor that a graph holds; counted until the graph lets it go."""

    def __init__(self, tensor: Tensor, tally: _Tally) -> None:
        self.tensor = tensor
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in tally.own:
            tally.enter(key, size)
            weakref.finalize(self, tally.leave, key, size)


class _Alive(TorchDispatchMode):
    """Counts each storage that an operator makes until it dies."""

    def __init__(self, tally: _Tally) -> None:
        super().__init__()
        self.tally, self.seen = tally, weakref.WeakKeyDictionary()

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
        key, size = storage._cdata, storage.nbytes()
        if size and key not in given and key not in self.tally.own and key not in self.tally.counts:
            self.tally.enter(key, size)
            weakref.finalize(storage, self.tally.leave, key, size)


@contextmanager
def peak_saved_bytes(*modules: nn.Module) -> Iterator[Callable[[], int]]:
    """Yields a function that tells the most bytes that autograd held inside the block, weights of
    ``modules`` not counted.
    """
    tally = _Tally(
        [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    )
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: _Saved(tensor, tally), lambda saved: saved.tensor
    ):
        yield lambda: tally.peak


@contextmanager
def peak_live_bytes() -> Iterator[Callable[[], int]]:
    """Yields a function that tells the most bytes of tensors made inside the block that were alive
    at once.
    """
    tally = _Tally([])
    with _Alive(tally):
        yield lambda: tally.peak
