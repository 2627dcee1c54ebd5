"""Callbacks that write the results of a run and show its progress (``default_callbacks``)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.audio_samples import AudioSamples
from lightning_modules.progress import RoundProgress
from lightning_modules.report import draw_curve, write_report
from zoo.files import written_beside
from zoo.hub.adapter_files import base_hashes, check_base
from zoo.hub.adapters import save_adapter

Row = dict[str, float]
FIRST_COLUMNS = ("round", "epoch", "step")


def default_callbacks(
    out_dir: str | Path, audio_count: int = 8, progress: bool = True
) -> list[Callback]:
    """The callbacks that write all results into ``out_dir``, and a progress display.

    They write metrics.csv, adapter/, audio/before, audio/after, curve.png and report.html.
    """
    out_dir = Path(out_dir)
    metrics = MetricsCSV(out_dir / "metrics.csv")
    callbacks: list[Callback] = [
        metrics,
        AdapterExport(out_dir),
        AudioSamples(out_dir / "audio", audio_count),
        Curve(out_dir / "curve.png", metrics),
        Report(out_dir),
    ]
    return [*callbacks, RoundProgress()] if progress else callbacks


def write_results(trainer: Trainer, pl_module: LightningModule) -> None:
    """Writes the results of a run again, in case it was killed after its last checkpoint."""
    for callback in trainer.callbacks:
        if isinstance(callback, (AdapterExport, AudioSamples, Curve, Report)):
            callback.on_train_end(trainer, pl_module)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes a CSV with the union of all columns; missing cells are empty.

    Raises ``OSError``; then an older file stays.
    """
    names = {name for row in rows for name in row}
    columns = [
        *(name for name in FIRST_COLUMNS if name in names),
        *sorted(names.difference(FIRST_COLUMNS)),
    ]
    with written_beside(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


class MetricsCSV(Callback):
    """Writes one row per training batch, with the module's ``round_metrics``.

    ``held_out`` numbers join the row before them. A sanity check over held-out prompts before
    training (``num_sanity_val_steps=-1``) becomes the row of round 0. Rows are stored in the
    checkpoint, so that a resumed run has each round once. Lightning's ``callback_metrics`` would
    not serve: they keep values that only an earlier round had, such as the mean of a mood.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows = []

    @property
    def state_key(self) -> str:
        return "MetricsCSV"  # without the path: a run folder may be moved

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        held_out = getattr(pl_module, "held_out", {})
        if held_out and not self.rows:
            self.rows = [{"round": 0.0, "epoch": 0.0, "step": 0.0, **held_out}]
            self._write(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        place = {"epoch": float(trainer.current_epoch), "step": float(trainer.global_step)}
        self.rows.append(pl_module.round_metrics | place)
        self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        held_out = getattr(pl_module, "held_out", {})
        if held_out and self.rows and not trainer.sanity_checking:
            self.rows[-1] |= held_out
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            write_rows(self.path, self.rows)


class AdapterExport(Callback):
    """Writes the adapter in peft's layout to ``adapter/`` at the end of training.

    With an EMA these are the averaged weights. After full fine-tuning it writes
    ``denoiser.safetensors`` instead. Checkpoints hold the hashes of the base model, so that an
    export names its base, and a run whose base has changed is not resumed (``UserError``).
    """

    def __init__(self, out_dir: str | Path) -> None:
        self.out_dir = Path(out_dir)
        self.base_sha256 = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.adapter.rank:
            recorded = self.base_sha256
            self.base_sha256 = base_hashes(pl_module.backbone.denoiser)
            check_base(
                pl_module.backbone.denoiser,
                recorded,
                "the run to resume",
                "the base of its first start",
            )

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["base_sha256"] = dict(self.base_sha256)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        old = checkpoint["callbacks"].get("AdapterExport", {})  # where 0.1.0-dev kept it
        self.base_sha256 = dict(checkpoint.get("base_sha256") or old.get("base_sha256", {}))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        ema = getattr(pl_module, "ema", None)
        with nullcontext() if ema is None else ema.swapped():
            if pl_module.adapter.rank:
                save_adapter(pl_module.backbone, self.out_dir / "adapter")
            else:
                from safetensors.torch import save_model

                with written_beside(self.out_dir / "denoiser.safetensors") as part:
                    save_model(pl_module.backbone.denoiser, str(part))


class Curve(Callback):
    """Draws ``curve.png`` (rewards over rounds) after every evaluation and at the end."""

    def __init__(self, path: str | Path, metrics: MetricsCSV) -> None:
        self.path = Path(path)
        self.metrics = metrics

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self.metrics.rows:
            draw_curve(self.metrics.rows, self.path)


class Report(Callback):
    """Writes ``report.html`` at the end, from the files in the run folder."""

    def __init__(self, out_dir: str | Path) -> None:
        self.out_dir = Path(out_dir)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            reward = getattr(pl_module, "reward", None)
            write_report(self.out_dir, getattr(reward, "unit", ""))
