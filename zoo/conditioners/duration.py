"""The requested length as one token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DurationToken(nn.Module):
    """Maps seconds to one token (B, 1, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, seconds: Sequence[float]) -> Tensor:
        value = torch.tensor(
            list(seconds), dtype=torch.float32, device=self.project[0].weight.device
        )
        return self.project(torch.stack([value / 10, torch.log(value)], dim=-1))[:, None]
