"""The smallest module and data for a run, and a configuration that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from zoo.configuration import Run, read_configuration

ROOT = Path(__file__).resolve().parents[1]


class Line(L.LightningModule):
    def __init__(
        self,
        width: int,
        learning_rate: float = 0.1,
        fail_at: int | None = None,
        kind: Literal["a", "b"] = "a",
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.save_hyperparameters()
        self.linear = torch.nn.Linear(width, 1)
        self.frozen = torch.nn.Linear(3, 1).requires_grad_(False)

    def training_step(self, batch, index):
        if self.hparams.fail_at is not None and self.global_step == self.hparams.fail_at:
            raise ValueError("the reward gave NaN")
        loss = self.linear(batch[0]).square().mean() + 0 * torch.rand(1).sum()
        self.log("loss", loss, on_step=True)
        return loss

    def predict_step(self, batch, index):
        return self.linear(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.linear.parameters(), self.hparams.learning_rate)

    def export(self, out_dir):
        torch.save(self.linear.state_dict(), Path(out_dir) / "exported.pt")


class Points(L.LightningDataModule):
    def __init__(
        self, width: int, count: int = 8, token: str | None = None, missing_at_setup: bool = False
    ) -> None:
        super().__init__()
        self.points = torch.linspace(-1, 1, count * width).reshape(count, width)
        self.missing = missing_at_setup

    def setup(self, stage):
        if self.missing:
            raise FileNotFoundError("no clips in data/clips")

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.points), batch_size=2, shuffle=True)

    def predict_dataloader(self):
        return DataLoader(TensorDataset(self.points), batch_size=4)


class WithoutLoop:
    pass


def config(tmp_path: Path, text: str = "", name: str = "c.yaml") -> Path:
    body = f"""
module: {{_target_: toy_run.Line, width: 4}}
data: {{_target_: toy_run.Points, width: '${{module.width}}'}}
trainer:
  max_epochs: 2
  accelerator: cpu
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
out_dir: {tmp_path / "run"}
seed: 3
{text}"""
    path = tmp_path / name
    path.write_text(body)
    return path


def load(tmp_path: Path, *overrides: str) -> Run:
    return read_configuration([config(tmp_path)], overrides)


def needs_more():
    raise ModuleNotFoundError("No module named 'not_installed_here'")


def flat(node, prefix: str = "") -> dict:
    """``{"a": {"b": [1]}}`` as ``{"a.b.0": 1}``."""
    if not node or not isinstance(node, dict | list | tuple):
        return {prefix: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    found = {}
    for key, value in items:
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
