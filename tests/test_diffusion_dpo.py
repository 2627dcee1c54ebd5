"""Diffusion-DPO: loss, reference, the change from SFT, every backbone, resume, export."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from test_reward_weighted import changed_names, copy_of, moving, played, whole_state
from toy_backbones import build
from toy_pairs import FULL, LORA, dpo, label_pairs, pair_row, ranked_clips, write_pairs
from toy_weighted import fitted, write_lines
from toys import ToyBackbone, prompts

from datamodules.batches import LatentBatch, LatentPairBatch
from lightning_modules.diffusion_dpo import DiffusionDPO
from lightning_modules.preference_losses import preference_logits, preference_loss
from lightning_modules.run_folder import every_epoch
from lightning_modules.start_checks import check_data
from zoo.backbones import BACKBONES
from zoo.diffusion import denoising_error, noise_generator
from zoo.errors import UserError
from zoo.hub.adapters import load_adapter
from zoo.hub.run_facts import stated_facts


def pair_batch(count: int = 3, seed: int = 0) -> LatentPairBatch:
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = (torch.randn(count, 2, 8, generator=generator) for _ in range(2))
    return LatentPairBatch(chosen, rejected, prompts(count))


@pytest.fixture
def quiet(monkeypatch) -> dict[str, torch.Tensor]:
    """What the module logs, outside of a trainer."""
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(DiffusionDPO, "log", lambda _, k, v, **__: logged.update({k: v}))
    monkeypatch.setattr(DiffusionDPO, "log_dict", lambda _, values, **__: logged.update(values))
    return logged


def away(module: DiffusionDPO, by: float = 0.05) -> DiffusionDPO:
    """The policy leaves its reference."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters_that_learn:
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return module


# The loss


def test_the_loss_by_arithmetic():
    error_R = torch.tensor([0.5, 0.2, 0.6, 0.1])  # winners, then losers
    reference_R = torch.tensor([0.4, 0.3, 0.4, 0.3])
    logit_P = preference_logits(error_R, reference_R, 10.0)
    # pair 1: -(10 / 2) * ((0.5 - 0.6) - (0.4 - 0.4)); pair 2: -(10 / 2) * ((0.2 - 0.1) - 0)
    torch.testing.assert_close(logit_P, torch.tensor([0.5, -0.5]))
    by_hand = -(torch.tensor([0.5, -0.5]).sigmoid().log()).mean()
    torch.testing.assert_close(preference_loss(error_R, reference_R, 10.0), by_hand)
    crpo = preference_loss(error_R, reference_R, 10.0, winner_weight=2.0)
    torch.testing.assert_close(crpo, by_hand + 2 * (0.5 + 0.2) / 2)
    swapped = preference_logits(error_R[[2, 3, 0, 1]], reference_R[[2, 3, 0, 1]], 10.0)
    torch.testing.assert_close(swapped, -logit_P)


@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full", "lora"])
def test_winner_loser_and_reference_share_time_and_noise(quiet, adapter):
    base = ToyBackbone()
    module = away(dpo(ToyBackbone(), adapter=adapter, winner_weight=1.0, beta=50.0))
    batch = pair_batch()
    found = module.training_step(batch, 4)
    generator = noise_generator(0, 0, "preference/4", 0)
    places = torch.randperm(3, generator=generator) + torch.rand(3, generator=generator)
    time_P = base.path.sample_times(places / 3)
    torch.rand(3, generator=generator)
    noise = torch.randn(3, 2, 8, generator=generator)
    told = base.encode_prompts([p.without_negative() for p in batch.prompts])
    errors = {}
    for name, model in (("policy", module.backbone), ("reference", base)):
        for side in ("chosen_BCT", "rejected_BCT"):
            clean = getattr(batch, side)
            errors[name, side] = denoising_error(
                model.predict, model.path, clean, time_P, noise, told
            )
    won, lost = (errors["policy", side] for side in ("chosen_BCT", "rejected_BCT"))
    base_won, base_lost = (errors["reference", side] for side in ("chosen_BCT", "rejected_BCT"))
    logit_P = -25.0 * ((won - lost) - (base_won - base_lost))
    expected = -logit_P.sigmoid().log().mean() + won.mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert quiet["train/implicit_accuracy"] == (logit_P > 0).float().mean()
    torch.testing.assert_close(
        quiet["train/reference_error"], (base_won.mean() + base_lost.mean()) / 2
    )
    assert not torch.equal(won, base_won)


def test_it_starts_at_the_reference(quiet):
    """Logits of 0: the loss is log 2, and nothing is preferred yet."""
    for adapter in (FULL, LORA):
        loss = dpo(ToyBackbone(), adapter=adapter).training_step(pair_batch(), 0)
        assert loss.item() == pytest.approx(0.693147, abs=1e-5)
        assert quiet["train/implicit_accuracy"] == 0


