"""Exponential moving average of trainable weights, and its place in a module.

Lightning's ``WeightAveraging`` does not serve here: it copies the whole module, frozen base
included, and counts one step per batch where a round of reinforcement learning takes several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from zoo.errors import UserError


@contextmanager
def holding(parameters: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> Iterator[None]:
    """Inside, ``parameters`` hold ``values``; they are restored afterwards, even on errors."""
    held = [parameter.detach().clone() for parameter in parameters]
    try:
        _fill(parameters, values)
        yield
    finally:
        _fill(parameters, held)


@torch.no_grad()
def _fill(parameters: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


class EMA:
    """Averages of ``parameters``: average = decay * average + (1 - decay) * weight.

    They are kept on the parameters' device, in at least float32. After n updates the decay is at
    most (1 + n) / (10 + n), so that the start is forgotten quickly.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"invalid ema_decay {decay}: expected a number in [0, 1)")
        self.parameters = list(parameters)
        self.decay = float(decay)
        self.updates = 0
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

    def swapped(self) -> AbstractContextManager[None]:
        """Puts the averages into the parameters, and restores them afterwards, even on errors."""
        return holding(self.parameters, self.average)

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


class AveragedWeights(LightningModule):
    """A module whose weights are averaged in ``ema`` (None: they are not).

    Averages are updated after every step of the optimiser, and saved in checkpoints.
    """

    ema: EMA | None

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the parameters hold the averages, if there are any."""
        return nullcontext() if self.ema is None else self.ema.swapped()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Updates the averages after every step of ``optimizer``; for ``configure_optimizers``."""

        def update(*_: Any) -> None:
            if self.ema is not None:
                self.ema.update()

        optimizer.register_step_post_hook(update)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if ("ema" in checkpoint) != (self.ema is not None):
            raise UserError(
                "ema_decay must be given in the resumed run exactly when it was given before"
            )
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint["ema"])
