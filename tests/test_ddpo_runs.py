import copy

import pytest
import torch
from toy_ddpo import Recorder, fitted, module, recorded, trainer, weights
from toys import Given, Rounds, ToyBackbone, ToyReward, prompt_round, shaken

from datamodules.batches import PromptBatch
from lightning_modules.rl.ddpo import DDPO
from lightning_modules.schedules import decay_rate
from zoo.types import RewardOutput


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.ema_decay": 0.9},
        {"advantages.kind": "group", "update.inner_epochs": 2, "update.timestep_fraction": 0.5},
    ],
)
def test_a_resumed_run_ends_with_bitwise_the_same_adapter(tmp_path, changes):
    whole = module(**changes)
    fitted(whole, epochs=4)
    first = module(**changes)
    run = fitted(first, epochs=2, default_root_dir=tmp_path)
    run.save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert set(state["state_dict"]) == set(first.trainable()) and all(
        "lora_" in name for name in state["state_dict"]
    )
    torch.manual_seed(99)
    second = module(**changes)
    resumed = trainer(4)
    resumed.fit(second, Rounds(8, start=2), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert resumed.global_step == 4 * second.update.per_round * second.update.inner_epochs
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name
    assert whole.tracker.state_dict() == second.tracker.state_dict()
    if whole.ema is not None:
        assert all(torch.equal(a, b) for a, b in zip(whole.ema.average, second.ema.average))


def test_a_resumed_run_refuses_another_round_another_adapter_and_another_kind_of_checkpoint(
    tmp_path,
):
    run = fitted(module(), epochs=1)
    run.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match="round 0.*round 1"):
        trainer(2).fit(module(), Rounds(8), ckpt_path=tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match="does not fit this run"):
        trainer(2).fit(
            module({"adapter.rank": 3}), Rounds(8, start=1), ckpt_path=tmp_path / "one.ckpt"
        )
    other = ToyBackbone(width=24)
    with pytest.raises(
        ValueError,
        match="does not fit this run: .* trainable weights differ, first .*same backbone",
    ):
        trainer(2).fit(module(backbone=other), Rounds(8, start=1), ckpt_path=tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match="ema_decay"):
        trainer(2).fit(
            module({"optimizer.ema_decay": 0.5}),
            Rounds(8, start=1),
            ckpt_path=tmp_path / "one.ckpt",
        )
    fitted(module({"optimizer.ema_decay": 0.5})).save_checkpoint(tmp_path / "averaged.ckpt")
    with pytest.raises(
        ValueError, match="does not fit this run: .*same backbone"
    ):  # and not only its averages
        wider = module({"optimizer.ema_decay": 0.5}, backbone=ToyBackbone(width=24))
        trainer(2).fit(wider, Rounds(8, start=1), ckpt_path=tmp_path / "averaged.ckpt")
    again = DDPO.load_from_checkpoint(
        tmp_path / "one.ckpt", backbone=ToyBackbone(), reward=ToyReward(), strict=False
    )
    assert all(
        torch.equal(weights(run.lightning_module)[name], value)
        for name, value in weights(again).items()
    )
    with pytest.raises(ValueError, match="not of a DDPO run"):
        module().on_load_checkpoint({"state_dict": {}})


class Bad(ToyReward):
    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        output = super().__call__(wave_BCN, sample_rate_hz, prompts)
        score = output.score_B.clone()
        if self.how == "raises":
            raise RuntimeError("no such file")
        if self.how == "shape":
            return RewardOutput(score[:, None])
        if self.how == "part":
            return RewardOutput(score, {"x": 1.0})
        if self.how == "type":
            return score
        bad = [self.how == "all" or prompt.id == "p1" for prompt in prompts]
        return RewardOutput(torch.where(torch.tensor(bad), torch.nan, score), output.parts)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "the reward Bad raised RuntimeError: no such file"),
        ("shape", r"score_B needs \(4,\), got shape \(4, 1\)"),
        ("part", r"parts\['x'\] needs \(4,\), got float"),
        ("type", "must return a RewardOutput, got Tensor"),
        ("nan", r"2 of 8 rewards in round 0 are not finite: 'p1' \('a sad .*on_bad_reward=drop"),
    ],
)
def test_a_bad_reward_stops_with_one_message_and_nothing_learned(how, message):
    ddpo = module(reward=Bad(how))
    before = weights(ddpo)
    with pytest.raises(ValueError, match=message):
        fitted(ddpo)
    assert all(torch.equal(before[name], value) for name, value in weights(ddpo).items())