def test_a_step_makes_the_winners_likelier(quiet):
    module = dpo(ToyBackbone())
    batch = pair_batch()
    optimizer = torch.optim.SGD(module.parameters_that_learn, 1e-4)
    module.training_step(batch, 0).backward()
    optimizer.step()
    module.training_step(batch, 0)
    assert quiet["train/preference_loss"] < 0.6931 and quiet["train/implicit_accuracy"] == 1


def test_an_emptied_caption_is_emptied_for_both_clips(quiet, monkeypatch):
    module = dpo(ToyBackbone(), condition_dropout=0.9)
    seen = []
    kept = module.backbone.encode_prompts
    monkeypatch.setattr(
        module.backbone,
        "encode_prompts",
        lambda asked: (seen.append([p.text for p in asked]), kept(asked))[1],
    )
    rows = []
    predict = module.backbone.predict
    monkeypatch.setattr(
        module.backbone,
        "predict",
        lambda x, t, told: (rows.append(told["tokens_BLD"]), predict(x, t, told))[1],
    )
    module.training_step(pair_batch(), 0)
    assert "" in seen[0] and seen[0] == seen[1]
    for tokens in rows:
        winners, losers = tokens.chunk(2)
        assert torch.equal(winners, losers)


# The reference


@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full", "lora"])
def test_the_reference_comes_and_goes(adapter):
    module = dpo(ToyBackbone(), adapter=adapter)
    before = [p.detach().clone() for p in module.parameters_that_learn]
    away(module)
    after = [p.detach().clone() for p in module.parameters_that_learn]
    told = module.backbone.encode_prompts(list(prompts(2)))
    x = torch.randn(2, 2, 8)

    def output():
        with torch.no_grad():
            return module.backbone.predict(x, torch.full((2,), 0.5), told)

    base, own = ToyBackbone().predict(x, torch.full((2,), 0.5), told).detach(), output()
    with module.reference():
        torch.testing.assert_close(output(), base)
    assert torch.equal(output(), own) and not torch.allclose(own, base)
    with pytest.raises(ZeroDivisionError), module.reference():
        1 / 0  # noqa: B018
    for now, was in zip(module.parameters_that_learn, after, strict=True):
        assert torch.equal(now, was) and now.requires_grad
    assert (module.reference.state()["values"] is None) and before
    module.reference.renew()
    away(module)
    with module.reference():
        assert torch.equal(output(), own), "the weights of the renewal"


def test_an_adapter_needs_no_copy_of_the_model():
    assert dpo(ToyBackbone(), adapter=LORA).reference._values is None
    assert len(dpo(ToyBackbone(), adapter=FULL).reference._values) > 0


def test_autocast_does_not_mix_policy_and_reference(quiet):
    """Its low-precision copies of weights are kept by parameter."""
    module = away(dpo(ToyBackbone(), beta=10.0), by=0.3)
    batch = pair_batch()
    exact = module.training_step(batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step(batch, 0)
    loss.backward()
    gradients = [parameter.grad for parameter in module.parameters_that_learn]
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert abs(exact.item() - 0.693) > 0.1, "the two differ here"


# From SFT to DPO


class Phases(L.Callback):
    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self.seen.append(module.is_sft)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_leave_sft_in_the_same_epoch(rank, quiet, monkeypatch):
    """A process knows by the epoch, whatever its rank (Tango 2 counted on the first one alone)."""
    monkeypatch.setattr(DiffusionDPO, "global_rank", rank)
    module = dpo(ToyBackbone(), sft_epochs=2)
    found = []
    for epoch in range(4):
        monkeypatch.setattr(DiffusionDPO, "current_epoch", epoch)
        quiet.clear()
        module.training_step(pair_batch(), 0)
        found.append(("train/preference_loss" in quiet, module.is_sft))
    assert found == [(False, True), (False, True), (True, False), (True, False)]


def test_an_sft_epoch_learns_the_winners_alone(quiet):
    module = dpo(ToyBackbone(), sft_epochs=1)
    batch = pair_batch()
    loss = module.training_step(batch, 0)
    other = LatentPairBatch(batch.chosen_BCT, batch.rejected_BCT * 9, batch.prompts)
    assert torch.equal(module.training_step(other, 0), loss)
    assert loss == module.weighted_error(
        LatentBatch(batch.chosen_BCT, batch.prompts), "denoising/0"
    )


def test_the_change_in_a_run_and_after_a_resume(tmp_path):
    write_pairs(tmp_path)
    base = moving(build("tiny_audio"))

    def run(name: str, epochs: int, checkpoint=None) -> tuple[DiffusionDPO, list[bool]]:
        backbone = copy_of("tiny_audio", base)
        module = dpo(backbone, sft_epochs=1, ema_decay=0.9, condition_dropout=0.3)
        phases = Phases()
        made = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=epochs,
            callbacks=[phases, every_epoch(tmp_path / name)],
        )
        made.fit(module, datamodule=ranked_clips(tmp_path, backbone), ckpt_path=checkpoint)
        return module, phases.seen

    once, seen = run("once", 3)
    assert seen == [True, True, False, False, False, False]
    run("twice", 1)
    twice, seen = run("twice", 3, str(tmp_path / "twice/checkpoints/last.ckpt"))
    assert seen == [False] * 4
    for name, value in whole_state(once).items():
        assert torch.equal(value, twice.state_dict()[name]), name


