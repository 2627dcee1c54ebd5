"""Reward-weighted fine-tuning: the loss, every backbone, resume, the best epoch, export."""

from __future__ import annotations

import math
from dataclasses import replace

import lightning as L
import pytest
import torch
from toy_backbones import build
from toy_weighted import SECONDS, denoising, fitted, weighted_clips, write_corpus
from toys import Given, ToyBackbone, prompts

import zoo
from datamodules.batches import LatentBatch, PairedBatch
from datamodules.preferences.reward_weights import RewardTransform
from datamodules.preferences.weighted import MixingSettings
from lightning_modules.denoising import Denoising
from lightning_modules.denoising_export import best_state
from lightning_modules.offload import part_modules
from lightning_modules.schedules import rate_share, scheduled_optimizer, steps_of_run
from lightning_modules.start_checks import check_data
from lightning_modules.training_settings import AdapterSettings, MemorySettings, ScheduleSettings
from zoo.backbones import BACKBONES
from zoo.diffusion import denoising_error, min_snr_weights, noise_generator
from zoo.errors import UserError
from zoo.hub.adapters import load_adapter
from zoo.types import Prompt

FULL, LORA = None, AdapterSettings(rank=2)


def moving(backbone):
    """Its zero-initialised tensors are moved, so that gradients reach every layer."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.denoiser.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return backbone


@pytest.fixture
def module(monkeypatch) -> Denoising:
    """On a toy, outside of a trainer."""
    monkeypatch.setattr(Denoising, "log", lambda *_, **__: None)
    return denoising(ToyBackbone(), min_snr_form="prediction")


def batch_of(weights=None, count: int = 4, seed: int = 0) -> LatentBatch:
    latent = torch.randn(count, 2, 8, generator=torch.Generator().manual_seed(seed))
    weight_B = None if weights is None else torch.tensor(weights)
    return LatentBatch(latent, prompts(count), weight_B)


def errors_of(module: Denoising, batch: LatentBatch, name: str) -> torch.Tensor:
    """Its weighted errors (B,) without rewards, by hand."""
    count = len(batch)
    generator = noise_generator(module.hparams.seed, 0, name, 0)
    places = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    time_B = module.backbone.path.sample_times(places / count)
    torch.rand(count, generator=generator)  # emptied captions: none
    noise = torch.randn(batch.latent_BCT.shape, generator=generator)
    encoded = module.backbone.encode_prompts([p.without_negative() for p in batch.prompts])
    error_B = denoising_error(
        module.backbone.predict, module.backbone.path, batch.latent_BCT, time_B, noise, encoded
    )
    return error_B * min_snr_weights(*module.backbone.path.coefficients(time_B), "v", 5.0)


# The loss


@pytest.mark.parametrize(
    "rewards",
    [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.25, 0.0], [0.5, -0.5, 0.2, -0.9]],
    ids=["ones", "labels", "centred"],
)
def test_the_loss_by_arithmetic(module, rewards):
    """mean(r e) + beta mean(e'): no reward is divided by their sum."""
    labelled, pretrain = batch_of(rewards), batch_of(seed=1)
    own_B = errors_of(module, labelled, "denoising/3")
    other_B = errors_of(module, pretrain, "denoising/pretrain/3")
    found = module.training_step(PairedBatch(labelled, pretrain), 3)
    expected = (torch.tensor(rewards) * own_B).sum() / 4 + 0.25 * other_B.mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    alone = module.training_step(labelled, 3)
    torch.testing.assert_close(alone, (torch.tensor(rewards) * own_B).sum() / 4)
    module.hparams.pretrain_weight = 0.0
    without = module.training_step(PairedBatch(labelled, pretrain), 3)
    assert torch.equal(without, alone)


def test_samples_without_weight_are_not_computed(module, monkeypatch):
    sizes = []
    predict = module.backbone.predict

    def counted(latent_BCT, *rest):
        sizes.append(len(latent_BCT))
        return predict(latent_BCT, *rest)

    monkeypatch.setattr(module.backbone, "predict", counted)
    module.training_step(PairedBatch(batch_of([0.0, 0.3, 0.0, -1.0]), batch_of(seed=1)), 0)
    assert sizes == [2, 4]
    sizes.clear()
    module.training_step(PairedBatch(batch_of([0.0] * 4), batch_of(seed=1)), 0)
    assert sizes == [4]


def test_a_batch_without_any_weight_has_a_gradient_of_zeros(module):
    """Every process of a group needs a gradient of every weight."""
    loss = module.training_step(batch_of([0.0] * 4), 0)
    loss.backward()
    gradients = [parameter.grad for parameter in module.parameters_that_learn]
    assert loss == 0 and all(g is not None and not g.any() for g in gradients)


def test_negative_weights_push_away(module):
    """The gradient of -1 is minus that of 1."""
    found = []
    for weight in (1.0, -1.0):
        module.zero_grad()
        module.training_step(batch_of([weight] * 4), 0).backward()
        found.append([parameter.grad.clone() for parameter in module.parameters_that_learn])
    for up, down in zip(*found, strict=True):
        torch.testing.assert_close(up, -down)


# Learning rates


def rates(settings: ScheduleSettings, total: int, steps: int) -> list[float]:
    found = scheduled_optimizer([torch.nn.Parameter(torch.zeros(1))], settings, total)
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_learning_rates():
    linear = ScheduleSettings(learning_rate=1.0, schedule="linear", warmup_steps=0)
    assert rates(linear, 4, 6) == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])
    risen = replace(linear, warmup_steps=2)
    assert rates(risen, 6, 7) == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25, 0])
    assert rates(replace(linear, schedule="constant"), 3, 5) == [1.0] * 5
    assert rates(replace(risen, schedule="constant"), 3, 4) == [0, 0.5, 1, 1]
    cosine = replace(linear, schedule="cosine")
    half = 0.02 + 0.98 / 2
    assert rates(cosine, 2, 3) == pytest.approx([1, half, 0.02])
    assert rates(replace(cosine, warmup_steps=1), 3, 4) == pytest.approx([1e-3, 1, half, 0.02])
    assert rate_share(10, "linear", 10, 0) == 0 == rate_share(99, "linear", 10, 2)


