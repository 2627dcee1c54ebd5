"""The reference schedule learns the same as ours from the same samples; the speed benchmark."""

import json
from dataclasses import replace

import pytest
import torch
from toy_ddpo import Recorder, module, trainer
from toys import Given, ToyBackbone, prompt_round, small_audio

from benchmarks import ddpo_speed, ddpo_work
from benchmarks.reference_schedule import Phases, Schedule, sampled, updated
from zoo.types import RewardOutput

SCHEDULES = [
    Schedule(per_update=4),
    Schedule(per_update=4, encode_once=True),
    Schedule(per_update=4, one_copy=True),
    Schedule(per_update=4, rows=4, encode_once=True, one_copy=True),
]


def restated(ddpo, schedule, batch, step=None):
    """(samples, gradients of the first optimiser step, steps) of one round of the reference."""
    parameters = list(ddpo.trainable().values())
    steps = []
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    sampler = replace(ddpo.sampler, detach_unconditional=schedule.detach)
    samples = sampled(ddpo.backbone, ddpo.reward, sampler, batch, schedule, 0, Phases())

    def record() -> None:
        steps.append([parameter.grad.clone() for parameter in parameters])

    generator = torch.Generator().manual_seed(0)
    updated(
        ddpo.backbone,
        sampler,
        samples,
        schedule,
        optimizer,
        parameters,
        0.1,
        generator,
        Phases(),
        record,
    )
    return samples, steps


@pytest.fixture(scope="module")
def by_ddpo():
    """DDPO's gradient of a round of four samples, with equal advantages and both branches."""
    recorder = Recorder()
    ddpo = module(
        {
            "advantages.kind": "batch",
            "optimizer.max_grad_norm": 1e9,
            "update.skip_last_step": False,
        },
        backbone=ToyBackbone(dtype=torch.float64),
    )
    trainer(callbacks=[recorder]).fit(ddpo, Given(prompt_round(4)))
    return recorder


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_its_gradient_equals_ddpos(schedule, by_ddpo):
    ddpo = module(
        {"advantages.kind": "batch", "update.skip_last_step": False},
        backbone=ToyBackbone(dtype=torch.float64),
    )
    _, steps = restated(ddpo, schedule, prompt_round(4))
    scale = max(gradient.abs().max() for gradient in by_ddpo.gradients.values()).item()
    assert len(steps) == 1 and scale > 0
    for theirs, ours in zip(steps[0], by_ddpo.gradients.values(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5 * scale)


def test_one_sample_per_update_takes_one_step_per_sample():
    ddpo = module({"advantages.kind": "batch"})
    samples, steps = restated(ddpo, Schedule(), prompt_round(6))
    assert (
        len(steps) == 6 and samples.latents_SB.shape[:2] == (6, 6) and samples.score_B.shape == (6,)
    )
    batched, _ = restated(ddpo, Schedule(rows=3, per_update=3), prompt_round(6))
    torch.testing.assert_close(samples.latents_SB, batched.latents_SB, rtol=0, atol=1e-5)
    torch.testing.assert_close(samples.score_B, batched.score_B, rtol=0, atol=1e-5)


def test_a_detached_branch_gives_another_gradient_of_the_same_samples():
    ddpo = module({"advantages.kind": "batch"}, backbone=ToyBackbone(dtype=torch.float64))
    (samples, [both]), (same, [one]) = (
        restated(ddpo, Schedule(per_update=4, detach=d), prompt_round(4)) for d in (False, True)
    )
    torch.testing.assert_close(samples.latents_SB, same.latents_SB, rtol=0, atol=1e-5)
    assert any(not torch.allclose(a, b, rtol=1e-3, atol=0) for a, b in zip(both, one, strict=True))


def test_texts_are_encoded_for_each_sample_or_once(monkeypatch):
    ddpo = module({"advantages.kind": "batch"})
    asked = []
    real = ddpo.backbone.encode_prompts
    monkeypatch.setattr(
        ddpo.backbone, "encode_prompts", lambda prompts: asked.append(len(prompts)) or real(prompts)
    )
    restated(ddpo, Schedule(), prompt_round(6))
    assert asked == [1] * 12  # a prompt and its negative for each of six samples
    asked.clear()
    restated(ddpo, Schedule(encode_once=True), prompt_round(6))
    assert asked == [1] * 6  # of three prompts


class Loudness:
    differentiable = True

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        return RewardOutput(wave_BCN.square().mean(dim=(1, 2)))


@pytest.mark.long
def test_the_benchmark_at_toy_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        ddpo_speed.zoo,
        "load",
        lambda name: {"embedded/music": ToyBackbone(), "embedded/mood": Loudness()}[name],
    )
    ddpo_speed.main(
        ["--samples", "4", "--rows", "2", "--steps", "3", "--repeats", "2", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "speed.json").read_text())
    names = list(record["turns"])
    assert (
        names[0] == "reference"
        and names[-2:] == [ddpo_speed.OURS, ddpo_speed.HALF]
        and len(names) == 8
    )
    assert all(
        len(turns) == 2 and all(turn["seconds"] > 0 for turn in turns)
        for turns in record["turns"].values()
    )
    assert {"texts", "rollout", "decoding", "waiting for the reward", "update"} == set(
        record["turns"]["reference"][0]["phases"]
    )
    assert (
        "| reference |" in printed
        and f"| {ddpo_speed.OURS} |" in printed
        and (tmp_path / "speed.png").stat().st_size > 5000
    )
    with pytest.raises(SystemExit, match="not a multiple"):
        ddpo_speed.main(["--samples", "5", "--rows", "2"])


def test_ratios_are_taken_turn_by_turn():
    def turns(*seconds):
        return [ddpo_speed.Turn(value, {}) for value in seconds]

    found = {"reference": turns(4.0, 9.0), "b": turns(2.0, 3.0)}
    assert ddpo_speed.ratios(found, "b") == [2.0, 3.0]
    assert "| b | 1.67 (1.33 to 2.00) | 2.50 (2.00 to 3.00) | 2.50 |" in ddpo_speed.table(found, 4)


def test_what_an_update_need_not_do_is_measured_at_toy_size(tmp_path, capsys):
    arguments = ["--samples", "4", "--learning", "0.5", "--turns", "1", "--out", str(tmp_path)]
    ddpo_work.main(arguments, small_audio())
    lines = json.loads((tmp_path / "work.json").read_text())
    assert len(lines) == 6 and all(line["after"] > 0 for line in lines)
    assert capsys.readouterr().out.count("\n") == 2 + 6
    storage = lines[-1]
    assert storage["before"] > 2 > 1.1 > storage["after"] >= 1
