"""Training of a preference head: it learns, resumes, keeps the best, reports and exports."""

import math
import time
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from toy_preferences import small_clap, small_reward, write_labels

import zoo
from datamodules.batches import RatedClip
from datamodules.preferences.dialects import read_labels
from datamodules.preferences.dialects import write_labels as write_label_file
from datamodules.preferences.pairs import pairs_within_prompts
from datamodules.preferences.rated import LabelFiles
from datamodules.rated_clips import RatedClips
from lightning_modules.preference_model import (
    CosinePretraining,
    FeatureSettings,
    HeadOptimizer,
    Preference,
)
from lightning_modules.preference_report import fitted_line, preference_report, within_prompt
from zoo.audio_files import read_audio
from zoo.errors import UserError
from zoo.hub.run_facts import stated_facts
from zoo.rewards.clap_features import ClapFeatures
from zoo.rewards.preference import PreferenceReward


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    write_labels(folder, prompts=24)
    return folder


def data_of(folder, batches="clips", **settings) -> RatedClips:
    table = LabelFiles(str(folder / "labels.csv"), str(folder / "audio"))
    return RatedClips(
        table, batches, **{"val_share": 0.3, "test_share": 0.2, "seed": 1, **settings}
    )


def model(folder, loss="absolute", **settings) -> Preference:
    features = FeatureSettings(str(folder / "cache"))
    reward = small_reward(features="concat", dropout=0.1)
    return Preference(reward, loss, HeadOptimizer("adam", 1e-2, 0.0), features=features, **settings)


def trainer(epochs: int, **settings) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


@pytest.mark.long
@pytest.mark.parametrize("loss", ["pairwise", "bradley_terry"])
def test_comparisons_are_learned_as_they_are(labels, tmp_path, loss):
    """From a file of TangoFlux: chosen and rejected clips, and no label of a single clip."""
    rows = read_labels(labels / "labels.csv").checked()
    pairs = [one for one in pairs_within_prompts(rows) if one.audio[-5] in "01"]  # one in four
    write_label_file(pairs, tmp_path / "pairs.json", "tangoflux")
    source = LabelFiles(str(tmp_path / "pairs.json"), str(labels / "audio"))
    data = RatedClips(source, "pairs", 8, val_share=0.3, test_share=0.2, seed=1)
    module = model(labels, loss)
    trainer(25).fit(module, datamodule=data)
    report = module.report
    prompts = {clip.group for clip in data.splits["val"]}
    assert (report.pairs, report.prompts) == (len(data.pairs("val")), len(prompts))
    assert report.pairs > report.prompts > 2  # intervals are over prompts
    assert report.judges["head"]["ranking"].value > 0.95
    assert report.judges["majority"]["ranking"].value == 0.5


def test_listeners_without_a_label_of_their_own_are_refused(labels):
    module = Preference(small_reward(listeners=["ann"]))
    with pytest.raises(UserError, match=r"data\.source\.listeners=true"):
        started(module, data_of(labels))


@pytest.mark.long
@pytest.mark.parametrize("loss", ["absolute", "pairwise", "bradley_terry"])
def test_every_loss_learns_and_is_reported(labels, loss):
    module = model(labels, loss)
    data = data_of(labels, "clips" if loss == "absolute" else "pairs", batch_size=8)
    before = {name: value.clone() for name, value in module.reward.clap.state_dict().items()}
    fit = trainer(25)
    fit.fit(module, datamodule=data)
    assert module._split == "val"
    fit.test(module, datamodule=data, verbose=False)
    report = module.report
    head, cosine, majority = (report.judges[name] for name in ("head", "cosine", "majority"))
    assert module._split == "test" and report.clips == len(data.splits["test"])
    assert head["auc"].value > 0.95 and head["ranking"].value > 0.95
    assert head["best_of_n_gain"].value == pytest.approx(0.5)  # half of a prompt's clips are good
    assert majority["auc"].value == majority["ranking"].value == 0.5
    assert majority["best_of_n_gain"].value == pytest.approx(0)
    gain = report.head_less_cosine["ranking"].value
    assert gain == pytest.approx(head["ranking"].value - cosine["ranking"].value)
    if loss != "bradley_terry":  # whose scores are no probabilities
        assert head["accuracy"].value > 0.95 > majority["accuracy"].value
        assert head["log_loss"].value < 0.3 and head["calibration_error"].value < 0.3
    numbers = report.metrics()
    assert {"auc", "cosine/auc", "majority/auc", "head_less_cosine/auc"} <= set(numbers)
    assert all(math.isfinite(value) for value in numbers.values())
    shares = [
        own[name] for own in report.judges.values() for name in ("accuracy", "auc", "ranking")
    ]
    assert all(0 <= figure.low <= figure.value <= figure.high <= 1 for figure in shares)
    assert "head - cosine" in report.table() and "majority" in report.table()
    after = module.reward.clap.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.long
