"""CRPO with an epoch of SFT on two processes. This file is also what each of the two runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from test_own_rounds import Loudness, prompts, rounds
from test_reward_weighted import moving
from toy_backbones import build
from toy_pairs import FULL, dpo, ranked_clips

import lightning_modules.own_rounds as own_rounds


class Phases(L.Callback):
    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self.seen.append(module.is_sft)


def one_of_two_ranks(folder: str, rank: int) -> None:
    """Runs in another process: two iterations of one epoch; writes what it saw to a file."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    own_rounds._PROMPTS_AT_A_TIME = 2
    reward = Loudness()
    source = rounds(Path(folder), reward, prompts=prompts(6), clips=2)
    phases = Phases()
    module = dpo(moving(build("tiny_audio")), adapter=FULL, winner_weight=1.0, sft_epochs=1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[phases],
        use_distributed_sampler=False,
    )
    data = ranked_clips(Path(folder), None, source, batch_size=1)
    trainer.fit(module, datamodule=data)
    weights = [parameter.detach() for parameter in module.parameters_that_learn]
    seen = {"phases": phases.seen, "weights": weights, "scored": reward.scored}
    torch.save(seen, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_processes_share_the_clips_and_leave_sft_together(
    tmp_path: Path, project_root: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    tests = Path(__file__).parent
    shared["PYTHONPATH"] = os.pathsep.join([str(project_root), str(tests)])
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(rank)],
            env={**shared, "LOCAL_RANK": str(rank), "NODE_RANK": "0"},
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=400) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["phases"] == second["phases"] == [True] * 3 + [False] * 3
    # three folders of two prompts with two clips each: two for the first process, one for the other
    assert (first["scored"], second["scored"]) == (2 * 8, 2 * 4)
    assert len(list((tmp_path / "clips").glob("iteration_*/*"))) == 6
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b)


if __name__ == "__main__":
    one_of_two_ranks(sys.argv[1], int(sys.argv[2]))
