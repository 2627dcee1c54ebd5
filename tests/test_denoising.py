"""Learning from clean audio: the objective, trainable parts, averages, and exact resume."""

import dataclasses
import math

import lightning as L
import pytest
import torch
from toys import supervised

import zoo
from datamodules.batches import AudioBatch, LatentBatch
from datamodules.cache import LatentCache
from datamodules.music.music import MusicDataModule
from lightning_modules.denoising import Denoising
from lightning_modules.ema import EMA
from lightning_modules.latent_errors import latent_errors
from lightning_modules.run_folder import every_epoch
from zoo.backbones.tiny import TinyAudio
from zoo.types import Prompt, SourcePath

SMALL = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "text_width": 16,
    "text_depth": 1,
    "codec_width": 16,
    "codec_encoder_depth": 1,
    "codec_decoder_depth": 1,
}
PROMPTS = tuple(
    Prompt(f"p{i}", text, seconds=0.256)
    for i, text in enumerate(["sad piano", "happy guitar", "angry harp"])
)


def module(**settings):
    return supervised(
        Denoising, TinyAudio(**SMALL), **{"total_steps": 50, "warmup_steps": 1, **settings}
    )


class Given:
    """A data loader of these batches, as Lightning reads a list as several loaders."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def latents(weights=None, rows=3):
    latent = torch.randn(rows, 32, 8, generator=torch.Generator().manual_seed(1))
    return LatentBatch(latent, PROMPTS[:rows], None if weights is None else torch.tensor(weights))


def trainer(folder, **settings):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[every_epoch(folder)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


def fit_music(model, folder, epochs, checkpoint=None):
    music = MusicDataModule(
        clips=6,
        val_clips=4,
        seconds=0.256,
        renderer="additive",
        workers=1,
        batch_size=2,
        batches_per_epoch=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoder = TinyAudio(**SMALL)
    fit = trainer(folder, max_epochs=epochs)
    fit.fit(model, LatentCache(music, encoder), ckpt_path=checkpoint)
    return fit


@pytest.fixture
def logged(monkeypatch):
    """Collects what steps log outside of a trainer."""
    values = {}
    monkeypatch.setattr(
        Denoising, "log", lambda self, name, value, **settings: values.update({name: value.item()})
    )
    monkeypatch.setattr(
        Denoising,
        "log_dict",
        lambda self, many, **settings: values.update({k: v.item() for k, v in many.items()}),
    )
    return values


def gradients(model, batch):
    model.zero_grad()
    loss = model.training_step(batch, 0)
    loss.backward()
    return loss.detach(), [
        None if p.grad is None else p.grad.clone() for p in model.backbone.parameters()
    ]


def stir(model):
    """Moves zero-initialised layers, so that the text matters from the first step."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.backbone.denoiser.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def test_the_loss_falls_on_one_batch(logged):
    model = module(learning_rate=5e-3, condition_dropout=0.0)
    setup = model.configure_optimizers()
    optimizer = setup["optimizer"]
    schedule = setup["lr_scheduler"]["scheduler"]
    first = model.training_step(latents(), 0).item()
    for _ in range(40):
        loss = model.training_step(latents(), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert model.training_step(latents(), 0).item() == logged["train/loss"] < 0.7 * first


def test_the_untrained_network_is_off_by_its_target(logged):
    model = module(
        condition_dropout=0.0
    )  # puts out zero, so the error is the mean square of v = alpha noise - sigma clean
    loss = float(
        model.training_step(LatentBatch(torch.zeros(64, 32, 8), PROMPTS[:1] * 64), 0).detach()
    )
    uniform = torch.linspace(
        0, 1, 1001
    )  # clean is zero: E v^2 = alpha^2, whose mean over cosine angles is 1/2
    expected = float(
        model.backbone.path.coefficients(model.backbone.path.sample_times(uniform))[0]
        .square()
        .mean()
    )
    assert loss == pytest.approx(expected, abs=0.02)


def test_a_sample_of_weight_zero_has_no_effect(logged):
    model = stir(module(condition_dropout=0.0))
    batch = latents([1.0, 0.0, 2.0])
    other = batch.latent_BCT.clone()
    other[1] = 5.0
    loss, first = gradients(model, batch)
    changed, second = gradients(model, dataclasses.replace(batch, latent_BCT=other))
    assert loss == changed and any(g is not None and g.any() for g in first)
    for one, two in zip(first, second, strict=True):
        assert one is None and two is None or torch.equal(one, two)
    counted, third = gradients(
        model, dataclasses.replace(batch, latent_BCT=other, weight_B=torch.ones(3))
    )
    assert counted != loss and any(
        a is not None and not torch.equal(a, b) for a, b in zip(first, third, strict=True)
    )


def test_the_loss_is_linear_in_the_weights(logged):
    model = stir(module(condition_dropout=0.0))
    plain = model.training_step(latents(), 0)
    assert torch.equal(model.training_step(latents([1.0, 1.0, 1.0]), 0), plain)
    torch.testing.assert_close(model.training_step(latents([2.0, 2.0, 2.0]), 0), 2 * plain)
    single = sum(
        model.training_step(latents([float(i == j) for j in range(3)]), 0) for i in range(3)
    )
    torch.testing.assert_close(single, plain)


def seen_prompts(model, batch):
    seen = []
    encode = model.backbone.encode_prompts
    model.backbone.encode_prompts = lambda prompts: (seen.append(list(prompts)), encode(prompts))[1]
    model.training_step(batch, 0)
    return seen[0]


def test_dropped_conditions_keep_only_the_length(logged):
    prompts = tuple(dataclasses.replace(prompt, sources=(SourcePath(90.0),)) for prompt in PROMPTS)
    batch = dataclasses.replace(latents(), prompts=prompts)
    dropped = seen_prompts(module(condition_dropout=1 - 1e-9), batch)
    assert [(p.id, p.text, p.sources, p.seconds) for p in dropped] == [
        (p.id, "", (), 0.256) for p in prompts
    ]
    assert seen_prompts(module(condition_dropout=0.0), batch) == list(prompts)
    many = LatentBatch(torch.zeros(400, 32, 1), PROMPTS[:1] * 400)
    assert 50 < sum(p.text == "" for p in seen_prompts(module(condition_dropout=0.25), many)) < 150


@pytest.fixture
def measured(monkeypatch):
    """[(time_B, noise, errors)] of every call of ``latent_errors`` by the module."""
    calls = []

    def recording(backbone, clean, prompts, time_B, noise, rows=None):
        error_B = latent_errors(backbone, clean, prompts, time_B, noise, rows)
        calls.append((time_B, noise, error_B))
        return error_B

    monkeypatch.setattr("lightning_modules.denoising.latent_errors", recording)
    return calls


def test_min_snr_weighs_errors_by_their_time(logged, measured):
    model = stir(module(condition_dropout=0.0, min_snr_gamma=5.0))
    loss = model.training_step(latents([1.0, 2.0, 3.0]), 0)
    expected = 0.0
    time_B, _, error_B = measured[0]
    for time, error, weight in zip(time_B.tolist(), error_B.tolist(), [1.0, 2.0, 3.0], strict=True):
        snr = 1 / math.tan(math.pi * time / 2) ** 2
        expected += weight * min(snr, 5.0) / (snr + 1) * error / 3
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_the_draws_of_a_step_depend_on_seed_and_batch_alone(logged):
    model = module()
    other = module(seed=1)
    first = model.training_step(latents(), 0)
    torch.randn(7)
    assert torch.equal(model.training_step(latents(), 0), first)
    assert not torch.equal(model.training_step(latents(), 1), first)
    assert not torch.equal(other.training_step(latents(), 0), first)


def test_every_sample_meets_every_part_of_the_path(logged, measured):
    """Stratified times: one in each part, but never in the order of the batch."""
    model = module()
    for step in range(40):
        model.training_step(latents(), step)
    parts = (torch.stack([time_B for time_B, _, _ in measured]) * 3).long()
    assert parts.sort(dim=1).values.tolist() == [[0, 1, 2]] * 40
    assert all(set(column) == {0, 1, 2} for column in parts.T.tolist())


def test_draws_differ_by_step_and_process(logged, monkeypatch):
    model = module()
    found = []
    for step, rank in ((0, 0), (5, 0), (0, 1)):
        monkeypatch.setattr(Denoising, "global_step", property(lambda self, step=step: step))
        monkeypatch.setattr(Denoising, "global_rank", property(lambda self, rank=rank: rank))
        found.append(model.training_step(latents(), 0).item())
    assert len(set(found)) == 3


def test_each_validation_batch_has_noise_of_its_own_that_stays(logged, measured):
    model = module()
    for batch_index in (0, 1, 0):
        model.validation_step(latents(), batch_index)
    first, second, again = (noise for _, noise, _ in measured)
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_validation_measures_each_clip_under_its_own_and_the_next_caption(logged, measured):
    model = stir(module())
    model.ema = EMA(model.ema.parameters, 0.999)  # of the weights as they are now
    batch = latents()
    with torch.no_grad():
        model.validation_step(batch, 0)
        time_B, noise, _ = measured[0]
        own, others = (
            latent_errors(model.backbone, batch.latent_BCT, prompts, time_B, noise)
            for prompts in (PROMPTS, [*PROMPTS[1:], PROMPTS[0]])
        )
    assert logged["val/error"] == pytest.approx(float(own.mean()), rel=1e-5)
    assert logged["val/error_shuffled"] == pytest.approx(float(others.mean()), rel=1e-5)
    assert logged["val/own_caption_better"] == float((others > own).float().mean())


def test_only_what_is_heard_counts_in_the_error():
    model = module()  # puts out zero, so the error is the mean square of the target
    heard_B11 = torch.tensor([8, 3, 5])[:, None, None]
    model.backbone.scored_mask = lambda prompts: torch.arange(8) < heard_B11[: len(prompts)]
    clean = latents().latent_BCT
    time_B = torch.tensor([0.2, 0.5, 0.9])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        errors_B = latent_errors(model.backbone, clean, PROMPTS, time_B, noise)
    alpha_B, sigma_B = model.backbone.path.coefficients(time_B)
    for row, heard in enumerate((8, 3, 5)):
        target = (alpha_B[row] * noise[row] - sigma_B[row] * clean[row])[:, :heard]
        assert errors_B[row].item() == pytest.approx(target.square().mean().item(), rel=1e-5)


def test_audio_is_encoded_without_gradients(logged):
    model = stir(module(condition_dropout=0.0))
    audio = AudioBatch(0.1 * torch.randn(3, 2, 4096), 16_000, PROMPTS)
    latent = LatentBatch(model.backbone.encode(audio.wave_BCN).detach(), PROMPTS)
    assert torch.equal(model.training_step(audio, 0), model.training_step(latent, 0))
    with pytest.raises(ValueError, match=r"44100.*16000.*data\.sample_rate_hz"):
        model.training_step(dataclasses.replace(audio, sample_rate_hz=44_100), 0)
    with pytest.raises(ValueError, match="stereo"):
        model.training_step(dataclasses.replace(audio, wave_BCN=audio.wave_BCN[:, :1]), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"trainable": ["denoisr"]},
            "'denoisr', .*did you mean 'denoiser'",
        ),
        ({"trainable": ["channels"]}, "'channels', which TinyAudio"),
        ({"condition_dropout": 1.0}, "condition_dropout 1.0"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
        ({"total_steps": 0}, "total_steps 0"),
        ({"warmup_steps": 50}, "less than total_steps, got 50 and 50"),
        ({"ema_decay": 1.0}, "ema_decay 1.0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        module(**settings)


def test_validation_scores_the_averages_and_puts_the_weights_back(logged):
    model = stir(module())
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.ema = EMA(model.ema.parameters, 0.999)  # of the weights as they are now
    with torch.no_grad():
        model.validation_step(latents(), 0)
        assert logged["val/error"] != logged["val/error_shuffled"]
        for average in model.ema.average:
            average.zero_()
        model.validation_step(latents(), 0)
        silent = dict(logged)
        model.validation_step(latents(), 0)
    assert (
        silent["val/error"] == silent["val/error_shuffled"] == logged["val/error"]
    )  # zero weights hear nothing
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("batches", "accumulated", "steps"), [(4, 1, 4), (4, 2, 2), (3, 2, 2)])
def test_averages_move_once_per_optimiser_step(tmp_path, batches, accumulated, steps):
    model = module()
    fit = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=accumulated)
    fit.fit(model, Given(*[latents()] * batches))
    assert model.ema.updates == fit.global_step == steps


