"""Training of a CLAP: losses by hand, wrong captions, order, reports, artefacts, errors."""

import math
import random

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from toys import supervised

import zoo
from datamodules.batches import AudioBatch
from lightning_modules.contrastive import Contrastive, info_nce, wrong_captions
from lightning_modules.retrieval_report import caption_truth, retrieval_report, same_meaning
from zoo.rewards.clap import ClapReward
from zoo.types import Prompt

RATE = 8000
SMALL = {
    "sample_rate_hz": RATE,
    "window_s": 0.512,
    "n_fft": 256,
    "hop_samples": 128,
    "n_mels": 32,
    "channels": [8, 8, 16, 16],
}
SMALL |= {"width": 32, "depth": 1, "heads": 2, "text_depth": 1, "embedding": 16}
TONES = {"low": 250, "middle": 700, "high": 2000}


def small() -> ClapReward:
    return ClapReward("toy", "tiny", SMALL)


def tones(count: int, seed: int) -> AudioBatch:
    """Clips of two tones, captioned "low then high", with the swapped order as a wrong caption."""
    rng = random.Random(seed)
    waves = []
    prompts = []
    for index in range(count):
        events = rng.sample(sorted(TONES), 2)
        halves = []
        for event in events:
            hz = TONES[event] * 2 ** (rng.uniform(-1, 1) / 12)
            halves.append(
                torch.sin(2 * math.pi * hz * torch.arange(2048) / RATE + rng.uniform(0, 6))
                * rng.uniform(0.05, 0.15)
            )
        first, then = events
        labels = {"events": events, "relation": "then", "swapped": f"{then} then {first}"}
        waves.append(torch.cat(halves).expand(2, -1))
        prompts.append(Prompt(f"{seed}-{index}", f"{first} then {then}", labels=labels))
    return AudioBatch(torch.stack(waves), RATE, tuple(prompts))


class Tones(L.LightningDataModule):
    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader([tones(24, seed) for seed in range(self.batches)], batch_size=None)

    def val_dataloader(self):
        return DataLoader([tones(30, seed) for seed in (1001, 1002)], batch_size=None)


def trainer(folder, epochs: int, **settings) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **quiet | settings,
    )


def test_info_nce_by_hand():
    similarity = torch.tensor([[0.5, 0.1], [0.3, 0.4]])
    distinct = torch.eye(2, dtype=torch.bool)
    e = math.exp
    rows = -math.log(e(1.0) / (e(1.0) + e(0.2))) - math.log(e(0.8) / (e(0.6) + e(0.8)))
    columns = -math.log(e(1.0) / (e(1.0) + e(0.6))) - math.log(e(0.8) / (e(0.2) + e(0.8)))
    assert float(info_nce(similarity, distinct, 2.0)) == pytest.approx((rows + columns) / 4)
    assert float(
        info_nce(torch.zeros(8, 8), torch.eye(8, dtype=torch.bool), 50.0)
    ) == pytest.approx(math.log(8))


def test_captions_of_the_same_truth_are_not_negatives():
    similarity = torch.tensor([[0.5, 0.9], [0.9, 0.5]])
    assert float(info_nce(similarity, torch.ones(2, 2, dtype=torch.bool), 10.0)) == pytest.approx(0)
    assert float(info_nce(similarity, torch.eye(2, dtype=torch.bool), 10.0)) > 3


def test_wrong_captions_are_candidates_of_their_own_clip_only():
    similarity = torch.zeros(2, 2)
    own = torch.eye(2, dtype=torch.bool)
    wrong = torch.tensor([[0.0, 9.9], [9.9, 9.9]])
    given = torch.tensor([[True, False], [False, False]])
    loss = info_nce(similarity, own, 1.0, wrong, given)
    assert float(loss) == pytest.approx(((math.log(3) + math.log(2)) / 2 + math.log(2)) / 2)
    scale = torch.tensor(1.0, requires_grad=True)
    info_nce(similarity, own, scale, wrong, given).backward()
    assert torch.isfinite(scale.grad)


def test_truth_is_events_and_their_order_if_known():
    def truth(events, relation):
        return caption_truth(Prompt("p", "x", labels={"events": events, "relation": relation}))

    assert truth(["dog", "rain"], "then") != truth(["rain", "dog"], "then")
    assert (
        truth(["dog", "rain"], "together")
        == truth(["rain", "dog"], "overlap")
        != truth(["dog", "rain"], "then")
    )
    assert (
        caption_truth(Prompt("a", "A dog "))
        == caption_truth(Prompt("b", "a dog"))
        != caption_truth(Prompt("c", "a cat"))
    )