def test_published_settings_reach_adamw():
    settings = ScheduleSettings(
        learning_rate=1e-5, betas=(0.9, 0.999), epsilon=1e-7, weight_decay=0.02
    )
    group = scheduled_optimizer([torch.nn.Parameter(torch.zeros(1))], settings, 9)
    group = group["optimizer"].param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-7, 0.02)
    assert ScheduleSettings().betas == (0.9, 0.98)  # what earlier configurations trained with


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"schedule": "lineal"}, "linear"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
        ({"total_steps": 100, "warmup_steps": 100}, "less than total_steps"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"max_grad_norm": 0.0}, "max_grad_norm 0"),
    ],
)
def test_wrong_schedules_are_named(settings, named):
    with pytest.raises(UserError, match=named):
        ScheduleSettings(**settings)


def test_the_steps_of_a_run_count_accumulation(tmp_path):
    backbone = moving(build("tiny_audio"))
    data = weighted_clips(write_corpus(tmp_path), backbone)
    module = denoising(backbone)
    made = fitted(module, data, tmp_path / "run", max_epochs=3, accumulate_grad_batches=2)
    assert made.global_step == 6  # three batches per epoch: two steps
    assert steps_of_run(module.optimizer, module) == 6
    assert made.optimizers[0].param_groups[0]["lr"] == 0
    assert steps_of_run(replace(module.optimizer, total_steps=17), module) == 17
    endless = denoising(backbone)
    with pytest.raises(UserError, match="total_steps"):
        fitted(endless, data, tmp_path / "other", max_epochs=-1)


