"""Label files and recordings of tones for reward-weighted fine-tuning, and what runs on them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lightning as L
import torch

from datamodules.preferences.rated import LabelFiles
from datamodules.preferences.recorded import CaptionedFiles
from datamodules.preferences.weighted import WeightedClips
from lightning_modules.denoising import Denoising
from lightning_modules.run_folder import every_epoch
from lightning_modules.training_settings import ScheduleSettings
from zoo.audio_files import Waveform, write_audio

RATE_HZ = 16_000
SECONDS = 0.5
LABELS = (1, 0, 0.5, 1, 0)
CAPTIONS = ("a dog barks", "rain falls on a roof", "a sad piano", "a bird and a dog")


def write_tone(path: Path, hz: float, rate_hz: int = RATE_HZ, seconds: float = SECONDS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time_N = torch.arange(round(seconds * rate_hz)) / rate_hz
    write_audio(path, Waveform(0.3 * torch.sin(2 * math.pi * hz * time_N)[None], rate_hz))
    return path


def label_row(name: str, caption: str, label: float, source: str = "HD", **more: object) -> dict:
    value = {"label": label} if source == "HD" else {"score": label}
    row = {"prompt": caption, "audio": name, "task": "integrity", "source": source}
    return row | value | more


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_corpus(folder: Path, labels: tuple[float, ...] = LABELS, pretrain: int = 4) -> Path:
    """``hd.jsonl``, ``rd.jsonl``, ``pd.json``, ``val.json`` and ``audio/``.

    The labels are dealt to people (HD) and a reward model (RD) in turn; prompts have two clips.
    """
    rows: dict[str, list[dict]] = {"HD": [], "RD": []}
    for number, label in enumerate(labels):
        source = ("HD", "RD")[number % 2]
        name = f"made/{number:04d}.wav"
        write_tone(folder / "audio" / name, 200 + 50 * number)
        caption = CAPTIONS[number // 2 % len(CAPTIONS)]
        rows[source].append(label_row(name, caption, label, source))
    write_lines(folder / "hd.jsonl", rows["HD"])
    write_lines(folder / "rd.jsonl", rows["RD"])
    for file, first, count in (("pd.json", 0, pretrain), ("val.json", 100, 3)):
        found = []
        for number in range(first, first + count):
            name = f"real/r{number:04d}.wav"
            write_tone(folder / "audio" / name, 900 + 11 * number)
            caption = CAPTIONS[number % len(CAPTIONS)]
            found.append({"dataset": "audiocaps", "location": name, "captions": caption})
        (folder / file).write_text("\n".join(json.dumps(row) for row in found))
    return folder


def label_files(folder: Path, **more: object) -> LabelFiles:
    files = [str(folder / name) for name in ("hd.jsonl", "rd.jsonl")]
    return LabelFiles(files, str(folder / "audio"), **more)


def recordings(folder: Path, rate_hz: int = RATE_HZ, channels: int = 1, **more) -> CaptionedFiles:
    settings = {"val_files": str(folder / "val.json")} | more
    audio = str(folder / "audio")
    return CaptionedFiles(str(folder / "pd.json"), audio, rate_hz, channels, SECONDS, **settings)


def weighted_clips(folder: Path, backbone=None, pretrain: bool = True, **more) -> WeightedClips:
    """Of ``write_corpus``; ``backbone`` sets rate and channels, and encodes."""
    rate_hz = getattr(backbone, "sample_rate_hz", RATE_HZ)
    channels = getattr(backbone, "channels", 1)
    other = recordings(folder, rate_hz, channels) if pretrain else None
    settings = {"pretrain": other, "pretrain_batch_size": 2, "encoder": backbone} | more
    return WeightedClips(label_files(folder), SECONDS, **settings)


def denoising(backbone, **more) -> Denoising:
    """BATON's settings but for the rate, which is high enough to see a step."""
    optimizer = ScheduleSettings(
        learning_rate=1e-3,
        schedule="linear",
        total_steps=None,
        warmup_steps=0,
        betas=(0.9, 0.999),
        max_grad_norm=None,
    )
    settings = {
        "optimizer": optimizer,
        "condition_dropout": 0.0,
        "min_snr_gamma": 5.0,
        "min_snr_form": "snr",
        "pretrain_weight": 0.25,
        "ema_decay": None,
        "trainable": ["denoiser"],
    }
    return Denoising(backbone, **settings | more)


def fitted(module: L.LightningModule, data: WeightedClips, folder: Path, **trainer) -> L.Trainer:
    checkpoint = trainer.pop("checkpoint", None)
    made = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[every_epoch(folder)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **trainer,
    )
    made.fit(module, datamodule=data, ckpt_path=checkpoint)
    return made