def test_exported_it_scores_files_as_it_was_judged(labels, tmp_path, capsys):
    module = model(labels)
    data = data_of(labels)
    trainer(2).fit(module, datamodule=data)
    module.export(tmp_path)
    assert module.report.table() in capsys.readouterr().out
    reward = zoo.load(tmp_path / "model")
    clip = data.splits["val"][0]
    score = zoo.score(reward, read_audio(clip.audio), clip.prompt).score_B
    assert torch.allclose(score, module.judges([clip])["head"].cpu(), atol=1e-6)
    from zoo.hub.artifact import read_config

    evaluation = read_config(tmp_path / "model")["evaluation"]
    assert evaluation["split"] == "val" and "head_less_cosine" in evaluation


@pytest.mark.long
def test_a_resumed_run_is_the_one_that_was_never_stopped(labels, tmp_path):
    def fitted(epochs, name, **settings):
        torch.manual_seed(3)
        module = model(labels, pretraining=CosinePretraining(3))
        fit = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            callbacks=[L.pytorch.callbacks.ModelCheckpoint(tmp_path / name, save_last=True)],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        fit.fit(module, datamodule=data_of(labels, batch_size=8), weights_only=True, **settings)
        return module

    whole = fitted(4, "whole")
    first = fitted(2, "first")
    last = tmp_path / "first" / "last.ckpt"
    resumed = fitted(4, "resumed", ckpt_path=str(last))
    for name, value in whole.head.state_dict().items():
        assert torch.equal(value, resumed.head.state_dict()[name]), name
        assert value.numel() == 1 or not torch.equal(value, first.head.state_dict()[name]), name
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert all(name.startswith("head.") for name in saved)  # not the CLAP


@pytest.mark.long
def test_the_best_epoch_is_kept(labels):
    module = model(labels)
    losses = []
    heads = []

    class Watch(L.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            losses.append(float(trainer.callback_metrics["val/loss"]))
            heads.append({n: v.clone() for n, v in pl_module.head.state_dict().items()})
            if len(losses) == 3:  # what comes after is worse
                pl_module.optimizers().param_groups[0]["lr"] = 30.0

    trainer(6, callbacks=[Watch()]).fit(module, datamodule=data_of(labels, batch_size=8))
    best = min(range(len(losses)), key=losses.__getitem__)
    assert best < 5
    assert all(torch.equal(module.head.state_dict()[n], v) for n, v in heads[best].items())


def test_pretraining_learns_the_cosine_from_captions_of_other_clips_too():
    """Clips and captions have equal embeddings: the cosine of matched ones is always 1."""
    module = Preference(
        small_reward(features="match"), pretraining=CosinePretraining(300, 64, 3e-3)
    )
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(40, 24, generator=generator), dim=1)
    clips = [RatedClip(str(i), f"{i}", 0.0, str(i)) for i in range(40)]
    module._embeddings = ClapFeatures(
        {clip.audio: unit[i] for i, clip in enumerate(clips)},
        {clip.prompt: unit[i] for i, clip in enumerate(clips)},
        {},
        {},
        0,
    )
    with torch.no_grad():
        audio, text = module.embeddings_of(clips)
        cosine = (audio * text.roll(3, 0)).sum(dim=1)
        before = torch.corrcoef(torch.stack([module.head(audio, text.roll(3, 0)), cosine]))[0, 1]
        torch.manual_seed(0)
        module.pretrain(clips)
        module.head.eval()
        after = torch.corrcoef(torch.stack([module.head(audio, text.roll(3, 0)), cosine]))[0, 1]
    assert after > 0.9 > before


