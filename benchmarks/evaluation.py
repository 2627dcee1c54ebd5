"""Shared by the benchmarks: clips with their requested moods, and measurements of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.judges import MoodJudge
from benchmarks.music_metrics import in_tune_share, onset_rate, side_to_mid_db
from datamodules.batches import PromptBatch
from datamodules.music.music import Clip, render_clip
from lightning_modules.rl.rollouts import sample_and_score
from zoo.diffusion import Sampler
from zoo.errors import UserError
from zoo.files import written_beside
from zoo.rewards.mood import MOODS
from zoo.statistics.clustered import Clustered, clustered_mean
from zoo.types import Backbone, Prompt, Reward

# training renders seeds from 0, validation from 10,000,000
REFERENCE_SEED = 20_000_000
REAL_SEED = 21_000_000
# the held-out network: (wave_BCN, sample_rate_hz) -> (B, features)
Outputs = Callable[[Tensor, int], np.ndarray]


@dataclass(frozen=True)
class Clips:
    """Clips, with ``wave_BCN`` in [-1, 1], and the prompt or description of each."""

    wave_BCN: Tensor
    sample_rate_hz: int
    prompts: tuple[Prompt, ...]

    @property
    def moods(self) -> list[str]:
        return [prompt.labels["mood"] for prompt in self.prompts]


def real_clips(
    per_cell: int,
    instruments: Sequence[str],
    seconds: float,
    sample_rate_hz: int,
    first_seed: int,
    renderer: str = "soundfont",
) -> Clips:
    """``per_cell`` rendered clips per mood and instrument, from seeds outside training."""
    waves, prompts = [], []
    for instrument in instruments:
        for mood in MOODS:
            for index in range(per_cell):
                clip = Clip(mood, instrument, first_seed + index)
                waves.append(render_clip(clip, seconds, sample_rate_hz, renderer))
                labels = {"mood": mood, "instrument": instrument}
                name = f"{mood} {instrument}"
                prompts.append(Prompt(f"real {name} {index}", name, seconds=seconds, labels=labels))
    return Clips(torch.from_numpy(np.stack(waves)).float() / 32768, sample_rate_hz, tuple(prompts))


def codec_round_trip(backbone: Backbone, clips: Clips, batch_size: int = 16) -> Clips:
    """Passes the clips through the backbone's encoder and decoder."""
    with torch.no_grad():
        parts = [
            backbone.decode(backbone.encode(part)) for part in clips.wave_BCN.split(batch_size)
        ]
    return Clips(
        torch.cat(parts)[..., : clips.wave_BCN.shape[-1]], backbone.sample_rate_hz, clips.prompts
    )


def generations(
    backbone: Backbone,
    reward: Reward,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    repeats: int,
    seed: int,
    batch_size: int = 16,
) -> Clips:
    """``repeats`` samples per prompt; the noise depends only on seed, prompt id and repeat."""
    batch = PromptBatch(
        tuple(prompt for prompt in prompts for _ in range(repeats)),
        tuple(index for _ in prompts for index in range(repeats)),
    )
    samples = sample_and_score(
        backbone,
        reward,
        sampler,
        batch,
        seed=seed,
        sample_batch_size=batch_size,
        device=torch.device("cpu"),
        keep="wave",
    )
    return Clips(samples.wave_BCN, backbone.sample_rate_hz, samples.prompts)


def shuffled(clips: Clips, seed: int = 0) -> Clips:
    """The same clips with shuffled prompts, for what is right by chance."""
    order = np.random.default_rng(seed).permutation(len(clips.prompts))
    return Clips(clips.wave_BCN, clips.sample_rate_hz, tuple(clips.prompts[i] for i in order))


