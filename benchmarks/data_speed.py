"""Compares the cost of reading and encoding audio in two ways.

    python benchmarks/data_speed.py crops|latents|scores [--repeats 5]

``crops``: crops of 4 s at 16 kHz from recordings of 60 s, the whole file decoded and resampled, or
only the part around the crop. ``latents``: clips encoded by the embedded codec, 32 or 4 at a time.
``scores``: clips of 10 s read once for each of three cheap scorers, or once for all.
It prints the least wall and processor time of the repeats; on a busy machine rely on the second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamodules.audio import crop, prepare, read_crop
from datamodules.cache import encode_clips
from zoo.audio_files import read_audio
from zoo.evaluation.scores import OpenScorer, ScoreCache, as_scorer, scored_clips
from zoo.generations import Sample
from zoo.loading import load
from zoo.rewards.guards import GuardReward
from zoo.types import Backbone, Prompt

CROP_S = 4.0
RATE_HZ = 16_000
RECORDED_HZ = 44_100
PLACES = (0.0, 0.3, 0.6, 0.9)


@dataclass(frozen=True)
class Cost:
    wall_s: float
    processor_s: float


def measured(call: Callable[[], object], repeats: int) -> Cost:
    """The least cost of the repeats, after a warm-up."""
    call()
    costs = []
    for _ in range(repeats):
        wall_s = time.perf_counter()
        processor_s = time.process_time()
        call()
        costs.append((time.perf_counter() - wall_s, time.process_time() - processor_s))
    return Cost(min(wall_s for wall_s, _ in costs), min(busy_s for _, busy_s in costs))


def row(title: str, long: Cost, short: Cost) -> str:
    """One line: both costs, and how many times as much the long way takes."""
    sides = (
        ("wall", long.wall_s, short.wall_s),
        ("processor", long.processor_s, short.processor_s),
    )
    cells = [f"{name} {old:.3f} / {new:.3f} s = x{old / new:.2f}" for name, old, new in sides]
    return f"{title}: {', '.join(cells)}"


def crops(repeats: int, seconds: float = 60.0) -> list[str]:
    """A row per format; the crops of both ways are compared first.

    Raises:
        AssertionError: where the two ways give other samples.
    """
    rows = []
    samples = round(CROP_S * RATE_HZ)
    draw = np.random.default_rng(0)
    wave_NC = draw.uniform(-0.5, 0.5, (round(seconds * RECORDED_HZ), 2))
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("wav", "flac", "ogg"):
            path = Path(folder) / f"a.{suffix}"
            with soundfile.SoundFile(path, "w", RECORDED_HZ, wave_NC.shape[1]) as file:
                for block_NC in np.array_split(wave_NC, round(seconds)):  # ogg takes no long ones
                    file.write(block_NC)

            def whole(place: float, path: Path = path) -> torch.Tensor:
                return crop(prepare(read_audio(path), RATE_HZ, 1), samples, place)

            def part(place: float, path: Path = path) -> torch.Tensor:
                return read_crop(path, RATE_HZ, 1, samples, place)

            if not all(torch.equal(whole(place), part(place)) for place in PLACES):
                raise AssertionError(f"{suffix}: the part is not that of the whole file")
            long = measured(lambda whole=whole: [whole(place) for place in PLACES], repeats)
            short = measured(lambda part=part: [part(place) for place in PLACES], repeats)
            rows.append(row(f"4 crops of {CROP_S:g} s, {seconds:g} s of {suffix}", long, short))
    return rows


class Noise:
    """Clips of noise (a ``datamodules.cache.ClipSet`` without prompts)."""

    def __init__(self, clips: int, channels: int, samples: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.waves_BCN = torch.rand(clips, channels, samples, generator=draw) - 0.5

    def __len__(self) -> int:
        return len(self.waves_BCN)

    def wave(self, index: int) -> torch.Tensor:
        return self.waves_BCN[index]


def latents(repeats: int, backbone: Backbone | None = None, clips: int = 64) -> list[str]:
    """A row for batches of 32 and of 4, and the largest difference of their latents."""
    backbone = backbone or load("embedded/music")
    noise = Noise(clips, backbone.channels, round(CROP_S * backbone.sample_rate_hz))
    many, few = (encode_clips(backbone, noise, size).float() for size in (32, 4))
    difference = (many - few).abs().max() / few.abs().max()
    long = measured(lambda: encode_clips(backbone, noise, 32), repeats)
    short = measured(lambda: encode_clips(backbone, noise, 4), repeats)
    title = f"{clips} clips encoded, 32 and 4 at once"
    return [row(title, long, short), f"largest difference / largest value: {difference:.1e}"]


def scores(repeats: int, clips: int = 40, seconds: float = 10.0) -> list[str]:
    """A row for three scorers, one after the other or in one pass over the files."""
    limits = ([-60, -1], [-50, -2], [-40, -3])
    scorers = [
        as_scorer(f"guards {low} {high}", GuardReward(loudness_dbfs=[low, high]))
        for low, high in limits
    ]
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        samples = []
        for number in range(clips):
            path = Path(folder) / f"{number}.flac"
            soundfile.write(path, draw.uniform(-0.5, 0.5, round(seconds * RATE_HZ)), RATE_HZ)
            samples.append(Sample(path, Prompt(str(number), "noise")))

        def scored(together: Sequence[Sequence[OpenScorer]]) -> None:
            (Path(folder) / "scores.json").unlink(missing_ok=True)
            for some in together:
                scored_clips(samples, some, ScoreCache(Path(folder) / "scores.json"))

        long = measured(lambda: scored([[one] for one in scorers]), repeats)
        short = measured(lambda: scored([scorers]), repeats)
    return [row(f"{clips} clips, 3 scorers one by one and together", long, short)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=["crops", "latents", "scores"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    ways = {"crops": crops, "latents": latents, "scores": scores}
    rows = ways[options.what](options.repeats)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
