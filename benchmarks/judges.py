"""A mood judge that this project did not train: valence and energy of VibeNet, mapped to a mood.

VibeNet (GPL-3.0-or-later; an EfficientNet student whose weights are in its wheel) is optional and
never a dependency:

    pip install --no-deps vibenet==0.1.0 && pip install onnxruntime

Only its ONNX file is read. Its front end (64 ms FFT, 40 ms Hann window every 20 ms, 128 Slaney mel
bands, dB with an 80 dB range) is rebuilt here from its parameters. Clips are mixed to mono at one
level, because its energy depends on loudness.

It gives two verdicts per clip, both fitted on *real* clips and then applied to generations:
- ``quadrant``: valence and energy against the medians of the real clips (transparent, but it loses
  information);
- ``probability``: multinomial logistic regression from all seven outputs to the four moods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch import Tensor

from zoo.audio_files.resampling import resampled
from zoo.errors import UserError
from zoo.importers.wheels import wheel_path
from zoo.rewards.mood import MOODS, level_normalised
from zoo.statistics.intervals import mean_and_error

OUTPUTS = (
    "acousticness",
    "danceability",
    "energy",
    "instrumentalness",
    "liveness",
    "speechiness",
    "valence",
)
RATE_HZ = 16_000
_INSTALL = "pip install --no-deps vibenet==0.1.0 && pip install onnxruntime"


def vibenet_model_path() -> Path:
    """The ONNX file in the installed wheel; ``ImportError`` says how to install it."""
    return wheel_path(
        "vibenet", "artifacts/efficientnet_model.onnx", "the held-out mood judge", _INSTALL
    )


def mono_16khz(wave_BCN: Tensor, sample_rate_hz: int, rms: float) -> Tensor:
    """Waves (B, N) at 16 kHz, mono and at one level: the input of the judges."""
    mono_BN = resampled(wave_BCN.float().mean(dim=1), sample_rate_hz, RATE_HZ)
    return level_normalised(mono_BN, rms)


def vibenet_log_mel(mono_BN: Tensor) -> Tensor:
    """(B, 128, frames) in dB, range 80 dB, from (B, N) at 16 kHz; ends are not padded."""
    frames = mono_BN.unfold(1, 640, 320) * torch.hann_window(640)
    power_BTF = torch.fft.rfft(frames, 1024).abs().square()
    bank = torchaudio.functional.melscale_fbanks(
        513, 0.0, 8000.0, 128, RATE_HZ, norm="slaney", mel_scale="slaney"
    )
    db_BMT = 10 * torch.log10((power_BTF @ bank).clamp(min=1e-10)).transpose(1, 2)
    return torch.maximum(db_BMT, db_BMT.amax(dim=(1, 2), keepdim=True) - 80)


class VibeNet:
    """``judge(wave_BCN, sample_rate_hz)`` -> (B, 7) raw outputs in the order of ``OUTPUTS``."""

    def __init__(self, rms: float = 0.08) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"the held-out mood judge needs onnxruntime: {_INSTALL}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.rms = rms
        self.session = onnxruntime.InferenceSession(
            str(vibenet_model_path()), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, wave_BCN: Tensor, sample_rate_hz: int) -> np.ndarray:
        mel_BMT = vibenet_log_mel(mono_16khz(wave_BCN, sample_rate_hz, self.rms)).numpy()
        return np.stack([self.session.run(None, {"x": mel[None]})[0][0] for mel in mel_BMT])


def fit_logistic_regression(
    features: np.ndarray, classes: np.ndarray, count: int, penalty: float = 1e-3
) -> np.ndarray:
    """Fits a multinomial logistic regression with a squared penalty by L-BFGS.

    Returns weights (features + 1, count); the last row is the bias.
    """
    x = torch.cat(
        [
            torch.as_tensor(features, dtype=torch.float64),
            torch.ones(len(features), 1, dtype=torch.float64),
        ],
        dim=1,
    )
    y = torch.as_tensor(classes, dtype=torch.long)
    weights = torch.zeros(x.shape[1], count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (
            torch.nn.functional.cross_entropy(x @ weights, y)
            + penalty * weights[:-1].square().sum()
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def mood_indices(moods: Sequence[str]) -> np.ndarray:
    """Indices into ``MOODS``. Raises ``UserError`` for another word."""
    unknown = sorted(set(moods) - set(MOODS))
    if unknown:
        raise UserError(f"unknown moods {unknown}: expected some of {', '.join(MOODS)}")
    return np.array([MOODS.index(mood) for mood in moods])


@dataclass(frozen=True)
class JudgeVerdict:
    """Verdicts per clip.

    - ``quadrant_right``: 0 or 1.
    - ``probability``: of the requested mood.
    - ``probability_right``: whether that is the largest, 0 or 1.
    """

    quadrant_right: np.ndarray
    probability: np.ndarray
    probability_right: np.ndarray

    def summary(self) -> dict[str, tuple[float, float]]:
        """Name -> mean and standard error over clips."""
        return {
            name: mean_and_error(getattr(self, name).tolist()) for name in self.__dataclass_fields__
        }


@dataclass(frozen=True)
class MoodJudge:
    """Thresholds and regression, fitted on real clips."""

    valence_median: float
    energy_median: float
    feature_mean: np.ndarray
    feature_std: np.ndarray
    weights: np.ndarray

    @staticmethod
    def fit(outputs: np.ndarray, moods: Sequence[str]) -> MoodJudge:
        """Fits the judge on VibeNet outputs (n, 7) of real clips and their moods.

        Raises ``UserError`` for a missing or unknown mood.
        """
        classes = mood_indices(moods)
        absent = [mood for index, mood in enumerate(MOODS) if index not in classes]
        if absent:
            raise UserError(
                f"the judge needs real clips of every mood; there are none of {', '.join(absent)}"
            )
        mean = outputs.mean(axis=0)
        std = outputs.std(axis=0) + 1e-6
        weights = fit_logistic_regression((outputs - mean) / std, classes, len(MOODS))
        valence = outputs[:, OUTPUTS.index("valence")]
        energy = outputs[:, OUTPUTS.index("energy")]
        return MoodJudge(float(np.median(valence)), float(np.median(energy)), mean, std, weights)

    def quadrants(self, outputs: np.ndarray) -> np.ndarray:
        """(n,) index into ``MOODS``: valence and energy above or below the real medians."""
        pleasant = outputs[:, OUTPUTS.index("valence")] > self.valence_median
        aroused = outputs[:, OUTPUTS.index("energy")] > self.energy_median
        return np.where(aroused, np.where(pleasant, 0, 1), np.where(pleasant, 3, 2))

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """(n, 4) probabilities of ``MOODS``."""
        scaled = (outputs - self.feature_mean) / self.feature_std
        return softmax(scaled @ self.weights[:-1] + self.weights[-1])

    def verdict(self, outputs: np.ndarray, moods: Sequence[str]) -> JudgeVerdict:
        """How well clips fit the requested moods."""
        classes = mood_indices(moods)
        probabilities = self.probabilities(outputs)
        return JudgeVerdict(
            (self.quadrants(outputs) == classes).astype(float),
            probabilities[np.arange(len(classes)), classes],
            (probabilities.argmax(axis=1) == classes).astype(float),
        )
