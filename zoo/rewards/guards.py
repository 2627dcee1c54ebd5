"""Guards: what no reward of content hears and every one can be cheated by.

Too loud, too quiet, silent, clipped, noise, the same.

Each guard is 0 while its measure is within bounds and falls to -1 at worst; no network is needed
(but for an optional embedding). Silence that scores well, clipping that sounds bright and one clip
for every seed are the known ways in which optimised audio degenerates (diversity: SMART, arXiv
2504.16839).

Shapes: ``F`` frames, ``D`` features of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torchaudio
from torch import Tensor

from zoo.errors import UserError
from zoo.rewards.members import described, reward_node, reward_of
from zoo.rewards.waves import StaysInEvalMode, check_waves, finite_rows
from zoo.types import Prompt, RewardOutput

SILENCE_FLOOR_DBFS = -120.0  # the level of digital silence, so that it is a number
_FLATNESS_BAND_HZ = (50.0, 8000.0)
_MELS = 40
_MEL_FLOOR = 1e-8  # 80 dB below a clip's own level (power of a tone)


def level_dbfs(wave_BCN: Tensor) -> Tensor:
    """Level (B,) in dB re full scale over channels and time.

    A full-scale sine has -3.01, digital silence -120.
    """
    return (
        10
        * (wave_BCN.double().square().mean(dim=(1, 2)) + 10 ** (SILENCE_FLOOR_DBFS / 10))
        .log10()
        .float()
    )


def silence_share(wave_BCN: Tensor, frame: int, below_dbfs: float) -> Tensor:
    """Share (B,) of frames whose level is below ``below_dbfs``.

    Frames of ``frame`` samples do not overlap, and a shorter rest is left out.
    """
    frame = min(frame, wave_BCN.shape[-1])
    frames_BCF = wave_BCN.double().unfold(-1, frame, frame)
    return (frames_BCF.square().mean(dim=(1, 3)) < 10 ** (below_dbfs / 10)).float().mean(dim=1)


def clipping_share(wave_BCN: Tensor, level: float) -> Tensor:
    """(B,) share of samples of all channels at or beyond ``level`` (1 is full scale)."""
    return (wave_BCN.abs() >= level).float().mean(dim=(1, 2))


def _power_BFT(wave_BCN: Tensor, n_fft: int) -> Tensor:
    """Power (B, n_fft // 2 + 1, frames) of the channels' mean in half overlapping Hann frames.

    A short clip is padded.
    """
    mono_BN = wave_BCN.float().mean(dim=1)
    mono_BN = torch.nn.functional.pad(mono_BN, (0, max(0, n_fft - mono_BN.shape[-1])))
    window = torch.hann_window(n_fft, device=mono_BN.device)
    return (
        torch.stft(mono_BN, n_fft, n_fft // 2, window=window, center=False, return_complex=True)
        .abs()
        .square()
    )


def spectral_flatness(wave_BCN: Tensor, sample_rate_hz: int) -> Tensor:
    """Geometric over arithmetic mean (B,) of the power between 50 Hz and 8 kHz.

    Frames of about 40 ms, averaged by their energy, up to the Nyquist frequency. White noise has
    exp(-gamma) = 0.56, a tone nearly 0; silence counts as 0.
    """
    n_fft = max(64, round(0.04 * sample_rate_hz))
    frequencies = torch.fft.rfftfreq(n_fft, 1 / sample_rate_hz, device=wave_BCN.device)
    inside = (frequencies >= _FLATNESS_BAND_HZ[0]) & (frequencies <= _FLATNESS_BAND_HZ[1])
    power = _power_BFT(wave_BCN, n_fft)[:, inside].double()
    mean = power.mean(dim=1)
    flat = ((power + 1e-30).log().mean(dim=1)).exp() / mean.clamp_min(1e-30)
    return ((flat * mean).sum(dim=1) / mean.sum(dim=1).clamp_min(1e-30)).float()


@lru_cache(maxsize=8)
def _mel_filters(n_fft: int, sample_rate_hz: int) -> Tensor:
    top = min(8000.0, sample_rate_hz / 2)
    bands = _MELS if top == 8000 else max(4, int(_MELS * top / 8000))
    return torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 50.0, top, bands, sample_rate_hz)


def mel_statistics(wave_BCN: Tensor, sample_rate_hz: int) -> Tensor:
    """Mean and deviation (B, D) over time of log-mel bands in dB (to 8 kHz), at one level.

    The root mean square difference of two clips is a distance in dB. Frames of 64 ms.
    """
    n_fft = max(256, round(0.064 * sample_rate_hz))
    level = wave_BCN.float().square().mean(dim=(1, 2), keepdim=True).clamp_min(1e-12).sqrt()
    power = (
        _power_BFT(wave_BCN / level, n_fft) / (n_fft / 2) ** 2
    )  # of a tone at level 1: 0.5 at its frequency, at any rate
    mel_BMT = torch.einsum(
        "bft,fm->bmt", power, _mel_filters(n_fft, sample_rate_hz).to(power.device)
    )
    mel_db = 10 * (mel_BMT + _MEL_FLOOR).log10()
    return torch.cat([mel_db.mean(dim=2), mel_db.std(dim=2, correction=0)], dim=1)


def distance_to_others(
    vector_BD: Tensor, prompt_ids: Sequence[str], cosine: bool
) -> tuple[Tensor, Tensor]:
    """Mean distance (B,) of a sample to the others of its prompt, and whether there are any.

    The distance of a lone sample is 0.

    Distance: 1 - cosine, or the root mean square difference. With s_i this number, n samples and D
    their mean pairwise distance, what sample i contributes is D - D(without i) = 2 (s_i - D) / (n -
    2): the order of both is the same.
    """
    distance_B = vector_BD.new_zeros(len(vector_BD))
    has_others = torch.zeros_like(distance_B, dtype=torch.bool)
    for prompt_id in dict.fromkeys(prompt_ids):
        rows = [row for row, name in enumerate(prompt_ids) if name == prompt_id]
        if len(rows) < 2:
            continue
        own = vector_BD[rows].double()
        if cosine:
            unit = torch.nn.functional.normalize(own, dim=1)
            apart = 1 - unit @ unit.T
        else:
            apart = (own[:, None] - own[None]).square().mean(dim=2).sqrt()
        apart.fill_diagonal_(0.0)
        distance_B[rows] = (apart.sum(dim=1) / (len(rows) - 1)).to(distance_B)
        has_others[rows] = True
    return distance_B, has_others


def _beyond(value_B: Tensor, limit: float, worst: float) -> Tensor:
    """(B,) 0 up to ``limit``, then linearly to -1 at ``worst`` (which may be on either side)."""
    return -((value_B - limit) / (worst - limit)).clamp(0, 1)


class GuardReward(StaysInEvalMode):
    """The sum of the guards that are on (a limit of None switches one off); 0 when all is well.

    Parts: what was measured (``level_dbfs``, ``silence_share``, ``clipping_share``, ``flatness``,
    ``diversity_db`` or ``diversity_cosine``) and ``<guard>_penalty`` in [-1, 0]. A wave that is not
    finite scores NaN. Not differentiable.

    Args:
        loudness_dbfs: (low, high) bounds of the level.
        loudness_scale_db: how far outside them the penalty is -1.
        silence_share: largest share of frames below ``silence_dbfs``; the penalty is -1 at 1.
        silence_dbfs: the level below which a frame is silent.
        frame_s: seconds per frame.
        clipping_share: largest share of samples at or beyond ``clipping_level``; -1 at 1.
        clipping_level: of full scale 1.
        flatness: largest spectral flatness, -1 at 1 (noise 0.56; leave it off where prompts ask for
            rain or wind).
        diversity: smallest mean distance of a sample to the others of its prompt in the round, -1
            when it is their copy. A round needs at least two samples per prompt, and only
            ``combine`` knows it: a single call counts the other guards alone. In dB of log-mel
            statistics (``mel_statistics``), or with an ``embedder`` 1 - cosine of embeddings.
        embedder: a reward with ``embed_audio`` such as a CLAP (an object or ``{architecture:,
            arguments:}``; in a configuration also a zoo name).

    Raises: ``UserError`` for invalid limits.
    """

    differentiable = False
    unit = "penalty; 0 is best"

    @staticmethod
    def with_nodes(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments in a configuration, with a node in place of the name of an embedder."""
        return {
            key: reward_node(value) if key == "embedder" else value
            for key, value in arguments.items()
        }

    def __init__(
        self,
        loudness_dbfs: Sequence[float] | None = (-40.0, -6.0),
        loudness_scale_db: float = 20.0,
        silence_share: float | None = 0.8,
        silence_dbfs: float = -60.0,
        frame_s: float = 0.05,
        clipping_share: float | None = 0.01,
        clipping_level: float = 0.999,
        flatness: float | None = None,
        diversity: float | None = None,
        embedder: Any = None,
    ) -> None:
        super().__init__()
        if loudness_dbfs is not None and (
            len(loudness_dbfs) != 2 or not loudness_dbfs[0] < loudness_dbfs[1]
        ):
            raise UserError(
                "loudness_dbfs must be (low, high) in dB re full scale, low below high, got"
                f" {loudness_dbfs}"
            )
        for name, value in {
            "silence_share": silence_share,
            "clipping_share": clipping_share,
            "flatness": flatness,
        }.items():
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name} must be in [0, 1) or null, got {value}")
        positive = {
            "loudness_scale_db": loudness_scale_db,
            "frame_s": frame_s,
            "clipping_level": clipping_level,
        }
        for name, value in (
            positive | ({} if diversity is None else {"diversity": diversity})
        ).items():
            if not 0 < value < math.inf:
                raise UserError(f"{name} must be above 0, got {value}")
        if not SILENCE_FLOOR_DBFS < silence_dbfs < math.inf:
            raise UserError(
                f"silence_dbfs must be above {SILENCE_FLOOR_DBFS}, the level of digital silence,"
                f" got {silence_dbfs}"
            )
        if all(
            limit is None
            for limit in (loudness_dbfs, silence_share, clipping_share, flatness, diversity)
        ):
            raise UserError("all guards are off; give at least one limit")
        if embedder is not None and diversity is None:
            raise UserError(
                "embedder is only for diversity, which is off; give its smallest distance"
            )
        self.embedder = None if embedder is None else reward_of(embedder, "embedder")
        if self.embedder is not None and not hasattr(self.embedder, "embed_audio"):
            raise UserError(
                f"embedder: a {type(self.embedder).__name__} has no embed_audio; expected a CLAP"
            )
        self.loudness_dbfs = (
            None if loudness_dbfs is None else tuple(float(value) for value in loudness_dbfs)
        )
        self.loudness_scale_db = loudness_scale_db
        self.silence_dbfs = silence_dbfs
        self.frame_s = frame_s
        self.silence_limit = silence_share
        self.clipping_limit = clipping_share
        self.clipping_level = clipping_level
        self.flatness = flatness
        self.diversity = diversity
        named = None if self.embedder is None else described(self.embedder)
        self.arguments = {
            "loudness_dbfs": None if self.loudness_dbfs is None else list(self.loudness_dbfs),
            "loudness_scale_db": loudness_scale_db,
            "silence_share": silence_share,
            "silence_dbfs": silence_dbfs,
            "frame_s": frame_s,
            "clipping_share": clipping_share,
            "clipping_level": clipping_level,
            "flatness": flatness,
            "diversity": diversity,
            "embedder": named,
        }
        if self.embedder is not None and named is None:
            self.arguments = (
                None  # an object of a foreign class: this reward cannot be saved as an artefact
            )
        self.eval()

    @torch.no_grad()
    def forward(
        self, wave_BCN: Tensor, sample_rate_hz: int, prompts: Sequence[Prompt]
    ) -> RewardOutput:
        """Score and parts (B,).

        With ``diversity``, also ``vectors["diversity"]`` (B, D) for ``combine``.

        Raises ``UserError`` for a wrong shape, no samples, no rate, or another number of prompts.
        """
        rate = check_waves(wave_BCN, sample_rate_hz, "the guard", len(prompts))
        measured = {}
        penalty = {}
        if self.loudness_dbfs is not None:
            low, high = self.loudness_dbfs
            measured["level_dbfs"] = level = level_dbfs(wave_BCN)
            penalty["loudness"] = _beyond(level, low, low - self.loudness_scale_db) + _beyond(
                level, high, high + self.loudness_scale_db
            )
        if self.silence_limit is not None:
            share = silence_share(wave_BCN, max(1, round(self.frame_s * rate)), self.silence_dbfs)
            measured["silence_share"] = share
            penalty["silence"] = _beyond(share, self.silence_limit, 1.0)
        if self.clipping_limit is not None:
            share = clipping_share(wave_BCN, self.clipping_level)
            measured["clipping_share"] = share
            penalty["clipping"] = _beyond(share, self.clipping_limit, 1.0)
        if self.flatness is not None:
            measured["flatness"] = flat = spectral_flatness(wave_BCN, rate)
            penalty["flatness"] = _beyond(flat, self.flatness, 1.0)
        score_B = sum(penalty.values(), start=wave_BCN.new_zeros(len(wave_BCN)).float())
        score_B = torch.where(finite_rows(wave_BCN), score_B, torch.nan)
        vectors = {}
        if self.diversity is not None:
            embed = mel_statistics if self.embedder is None else self.embedder.embed_audio
            vectors["diversity"] = embed(wave_BCN, rate).float()
        parts = measured | {f"{name}_penalty": value for name, value in penalty.items()}
        return RewardOutput(score_B, parts, vectors)

    def combine(self, output: RewardOutput, prompts: Sequence[Prompt]) -> RewardOutput:
        """Adds the diversity of a whole round (see ``zoo.types.Reward``).

        Its parts are ``diversity_db`` (or ``_cosine``) and ``diversity_penalty``. A sample whose
        others were dropped gets no penalty, and its part is the mean of the rest. Raises
        ``UserError`` when no prompt has two samples.
        """
        if self.diversity is None:
            return output
        cosine = self.embedder is not None
        distance_B, has_others = distance_to_others(
            output.vectors["diversity"], [prompt.id for prompt in prompts], cosine
        )
        if not has_others.any():
            raise UserError(
                "diversity needs at least two samples of a prompt in a round; raise data.repeats,"
                " or switch it off"
            )
        distance_B = torch.where(has_others, distance_B, distance_B[has_others].mean())
        penalty_B = torch.where(has_others, _beyond(distance_B, self.diversity, 0.0), 0.0).to(
            output.score_B
        )
        found = {
            f"diversity_{'cosine' if cosine else 'db'}": distance_B,
            "diversity_penalty": penalty_B,
        }
        return RewardOutput(output.score_B + penalty_B, {**output.parts, **found}, output.vectors)