# Every backbone


def copy_of(key: str, base):
    """Another model of the table with the weights of ``base``."""
    made = build(key)
    made.load_state_dict(base.state_dict())
    return made


def rounded(key: str, backbone):
    """Its copy in the precision of a model's file."""
    made = build(key).eval().requires_grad_(False)
    state = backbone.state_dict()
    made.load_state_dict({n: t.half() if t.is_floating_point() else t for n, t in state.items()})
    return made


def changed_names(backbone, before) -> set[str]:
    named = backbone.named_parameters()
    return {name for name, value in named if not torch.equal(value, before[name])}


def played(backbone) -> torch.Tensor:
    prompt = Prompt("p", "a dog barks", seconds=SECONDS)
    (wave,) = zoo.generate(backbone, [prompt], seeds=[3], steps=2)
    return wave.samples_CN


@pytest.mark.long
@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("key", sorted(BACKBONES))
def test_two_steps_on_every_backbone(key, adapter, tmp_path):
    """It learns the denoiser alone, exports, reloads, and plays the same."""
    backbone = moving(build(key))
    base = copy_of(key, backbone)
    module = denoising(backbone, adapter=adapter)
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    data = weighted_clips(
        write_corpus(tmp_path), backbone, rewards=RewardTransform("centred"), batch_size=3
    )
    made = fitted(module, data, tmp_path / "run", max_epochs=1, accumulate_grad_batches=1)
    assert made.global_step == 2
    changed = changed_names(backbone, before)
    learned = {name for name, value in backbone.named_parameters() if value.requires_grad}
    assert changed and changed <= learned and len(changed) > 0.4 * len(learned)
    assert all(name.startswith("denoiser.") for name in learned)
    assert all(value.isfinite().all() for value in backbone.parameters())
    module.export(tmp_path / "out")
    backbone.eval()
    if adapter is FULL:
        again = zoo.load(tmp_path / "out" / "model")
        wanted = played(rounded(key, backbone))
        assert learned == {n for n, _ in backbone.named_parameters() if n.startswith("denoiser.")}
    else:
        again = base.eval()
        unchanged = played(again)
        load_adapter(again, tmp_path / "out" / "adapter")
        wanted = played(backbone)
        assert not torch.equal(wanted, unchanged)
    assert torch.equal(played(again), wanted)


