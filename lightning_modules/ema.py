"""Exponential moving average of trainable weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zoo.errors import UserError


class EMA:
    """Averages of ``parameters``, kept on their device and in at least float32: average = decay *
    average + (1 - decay) * weight.

    Early on the decay is capped at (1 + n) / (10 + n) after n updates, so that the start is
    forgotten quickly.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"the EMA decay lies in [0, 1), got {decay}")
        self.parameters = list(parameters)
        self.decay, self.updates = float(decay), 0
        self.average = [self._wide(parameter.detach()).clone() for parameter in self.parameters]

    @staticmethod
    def _wide(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    @torch.no_grad()
    def update(self) -> None:
        """Call once after every optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for i, parameter in enumerate(self.parameters):
            self.average[i] = self.average[i].to(parameter.device)
            self.average[i].lerp_(self._wide(parameter), 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the parameters hold the averages; afterwards, also on an error, exactly what they
        held before.
        """
        held = [parameter.detach().clone() for parameter in self.parameters]
        try:
            self._fill(self.average)
            yield
        finally:
            self._fill(held)

    @torch.no_grad()
    def _fill(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "average": [average.detach().cpu().clone() for average in self.average],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ``UserError`` when the averages are of other parameters."""
        shapes = [tuple(average.shape) for average in state["average"]]
        expected = [tuple(parameter.shape) for parameter in self.parameters]
        if shapes != expected:
            raise UserError(
                f"the saved averages are of other parameters: shapes {shapes[:3]}..., expected"
                f" {expected[:3]}..."
            )
        self.updates = int(state["updates"])
        saved = zip(state["average"], self.average, strict=True)
        self.average = [average.to(own.device, own.dtype).clone() for average, own in saved]