def test_equal_words_for_two_truths_are_not_negatives():
    captions = {"bird": "a bird", "bird_other": "A bird", "dog": "a dog"}
    asked = [
        Prompt(event, text, labels={"events": [event], "relation": "single"})
        for event, text in captions.items()
    ]
    asked.append(Prompt("again", "chirps", labels={"events": ["bird"], "relation": "single"}))
    assert same_meaning(asked).int().tolist() == [
        [1, 1, 0, 1],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [1, 0, 0, 1],
    ]


def test_wrong_captions_of_a_prompt():
    assert wrong_captions(Prompt("p", "a then b")) == []
    labels = {"swapped": "b then a", "negatives": ["b then a", "a then c"]}
    assert wrong_captions(Prompt("p", "a then b", labels=labels)) == ["b then a", "a then c"]
    assert wrong_captions(Prompt("p", "a", labels={"swapped": None, "negatives": []})) == []
    for bad in ({"negatives": "b"}, {"negatives": [" "]}, {"swapped": 3}):
        with pytest.raises(ValueError, match="'p': negatives must be a list"):
            wrong_captions(Prompt("p", "a", labels=bad))
    assert wrong_captions(Prompt("p", "a", labels={"swapped": "a", "negatives": ["b"]})) == ["b"]


def test_a_report_by_hand():
    prompts = [
        Prompt(str(i), text, labels={"recording_split": [i == 0]})
        for i, text in enumerate(["a", "b", "a", "c"])
    ]
    similarity = torch.eye(4)
    similarity[0] = torch.tensor(
        [0.5, 0.9, 0.6, 0.1]
    )  # clip 2 says the same, one wrong clip is above
    report = retrieval_report(similarity, torch.tensor([0.4, 1.0, torch.nan, torch.nan]), prompts)
    assert report.clips == 4 and sorted(report.text_to_audio) == ["r1"]
    assert report.text_to_audio["r1"].value == 0.75 and report.text_to_audio[
        "r1"
    ].chance == pytest.approx((2 * 2 + 2 * 1) / 16)
    assert report.audio_to_text["r1"].value == 1.0
    assert (
        report.unseen["r1"].count == 1
        and report.unseen["r1"].value == 0
        and report.unseen["r1"].chance == 0.5
    )
    assert report.order.count == 2 and report.order.value == pytest.approx((1 + 0.5) / 2)
    assert report.matched_over_random == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    assert report.cosine == pytest.approx(3.5 / 4) and report.cosine_random == pytest.approx(
        1.0 / 10
    )
    metrics = report.metrics()
    assert metrics["text_to_audio_r1_low"] < 0.75 < metrics["text_to_audio_r1_high"]
    assert metrics["chance_r1"] == pytest.approx(6 / 16)


def test_a_report_of_equal_scores():
    report = retrieval_report(
        torch.zeros(2, 2), torch.full((2,), torch.nan), [Prompt("a", "x"), Prompt("b", "x")]
    )
    assert (
        report.order is None
        and report.matched_over_random is None
        and report.cosine_random is None
        and report.unseen == {}
    )
    assert report.text_to_audio["r1"].value == report.metrics()["chance_r1"] == 1.0


@pytest.mark.long
def test_it_learns_which_tone_comes_first(tmp_path):
    module = supervised(
        Contrastive,
        small(),
        learning_rate=5e-3,
        total_steps=60,
        warmup_steps=5,
        ema_decay=0.8,
        noise_share=0.1,
    )
    trainer(tmp_path, 1).validate(module, Tones(1), verbose=False)
    assert module.report.order.value < 0.75 and module.report.clips == 60
    trainer(tmp_path, 2).fit(module, Tones(30))
    report = module.report
    assert (
        report.order.low > 0.8
        and report.text_to_audio["r1"].low > 0.6
        and report.matched_over_random > 0.95
    )
    assert report.text_to_audio["r1"].chance < 0.2 and report.cosine > report.cosine_random + 0.3
    module.export(tmp_path)
    reward = zoo.load(str(tmp_path / "model"))
    batch = tones(20, 5000)
    swapped = [Prompt(p.id, p.labels["swapped"]) for p in batch.prompts]
    right, wrong = (
        reward(batch.wave_BCN, RATE, asked).score_B for asked in (batch.prompts, swapped)
    )
    assert (right > wrong).float().mean() > 0.8


