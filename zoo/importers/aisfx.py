"""aiSFX in PyTorch: a 512-number embedding of sound effects per 1.16 s.

Network: nine layers of convolutions with batch norm (Kong et al. 2018, arXiv:1808.00773), trained
across libraries of sound effects (Ma and Lerch, ISMIR 2022, "Representation Learning for the
Automatic Indexing of Sound Effects Libraries"). Weights: the authors' (CC-BY-4.0), read from their
wheel:

    pip install --no-deps aisfx==0.1.2

The checkpoint is a pickle. It is opened only if it is the released file, byte for byte, and read
as data (``zoo/importers/pickles.py``). It is opt-in, for judging what can be heard in a clip;
nothing in the package depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import UserError
from zoo.importers.pickles import load_pickle
from zoo.importers.wheels import check_released, wheel_path

RATE_HZ = 44_100
FFT, HOP, MELS = 2048, 1024, 96
BLOCK = 50  # frames of 23 ms: 1.16 s
SHORTEST = (BLOCK - 1) * HOP  # samples of one block: frames are centred, so the ends are padded
LOUDEST = 9.457798957824707  # the largest log-mel value of the authors' training data
WIDTHS = (1, 64, 128, 256, 512)  # channels before and after each block of two convolutions
WIDTH = WIDTHS[-1]
BATCH_NORM_EPSILON = 1e-5

INSTALL = "pip install --no-deps aisfx==0.1.2"
WEIGHTS_SHA256 = "499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5"
_NORM = ("weight", "bias", "running_mean", "running_var")


class AiSFX(nn.Module):
    """``wave_BN`` (44.1 kHz, mono) -> embeddings (B, blocks, 512).

    As few blocks of 1.16 s as cover the clip, evenly spaced; a shorter clip is repeated up to one
    block. Clips are brought to peak 1, as in the authors' front end. Batch norms are folded into
    the convolutions. New instances have random weights: ``load_aisfx`` gives the trained ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inner, outer, 3, padding=1)
            for before, after in zip(WIDTHS, WIDTHS[1:])
            for inner, outer in ((before, after), (after, after))
        )
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)
        self.register_buffer("mel_FM", mel_bank(), persistent=False)

    def log_mel(self, wave_BN: Tensor) -> Tensor:
        """(B, frames, 96): log10(10000 * mel power + 1), over its maximum in training."""
        frames = F.pad(wave_BN, (FFT // 2, FFT // 2)).unfold(1, FFT, HOP) * self.window
        power_BTF = torch.fft.rfft(frames).abs().square()
        return torch.log10(10_000 * (power_BTF @ self.mel_FM) + 1) / LOUDEST

    def forward(self, wave_BN: Tensor) -> Tensor:
        """Raises ``UserError`` unless the wave is (B, N) with samples in it."""
        if wave_BN.ndim != 2 or 0 in wave_BN.shape:
            raise UserError(
                "aiSFX hears mono waves of shape (B, N) with samples in them, got"
                f" {tuple(wave_BN.shape)}"
            )
        if wave_BN.shape[1] < SHORTEST:
            wave_BN = wave_BN.repeat(1, math.ceil(SHORTEST / wave_BN.shape[1]))[:, :SHORTEST]
        peak_B1 = wave_BN.abs().amax(dim=1, keepdim=True)
        mel_BTM = self.log_mel(wave_BN / torch.where(peak_B1 > 0, peak_B1, 1))
        starts = block_starts(mel_BTM.shape[1])
        blocks = torch.stack([mel_BTM[:, start : start + BLOCK] for start in starts], dim=1)
        x = blocks.flatten(0, 1).unsqueeze(1)
        last = len(self.convs) - 1
        for index, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            if index % 2 and index < last:  # the last block is not pooled
                x = F.max_pool2d(x, 2)
        embedding = x.mean(dim=3).amax(dim=2)  # mean over frequencies, maximum over time
        return embedding.view(len(wave_BN), len(starts), WIDTH)


def block_starts(frames: int) -> list[int]:
    """The first frame of each block: as few as cover ``frames``, evenly spaced."""
    count = math.ceil(frames / BLOCK)
    if count == 1:
        return [0]
    return [round(index * (frames - BLOCK) / (count - 1)) for index in range(count)]


def mel_bank() -> Tensor:
    """(1025, 96) triangles in HTK mels from 0 to 22,050 Hz, each with sum 1."""
    from torchaudio.functional import melscale_fbanks

    bank = melscale_fbanks(FFT // 2 + 1, 0.0, RATE_HZ / 2, MELS, RATE_HZ, mel_scale="htk")
    return bank / bank.sum(dim=0, keepdim=True)


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of ``AiSFX`` from the released state dict, by its names.

    The classifiers of the training sets (``fc.``) are left out. Raises ``UserError`` naming
    tensors that are missing, unknown or of another shape: each one must be accounted for.
    """
    left = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    state = {}
    index = 0
    for block, (before, after) in enumerate(zip(WIDTHS, WIDTHS[1:]), 1):
        for layer, inner in ((1, before), (2, after)):
            place = f"embedding_net.conv_block{block}"
            weight = _taken(left, f"{place}.conv{layer}.weight", (after, inner, 3, 3))
            gamma, beta, mean, variance = (
                _taken(left, f"{place}.bn{layer}.{name}", (after,)) for name in _NORM
            )
            left.pop(f"{place}.bn{layer}.num_batches_tracked", None)
            scale = gamma * (variance + BATCH_NORM_EPSILON).rsqrt()
            state[f"convs.{index}.weight"] = weight * scale[:, None, None, None]
            state[f"convs.{index}.bias"] = beta - mean * scale
            index += 1
    if left:
        raise UserError(f"this is not the released aiSFX: unknown tensors {sorted(left)[:3]}")
    return state


def _taken(left: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = left.pop(name, None)
    if tensor is None or tuple(tensor.shape) != shape:
        found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
        raise UserError(f"this is not the released aiSFX: {name} {found}, expected {shape}")
    return tensor.float()


def aisfx_checkpoint() -> Path:
    """The checkpoint inside the installed wheel.

    Raises ``ImportError`` saying how to install it.
    """
    return wheel_path("aisfx", "models/checkpoint.pth", "the sound judge aiSFX", INSTALL)


def load_aisfx(path: str | Path | None = None) -> AiSFX:
    """The trained network in ``eval`` mode with frozen weights.

    ``path`` is the released checkpoint; by default the one of the wheel. Raises ``ImportError``
    when the wheel is absent, ``OSError`` for a missing file, ``UserError`` for another file, which
    is not opened.
    """
    path = aisfx_checkpoint() if path is None else Path(path)
    check_released(path, WEIGHTS_SHA256, "aiSFX checkpoint", INSTALL)
    state, _ = load_pickle(path)  # and the names of its training sets
    network = AiSFX()
    network.load_state_dict(converted(state))
    return network.requires_grad_(False).eval()