@pytest.mark.long
@pytest.mark.parametrize("key", sorted(set(BACKBONES) - {"tiny_audio"}))
def test_encoders_and_codec_go_once_everything_is_encoded(key, tmp_path):
    """Fitted without them, it learns the same, and exports its denoiser alone."""
    write_corpus(tmp_path)
    away = MemorySettings(text_encoders="drop", decoder="offload")
    found = []
    base = moving(build(key))
    for memory in (MemorySettings(), away):
        backbone = copy_of(key, base)
        data = weighted_clips(tmp_path, backbone, mixing=mixing_for(backbone))
        module = denoising(backbone, memory=memory, condition_dropout=0.5)
        fitted(module, data, tmp_path / memory.text_encoders, max_epochs=1)
        module.export(tmp_path / f"out_{memory.text_encoders}")
        found.append(module)
    kept, dropped = found
    assert part_modules(dropped.backbone, "text") == []
    both = (dict(one.backbone.denoiser.named_parameters()) for one in (kept, dropped))
    for a, b in zip(*(one.values() for one in both), strict=True):
        assert torch.equal(a, b)
    assert [path.name for path in (tmp_path / "out_drop").iterdir()] == ["denoiser.safetensors"]
    checkpoint = torch.load(tmp_path / "drop" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(name.startswith("backbone.denoiser.") for name in checkpoint["state_dict"])


def mixing_for(backbone) -> MixingSettings:
    return MixingSettings(3, 1) if backbone.channels == 1 else MixingSettings()


# Resume, and the best epoch


def whole_state(module: Denoising) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.long
@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full", "lora"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, adapter):
    write_corpus(tmp_path)
    base = moving(build("tiny_audio"))
    settings = {
        "adapter": adapter,
        "ema_decay": 0.9,
        "val_time": 0.5,
        "keep_best": True,
        "condition_dropout": 0.3,
        "optimizer": ScheduleSettings(
            learning_rate=1e-2, schedule="linear", total_steps=8, warmup_steps=1
        ),
    }

    def run(name: str, epochs: int, checkpoint=None) -> Denoising:
        torch.manual_seed(7)  # the adapter's first factor
        backbone = copy_of("tiny_audio", base)
        module = denoising(backbone, **settings)
        data = weighted_clips(tmp_path, backbone, cache_dir=str(tmp_path / "latents"))
        trainer = {"max_epochs": epochs, "accumulate_grad_batches": 2, "checkpoint": checkpoint}
        fitted(module, data, tmp_path / name, **trainer)
        return module

    once = run("once", 3)
    run("twice", 1)
    twice = run("twice", 3, str(tmp_path / "twice" / "checkpoints" / "last.ckpt"))
    for name, value in whole_state(once).items():
        assert torch.equal(value, twice.state_dict()[name]), name
    for a, b in zip(once.ema.average, twice.ema.average, strict=True):
        assert torch.equal(a, b)
    assert once._best["error"] == twice._best["error"]
    assert once._best["epoch"] == twice._best["epoch"]
    for a, b in zip(once._best["weights"], twice._best["weights"], strict=True):
        assert torch.equal(a, b)


class Scripted(L.Callback):
    """Replaces what validation measured, so that the second epoch is the best one."""

    def __init__(self, *errors: float) -> None:
        self.errors = list(errors)
        self.weights: list[list[torch.Tensor]] = []

    def on_validation_epoch_end(self, trainer, module) -> None:
        module.log("val/loss", self.errors.pop(0))
        with module.averaged():
            self.weights.append([p.detach().clone() for p in module.parameters_that_learn])


@pytest.mark.long
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_best_epoch_is_exported(tmp_path, monkeypatch, ema_decay):
    write_corpus(tmp_path)
    backbone = moving(build("tiny_audio"))
    module = denoising(backbone, keep_best=True, val_time=0.5, ema_decay=ema_decay)
    real = Denoising.validation_step

    def measured(self, batch, index):
        kept = self.log_dict
        self.log_dict = lambda values, **how: kept(
            {k: v for k, v in values.items() if k != "val/loss"}, **how
        )
        real(self, batch, index)
        del self.log_dict

    monkeypatch.setattr(Denoising, "validation_step", measured)
    script = Scripted(0.5, 0.3, 0.3, 0.4)
    made = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=4,
        callbacks=[script],
    )
    made.fit(module, datamodule=weighted_clips(tmp_path, backbone))
    assert (module._best["epoch"], module._best["error"]) == (1, pytest.approx(0.3))
    last = [parameter.detach().clone() for parameter in module.parameters_that_learn]
    with module._exported():
        for parameter, value in zip(module.parameters_that_learn, script.weights[1], strict=True):
            assert torch.equal(parameter, value)
    for parameter, value in zip(module.parameters_that_learn, last, strict=True):
        assert torch.equal(parameter, value), "training goes on from where it was"
    assert not torch.equal(script.weights[1][0], script.weights[3][0])


def test_the_best_weights_are_in_the_checkpoint():
    module, resumed = (denoising(ToyBackbone(), keep_best=True) for _ in range(2))
    module._best = best_state(0.25, 3, module.parameters_that_learn)
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    assert (resumed._best["error"], resumed._best["epoch"]) == (0.25, 3)
    for kept, own in zip(resumed._best["weights"], module.parameters_that_learn, strict=True):
        assert torch.equal(kept, own)
    other = denoising(ToyBackbone(width=8), keep_best=True)
    with pytest.raises(UserError, match="best weights"):
        other.on_load_checkpoint(checkpoint)


