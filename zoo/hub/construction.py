"""Building a model from somebody else's arguments: no more memory than the weights that came with
them can need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo.errors import UserError

SLACK_BYTES = 256 * 2**20  # windows, filter banks and tables that are computed and not stored


class _Bounded(TorchFunctionMode):
    """Counts the bytes of tensors that are made from nothing; large ones are not touched by the
    system before they are filled.
    """

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self.limit_bytes, self.made_bytes = limit_bytes, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = (*args, *(kwargs or {}).values())  # initialisers are told by name what they fill
        if isinstance(made, Tensor) and not any(isinstance(value, Tensor) for value in given):
            self.made_bytes += made.nbytes
            if self.made_bytes > self.limit_bytes:
                raise MemoryError(f"more than {self.limit_bytes / 1e6:,.0f} MB")
        return made


def build_within(
    found: type[nn.Module], arguments: Mapping[str, Any], state: Mapping[str, Tensor], where: str
) -> nn.Module:
    """``found(**arguments)``, stopped when it makes tensors of more than twice the size of
    ``state`` (as float32) and a slack.

    Leaves torch's random state as it was. Raises ``UserError`` when it grows too large or cannot
    be built.
    """
    limit_bytes = SLACK_BYTES + 2 * sum(
        max(4, tensor.element_size()) * tensor.numel() for tensor in state.values()
    )
    try:
        with torch.random.fork_rng(devices=[]), _Bounded(limit_bytes):
            return found(**arguments)
    except MemoryError as error:
        raise UserError(
            f"{where}: {found.__name__} with these arguments is far larger than the weights that"
            f" came with it ({error}); it was not built"
        ) from error
    except (RuntimeError, TypeError, ArithmeticError, AssertionError, LookupError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{where}: {found.__name__} cannot be built from these arguments ({said})"
        ) from error
