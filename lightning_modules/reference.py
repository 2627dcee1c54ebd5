"""The reference model of preference learning: what a policy is measured against."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.lora import AdapterSwitch
from zoo.errors import UserError


class Reference:
    """Puts the reference model in place of the policy for a while: ``with reference(): ...``.

    With ``adapter_off`` the reference is the base model, its adapter off, and no weight is copied.
    Otherwise, and from the first ``renew`` on, it is a frozen copy of the weights that learn.
    Nothing is copied to put it in place.

    Args:
        parameters: those that learn.
        adapter_off: of the adapter that they are; None: they are the denoiser's own weights.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], adapter_off: AdapterSwitch | None
    ) -> None:
        self.parameters = parameters
        self.adapter_off = adapter_off
        self.is_renewed = False
        self._values = self._copied() if adapter_off is None else None
        self._start = "" if self._values is None else _sha256(self._values)

    def _copied(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def renew(self) -> None:
        """The weights as they are now become the reference."""
        self._values = self._copied()
        self.is_renewed = True

    def to(self, device: torch.device | str) -> None:
        if self._values is not None:
            self._values = [value.to(device) for value in self._values]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._values is None:
            with self.adapter_off():
                yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for place, parameter in enumerate(self.parameters):
            own = parameter.data
            parameter.data = self._values[place]
            self._values[place] = own
        # autocast keeps low-precision copies by parameter, and would go on with the other weights
        torch.clear_autocast_cache()

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the copy, but for one of the base model, which is named by its hash."""
        values = [value.cpu() for value in self._values] if self.is_renewed else None
        return {"values": values, "start_sha256": self._start}

    def load(self, state: dict[str, Any]) -> None:
        """Raises ``UserError`` where the base model, or what learns, is another one."""
        if state["start_sha256"] != self._start:
            raise UserError(
                "the reference of the run to resume is another model than this one; resume with the"
                " same module.backbone and module.adapter.rank"
            )
        values = state["values"]
        if values is None:
            return
        if [value.shape for value in values] != [own.shape for own in self.parameters]:
            raise UserError(
                "the reference in the checkpoint is of other parameters; resume with the same"
                " backbone and adapter"
            )
        placed = zip(values, self.parameters, strict=True)
        self._values = [value.to(own.device, own.dtype) for value, own in placed]
        self.is_renewed = True


def _sha256(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
