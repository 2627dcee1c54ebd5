"""The whole DDPO module on a problem with a known answer: the reward prefers one of four modes."""

import pytest
import torch
from torch import nn
from toy_ddpo import Recorder, module, trainer

from datamodules.batches import PromptBatch
from zoo.diffusion import VPDiscrete
from zoo.types import Conditioning, Prompt, RewardOutput

MODES = torch.tensor([[1.5, 1.5], [1.5, -1.5], [-1.5, 1.5], [-1.5, -1.5]])
SPREAD = 0.2  # standard deviation of a mode
SAMPLES = 256


class Mixture(nn.Module):
    """The exact denoiser of the mixture, plus a small trainable network that starts at zero."""

    sample_rate_hz, channels = 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.path = VPDiscrete.from_betas(0.00085, 0.012, "x0")
        torch.manual_seed(0)
        self.denoiser = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 2))
        nn.init.zeros_(self.denoiser[-1].weight)
        nn.init.zeros_(self.denoiser[-1].bias)

    def encode_prompts(self, prompts):
        return Conditioning({"none_B": torch.zeros(len(prompts))})

    def predict(self, x, time_B, conditioning):
        alpha, sigma = (value[:, None] for value in self.path.coefficients(time_B))
        variance = alpha**2 * SPREAD**2 + sigma**2
        weights = torch.softmax(
            -((x[:, None] - alpha[:, None] * MODES) ** 2).sum(-1) / (2 * variance), dim=1
        )
        posterior = MODES + (alpha * SPREAD**2 / variance)[:, None] * (
            x[:, None] - alpha[:, None] * MODES
        )
        return (weights[:, :, None] * posterior).sum(1) + self.denoiser(
            torch.cat([x, time_B[:, None] / 1000], dim=1)
        )

    def encode(self, wave_BCN):
        return wave_BCN[:, 0]

    def decode(self, latent):
        return latent[:, None]

    def latent_shape(self, seconds):
        return (2,)


class ToFirstMode:
    differentiable = True

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        return RewardOutput(-((wave_BCN[:, 0] - MODES[0]) ** 2).sum(1))


class OnePrompt:
    """One round: ``SAMPLES`` samples of one prompt; each pass is the next round."""

    def __init__(self) -> None:
        self.done = 0

    def __len__(self) -> int:
        return 1

    def __iter__(self):
        self.done += 1
        yield PromptBatch(
            (Prompt("p", "", seconds=1.0),) * SAMPLES, tuple(range(SAMPLES)), self.done - 1
        )


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [{"update.clip_range": 0.2}, {"update.clip_range": 1e-4, "update.per_round": 2}],
    ids=["wide-clip", "narrow-clip"],
)
def test_the_mixture_moves_to_the_rewarded_mode(changes):
    """From about -5.8 to above -0.5 in 60 rounds."""
    size = SAMPLES // changes.get("update.per_round", 1)
    settings = {
        "sampler.steps": 10,
        "sampler.guidance_scale": 1.0,
        "adapter.rank": 0,
        "optimizer.learning_rate": 1e-2,
        "advantages.kind": "batch",
        "sampler.batch_size": size,
        "update.batch_size": size,
        "optimizer.max_grad_norm": 1e9,
        "optimizer.weight_decay": 0.0,
    }
    recorder = Recorder()
    run = trainer(60, callbacks=[recorder])
    run.fit(
        module(backbone=Mixture(), reward=ToFirstMode(), **{**settings, **changes}), OnePrompt()
    )
    means = [metrics["reward/mean"] for metrics in recorder.rounds]
    assert means[0] < -5 and sum(means[-3:]) / 3 > -0.5, means[::10]
    if changes["update.clip_range"] < 0.1:
        assert (
            max(metrics["clip_fraction"] for metrics in recorder.rounds) > 0.1
        )  # the narrow range does bite
