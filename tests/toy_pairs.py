"""Preference pairs of tones, and the smallest run of Diffusion-DPO on them."""

from __future__ import annotations

from pathlib import Path

from toy_weighted import CAPTIONS, SECONDS, label_row, write_lines, write_tone

from datamodules.preferences.label_pairs import LabelPairs
from datamodules.preferences.ranked import RankedClips
from lightning_modules.diffusion_dpo import DiffusionDPO
from lightning_modules.training_settings import AdapterSettings, ScheduleSettings

FULL, LORA = AdapterSettings(rank=0), AdapterSettings(rank=2)


def pair_row(caption: str, chosen: str, rejected: str, label: float = 1.0, **more) -> dict:
    row = {"prompt": caption, "audio": chosen, "other": rejected, "task": "pairwise"}
    return row | {"label": label, "source": "HD"} | more


def write_pairs(folder: Path, count: int = 4) -> Path:
    """``pairs.jsonl``, a comparison per caption, and ``audio/``."""
    rows = []
    for number in range(count):
        names = [f"p{number}_{side}.wav" for side in "ab"]
        for side, name in enumerate(names):
            write_tone(folder / "audio" / name, 200 + 90 * number + 400 * side)
        rows.append(pair_row(CAPTIONS[number % len(CAPTIONS)], *names))
    write_lines(folder / "pairs.jsonl", rows)
    return folder


def write_rated(folder: Path, labels: dict[str, list[float]]) -> Path:
    """``rated.jsonl``: the clips of each caption with their labels, and ``audio/``."""
    rows = []
    for place, (caption, values) in enumerate(labels.items()):
        for number, value in enumerate(values):
            name = f"r{place}_{number}.wav"
            write_tone(folder / "audio" / name, 300 + 100 * place + 37 * number)
            rows.append(label_row(name, caption, value))
    write_lines(folder / "rated.jsonl", rows)
    return folder


def label_pairs(folder: Path, file: str = "pairs.jsonl", **more) -> LabelPairs:
    return LabelPairs(str(folder / file), str(folder / "audio"), **more)


def ranked_clips(folder: Path, backbone=None, source=None, **more) -> RankedClips:
    settings = {"seconds": SECONDS, "batch_size": 2, "encoder": backbone} | more
    return RankedClips(source or label_pairs(folder), **settings)


def dpo(backbone, **more) -> DiffusionDPO:
    """At a rate that is high enough to see a step."""
    optimizer = ScheduleSettings(
        learning_rate=1e-3, schedule="constant", total_steps=None, warmup_steps=0
    )
    return DiffusionDPO(backbone, **{"optimizer": optimizer, "adapter": FULL} | more)
