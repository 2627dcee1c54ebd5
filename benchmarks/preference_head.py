"""How long a preference head trains on cached embeddings, and what its report costs.

    OMP_NUM_THREADS=2 python benchmarks/preference_head.py

As many clips, prompts and clips per prompt as BATON's labels of two sounds (1,094 clips of 220
prompts), the head of full size, BATON's settings and ours. Embeddings and labels are random: this
measures time and says nothing about quality.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lightning as L
import torch

from datamodules.batches import RatedClip
from datamodules.rated_clips import RatedClips
from lightning_modules.preference_model import HeadOptimizer, Preference
from zoo.rewards.clap import ClapReward
from zoo.rewards.clap_features import ClapFeatures
from zoo.rewards.preference import PreferenceReward

EMBEDDING = 512
RUNS = {  # name -> (loss, batches, batch size, features, learning rate)
    "absolute, as BATON, batches of 32 clips": ("absolute", "clips", 32, "concat", 1e-2),
    "pairwise, batches of 32 pairs": ("pairwise", "pairs", 32, "concat", 1e-3),
    "Bradley-Terry, product and difference": ("bradley_terry", "pairs", 32, "match", 1e-3),
}


class Rows:
    """Invented labels: 63 % of the clips are good, as in BATON's."""

    def __init__(self, clips: int, prompts: int) -> None:
        good = torch.rand(clips, generator=torch.Generator().manual_seed(0)) < 0.63
        self.clips = [
            RatedClip(f"p{i % prompts}", Path(f"{i}.wav"), float(good[i]), f"p{i % prompts}")
            for i in range(clips)
        ]

    def rated_clips(self) -> list[tuple[str, RatedClip]]:
        return [("", clip) for clip in self.clips]


def invented_embeddings(clips: list[RatedClip]) -> ClapFeatures:
    generator = torch.Generator().manual_seed(1)
    prompts = list(dict.fromkeys(clip.prompt for clip in clips))
    rows = torch.randn(len(clips) + len(prompts), EMBEDDING, generator=generator)
    unit = torch.nn.functional.normalize(rows, dim=1)
    audio = {clip.audio: unit[i] for i, clip in enumerate(clips)}
    text = {prompt: unit[len(clips) + i] for i, prompt in enumerate(prompts)}
    return ClapFeatures(audio, text, {}, {}, 0)


def measured(name: str, rows: Rows, epochs: int) -> tuple[float, int, float]:
    """(seconds of training and report, optimiser steps, seconds of the report alone)."""
    loss, batches, batch_size, features, learning_rate = RUNS[name]
    data = RatedClips(rows, batches, batch_size)
    reward = PreferenceReward(ClapReward("untrained", "tiny"), EMBEDDING, features=features)
    module = Preference(reward, loss, HeadOptimizer("adam", learning_rate, 1e-5))
    module._embeddings = invented_embeddings(rows.clips)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    whole_s = time.perf_counter() - start
    start = time.perf_counter()
    module._finish("val", data.splits["val"])
    return whole_s, trainer.global_step, time.perf_counter() - start


def main(argv: list[str] | None = None) -> dict[str, tuple[float, int, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1094)
    parser.add_argument("--prompts", type=int, default=220)
    parser.add_argument("--epochs", type=int, default=51)
    options = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    rows = Rows(options.clips, options.prompts)
    found = {name: measured(name, rows, options.epochs) for name in RUNS}
    print(f"{options.clips} clips, {options.epochs} epochs, {torch.get_num_threads()} threads")
    for name, (whole_s, steps, report_s) in found.items():
        print(f"{name}: {whole_s:.1f} s for {steps} steps, report {report_s:.2f} s of it")
    return found


if __name__ == "__main__":
    main()
