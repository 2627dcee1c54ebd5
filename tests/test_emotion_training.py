"""The trainer of the mood classifier: losses and degradations by hand, learning, reports."""

import math

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from toys import supervised

from datamodules.batches import AudioBatch
from lightning_modules.degradations import add_noise, codec_round_trip, crop, low_pass
from lightning_modules.mood_classifier import Emotion, classification_report, emotion_loss
from zoo.rewards.mood import MOODS, EmotionReward
from zoo.types import Prompt

RATE = 8000


def small(**settings) -> EmotionReward:
    return EmotionReward(
        channels=(8, 8, 8, 8, 8, 8, 8),
        n_mels=32,
        n_fft=256,
        hop_samples=128,
        chunk_s=0.5,
        sample_rate_hz=RATE,
        dropout=0.1,
        **settings,
    )


def tones(count: int, seed: int) -> AudioBatch:
    """Clips whose mood is their pitch: 200, 400, 800 or 1600 Hz, within a semitone."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(RATE) / RATE
    waves, prompts = [], []
    for index in range(count):
        frequency = 200 * 2 ** (
            index % 4 + (float(torch.rand((), generator=generator)) * 2 - 1) / 12
        )
        waves.append(torch.sin(2 * math.pi * frequency * time + index).expand(2, -1) * 0.1)
        prompts.append(Prompt(id=f"{seed}-{index}", text="x", labels={"mood": MOODS[index % 4]}))
    return AudioBatch(torch.stack(waves), RATE, tuple(prompts))


class HalfBandCodec:
    """A stand-in for a backbone: half the sample rate, and the samples are its latents."""

    sample_rate_hz = RATE // 2
    channels = 1

    def __init__(self):
        self.calls = 0

    def encode(self, wave_BCN):
        self.calls += 1
        assert wave_BCN.shape[1] == 1
        return wave_BCN

    def decode(self, latent_BCT):
        return latent_BCT


def trainer(**settings) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(accelerator="cpu", **quiet, **settings)


def loader(batches) -> DataLoader:
    return DataLoader(batches, batch_size=None)


def test_losses_by_arithmetic():
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    target = torch.tensor([0])
    assert emotion_loss(logits, target, "cross_entropy").item() == pytest.approx(
        math.log(1 + 3 * math.exp(-2))
    )
    certain = torch.tensor([[100.0, -100.0, -100.0, -100.0]])
    assert emotion_loss(certain, target, "softmax_of_sigmoids").item() == pytest.approx(
        math.log(1 + 3 / math.e)
    )


def test_add_noise_reaches_the_wanted_ratio():
    wave = torch.randn(2, 8000) * torch.tensor([[0.5], [0.01]])
    added = add_noise(wave, torch.randn(2, 8000), torch.tensor([10.0, 0.0])) - wave
    ratio_db = 10 * torch.log10(wave.square().mean(1) / added.square().mean(1))
    assert torch.allclose(ratio_db, torch.tensor([10.0, 0.0]), atol=1e-3)
    assert add_noise(torch.zeros(1, 10), torch.randn(1, 10), torch.tensor([10.0])).abs().max() == 0


def test_low_pass_halves_the_power_at_its_cutoff():
    time = torch.arange(8000) / 8000
    wave = torch.stack([torch.sin(2 * math.pi * f * time) for f in (250.0, 1000.0, 3000.0)])
    gain = low_pass(wave, torch.full((3,), 1000.0), 8000).square().mean(1) / wave.square().mean(1)
    assert gain[0] > 0.99 and gain[1] == pytest.approx(0.5, abs=1e-3) and gain[2] < 1e-3


def test_crop_starts_at_its_place_and_pads():
    wave = torch.arange(1.0, 11.0).view(2, 5)
    assert crop(wave, torch.tensor([0, 3]), 4).tolist() == [[1, 2, 3, 4], [9, 10, 0, 0]]


def test_codec_round_trip_changes_rate_channels_and_adds_latent_noise():
    codec = HalfBandCodec()
    wave = torch.randn(3, 2, RATE) * 0.1
    clean = codec_round_trip(codec, wave, RATE, torch.zeros(3))
    noisy = codec_round_trip(codec, wave, RATE, torch.tensor([0.0, 1.0, 1.0]))
    assert clean.shape == (3, 1, RATE // 2)
    assert torch.equal(clean[0], noisy[0]) and not torch.allclose(clean[1], noisy[1])


def test_report_counts_both_ways():
    report = classification_report(
        torch.tensor([1.0, 0.5, 0.0, 1.0]),
        torch.tensor([True, True, False, True]),
        torch.tensor([0, 0, 1, 2]),
        MOODS,
    )
    assert (report.chunk_share, report.clip_vote, report.clips) == (0.625, 0.75, 4)
    assert report.recall == {"happy": 1.0, "angry": 0.0, "sad": 1.0}
    assert report.clip_vote_interval[0] < 0.75 < report.clip_vote_interval[1]


@pytest.mark.long
@pytest.mark.parametrize("loss", ["cross_entropy", "softmax_of_sigmoids"])
def test_learns_pitch_as_mood_under_degradation(loss):
    torch.manual_seed(1)
    codec = HalfBandCodec()
    reward = small(activation="sigmoid" if loss == "softmax_of_sigmoids" else "softmax")
    module = supervised(
        Emotion,
        reward,
        loss=loss,
        learning_rate=5e-3,
        codec=codec,
        codec_share=0.25,
        total_steps=90,
        low_pass_hz=[2500, 3900],
    )
    fit = trainer(max_epochs=3)
    fit.fit(module, loader([tones(16, seed) for seed in range(30)]), loader([tones(16, 99)]))
    assert codec.calls == 90
    results = trainer().test(module, loader([tones(32, 100), tones(32, 101)]), verbose=False)[0]
    assert results["test/accuracy"] >= 0.9 and module.report.clips == 64
    assert (
        results["test/accuracy_low"]
        < results["test/accuracy"]
        <= results["test/accuracy_high"]
        <= 1
    )
    if loss == "softmax_of_sigmoids":
        assert results["test/loss"] >= 0.743
    scores = reward(tones(8, 5).wave_BCN, RATE, tones(8, 5).prompts)
    assert scores.parts["accuracy"].mean() >= 0.75


def test_only_the_classifier_is_trained_and_saved(tmp_path):
    backbone = torch.nn.Linear(2, 2)
    backbone.sample_rate_hz = RATE
    backbone.channels = 1
    backbone.encode = backbone.decode = lambda wave: wave
    module = supervised(Emotion, small(), codec=backbone, codec_share=1.0)
    fit = trainer(max_steps=2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit.fit(module, loader([tones(8, 0), tones(8, 1)]))
    assert all(name.startswith("reward.classifier.") for name in module.state_dict())
    assert not torch.equal(
        before["reward.classifier.dense2.weight"],
        module.state_dict()["reward.classifier.dense2.weight"],
    )
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    assert (
        torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]["loss"]
        == "cross_entropy"
    )


def test_batch_norm_learns_although_the_reward_stays_in_evaluation_mode():
    module = supervised(Emotion, small(), noise_share=0, low_pass_share=0)
    before = module.reward.classifier.spec_bn.running_mean.clone()
    trainer(max_epochs=1).fit(module, loader([tones(8, 0)]), loader([tones(8, 1)]))
    assert not torch.equal(before, module.reward.classifier.spec_bn.running_mean)


def test_after_the_run_the_reward_is_one_again():
    module = supervised(Emotion, small(), noise_share=0, low_pass_share=0)
    batch = tones(2, 0)
    trainer(max_epochs=1).fit(module, loader([batch]))
    first, second = (
        module.reward(batch.wave_BCN, batch.sample_rate_hz, batch.prompts).score_B for _ in range(2)
    )
    assert torch.equal(first, second), "dropout"


def test_a_two_class_task_learns_from_prompts_that_ask_for_moods():
    arousal = {"happy": "HA", "angry": "HA", "sad": "LA", "tender": "LA"}
    module = supervised(Emotion, small(class_names=["HA", "LA"], classes_of=arousal))
    before = module.reward.classifier.dense2.weight.clone()
    trainer(max_steps=1).fit(module, loader([tones(8, 1)]))
    assert not torch.equal(before, module.reward.classifier.dense2.weight)
    trainer().test(module, loader([tones(8, 0)]), verbose=False)
    assert set(module.report.recall) == {"HA", "LA"} and module.report.clips == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mse"}, "invalid loss"),
        ({"codec_share": 2.0}, "invalid codec_share 2.0"),
        ({"loss": "softmax_of_sigmoids"}, "activation='sigmoid'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        supervised(Emotion, small(), **settings)


def test_export_reads_back(tmp_path):
    import zoo

    module = supervised(Emotion, small(value="log_odds"))
    module.export(tmp_path)
    again = zoo.load(str(tmp_path / "model"))
    batch = tones(4, 3)
    expected = module.reward(batch.wave_BCN, RATE, batch.prompts).score_B
    assert again.value == "log_odds"
    assert torch.allclose(again(batch.wave_BCN, RATE, batch.prompts).score_B, expected, atol=0.02)
    elements = sum(value.numel() for value in module.reward.state_dict().values())
    assert (
        tmp_path / "model" / "model.safetensors"
    ).stat().st_size < 2 * elements + 16_384  # two bytes each, and a header