def test_bad_rewards_can_be_dropped_and_are_counted():
    recorder = recorded(module({"scoring.on_bad_reward": "drop"}, reward=Bad("nan")), epochs=2)
    assert [metrics["dropped_samples"] for metrics in recorder.rounds] == [2, 2]
    assert all(torch.isfinite(gradient).all() for gradient in recorder.gradients.values())
    assert recorder.rounds[0]["grad_norm"] > 0
    with pytest.raises(ValueError, match="8 of 8 rewards"):
        fitted(module({"scoring.on_bad_reward": "drop"}, reward=Bad("all")))


def test_an_update_whose_samples_were_all_dropped_is_left_out():
    ddpo = module(
        {
            "scoring.on_bad_reward": "drop",
            "update.per_round": 8,
            "update.batch_size": 1,
            "optimizer.ema_decay": 0.9,
        },
        reward=Bad("nan"),
    )
    assert (
        fitted(ddpo).global_step == ddpo.ema.updates == 6
    )  # momentum and weight decay learn nothing from no sample


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_learned():
    ddpo = module()
    before = weights(ddpo)
    next(iter(ddpo.trainable().values())).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(
        ValueError,
        match=r"the gradient is not finite \(its norm is nan\).*lower optimizer.learning_rate",
    ):
        fitted(ddpo)
    assert all(torch.equal(before[name], value) for name, value in weights(ddpo).items())


def test_groups_of_one_sample_are_refused():
    for advantage in ("group", "group_global"):
        with pytest.raises(
            ValueError,
            match=f"advantages.kind={advantage} compares the samples of a prompt.*data.repeats",
        ):
            trainer().fit(module({"advantages.kind": advantage}), Given(prompt_round(8, repeats=1)))


@pytest.mark.parametrize("size", [1, 2, 8])
def test_masks_stay_with_their_samples_at_any_batch_size(size):
    class Masked(ToyBackbone):
        def scored_mask(self, prompts):
            heard_B = torch.tensor([4 + int(prompt.id[1:]) for prompt in prompts])
            return torch.arange(8) < heard_B[:, None, None]

    row = recorded(
        module(
            {
                "sampler.batch_size": size,
                "update.batch_size": size,
                "optimizer.learning_rate": 1e-9,
            },
            backbone=Masked(),
        )
    ).rounds[0]
    assert abs(row["ratio/min"] - 1) <= 1e-6 and abs(row["ratio/max"] - 1) <= 1e-6