# Every backbone


@pytest.mark.long
@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("key", sorted(BACKBONES))
def test_two_steps_on_every_backbone(key, adapter, tmp_path):
    """It learns the denoiser alone, exports, reloads, and plays the same."""
    backbone = moving(build(key))
    base = copy_of(key, backbone)
    module = dpo(backbone, adapter=adapter, winner_weight=1.0)
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    made = fitted(module, ranked_clips(write_pairs(tmp_path), backbone), tmp_path, max_epochs=1)
    assert made.global_step == 2
    changed = changed_names(backbone, before)
    learned = {name for name, value in backbone.named_parameters() if value.requires_grad}
    assert changed and changed <= learned and len(changed) > 0.4 * len(learned)
    assert all(name.startswith("denoiser.") for name in learned)
    assert all(value.isfinite().all() for value in backbone.parameters())
    module.export(tmp_path / "out")
    backbone.eval()
    again = base.eval()
    unchanged = played(again)
    if adapter is LORA:
        load_adapter(again, tmp_path / "out" / "adapter")
    else:
        from safetensors.torch import load_model

        load_model(again.denoiser, tmp_path / "out" / "denoiser.safetensors")
    wanted = played(backbone)
    assert torch.equal(played(again), wanted) and not torch.equal(wanted, unchanged)


# Held-out pairs, facts, and what does not fit


def test_held_out_pairs_are_measured(tmp_path):
    write_pairs(tmp_path)
    rows = [
        pair_row(f"caption {i}", f"p{i}_a.wav", f"p{i}_b.wav", split=split)
        for i, split in enumerate(("train", "train", "val", "val"))
    ]
    write_lines(tmp_path / "split.jsonl", rows)
    backbone = moving(build("tiny_audio"))
    data = ranked_clips(tmp_path, backbone, label_pairs(tmp_path, "split.jsonl"))
    made = fitted(dpo(backbone), data, tmp_path, max_epochs=1)
    found = made.callback_metrics
    assert 0 <= found["val/implicit_accuracy"] <= 1
    assert found["val/preference_loss"] != pytest.approx(0.6931, abs=1e-6)
    assert found["val/winner_error"] > 0


def test_a_run_states_its_facts():
    module = {"_target_": "lightning_modules.diffusion_dpo.DiffusionDPO", "beta": 500.0}
    facts = stated_facts({"module": {**module, "winner_weight": 1.0}})
    assert (facts.algorithm, facts.learned, facts.checkpoint) == (
        "DiffusionDPO",
        ("denoiser",),
        "learned",
    )
    assert facts.adapter.rank == 8 and facts.settings["beta"] == 500.0
    full = stated_facts({"module": {**module, "adapter": {"rank": 0}}})
    assert full.adapter is None and full.settings["adapter.rank"] == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": float("inf")}, "beta"),
        ({"winner_weight": -1.0}, "winner_weight"),
        ({"sft_epochs": -1}, "sft_epochs"),
    ],
)
def test_wrong_settings_are_named(settings, named):
    with pytest.raises(UserError, match=named):
        dpo(ToyBackbone(), **settings)


def test_it_takes_pairs_only(tmp_path):
    write_pairs(tmp_path)
    check_data(dpo(ToyBackbone()), ranked_clips(tmp_path))
    with pytest.raises(UserError, match="LatentPairBatch"):
        check_data(dpo(ToyBackbone()), ranked_clips(tmp_path, batches="winners"))


def test_a_resumed_run_keeps_its_reference_or_says_so():
    one = dpo(ToyBackbone())
    state = one.reference.state()
    with pytest.raises(UserError, match=r"module\.backbone"):
        dpo(ToyBackbone(seed=1)).reference.load(state)
    away(one)
    one.reference.renew()
    other = dpo(ToyBackbone())
    other.reference.load(one.reference.state())
    assert other.reference.is_renewed
    for a, b in zip(other.reference._values, one.parameters_that_learn, strict=True):
        assert torch.equal(a, b)