def test_without_validation_the_last_weights_are_exported_and_said(tmp_path):
    module = denoising(ToyBackbone(), keep_best=True)
    with pytest.warns(UserWarning, match="keep_best"), module._exported():
        pass


# What does not fit


def test_a_run_that_diverged_stops(tmp_path):
    module = denoising(ToyBackbone(), pretrain_weight=0.0)
    before = [parameter.detach().clone() for parameter in module.parameters_that_learn]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(UserError, match="not finite"):
        trainer.fit(module, Given(batch_of([math.inf, 1.0, 1.0, 1.0])))
    for parameter, value in zip(module.parameters_that_learn, before, strict=True):
        assert torch.equal(parameter, value)


def test_a_second_stream_must_be_there():
    class Plain:
        batch_type = LatentBatch

    with pytest.raises(UserError, match="pretrain_weight"):
        check_data(denoising(ToyBackbone()), Plain())
    check_data(denoising(ToyBackbone(), pretrain_weight=0.0), Plain())
    Plain.batch_type = PairedBatch
    check_data(denoising(ToyBackbone()), Plain())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pretrain_weight": -0.1}, "pretrain_weight -0.1"),
        ({"pretrain_weight": math.nan}, "pretrain_weight nan"),
        ({"val_time": 1.0}, "val_time 1.0"),
        ({"min_snr_form": "sn"}, "did you mean 'snr'"),
        ({"adapter": LORA, "trainable": ["denoiser", "text"]}, "adapter"),
        ({"trainable": ["text"], "memory": MemorySettings("drop")}, "'text'"),
    ],
)
def test_wrong_settings_are_named(settings, named):
    with pytest.raises(UserError, match=named):
        denoising(build("tiny_audio"), **settings)


def test_captions_that_are_too_long_are_refused_before_training(tmp_path):
    write_corpus(tmp_path)
    text = (tmp_path / "hd.jsonl").read_text()
    (tmp_path / "hd.jsonl").write_text(text.replace("a dog barks", "a dog barks " * 900, 1))
    backbone = build("tiny_audio")
    with pytest.raises(UserError, match="1 of .* captions are too long"):
        fitted(denoising(backbone), weighted_clips(tmp_path, backbone), tmp_path, max_steps=1)


def test_encoders_are_dropped_only_when_all_captions_are_known(tmp_path):
    module = denoising(build("tango"), memory=MemorySettings("drop"), pretrain_weight=0.0)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(UserError, match="knows all its prompts"):
        trainer.fit(module, Given(batch_of()))


def test_an_adapter_is_resumed_on_its_own_base_only(tmp_path):
    write_corpus(tmp_path)
    base = moving(build("tiny_audio"))
    for change in (0.0, 1.0):
        backbone = copy_of("tiny_audio", base)
        with torch.no_grad():
            next(backbone.denoiser.parameters()).add_(change)
        module = denoising(backbone, adapter=LORA)
        data = weighted_clips(tmp_path, backbone)
        last = str(tmp_path / "checkpoints" / "last.ckpt") if change else None
        if not change:
            fitted(module, data, tmp_path, max_epochs=1)
            continue
        with pytest.raises(UserError, match="another base"):
            fitted(module, data, tmp_path, max_epochs=2, checkpoint=last)


@pytest.mark.long
def test_checkpointed_activations_change_no_gradient_or_are_refused(small_zoo, tmp_path):
    write_corpus(tmp_path)
    found = []
    for is_on in (False, True):
        backbone = moving(zoo.load("tango-full-ft-audiocaps", checkpoint_activations=is_on))
        module = denoising(backbone)
        fitted(module, weighted_clips(tmp_path, backbone), tmp_path / str(is_on), max_steps=2)
        found.append(whole_state(module))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="checkpoint_activations"):
        zoo.load("embedded/sounds", checkpoint_activations=True)
