"""One round on two processes equals the round on one process.

This file is also what each of the two runs.
"""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from toy_ddpo import Recorder, module, trainer, weights
from toys import Given, ToyBackbone, ToyReward, prompt_round

from datamodules.batches import PromptBatch
from lightning_modules.audio_samples import AudioSamples


class Solved(ToyReward):
    """The same score for every sample of two prompts: they have nothing to learn."""

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        output = super().__call__(wave_BCN, sample_rate_hz, prompts)
        learns = torch.tensor([prompt.id in ("p0", "p1") for prompt in prompts])
        return replace(output, score_B=torch.where(learns, output.score_B, 0.0))


SHARED = {"update.ratio_check": 1e-4, "optimizer.max_grad_norm": 1e9}
CASES = {  # settings, and the samples of each process
    "divergence": (
        ToyReward,
        {"update.timestep_fraction": 0.5, "update.kl_coef": 0.1},
        ([0, 1, 2, 3], [4, 5, 6, 7]),
    ),
    # the second process has one micro-batch of one step, the first one has four of four steps
    "solved": (
        Solved,
        {"advantages.kind": "group", "update.batch_size": 1},
        ([0, 1, 4, 5], [2, 3, 6, 7]),
    ),
}


def ddpo_of(case: str):
    reward, settings, _ = CASES[case]
    return module(backbone=ToyBackbone(dtype=torch.float64), reward=reward(), **SHARED, **settings)


def one_of_two_ranks(folder: str, rank: int, case: str) -> None:
    """Runs in another process: half of the round; writes gradients and weights to a file."""
    torch.set_num_threads(1)
    batch = prompt_round(8)
    mine = CASES[case][2][rank]
    prompts = tuple(batch.prompts[row] for row in mine)
    own = PromptBatch(prompts, tuple(batch.sample_index[row] for row in mine), 0)
    ddpo = ddpo_of(case)
    recorder = Recorder()
    samples = AudioSamples(f"{folder}/audio", count=2)  # played by the first process alone
    run = trainer(
        devices=2, strategy="ddp", callbacks=[recorder, samples], use_distributed_sampler=False
    )
    run.fit(ddpo, Given(own), Given(own))
    found = {
        "gradients": recorder.gradients,
        "weights": weights(ddpo),
        "metrics": recorder.rounds[0],
        "held_out": ddpo.held_out,
    }
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, project_root, case):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared["PYTHONPATH"] = str(project_root)
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(rank), case],
            env={**shared, "LOCAL_RANK": str(rank), "NODE_RANK": "0"},
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    ddpo = ddpo_of(case)
    recorder = Recorder()
    trainer(callbacks=[recorder]).fit(ddpo, Given(prompt_round(8)), Given(prompt_round(8)))
    scale = max(gradient.abs().max().item() for gradient in recorder.gradients.values())
    for name, gradient in recorder.gradients.items():
        assert torch.equal(first["gradients"][name], second["gradients"][name])
        torch.testing.assert_close(first["gradients"][name], gradient, rtol=0, atol=1e-6 * scale)
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(
            first["weights"][name], weights(ddpo)[name], rtol=1e-6, atol=1e-6
        )
    assert {path.name for path in (tmp_path / "audio").iterdir()} == {
        "before",
        "round_00001",
        "after",
    }
    assert first["held_out"] == pytest.approx(ddpo.held_out, rel=1e-6)
    for name in ("reward/mean", "reward/std", "reward/happy/mean", "latent_norm", "grad_norm"):
        assert first["metrics"][name] == pytest.approx(recorder.rounds[0][name], rel=1e-5)


if __name__ == "__main__":
    one_of_two_ranks(sys.argv[1], int(sys.argv[2]), sys.argv[3])
