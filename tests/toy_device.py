"""An accelerator that is not there: what would make the processor wait for it is counted.

Its tensors have shapes and a device but no values, so code runs on it as it would on a GPU. The
processor waits where a value is read back, where a tensor moves to or from the device, and where
the size of a result depends on values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAME = "meta"  # what the pretended device goes by
READ = {"_local_scalar_dense": 0, "is_nonzero": False, "equal": True, "allclose": True}
SIZED_BY_VALUES = {"nonzero", "masked_select", "_unique2"}


class _Waits(TorchDispatchMode):
    """Counts by operator; a value that is read back is made up."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_there = any(tensor.device.type == NAME for tensor in given)
        if is_there and name in READ:
            self.counts[name] += 1
            return READ[name]
        if is_there and name in SIZED_BY_VALUES:
            self.counts[name] += 1
        result = function(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        numbers = [tensor for tensor in given if tensor.ndim == 0]  # are passed by value
        places = {t.device.type for t in (*made, *given) if not any(t is n for n in numbers)}
        if len(places) > 1:
            self.counts[f"{name} between devices"] += 1
        return result


def moved(module: nn.Module) -> None:
    """The module's weights and buffers to the device, in place, inside ``pretended_device``."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                there = weight.detach().to(NAME)
                part._parameters[name] = nn.Parameter(there, weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(NAME)


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Counts what waits inside the block, by operator."""
    mode = _Waits()
    with mode:
        yield mode.counts


@contextmanager
def pretended_device() -> Iterator[None]:
    """Inside, ``tensor.to(NAME)`` is a tensor on the device."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