def test_a_thousand_cached_clips_train_in_seconds(monkeypatch, tmp_path):
    """As many clips and prompts as BATON's, embeddings and head of full size, no audio."""
    unit = torch.nn.functional.normalize(torch.randn(1094 + 220, 512), dim=1)
    clips = [
        RatedClip(f"p{i % 220}", f"{i}.wav", float(i % 3 > 0), f"p{i % 220}") for i in range(1094)
    ]
    module = Preference(
        PreferenceReward(small_clap(), 512, 512, "concat"),
        optimizer=HeadOptimizer("adam", 1e-3, 1e-5),
    )
    rows = {f"p{i}": unit[1094 + i] for i in range(220)}
    module._embeddings = ClapFeatures(
        {c.audio: unit[i] for i, c in enumerate(clips)}, rows, {}, {}, 0
    )

    class Rows:
        def rated_clips(self):
            return [("", clip) for clip in clips]

    start = time.perf_counter()
    trainer(3).fit(module, datamodule=RatedClips(Rows()))
    assert time.perf_counter() - start < 60  # about 2 on an idle core
    assert module.report.clips > 100


@pytest.mark.long
def test_the_benchmark_measures_every_loss(capsys):
    from benchmarks import preference_head

    found = preference_head.main(["--clips", "240", "--prompts", "60", "--epochs", "1"])
    assert found.keys() == preference_head.RUNS.keys()
    assert all(whole_s > report_s > 0 and steps > 0 for whole_s, steps, report_s in found.values())
    assert "240 clips, 1 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("loss", "batches"), [("absolute", "pairs"), ("pairwise", "clips"), ("bradley_terry", "clips")]
)
def test_a_loss_and_batches_that_do_not_fit(labels, loss, batches):
    with pytest.raises(UserError, match="data.batches"):
        model(labels, loss).check_first_round(data_of(labels, batches))


def test_weight_decay_of_adam_is_part_of_the_gradient():
    """With no other gradient Adam's first step is the learning rate, AdamW's a share of it."""
    for name, expected in (("adam", 2.0 - 0.1), ("adamw", 2.0 * (1 - 0.1 * 1e-3))):
        weight = torch.nn.Parameter(torch.tensor([2.0]))
        optimizer = HeadOptimizer(name, 0.1, 1e-3).built([weight])
        weight.grad = torch.zeros(1)
        optimizer.step()
        assert float(weight) == pytest.approx(expected)


def test_unknown_settings():
    with pytest.raises(UserError, match="'hinge'"):
        Preference(small_reward(), "hinge")
    with pytest.raises(UserError, match="'sgd'"):
        HeadOptimizer("sgd")
    with pytest.raises(UserError, match="steps"):
        CosinePretraining(-1)


def started(module, data) -> None:
    """The part of a start that reads data and embeds clips."""
    data.setup()
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    module._trainer = SimpleNamespace(world_size=1, datamodule=data, strategy=strategy)
    module.setup("fit")


def test_several_processes_are_refused(labels):
    module = model(labels)
    module._trainer = SimpleNamespace(world_size=2)
    with pytest.raises(UserError, match=r"trainer\.devices=1"):
        module.setup("fit")


def test_files_that_cannot_be_read_stop_the_run_or_are_left_out(tmp_path):
    write_labels(tmp_path, prompts=6, per_prompt=2)
    broken = tmp_path / "audio" / "0001_1.wav"
    settings = {"val_share": 0.4, "test_share": 0.0}
    data = data_of(tmp_path, **settings)
    data.setup()
    broken.write_bytes(b"not audio")  # after the labels were read, which looks at the files too
    with pytest.raises(UserError, match=r"1 of 12 clips.*0001_1\.wav"):
        started(model(tmp_path), data)
    module = model(tmp_path)
    module.feature_settings = FeatureSettings(None, "skip")
    with pytest.warns(UserWarning, match=r"0001_1\.wav"):
        started(module, data)
    kept = [clip.audio for clips in data.splits.values() for clip in clips]
    assert len(kept) == 11 and broken not in kept


