"""A tiny base model with a zoo name, and a real DDPO run on it, for tests of exports and cards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from toys import SMALL

from lightning_modules import run
from zoo.backbones.tiny import TinyAudio
from zoo.configuration import read_configuration
from zoo.hub.artifact import save_artifact
from zoo.hub.entry import ZooEntry
from zoo.hub.table import ENTRIES

BASE = "tiny-base"
CONFIG = """
module:
  _target_: lightning_modules.rl.ddpo.DDPO
  backbone: {_target_: zoo.load, name: tiny-base}
  reward: {_target_: toys.ToyReward}
  sampler: {steps: 3, guidance_scale: 1.5, batch_size: 4}
  update: {batch_size: 4, ratio_check: false}
  adapter: {rank: 2}
  optimizer: {learning_rate: 0.05, ema_decay: 0.5}
data:
  _target_: datamodules.prompts.PromptDataModule
  template: "A {word} {instrument}"
  words: {happy: [merry], sad: [gloomy]}
  instruments: [piano, harp]
  held_out: [[merry, piano]]
  seconds: 0.256
  prompts_per_round: 2
  repeats: 2
  val_repeats: 1
trainer:
  max_epochs: 2
  accelerator: cpu
  num_sanity_val_steps: -1
  enable_model_summary: false
  enable_progress_bar: false
"""


def random_model(seed: int) -> TinyAudio:
    """A model with random gates: those of a new model are zero, and hide any adapter."""
    torch.manual_seed(seed)
    model = TinyAudio(**SMALL)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


@contextmanager
def named_base(folder: Path, licence: str = "cc-by-nc-sa-4.0") -> Iterator[Path]:
    """Makes ``tiny-base`` a zoo name of a random model in ``folder`` with an inherited licence."""
    save_artifact(
        folder, kind="backbone", architecture="tiny_audio", arguments=SMALL, module=random_model(5)
    )
    ENTRIES[BASE] = ZooEntry(
        BASE, "backbone", "tiny_audio", "random", licence, 16_000, folder=str(folder)
    )
    try:
        yield folder
    finally:
        del ENTRIES[BASE]


def trained(out_dir: Path, *overrides: str) -> Path:
    """The run folder of two rounds of DDPO on ``tiny-base``."""
    config = out_dir.with_suffix(".yaml")
    config.write_text(CONFIG, encoding="utf-8")
    run.fit(read_configuration([config], [f"out_dir={out_dir}", *overrides]))
    return out_dir