@dataclass(frozen=True)
class Measured:
    """Measurements of clips.

    - ``groups``: the mood or relation of each clip.
    - ``prompts``: the id of its prompt.
    - ``values``: name -> one number per clip, without NaN; a measure of some clips only has a
      shorter column, always of the same clips.
    """

    groups: list[str]
    prompts: list[str]
    values: Mapping[str, np.ndarray]

    def estimate(self, name: str) -> Clustered:
        """Mean over prompts with its interval, of a column with one number per clip."""
        return clustered_mean(self.values[name], self.prompts)

    def mean(self, name: str, group: str | None = None) -> float:
        """The mean of a column, or of one group in a column with one number per clip."""
        column = self.values[name]
        if group is not None:
            column = [value for value, own in zip(column, self.groups, strict=True) if own == group]
        return float(np.mean(column))

    def to_json(self) -> dict:
        values = {name: column.tolist() for name, column in self.values.items()}
        return {"groups": self.groups, "prompts": self.prompts, "values": values}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Measured:
        """Reads a record; ``KeyError`` for an old one without prompts."""
        values = {name: np.asarray(column) for name, column in record["values"].items()}
        return Measured(record["groups"], record["prompts"], values)


def measure(
    clips: Clips,
    reward: Reward,
    judge: MoodJudge | None,
    network: Outputs | None,
    batch_size: int = 32,
) -> Measured:
    """Measures clips.

    The columns are ``reward``, ``accuracy`` (of the reward's classifier), ``in_tune``,
    ``onsets_per_s`` and ``side_to_mid_db``; with a judge also ``judge_quadrant``,
    ``judge_probability`` and ``judge_accuracy``.
    """
    columns: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(clips.prompts), batch_size):
        wave = clips.wave_BCN[start : start + batch_size]
        prompts = clips.prompts[start : start + batch_size]
        with torch.no_grad():
            output = reward(wave, clips.sample_rate_hz, prompts)
        values = {
            "reward": output.score_B.numpy(),
            "accuracy": output.parts["accuracy"].numpy(),
            "in_tune": in_tune_share(wave.mean(dim=1), clips.sample_rate_hz).numpy(),
            "onsets_per_s": onset_rate(wave.mean(dim=1), clips.sample_rate_hz).numpy(),
            "side_to_mid_db": side_to_mid_db(wave).numpy(),
        }
        if judge is not None:
            verdict = judge.verdict(
                network(wave, clips.sample_rate_hz), [prompt.labels["mood"] for prompt in prompts]
            )
            values["judge_quadrant"] = verdict.quadrant_right
            values["judge_probability"] = verdict.probability
            values["judge_accuracy"] = verdict.probability_right
        for name, column in values.items():
            columns.setdefault(name, []).append(np.asarray(column, dtype=np.float64))
    ids = [prompt.id for prompt in clips.prompts]
    return Measured(
        clips.moods, ids, {name: np.concatenate(parts) for name, parts in columns.items()}
    )


def fitted_judge(reference: Clips, network: Outputs) -> MoodJudge:
    """The held-out judge, fitted on real clips."""
    return MoodJudge.fit(network(reference.wave_BCN, reference.sample_rate_hz), reference.moods)


def shown(found: Clustered, digits: int = 2) -> str:
    """``.83 [.75, .91]`` with ``digits`` decimals: the 95 % interval over prompts."""
    if found.low is None or found.high is None:
        return f"{found.value:.{digits}f} (one prompt, no interval)"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def half_width(found: Clustered) -> float:
    """Half the width of the 95 % interval, for pictures; 0 without an interval."""
    return 0.0 if found.high is None else found.high - found.value


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_text(path: Path, text: str) -> None:
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, record: dict) -> None:
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def loaded_network(name: str) -> Outputs | None:
    """The network ``vibenet``, or None for ``none``.

    Raises ``UserError`` for another name; ``ImportError`` says how to install the judge.
    """
    if name == "none":
        return None
    if name != "vibenet":
        raise UserError(f"invalid --judge {name!r}: expected vibenet or none")
    from benchmarks.judges import VibeNet

    return VibeNet()