def test_only_named_parts_learn(tmp_path):
    model = module(trainable=["denoiser"])
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    trainer(tmp_path, max_epochs=1).fit(model, Given(latents(), latents()))
    changed = {
        name.split(".")[0]
        for name, tensor in model.backbone.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"denoiser"}


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    torch.manual_seed(1)
    whole = module(condition_dropout=0.5)
    start = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    fit = fit_music(whole, tmp_path / "whole", 2)
    assert fit.global_step == 4 and {"val/error", "val/error_shuffled", "train/loss"} <= set(
        fit.callback_metrics
    )

    first = module(condition_dropout=0.5)
    first.load_state_dict(start)
    first.ema = EMA(first.ema.parameters, first.ema.decay)  # averages start at the weights
    fit_music(first, tmp_path / "parts", 1)
    file = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    saved = torch.load(file, weights_only=True)
    assert saved["ema"]["updates"] == 2 and saved["hyper_parameters"]["trainable"][0] == "denoiser"
    torch.manual_seed(99)  # neither the global generator nor the first weights matter now
    second = module(condition_dropout=0.5)
    resumed = fit_music(second, tmp_path / "parts", 2, checkpoint=file)
    assert resumed.global_step == second.ema.updates == 4
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
    for one, two in zip(whole.ema.average, second.ema.average, strict=True):
        assert torch.equal(one, two)
    assert any(
        not torch.equal(average, p)
        for average, p in zip(whole.ema.average, whole.ema.parameters, strict=True)
    )


def test_the_artefact_holds_the_averages_in_half_precision(tmp_path):
    model = stir(module())
    with torch.no_grad():
        for average in model.ema.average:
            average.add_(0.05 * torch.randn(average.shape))
    model.export(tmp_path)
    loaded = zoo.load(tmp_path / "model")
    assert loaded.arguments == model.backbone.arguments and not loaded.training
    batch = latents()
    time_B = torch.tensor([0.2, 0.5, 0.8])
    with torch.no_grad():
        raw = model.backbone.predict(
            batch.latent_BCT, time_B, model.backbone.encode_prompts(PROMPTS)
        )
        made = loaded.predict(batch.latent_BCT, time_B, loaded.encode_prompts(PROMPTS))
        with model.ema.swapped():
            expected = model.backbone.predict(
                batch.latent_BCT, time_B, model.backbone.encode_prompts(PROMPTS)
            )
            for name, tensor in model.backbone.state_dict().items():
                assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name
    torch.testing.assert_close(made, expected, atol=1e-2, rtol=1e-2)
    assert (raw - expected).abs().max() > 0.1