def test_dropping_a_sample_equals_a_round_without_it():
    class Without(Rounds):
        def __iter__(self):
            batch = prompt_round(8)
            kept = [i for i, prompt in enumerate(batch.prompts) if prompt.id != "p1"]
            yield PromptBatch(
                tuple(batch.prompts[i] for i in kept), tuple(batch.sample_index[i] for i in kept), 0
            )

    common = {
        "update.ratio_check": 1e-4,
        "optimizer.max_grad_norm": 1e9,
        "advantages.kind": "batch",
        "sampler.batch_size": 1,
        "update.batch_size": 1,
    }
    dropped, absent = Recorder(), Recorder()
    trainer(callbacks=[dropped]).fit(
        module({"scoring.on_bad_reward": "drop"}, reward=Bad("nan"), **common), Rounds(8)
    )
    trainer(callbacks=[absent]).fit(module(**common), Without(8))
    for name, gradient in absent.gradients.items():
        torch.testing.assert_close(dropped.gradients[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler.batch_size": 3}, "sampler.batch_size=3"),
        ({"update.batch_size": 3}, "update.batch_size=3; it must be a multiple of 3"),
        ({"update.per_round": 4}, "update.per_round=4"),
    ],
)
def test_batch_sizes_that_do_not_divide_stop_before_anything_is_sampled(changes, message):
    ddpo = module(**changes)
    ddpo.backbone.predict = lambda *_: pytest.fail("sampled")
    with pytest.raises(ValueError, match=message):
        fitted(ddpo)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantages.kind": "promt"}, "did you mean 'prompt'"),
        ({"optimizer.learning_rate": 0.0}, "invalid learning_rate 0.0"),
        ({"optimizer.decay_rounds": 0}, "invalid decay_rounds 0"),
        ({"update.clip_reference_elements": 0}, "invalid clip_reference_elements 0"),
        ({"update.kl_coef": float("nan")}, "invalid kl_coef nan"),
        ({"update.ratio_check": -1.0}, "invalid ratio_check -1.0"),
        ({"update.window": []}, r"a first step and the one after the last, \(lo, hi\), got \[\]"),
        ({"update.timestep_fraction": 1.5}, "invalid timestep_fraction 1.5"),
        ({"update.kl_coef": -1.0}, "invalid kl_coef -1.0"),
        ({"adapter.rank": 0, "update.kl_coef": 0.1}, "adapter.rank"),
        ({"update.window": (0, 5), "update.skip_last_step": False}, r"steps \[4\] add no noise"),
        ({"update.window": (3, 9)}, r"update.window \(3, 9\)"),
        ({"sampler.steps": 1}, "none is left to train"),
        ({"sampler.eta": (1.0, 1.0, 0.0, 0.0, 0.0), "evaluation.steps": 8}, "give evaluation.eta"),
        ({"update.ratio_check": "always"}, "invalid ratio_check 'always'"),
        ({"adapter.rank": 0, "backbone": ToyBackbone(dtype=torch.bfloat16)}, "must be float32"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        module(**changes)
    with pytest.raises(ValueError, match="torch module"):
        DDPO(object(), ToyReward())


def test_only_the_window_is_trained_and_an_eta_window_leaves_an_ode_outside(monkeypatch):
    scored = []
    from lightning_modules.rl import ppo_update

    scoring = ppo_update.replay_step
    monkeypatch.setattr(
        ppo_update, "replay_step", lambda *a: (scored.extend(a[3].tolist()), scoring(*a))[1]
    )
    fitted(module({"update.window": (1, 3)}))
    assert set(scored) == {1, 2} and len(scored) == 16
    scored.clear()
    fitted(module({"sampler.eta": (0.0, 1.0, 0.0, 0.0, 0.0)}))
    assert set(scored) == {1}
    scored.clear()
    fitted(module({"update.timestep_fraction": 0.5}))
    assert len(scored) == 8 * 2 and set(scored) <= {0, 1, 2, 3}


def test_updates_and_inner_epochs_make_optimiser_steps():
    ddpo = module({"update.per_round": 2, "update.inner_epochs": 3})
    assert fitted(ddpo).global_step == 6


def test_gradients_are_clipped_by_the_module():
    ddpo = module({"optimizer.max_grad_norm": 1e-3})
    optimizer_step = torch.optim.AdamW.step
    seen = []

    def step(self, closure=None):
        if closure is not None:
            closure()
        seen.append(
            torch.stack([p.grad.norm() for group in self.param_groups for p in group["params"]])
            .norm()
            .item()
        )
        return optimizer_step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        recorder = recorded(ddpo)
    assert (
        seen and seen[0] == pytest.approx(1e-3, rel=1e-3) and recorder.rounds[0]["grad_norm"] > 1e-2
    )


def test_the_learning_rate_falls_linearly_to_a_tenth_whatever_round_a_run_resumes_at():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=123.0)
    rates = []
    for done in (0, 5, 10, 50):
        decay_rate(optimizer, 0.2, 10, done)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.2, 0.11, 0.02, 0.02])
    recorder = recorded(module({"optimizer.decay_rounds": 2}), epochs=3)
    assert [row["learning_rate"] for row in recorder.rounds] == pytest.approx([1e-2, 0.55e-2, 1e-3])


