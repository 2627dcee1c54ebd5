"""A tiny rendered piano set in EMOPIA's layout, and overrides for small configurations."""

from __future__ import annotations

from pathlib import Path

from datamodules.music.piano_demo import write_piano_demo

TINY = {
    "songs": 12,
    "segments": 1,
    "seconds": 1.2,
    "renderer": "additive",
    "audio_format": "wav",
}  # 4 clips a split, one a mood


def write_tiny_set(folder: Path, **changes) -> list[str]:
    """Writes the set to ``folder`` and returns overrides for it and a small classifier."""
    write_piano_demo(folder, **{**TINY, **changes})
    reward = (
        "channels=[4,4,4,4,4,4,4]",
        "n_mels=32",
        "n_fft=256",
        "hop_samples=256",
        "chunk_s=0.5",
    )
    data = (
        f"audio_dir={folder / 'audio'}",
        f"split_dir={folder}",
        "crop_s=0.5",
        "batch_size=2",
        "num_workers=0",
    )
    quiet = (
        "trainer.enable_progress_bar=false",
        "trainer.enable_model_summary=false",
        "trainer.accelerator=cpu",
    )
    return [
        *(f"module.reward.{knob}" for knob in reward),
        *(f"data.{knob}" for knob in data),
        *quiet,
    ]
