"""Positions of sounds as tokens: one token per source, appended to the text tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.types import SourcePath

_FEATURES = 12


def source_features(source: SourcePath) -> list[float]:
    """Twelve numbers that describe a source.

    Cosine and sine of the start and end azimuth; onset, end and jump times (s / 10); flags for
    motion and jump; elevation, distance and level.
    """
    start = math.radians(source.azimuth_start_deg)
    end = math.radians(
        source.azimuth_start_deg if source.azimuth_end_deg is None else source.azimuth_end_deg
    )
    return [
        *(math.cos(start), math.sin(start), math.cos(end), math.sin(end)),
        (source.onset_s or 0.0) / 10,
        (source.end_s or 0.0) / 10,
        (source.jump_s or 0.0) / 10,
        float(source.end_s is not None),
        float(source.jump_s is not None),
        (source.elevation_deg or 0.0) / 90,
        math.log(source.distance_m) if source.distance_m else 0.0,
        (source.level_db or 0.0) / 20,
    ]


class SpatialTokens(nn.Module):
    """Maps source paths to ``tokens_BLD`` and ``mask_BL``.

    L is the largest number of sources of a prompt in the batch and may be 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Linear(_FEATURES, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, sources: Sequence[Sequence[SourcePath]]) -> tuple[Tensor, Tensor]:
        device = self.project[0].weight.device
        length = max(len(row) for row in sources)
        features = torch.zeros(len(sources), length, _FEATURES, device=device)
        mask_BL = torch.zeros(len(sources), length, dtype=torch.bool, device=device)
        for index, row in enumerate(sources):
            for place, source in enumerate(row):
                features[index, place] = torch.tensor(source_features(source))
                mask_BL[index, place] = True
        return self.project(features) * mask_BL[..., None], mask_BL
