"""The frozen networks that judge recorded sounds (``sound_probes.py``), each heard in patches.

Shape suffixes: ``B`` clips, ``P`` patches, ``D`` features, ``K`` logits, ``C`` channels, ``N``
samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.judges import mono_16khz
from zoo.audio_files.resampling import resampled
from zoo.importers import aisfx, soundnet, yamnet
from zoo.rewards.mood import level_normalised

RMS = 0.08  # level at which YAMNet and SoundNet hear every clip; aiSFX brings clips to one peak
Listen = Callable[[Tensor, int], Tensor]  # (wave_BCN, sample_rate_hz) -> feature_BPD


@dataclass(frozen=True)
class Gate:
    """Limits on round trips of test scenes: at least ``auc`` and ``both3``, at most ``shuffled``"""

    auc: float
    both3: float
    shuffled: float = 0.03


@dataclass(frozen=True)
class Ear:
    """A frozen network.

    - ``title``: its name in tables.
    - ``sha256``: of its released weights.
    - ``open``: loads it; ``ImportError`` says how to install it.
    - ``spans_s``: clip length in seconds -> start and end of each patch in seconds.
    - ``gate``: what its probe must reach.
    """

    title: str
    sha256: str
    open: Callable[[], Listen]
    spans_s: Callable[[float], list[tuple[float, float]]]
    gate: Gate


def _open_yamnet() -> Listen:
    network, _ = yamnet.load_yamnet()

    def listen(wave_BCN: Tensor, sample_rate_hz: int) -> Tensor:
        logit_BPK, embedding_BPD = network(mono_16khz(wave_BCN, sample_rate_hz, RMS))
        return torch.cat([embedding_BPD.log1p(), logit_BPK], dim=2)

    return listen


def _open_aisfx() -> Listen:
    network = aisfx.load_aisfx()

    def listen(wave_BCN: Tensor, sample_rate_hz: int) -> Tensor:
        mono_BN = wave_BCN.float().mean(dim=1)
        return network(resampled(mono_BN, sample_rate_hz, aisfx.RATE_HZ)).log1p()

    return listen


def _open_soundnet() -> Listen:
    network = soundnet.load_soundnet()

    def listen(wave_BCN: Tensor, sample_rate_hz: int) -> Tensor:
        mono_BN = level_normalised(wave_BCN.float().mean(dim=1), RMS)
        layers = network(resampled(mono_BN, sample_rate_hz, soundnet.RATE_HZ))
        return soundnet.pooled(layers).log1p().unsqueeze(1)

    return listen


def _yamnet_spans(seconds: float) -> list[tuple[float, float]]:
    samples = round(seconds * yamnet.RATE_HZ)
    frames = max(yamnet.PATCH, (samples - yamnet.WINDOW) // yamnet.HOP + 1)
    count = (frames - yamnet.PATCH) // yamnet.PATCH_HOP + 1
    starts = [index * yamnet.PATCH_HOP_S for index in range(count)]
    return [(start, start + yamnet.SHORTEST / yamnet.RATE_HZ) for start in starts]


def _aisfx_spans(seconds: float) -> list[tuple[float, float]]:
    frame_s = aisfx.HOP / aisfx.RATE_HZ
    starts = aisfx.block_starts(int(seconds / frame_s) + 1)
    return [(start * frame_s, (start + aisfx.BLOCK) * frame_s) for start in starts]


EARS = {
    "A": Ear("YAMNet", yamnet.WEIGHTS_SHA256, _open_yamnet, _yamnet_spans, Gate(0.95, 0.75)),
    "B": Ear("aiSFX", aisfx.WEIGHTS_SHA256, _open_aisfx, _aisfx_spans, Gate(0.97, 0.79)),
    "C": Ear(
        "SoundNet",
        soundnet.WEIGHTS_SHA256,
        _open_soundnet,
        lambda seconds: [(0.0, seconds)],
        Gate(0.97, 0.79),
    ),
}
