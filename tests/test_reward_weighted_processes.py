"""Reward-weighted fine-tuning on two processes, of which one has nothing to learn from labels.

This file is also what each of the two runs.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from toy_weighted import denoising
from toys import Given, ToyBackbone, prompts

from datamodules.batches import LatentBatch, PairedBatch
from lightning_modules.denoising import Denoising

WEIGHTS = ([0.0, 0.0], [0.5, -1.0])  # of the labelled samples of each process


def batch_of(rank: int, pretrain: bool) -> LatentBatch | PairedBatch:
    generator = torch.Generator().manual_seed(rank)
    latents = [torch.randn(2, 2, 8, generator=generator) for _ in range(2)]
    labelled = LatentBatch(latents[0], prompts(2), torch.tensor(WEIGHTS[rank]))
    return PairedBatch(labelled, LatentBatch(latents[1], prompts(2))) if pretrain else labelled


def module_of(pretrain: bool) -> Denoising:
    return denoising(ToyBackbone(), pretrain_weight=0.25 if pretrain else 0.0)


class Gradients(L.Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.found = [parameter.grad.clone() for parameter in module.parameters_that_learn]


def one_of_two_ranks(folder: str, rank: int, pretrain: bool) -> None:
    """Runs in another process: one step; writes gradients and weights to a file."""
    torch.set_num_threads(1)
    module = module_of(pretrain)
    recorder = Gradients()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        use_distributed_sampler=False,
    )
    trainer.fit(module, Given(batch_of(rank, pretrain)))
    weights = [parameter.detach() for parameter in module.parameters_that_learn]
    torch.save({"gradients": recorder.found, "weights": weights}, f"{folder}/{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("pretrain", [True, False], ids=["paired", "labels alone"])
def test_processes_share_the_mean_gradient(
    tmp_path: Path, project_root: Path, pretrain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared["PYTHONPATH"] = str(project_root)
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(rank), str(int(pretrain))],
            env={**shared, "LOCAL_RANK": str(rank), "NODE_RANK": "0"},
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    monkeypatch.setattr(Denoising, "log", lambda *_, **__: None)
    expected = []
    for rank in (0, 1):
        monkeypatch.setattr(Denoising, "global_rank", rank)
        module = module_of(pretrain)
        module.training_step(batch_of(rank, pretrain), 0).backward()
        expected.append([parameter.grad for parameter in module.parameters_that_learn])
    for a, b, own, other in zip(first["gradients"], second["gradients"], *expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, (own + other) / 2, rtol=1e-4, atol=1e-7)
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b)
    assert any(own.any() for own in expected[0]) is pretrain, (
        "the first process learns from PD only"
    )


if __name__ == "__main__":
    one_of_two_ranks(sys.argv[1], int(sys.argv[2]), bool(int(sys.argv[3])))