def test_a_copy_in_another_split_is_found_under_any_name(tmp_path):
    write_labels(tmp_path, prompts=6, per_prompt=2)
    data = data_of(tmp_path, val_share=0.4, test_share=0.0)
    data.setup()
    one, other = data.splits["train"][0].audio, data.splits["val"][0].audio
    other.write_bytes(one.read_bytes())
    with pytest.raises(UserError, match=f"{other.name}.*{one.name}"):
        started(model(tmp_path), data)


def test_a_head_of_another_size_is_named_before_training(labels):
    module = Preference(PreferenceReward(small_clap(), 512))
    with pytest.raises(UserError, match=r"module\.reward\.embedding=24"):
        started(module, data_of(labels))


def test_a_prompt_that_the_clap_refuses_is_named(tmp_path):
    write_labels(tmp_path, prompts=6, per_prompt=2)
    text = (tmp_path / "labels.csv").read_text().replace("take 3", "take 3 " * 40)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match="1 of 6 prompts"):
        started(model(tmp_path), data_of(tmp_path, val_share=0.4, test_share=0.0))


def test_facts_for_the_card():
    facts = stated_facts(
        {
            "module": {
                "_target_": "lightning_modules.preference_model.Preference",
                "loss": "pairwise",
                "optimizer": {"learning_rate": 1e-3},
            }
        }
    )
    assert facts.algorithm == "Preference" and facts.learned == ("head",)
    assert facts.settings == {"loss": "pairwise", "optimizer.learning_rate": 1e-3}


def test_within_a_prompt_by_hand():
    import numpy as np

    values = np.array([0.9, 0.2, 0.2, 0.7, 0.6, 0.5, 0.4, 0.4])
    labels = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    found = within_prompt(values, labels, ["a", "a", "a", "b", "b", "c", "d", "d"])
    assert (found.hits, found.hit_prompts) == (
        [1.0, 0.5, 0.0, 0.5],
        ["a", "a", "b", "d"],
    )
    assert found.gains == pytest.approx([1 - 2 / 3, -0.5, 0.0])
    assert found.gain_prompts == ["a", "b", "d"]
    alone = within_prompt(values[:4], labels[:4], ["a", "a", "a", "a"], ["1", "1", "2", "2"])
    assert (alone.hits, alone.hit_prompts, alone.gains) == ([1.0, 0.0], ["a", "a"], [0.5, -0.5])


def test_the_report_by_hand():
    clips = [
        RatedClip(prompt, f"{i}", label, prompt)
        for i, (prompt, label) in enumerate([("a", 1.0), ("a", 0.0), ("b", 0.0), ("b", 0.5)])
    ]
    head = torch.tensor([0.8, 0.6, 0.1, 0.6])
    flat = torch.full((4,), 0.5)
    report = preference_report({"head": head, "cosine": flat, "majority": flat}, clips)
    figures = report.judges["head"]
    assert (report.clips, report.prompts, report.pairs) == (4, 2, 2)
    assert figures["accuracy"].value == pytest.approx((0.5 + 1) / 2)  # .5 is neither; per prompt
    assert figures["auc"].value == 1 and figures["ranking"].value == 1
    assert figures["best_of_n_gain"].value == pytest.approx((0.5 + 0.25) / 2)
    logs = [-math.log(0.8), -math.log(0.4), -math.log(0.9), -(math.log(0.4) + math.log(0.6)) / 2]
    assert figures["log_loss"].value == pytest.approx(sum(logs) / 4)
    assert report.head_less_cosine["ranking"].value == 0.5


def test_the_line_is_the_logistic_regression():
    score = torch.linspace(1, 3, 400)
    label = (3 * score - 6.5).sigmoid()
    slope, offset = fitted_line(score, label)
    assert slope == pytest.approx(3, rel=0.02) and offset == pytest.approx(-6.5, rel=0.02)
    slope, _ = fitted_line(score, (score > 2).float())
    assert math.isfinite(slope) and slope > 5  # separated
    assert fitted_line(torch.ones(4), torch.tensor([0.0, 1.0, 1.0, 1.0]))[0] == 0
