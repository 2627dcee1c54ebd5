"""Parity with kvablack/ddpo-pytorch on golden numbers; tolerances in golden/ddpo/FACTS.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_modules.rl.advantages import PromptTracker, batch_advantages
from lightning_modules.rl.losses import clipped_policy_loss
from zoo.diffusion import (
    Sampler,
    VPDiscrete,
    gaussian_step,
    guided_output,
    log_prob,
    rollout,
    step_log_prob,
)
from zoo.types import Conditioning, Prompt, Trajectory

pytestmark = pytest.mark.parity
PREDICTION = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


class Golden:
    """One topic: ``facts`` (the JSON) and arrays by key."""

    def __init__(self, folder: Path, topic: str) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "ddpo" / f"{topic}.json").read_text())
        self._arrays = np.load(folder / "ddpo" / f"{topic}.npz")
        self.keys = list(self._arrays.files)

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self._arrays[key])


def path_of(scheduler: dict[str, Any], prediction: str) -> VPDiscrete:
    assert (
        scheduler["beta_schedule"] == "scaled_linear"
        and not scheduler["clip_sample"]
        and not scheduler["set_alpha_to_one"]
    )
    return VPDiscrete.from_betas(
        scheduler["beta_start"],
        scheduler["beta_end"],
        PREDICTION[prediction],
        scheduler["num_train_timesteps"],
        scheduler["steps_offset"],
    )


def assert_close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    worst = (got.double() - expected.double()).abs().max().item()
    assert got.shape == expected.shape and worst <= tolerance, (
        f"{what}: off by {worst:.2e}, allowed {tolerance:.0e}"
    )


def test_ddpo_alphas_cumprod(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "ddim_step")
    for name, scheduler in golden.facts["scheduler_configs"].items():
        expected = golden[f"{name}.alphas_cumprod"]
        relative = (path_of(scheduler, "epsilon").alphas_cumprod - expected).abs() / expected
        assert relative.max() <= 1e-6, name


def test_ddpo_step_log_prob_and_ratio(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "ddim_step")
    cases = [key.removesuffix(".timesteps") for key in golden.keys if key.endswith(".timesteps")]
    assert cases
    for case in cases:
        name, prediction, count = case.split(".")
        path = path_of(golden.facts["scheduler_configs"][name], prediction)
        steps = int(count.removeprefix("N"))
        times = path.times(steps)
        assert torch.equal(times[:-1], golden[f"{case}.timesteps"])
        position = {time: i for i, time in enumerate(times[:-1].tolist())}
        step_B = torch.tensor([position[time] for time in golden[f"{case}.t"].tolist()])
        coefficients = (*path.coefficients(times[step_B]), *path.coefficients(times[step_B + 1]))

        def step(
            output: Tensor, eta: float, coefficients=coefficients, path=path
        ) -> tuple[Tensor, Tensor]:
            return gaussian_step(
                golden["sample"], output, *coefficients, prediction=path.prediction, eta=eta
            )

        mean, std = step(golden["model_output"], 1.0)
        next_sample = mean + std.reshape(-1, *[1] * (mean.ndim - 1)) * golden["noise"]
        assert_close(mean, golden[f"{case}.mean"], 1e-5, f"{case} mean")
        assert_close(std, golden[f"{case}.std"], 1e-5, f"{case} std")
        assert_close(next_sample, golden[f"{case}.next_sample"], 1e-5, f"{case} next_sample")
        assert bool((std > 0).all())
        stored = golden[f"{case}.next_sample"]
        old = log_prob(stored, mean, std)
        new = log_prob(stored, *step(golden["model_output_new"], 1.0))
        assert_close(old, golden[f"{case}.log_prob"], 2e-5, f"{case} log_prob")
        assert_close(new, golden[f"{case}.log_prob_new"], 2e-5, f"{case} log_prob_new")
        assert_close((new - old).exp(), golden[f"{case}.ratio"], 2e-5, f"{case} ratio")
        mean, std = step(golden["model_output"], 0.5)
        assert_close(mean, golden[f"{case}.mean_eta05"], 1e-5, f"{case} mean, eta 0.5")
        assert_close(std, golden[f"{case}.std_eta05"], 1e-5, f"{case} std, eta 0.5")
        mean, std = step(golden["model_output"], 0.0)
        assert_close(mean, golden[f"{case}.next_eta0"], 1e-5, f"{case} next, eta 0")
        assert bool((std == 0).all())


def toy(x: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
    """The analytic network of the golden trajectories; conditioned on its two coefficients."""
    a, b, t = (
        value.reshape(-1, *[1] * (x.ndim - 1))
        for value in (conditioning["a"], conditioning["b"], time_B)
    )
    return a * x + b * torch.tanh(x) * torch.sin(t / 200)


def test_ddpo_trajectory(golden_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden(golden_dir, "trajectory")
    schedulers = Golden(golden_dir, "ddim_step").facts["scheduler_configs"]
    assert golden.facts["cases"]
    for case in golden.facts["cases"]:
        key = case["case"]
        name, prediction = key.split(".")
        path = path_of(schedulers[name], prediction)
        steps = case["N"]
        sampler = Sampler(steps, guidance_scale=case["guidance"], eta=golden.facts["eta"])
        expected = golden[f"{key}.x"].transpose(0, 1)
        noise = golden[f"{key}.noise"]
        count = noise.shape[0]
        shape = noise.shape[2:]
        sides = [
            Conditioning({c: torch.full((count,), case[f"{c}_{side}"]) for c in ("a", "b")})
            for side in ("cond", "uncond")
        ]
        given = iter(
            torch.cat([golden[f"{key}.x"][:, :1], noise], dim=1).transpose(0, 1).flatten(0, 1)
        )
        with monkeypatch.context() as patch:
            patch.setattr(
                torch, "randn", lambda *_, given=given, **__: next(given)
            )  # the given noise instead of drawn noise
            prompts = [Prompt(f"p{i}", "") for i in range(count)]
            generators = [torch.Generator()] * count
            result = rollout(toy, path, sampler, prompts, *sides, shape, generators)
        assert next(given, None) is None
        assert torch.equal(result.times_S[:-1], golden[f"{key}.timesteps"])
        assert_close(
            result.latents_SB, expected, 1e-4 * expected.abs().max().item(), f"{key} latents"
        )
        log_probs = golden[f"{key}.log_prob"].transpose(0, 1)
        assert_close(result.log_prob_SB, log_probs, 5e-5, f"{key} log-probs")
        stored = Trajectory(
            result.prompts,
            sides[0],
            sides[1],
            expected.contiguous(),
            result.times_S,
            log_probs,
            result.std_S,
        )
        for step in range(steps):
            scored = step_log_prob(toy, path, sampler, stored, torch.full((count,), step))[0]
            assert_close(scored, log_probs[step], 5e-5, f"{key} step {step} scored again")
        swapped = guided_output(
            toy, expected[0], result.times_S[:1].expand(count), sides[1], sides[0], case["guidance"]
        )
        right = guided_output(
            toy, expected[0], result.times_S[:1].expand(count), *sides, case["guidance"]
        )
        assert (
            swapped - right
        ).abs().max() > 1e-3  # these numbers can tell the guidance halves apart


def test_ddpo_policy_loss(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "ppo_loss")
    assert golden.facts["cases"]
    for case in golden.facts["cases"]:
        key = case["case"]
        log_prob_new = golden[f"{key}.new_log_prob"].requires_grad_()
        result = clipped_policy_loss(
            log_prob_new,
            golden[f"{key}.old_log_prob"],
            golden[f"{key}.advantages"],
            case["clip_range"],
            case["adv_clip_max"],
        )
        result.loss.backward()
        gradient = golden[f"{key}.grad_new_log_prob"]
        assert result.loss.item() == pytest.approx(golden[f"{key}.loss"].item(), rel=1e-4)
        assert torch.allclose(log_prob_new.grad, gradient, rtol=1e-4, atol=0)
        assert torch.equal(log_prob_new.grad == 0, gradient == 0)
        assert torch.allclose(result.ratio, golden[f"{key}.ratio"], rtol=0, atol=1e-6)
        assert result.clip_fraction.item() == golden[f"{key}.clipfrac"].item()
        assert result.approx_kl.item() == pytest.approx(golden[f"{key}.approx_kl"].item(), rel=1e-4)


def test_ddpo_prompt_tracker(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "stat_tracker")
    assert golden.facts["cases"]
    for case in golden.facts["cases"]:
        tracker = PromptTracker(case["buffer_size"], case["min_count"])
        for i, call in enumerate(case["calls"]):
            key = f"{case['case']}.call{i}"
            got = tracker.update(call["prompts"], golden[f"{key}.rewards"])
            assert_close(torch.from_numpy(got), golden[f"{key}.advantages"], 1e-4, key)
            stats = tracker.stats()
            assert set(stats) == set(call["stats"])
            for prompt, expected in call["stats"].items():
                assert stats[prompt].count == expected["count"]
                assert (stats[prompt].mean, stats[prompt].std) == pytest.approx(
                    (expected["mean"], expected["std"]), abs=1e-4
                )
    got = batch_advantages(golden["global.rewards"])
    assert_close(torch.from_numpy(got), golden["global.advantages"], 1e-4, "global")
