"""Training of the codec: trainable and frozen parts, and resuming."""

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from toys import supervised

from datamodules.batches import AudioBatch
from datamodules.music.music import MusicDataModule
from lightning_modules.codec import Codec, codec_losses
from lightning_modules.run_folder import every_epoch
from zoo.backbones.spectral_codec import SpectralCodec
from zoo.types import Prompt


def codec():
    return SpectralCodec(
        window=512, hop=128, bands=8, latent_channels=4, width=16, encoder_depth=1, decoder_depth=1
    )


def module(**settings):
    return supervised(Codec, codec(), **{"total_steps": 50, "warmup_steps": 1, **settings})


def music(batches_per_epoch=2):
    return MusicDataModule(
        clips=6,
        val_clips=4,
        seconds=0.256,
        renderer="additive",
        workers=1,
        batch_size=2,
        batches_per_epoch=batches_per_epoch,
    )


def batch(rows=2, channels=2, rate=16_000):
    wave = 0.1 * torch.randn(rows, channels, 4096, generator=torch.Generator().manual_seed(1))
    return AudioBatch(wave, rate, tuple(Prompt(f"p{i}", "noise") for i in range(rows)))


def fit(model, folder, epochs, checkpoint=None, **settings):
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[every_epoch(folder)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(model, music(), ckpt_path=checkpoint)
    return trainer


@pytest.fixture
def quiet(monkeypatch):
    """Turns off logging, which needs a trainer."""
    for name in ("log", "log_dict"):
        monkeypatch.setattr(Codec, name, lambda self, *args, **settings: None)


def test_a_perfect_codec_has_no_loss_and_a_silent_one_has():
    model = codec()
    wave = batch().wave_BCN
    log_magnitude, stereo = model.features(wave)
    model.features_of = lambda latent: (log_magnitude, stereo)
    perfect = codec_losses(model, wave)
    assert [float(perfect[name]) for name in ("log_magnitude", "convergence", "stereo")] == [
        0.0,
        0.0,
        0.0,
    ]
    model.features_of = lambda latent: (log_magnitude + 0.5, stereo)
    louder = codec_losses(model, wave)
    assert float(louder["log_magnitude"]) == pytest.approx(0.5, rel=1e-5)
    assert float(louder["convergence"]) == pytest.approx(
        torch.tensor(0.5).exp().item() - 1, rel=1e-4
    )  # magnitudes times e^0.5


def test_kl_is_that_of_two_normal_distributions():
    model = codec()
    shape = (2, 4, 16)
    model.posterior = lambda *features: (torch.full(shape, 2.0), torch.zeros(shape))
    assert float(codec_losses(model, batch().wave_BCN)["kl"]) == pytest.approx(2.0)  # mean^2 / 2
    model.posterior = lambda *features: (torch.zeros(shape), torch.ones(shape))
    assert float(codec_losses(model, batch().wave_BCN)["kl"]) == pytest.approx(
        (torch.e - 2) / 2, rel=1e-5
    )


def test_the_loss_falls_on_one_batch(quiet):
    model = module(learning_rate=3e-3)
    setup = model.configure_optimizers()
    optimizer = setup["optimizer"]
    schedule = setup["lr_scheduler"]["scheduler"]
    first = model.training_step(batch(), 0).item()
    for _ in range(25):
        loss = model.training_step(batch(), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert model.training_step(batch(), 0).item() < 0.8 * first


def test_the_noise_of_a_step_depends_on_seed_and_batch_alone(quiet):
    model = module()
    other = module(seed=1)
    other.codec.load_state_dict(model.codec.state_dict())
    first = model.training_step(batch(), 0)
    torch.randn(7)
    assert torch.equal(model.training_step(batch(), 0), first)
    assert not torch.equal(model.training_step(batch(), 1), first)
    assert not torch.equal(other.training_step(batch(), 0), first)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    torch.manual_seed(1)
    whole = module()
    start = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    trainer = fit(whole, tmp_path / "whole", 2)
    assert trainer.global_step == 4

    first = module()
    first.load_state_dict(start)
    fit(first, tmp_path / "parts", 1)
    file = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    assert torch.load(file, weights_only=True)["hyper_parameters"]["kl_weight"] == 0.01
    torch.manual_seed(99)  # neither the global generator nor the first weights matter now
    second = module()
    resumed = fit(second, tmp_path / "parts", 2, checkpoint=file)
    assert resumed.global_step == 4
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
        assert name.endswith(("mean_C", "std_C")) or not torch.equal(start[name], tensor), name
    assert (
        resumed.optimizers[0].param_groups[0]["lr"] == trainer.optimizers[0].param_groups[0]["lr"]
    )


def test_statistics_of_the_latents_are_measured(tmp_path):
    model = module()
    fit(model, tmp_path, 1)
    data = music()
    data.setup()
    waves = torch.cat([b.wave_BCN for b in data.val_dataloader()])
    with torch.no_grad():
        latents = model.codec.encode(waves)
    assert len(waves) == 4 and model.codec.latent_mean_C.abs().min() > 0
    torch.testing.assert_close(latents.mean(dim=(0, 2)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2)), torch.ones(4), atol=1e-4, rtol=0)


def test_a_frozen_encoder_keeps_its_latents(tmp_path):
    model = module(freeze_encoder=True)
    model.codec.latent_mean_C.fill_(0.25)
    before = {name: tensor.clone() for name, tensor in model.codec.state_dict().items()}
    latents = model.codec.encode(batch().wave_BCN)
    trainer = fit(model, tmp_path, 1)
    assert torch.equal(model.codec.encode(batch().wave_BCN), latents)
    changed = {
        name.split(".")[0]
        for name, tensor in model.codec.state_dict().items()
        if not torch.equal(before[name], tensor)
    }
    assert changed == {"from_latent", "decoder", "head"}
    assert {"val/loss", "val/stereo", "train/log_magnitude"} <= set(trainer.callback_metrics)


def test_the_kl_term_counts_only_while_the_encoder_learns(quiet):
    both = [
        module(freeze_encoder=frozen, kl_weight=weight)
        for frozen, weight in ((True, 0.0), (True, 9.0), (False, 9.0))
    ]
    for model in both:
        model.codec.load_state_dict(both[0].codec.state_dict())
    frozen, weighted, learning = (float(model.training_step(batch(), 0).detach()) for model in both)
    assert frozen == weighted < learning


def test_exported_weights_make_the_same_codec(tmp_path):
    model = module()
    model.codec.latent_std_C.fill_(2.0)
    model.export(tmp_path)
    again = codec()
    again.load_state_dict(load_file(tmp_path / "codec.safetensors"), strict=True)
    assert torch.equal(again.encode(batch().wave_BCN), model.codec.encode(batch().wave_BCN))


def test_wrong_audio_and_settings_are_named(quiet):
    with pytest.raises(ValueError, match="1 channel.*channels.* 2"):
        module().training_step(batch(channels=1), 0)
    with pytest.raises(ValueError, match="44100.*16000"):
        module().training_step(batch(rate=44_100), 0)
    for warmup in (-1, 50):
        with pytest.raises(ValueError, match="warmup_steps"):
            module(warmup_steps=warmup)