def test_full_fine_tuning_trains_the_denoiser_alone():
    ddpo = module({"adapter.rank": 0})
    before = weights(ddpo)
    assert all(name.startswith("backbone.denoiser.") for name in before)
    fitted(ddpo)
    assert any(not torch.equal(before[name], value) for name, value in weights(ddpo).items())


def test_evaluation_is_repeatable_logs_each_class_and_uses_averaged_weights():
    ddpo = module(
        {
            "optimizer.ema_decay": 0.9,
            "evaluation.steps": 3,
            "evaluation.guidance_scale": 1.0,
            "evaluation.eta": 0.0,
        }
    )
    recorder = recorded(ddpo, val=Given(prompt_round(6, repeats=1)))
    metrics = recorder.rounds[0] | ddpo.held_out
    assert {"held_out/mean", "held_out/std", "held_out/happy/mean", "held_out/sad/std"} <= set(
        ddpo.held_out
    )
    assert {
        "reward/mean",
        "reward/happy/std",
        "reward_part/level",
        "latent_norm",
        "seconds/sampling",
        "seconds/reward",
        "seconds/update",
        "learning_rate",
        "round",
    } <= set(metrics)
    first, second = (ddpo.evaluate(prompt_round(6, repeats=1)) for _ in range(2))
    assert torch.equal(first.wave_BCN, second.wave_BCN) and first.wave_BCN.shape == (6, 1, 8)
    with torch.no_grad():
        for average in ddpo.ema.average:
            average.add_(1.0)
    assert not torch.equal(ddpo.evaluate(prompt_round(6, repeats=1)).wave_BCN, first.wave_BCN)


def test_rounds_with_unequal_lengths_or_repeated_samples_are_refused():
    batch = prompt_round(8)
    longer = copy.copy(batch.prompts[0])
    object.__setattr__(longer, "seconds", 2.0)
    mixed = PromptBatch((longer, *batch.prompts[1:]), batch.sample_index, 0)
    with pytest.raises(ValueError, match="one length, got"):
        trainer().fit(module(), Given(mixed))
    with pytest.raises(ValueError, match="prompt id.*twice"):
        trainer().fit(module(), Given(PromptBatch(batch.prompts, (0,) * 8, 0)))


def test_clip_range_is_rescaled_to_the_scored_elements(monkeypatch):
    stated = {"update.clip_range": 1e-4, "update.clip_reference_elements": 16384}
    assert recorded(module(**stated)).rounds[0]["clip_range"] == pytest.approx(1e-4 * 16384 / 16)
    mask = torch.ones(1, 1, 8, dtype=torch.bool)
    mask[..., 4:] = False
    monkeypatch.setattr(ToyBackbone, "scored_mask", lambda self, prompts: mask, raising=False)
    assert recorded(module(**stated)).rounds[0]["clip_range"] == pytest.approx(1e-4 * 16384 / 8)


def test_other_strategies_are_refused():
    class FSDPStrategy:
        pass

    class Trainer:
        strategy = FSDPStrategy()

    ddpo = module()
    ddpo._trainer = Trainer()
    with pytest.raises(ValueError, match="not with FSDPStrategy"):
        ddpo.on_fit_start()


def test_averages_of_an_old_checkpoint_are_taken_from_their_old_place():
    ddpo = module({"optimizer.ema_decay": 0.5})
    shaken(ddpo.backbone.denoiser)
    saved = {"state_dict": ddpo.state_dict()}
    ddpo.ema.update()
    ddpo.on_save_checkpoint(saved)
    saved["ddpo"]["ema"] = saved.pop("ema")  # as 0.1.0-dev kept them
    again = module({"optimizer.ema_decay": 0.5})
    again.on_load_checkpoint(saved)
    assert again.ema.updates == 1
    for own, old in zip(again.ema.average, ddpo.ema.average, strict=True):
        assert torch.equal(own, old)
    del saved["ddpo"]["ema"]
    with pytest.raises(ValueError, match="ema_decay"):
        module({"optimizer.ema_decay": 0.5}).on_load_checkpoint(saved)