def test_an_exported_reward_is_the_averaged_one_and_scores_alike_in_half_precision(tmp_path):
    module = supervised(Contrastive, small(), total_steps=4, warmup_steps=1, ema_decay=0.5)
    trainer(tmp_path, 1).fit(module, Tones(3))
    module.export(tmp_path)
    loaded = zoo.load(str(tmp_path / "model"))
    batch = tones(6, 7)
    with module.ema.swapped(), torch.no_grad():
        averaged = module.reward(batch.wave_BCN, RATE, batch.prompts).score_B.clone()
    with torch.no_grad():
        last = module.reward(batch.wave_BCN, RATE, batch.prompts).score_B
    scored = loaded(batch.wave_BCN, RATE, batch.prompts).score_B
    assert (
        torch.allclose(scored, averaged, atol=3e-3)
        and (scored - averaged).abs().max() < (scored - last).abs().max()
    )
    module.export(tmp_path / "again")
    first, second = (
        folder / "model" / "model.safetensors" for folder in (tmp_path, tmp_path / "again")
    )
    assert first.read_bytes() == second.read_bytes()


def test_a_checkpoint_holds_the_averages(tmp_path):
    module = supervised(Contrastive, small(), total_steps=8, warmup_steps=1, ema_decay=0.5)
    first = trainer(tmp_path, 1, enable_checkpointing=True)
    first.fit(module, Tones(3))
    first.save_checkpoint(tmp_path / "last.ckpt")
    again = supervised(Contrastive, small(), total_steps=8, warmup_steps=1, ema_decay=0.5)
    again.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))
    assert again.ema.updates == module.ema.updates == 3
    assert all(
        torch.equal(a, b) for a, b in zip(again.ema.average, module.ema.average, strict=True)
    )


class Halved:
    """A stand-in for a backbone: half the sample rate, and the samples are its latents."""

    sample_rate_hz = RATE // 2
    channels = 1
    calls = 0

    def encode(self, wave_BCN):
        self.calls += 1
        return wave_BCN

    def decode(self, latent):
        return latent


def test_a_share_of_the_batch_passes_through_the_codec():
    codec = Halved()
    module = supervised(
        Contrastive, small(), codec=codec, codec_share=0.25, codec_latent_noise=0.0, noise_share=0.0
    )
    batch = tones(8, 3)
    heard = module._degraded(batch)
    changed = (heard - batch.wave_BCN[:, :1]).abs().amax(dim=(1, 2)) > 1e-6
    assert codec.calls == 1 and int(changed.sum()) == 2 and heard.shape == (8, 1, 4096)
    assert not list(module.named_parameters(prefix="codec", recurse=False))
    quiet = supervised(
        Contrastive, small(), codec=codec, codec_share=0.0, noise_share=1.0
    )._degraded(batch)
    assert (
        codec.calls == 1 and ((quiet - batch.wave_BCN[:, :1]).abs().amax(dim=(1, 2)) > 1e-6).all()
    )


def test_data_without_labels_trains_and_bad_data_is_named(tmp_path):
    module = supervised(Contrastive, small(), noise_share=0.0)
    module.log_dict = lambda *args, **kwargs: None
    plain = AudioBatch(
        tones(4, 1).wave_BCN, RATE, tuple(Prompt(str(i), f"tone {i}") for i in range(4))
    )
    assert torch.isfinite(module.training_step(plain, 0))
    spoilt = plain.wave_BCN.clone()
    spoilt[2, 0, 5] = torch.nan
    module._trainer = trainer(tmp_path, 1)
    with pytest.raises(ValueError, match=r"NaN or infinity: \['2'\]"):
        module.training_step(AudioBatch(spoilt, RATE, plain.prompts), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_share": 1.5}, "invalid noise_share 1.5"),
        ({"codec_share": -0.1}, "invalid codec_share -0.1"),
        ({"snr_db": [30, 10]}, "lower and an upper"),
        ({"warmup_steps": 2000}, "warmup_steps"),
        ({"ema_decay": 1.0}, "invalid ema_decay"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        supervised(Contrastive, small(), **settings)


def test_a_reward_without_gradients_is_refused():
    with pytest.raises(ValueError, match="no gradient passes"):
        Contrastive(ClapReward("toy", "tiny", SMALL, int16=True))
