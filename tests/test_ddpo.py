import pytest
import torch
from toy_ddpo import Recorder, fitted, module, recorded, weights
from toys import ToyBackbone, prompt_round

from zoo.backbones.lora import reference
from zoo.types import Conditioning


@pytest.mark.parametrize("detach", [False, True])
def test_the_ratio_is_one_before_the_first_update(detach):
    recorder = recorded(
        module({"sampler.detach_unconditional": detach, "optimizer.learning_rate": 1e-9}), size=8
    )
    first = recorder.rounds[0]
    assert abs(first["ratio/min"] - 1) <= 1e-6 and abs(first["ratio/max"] - 1) <= 1e-6
    assert first["clip_fraction"] == 0 and first["approx_kl"] < 1e-12
    assert first["grad_norm"] > 0


def swapped_halves(monkeypatch):
    """As in the published AudioLDM 2 code: after the rollout, the guidance halves are swapped."""
    whole = Conditioning.cat
    predicting = ToyBackbone.predict

    def predict(self, latent, time, conditioning):
        if torch.is_grad_enabled():
            half = len(conditioning) // 2
            conditioning = whole(
                [conditioning.rows(slice(half, None)), conditioning.rows(slice(0, half))]
            )
        return predicting(self, latent, time, conditioning)

    monkeypatch.setattr(ToyBackbone, "predict", predict)


def another_prompts_conditioning(monkeypatch):
    """The same code's other bug: every sample is trained under the last prompt."""
    predicting = ToyBackbone.predict

    def predict(self, latent, time, conditioning):
        if torch.is_grad_enabled():
            conditioning = conditioning.rows([len(conditioning) - 1] * len(conditioning))
        return predicting(self, latent, time, conditioning)

    monkeypatch.setattr(ToyBackbone, "predict", predict)


@pytest.mark.parametrize("spoil", [swapped_halves, another_prompts_conditioning])
def test_the_check_at_the_start_catches_the_known_bugs_before_anything_is_learned(
    monkeypatch, spoil
):
    spoil(monkeypatch)
    ddpo = module()
    before = weights(ddpo)
    with pytest.raises(
        ValueError,
        match=r"must be 1 within 1e-06.*(swapped guidance halves)?.*recompute_old_log_prob",
    ):
        fitted(ddpo)
    assert all(torch.equal(before[name], value) for name, value in weights(ddpo).items())


def test_half_precision_is_limited_to_half_the_clip_range_and_recomputing_helps(monkeypatch):
    ddpo = module({"update.clip_range": 0.5}, backbone=ToyBackbone(dtype=torch.bfloat16))
    assert recorded(ddpo).rounds[0]["ratio/max"] < 1.25
    predicting = ToyBackbone.predict

    def rounder(self, latent, time, conditioning):  # training rounds once more than the rollout did
        output = predicting(self, latent, time, conditioning)
        return output + 0.05 if ("training" in flags) else output

    flags = set()
    monkeypatch.setattr(ToyBackbone, "predict", rounder)

    def run(**changes) -> Recorder:
        flags.clear()
        ddpo = module(
            {"update.clip_range": 1e-4}, backbone=ToyBackbone(dtype=torch.bfloat16), **changes
        )
        learn = ddpo.learn
        ddpo.learn = lambda *arguments: (flags.add("training"), learn(*arguments))[1]
        return recorded(ddpo)

    with pytest.raises(ValueError, match="recompute_old_log_prob=true"):
        run()
    metrics = run(**{"update.recompute_old_log_prob": True}).rounds[0]
    assert metrics["old_log_prob_gap"] > 1e-4 and abs(metrics["ratio/max"] - 1) < 1e-6


def test_mixed_precision_samples_and_trains_in_one_dtype():
    metrics = recorded(
        module({"update.clip_range": 0.1, "optimizer.max_grad_norm": 1e-3}), precision="bf16-mixed"
    ).rounds[0]
    assert abs(metrics["ratio/max"] - 1) < 0.05 and metrics["grad_norm"] > 1e-3


@pytest.mark.long
def test_reward_rises_on_a_toy_under_prompts_with_different_goals():
    sizes = {"sampler.batch_size": 32, "update.batch_size": 32}
    ddpo = module(
        {
            "advantages.kind": "batch",
            "optimizer.learning_rate": 2e-2,
            "adapter.rank": 4,
            "adapter.targets": "all",
        },
        **sizes,
    )
    recorder = recorded(ddpo, size=64, epochs=25)
    rewards = [metrics["reward/mean"] for metrics in recorder.rounds]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15
    for mood in ("happy", "sad"):
        assert (
            recorder.rounds[-1][f"reward/{mood}/mean"] > recorder.rounds[0][f"reward/{mood}/mean"]
        )
    assert recorder.rounds[-1]["ratio/min"] <= 1 <= recorder.rounds[-1]["ratio/max"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"update.timestep_fraction": 0.5},
        {"update.timestep_fraction": 0.5, "update.timestep_draw": "batch"},
    ],
)
def test_eight_samples_at_once_or_in_eight_micro_steps_give_the_same_gradient(changes):
    common = {
        "sampler.batch_size": 8,
        "update.ratio_check": 1e-4,
        "update.kl_coef": 0.1,
        "optimizer.max_grad_norm": 1e9,
        **changes,
    }
    at_once = recorded(module({"update.batch_size": 8}, **common), size=8).gradients
    in_steps = recorded(module({"update.batch_size": 1}, **common), size=8).gradients
    scale = max(gradient.abs().max() for gradient in at_once.values())
    assert scale > 0
    for name in at_once:
        torch.testing.assert_close(at_once[name], in_steps[name], rtol=0, atol=1e-5 * scale.item())


def test_kl_is_zero_with_an_untrained_adapter_and_grows_with_learning():
    recorder = recorded(
        module({"update.kl_coef": 0.5, "optimizer.learning_rate": 0.05, "update.per_round": 1}),
        epochs=2,
    )
    assert recorder.rounds[0]["kl_to_base"] == 0
    assert recorder.rounds[1]["kl_to_base"] > 0


def test_adapter_off_is_the_base_bitwise_after_training():
    base = ToyBackbone()
    ddpo = module({"optimizer.learning_rate": 0.05})
    fitted(ddpo)
    batch = prompt_round(4)
    conditioning = base.encode_prompts(batch.prompts)
    x = torch.randn(4, 2, 8)
    time = torch.full((4,), 0.5)
    with torch.no_grad():
        wanted = base.predict(x, time, conditioning)
        adapted = ddpo.backbone.predict(x, time, conditioning)
        with reference(ddpo.backbone):
            off = ddpo.backbone.predict(x, time, conditioning)
    assert torch.equal(off, wanted) and not torch.equal(adapted, wanted)
