import csv
import html.parser
import json
import math
import re
import shutil
from dataclasses import replace

import lightning as L
import pytest
import soundfile
import torch
from toy_ddpo import settings as nested
from toys import Given, Rounds, ToyBackbone, ToyReward, prompt_round, prompts

from datamodules.batches import PromptBatch
from datamodules.prompts import PromptDataModule
from datamodules.sounds.scene_prompts import scene_prompts
from lightning_modules.audio_samples import AudioSamples, Played, spread
from lightning_modules.callbacks import MetricsCSV, default_callbacks
from lightning_modules.report import Sample, ranked_pairs, read_rows, read_samples, write_report
from lightning_modules.rl.ddpo import DDPO
from lightning_modules.run import fit
from zoo.configuration import read_configuration
from zoo.errors import UserError
from zoo.hub.adapters import load_adapter
from zoo.types import RewardOutput

pytestmark = pytest.mark.long


def module(**changes) -> DDPO:
    torch.manual_seed(0)
    settings = {
        "sampler.steps": 4,
        "sampler.batch_size": 4,
        "update.batch_size": 4,
        "adapter.rank": 2,
        "update.clip_reference_elements": None,
    }
    return DDPO(
        ToyBackbone(),
        ToyReward(),
        **nested({**settings, "optimizer.learning_rate": 1e-2, **changes}),
    )


def run(folder, epochs, start=0, ckpt=None, sanity=0, val=True, every=1, **changes):
    folder.mkdir(exist_ok=True)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=sanity,
        check_val_every_n_epoch=every,
        callbacks=default_callbacks(folder, audio_count=3),
    )
    ddpo = module(**changes)
    held_out = Given(prompt_round(4, repeats=1)) if val else None
    trainer.fit(ddpo, Rounds(8, start=start), held_out, ckpt_path=ckpt, weights_only=True)
    return trainer, ddpo


def test_a_run_leaves_everything_a_listener_needs(tmp_path):
    folder = tmp_path / "a run"
    _, ddpo = run(folder, 2, sanity=-1)
    rows = read_rows(folder / "metrics.csv")
    assert [row["round"] for row in rows] == [0, 1, 2] and all(
        "held_out/mean" in row for row in rows
    )
    assert {"reward/happy/mean", "ratio/max", "grad_norm", "seconds/update"} <= set(rows[1])
    before, after = (
        json.loads((folder / "audio" / name / "samples.json").read_text())
        for name in ("before", "after")
    )
    assert [s["id"] for s in before] == [s["id"] for s in after] == ["p0", "p1", "p2"]
    waves = [
        soundfile.read(folder / "audio" / name / after[0]["file"])[0]
        for name in ("before", "after")
    ]
    assert waves[0].shape == waves[1].shape == (8,) and not (waves[0] == waves[1]).all()
    assert (folder / "audio" / "round_00001" / "samples.json").is_file()
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    other = ToyBackbone()
    load_adapter(other, folder / "adapter")
    x = torch.randn(2, 2, 8)
    time = torch.full((2,), 0.5)
    conditioning = other.encode_prompts(prompts(2))
    with torch.no_grad():
        assert torch.equal(
            other.predict(x, time, conditioning), ddpo.backbone.predict(x, time, conditioning)
        )
    assert not [path for path in folder.rglob("*") if ".part" in path.name]


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources = []
        self.tags = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_report_holds_players_curve_and_settings_and_needs_nothing_else(tmp_path):
    run(tmp_path, 1)
    (tmp_path / "config.yaml").write_text("seed: 7 # <b>&")
    report = write_report(tmp_path, "share of <u>; 1 is best").read_text()
    page = Page()
    page.feed(report)
    assert page.tags.count("audio") == 6
    assert page.tags.count("img") == 6 + 1  # a spectrogram per player, and the curve
    assert page.tags.count("details") == 1
    assert not {"script", "link", "b", "u"} & set(page.tags)
    embedded = r"data:(audio/flac|image/png|image/jpeg);base64,[A-Za-z0-9+/=]{100,}$"
    assert all(re.match(embedded, source) for source in page.sources)
    assert "seed: 7 # <b>&" in page.text.split("config.yaml")[-1]
    assert "a happy take number 0" in page.text
    assert "share of <u>; 1 is best" in page.text


def test_the_callback_tells_the_report_the_unit_of_the_reward(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyReward, "unit", "loudness; 7 is best", raising=False)
    run(tmp_path, 1)
    assert "loudness; 7 is best" in (tmp_path / "report.html").read_text()


def test_a_report_of_an_empty_folder_is_a_page(tmp_path):
    page = Page()
    page.feed(write_report(tmp_path).read_text())
    assert not {"table", "audio", "img"} & set(page.tags)
    assert page.tags.count("h2") == 2


def sample(name: str, score: float) -> Sample:
    return Sample(name, name, "", {}, score)


def test_pairs_are_ranked_by_the_size_of_their_change():
    before = [sample("a", 0.0), sample("b", 0.5), sample("c", 0.5), sample("d", float("nan"))]
    after = [sample("c", -0.5), sample("a", 0.25), sample("b", 0.5), sample("e", 3.0)]
    pairs = ranked_pairs(before, after)
    assert [pair.either.file for pair in pairs] == ["c", "a", "b", "d", "e"]
    assert [pair.change for pair in pairs[:3]] == [-1.0, 0.25, 0.0]
    assert pairs[3].after is None and pairs[4].before is None


def test_a_report_of_samples_on_one_side_or_without_a_score(tmp_path):
    """A killed run has no audio/after; JSON stores the NaN of a reward as null."""
    run(tmp_path, 2)
    shutil.rmtree(tmp_path / "audio" / "after")
    index = tmp_path / "audio" / "before" / "samples.json"
    rows = json.loads(index.read_text())
    rows[0]["score"] = None
    index.write_text(json.dumps(rows))
    page = Page()
    page.feed(write_report(tmp_path).read_text())
    assert page.tags.count("audio") == 3
    assert page.text.count("n/a") == 1 + 3  # one score, and every change
    assert all(
        math.isfinite(one.score) == (i > 0) for i, one in enumerate(read_samples(index.parent))
    )


class Loudness:
    differentiable = True

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        return RewardOutput(wave_BCN.square().mean(dim=(1, 2)))


def test_a_run_on_captions_of_two_sounds_separates_relations_and_shows_one_clip_per_caption(
    tmp_path,
):
    data = PromptDataModule(
        prompts=scene_prompts(
            ["cow", "crow", "explosion", "sheep"], held_out_share=0.34, seconds=1.0
        ),
        prompts_per_round=4,
        repeats=2,
        val_repeats=3,
    )
    settings = {
        "sampler.steps": 2,
        "sampler.batch_size": 4,
        "update.batch_size": 4,
        "adapter.rank": 2,
        "update.clip_reference_elements": None,
    }
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=default_callbacks(tmp_path, audio_count=4, progress=False),
    )
    settings["scoring.class_label"] = "relation"
    trainer.fit(DDPO(ToyBackbone(), Loudness(), **nested(settings)), data)
    (row,) = read_rows(tmp_path / "metrics.csv")
    assert {"reward/then/mean", "held_out/together/mean", "held_out/then/mean"} <= set(row)
    samples = json.loads((tmp_path / "audio/after/samples.json").read_text())
    assert len({sample["id"] for sample in samples}) == 4 and {
        s["labels"]["relation"] for s in samples
    } == {"together", "then"}
    page = Page()
    page.feed((tmp_path / "report.html").read_text())
    assert (
        all(sample["text"] in page.text for sample in samples)
        and page.tags.count("audio") == 8
        and "not:" not in page.text
    )


def test_metrics_survive_a_resume_without_doubled_or_lost_rows(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, 4)
    trainer, _ = run(parts, 2)
    trainer.save_checkpoint(parts / "two.ckpt")
    rows = read_rows(parts / "metrics.csv")
    with (parts / "metrics.csv").open(
        "a"
    ) as file:  # a third round was written, but its checkpoint was not
        file.write(",".join(["3"] * (len(rows[0]))) + "\n")
    run(parts, 4, start=2, ckpt=parts / "two.ckpt")
    steady = lambda folder: [
        {k: v for k, v in row.items() if "seconds" not in k}
        for row in read_rows(folder / "metrics.csv")
    ]
    assert steady(parts) == steady(whole) and [row["round"] for row in steady(parts)] == [
        1,
        2,
        3,
        4,
    ]
    base = json.loads((whole / "audio/before/samples.json").read_text())
    assert json.loads((parts / "audio/before/samples.json").read_text()) == base


def test_before_is_the_base_model_even_when_rendered_late(tmp_path):
    trainer, _ = run(tmp_path / "a", 2, **{"optimizer.learning_rate": 0.1})
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    run(tmp_path / "b", 3, start=2, ckpt=tmp_path / "two.ckpt", **{"optimizer.learning_rate": 0.1})
    first, late = (
        json.loads((tmp_path / name / "audio/before/samples.json").read_text()) for name in "ab"
    )
    assert first == late


def test_samples_of_an_evaluation_are_not_sampled_again(tmp_path, monkeypatch):
    asked = []
    evaluate = DDPO.evaluate
    monkeypatch.setattr(
        DDPO, "evaluate", lambda self, batch: asked.append(len(batch)) or evaluate(self, batch)
    )
    run(tmp_path, 2, sanity=-1)
    assert asked == [4, 4, 4]  # before training and after each of two epochs; no samples of its own
    for name in ("before", "round_00001", "round_00002", "after"):
        assert len(read_samples(tmp_path / "audio" / name)) == 3
    asked.clear()
    _, ddpo = run(tmp_path / "late", 2)  # nothing was evaluated before training
    assert asked == [3, 4, 4]
    scores = [one.score for one in read_samples(tmp_path / "audio" / "before")]
    late = [one.score for one in read_samples(tmp_path / "late" / "audio" / "before")]
    assert scores == pytest.approx(late, abs=1e-6)
    after = [one.score for one in read_samples(tmp_path / "late" / "audio" / "after")]
    again = ddpo.evaluate(prompt_round(4, repeats=1)).score_B.tolist()
    assert after == pytest.approx(again[:3], abs=1e-6)
    assert after != pytest.approx(late, abs=1e-6)
    asked.clear()
    run(tmp_path / "gap", 3, sanity=-1, every=2)
    assert asked == [4, 4, 3]  # the last evaluation is a round old at the end
    assert (tmp_path / "audio" / "largest").is_dir()
    assert not (tmp_path / "late" / "audio" / "largest").exists()
    assert not (tmp_path / "gap" / "audio" / "largest").exists()
    run(tmp_path, 3)[0].save_checkpoint(tmp_path / "three.ckpt")
    (tmp_path / "audio" / "largest").mkdir()  # of the run before it was resumed
    run(tmp_path, 4, start=3, ckpt=tmp_path / "three.ckpt")
    assert not (tmp_path / "audio" / "largest").exists()


def test_the_largest_changes_are_of_all_samples_of_the_evaluation(tmp_path):
    callback = AudioSamples(tmp_path, count=1)
    wave = torch.zeros(1, 8)
    scores = {0: 0.5, 1: -0.25, 2: 0.0, 3: float("nan"), 4: 2.0, 5: 1.0}
    for prompt in prompts(6):
        key = (prompt.id, 0)
        callback.first[key] = Played(prompt, wave, 0.0)
        callback.heard[key] = Played(prompt, wave, scores[int(prompt.id[1:])])
    again = prompts(5)[4]  # a second sample of p4, which changed less
    callback.first[again.id, 1] = Played(again, wave, 0.0)
    callback.heard[again.id, 1] = Played(again, wave, 1.5)
    callback._write_largest(8)
    pairs = ranked_pairs(*(read_samples(tmp_path / "largest" / n) for n in ("before", "after")))
    assert [pair.change for pair in pairs] == [2.0, 1.0, 0.5, -0.25]
    assert [pair.either.text for pair in pairs] == [prompts(6)[i].text for i in (4, 5, 0, 1)]


def test_without_held_out_prompts_training_prompts_are_rendered(tmp_path):
    _, ddpo = run(tmp_path, 1, val=False, **{"adapter.rank": 0})
    assert len(json.loads((tmp_path / "audio/after/samples.json").read_text())) == 3
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "denoiser.safetensors")
    assert all(
        torch.equal(saved[name], value)
        for name, value in ddpo.backbone.denoiser.state_dict().items()
    )
    assert "not measured" not in (tmp_path / "report.html").read_text()


def test_a_run_that_cannot_train_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="update.batch_size=5"):
        run(tmp_path, 1, **{"update.batch_size": 5})
    assert list(tmp_path.iterdir()) == []


def test_averaged_weights_are_exported(tmp_path):
    _, ddpo = run(tmp_path, 3, **{"optimizer.ema_decay": 0.9, "optimizer.learning_rate": 0.1})
    loaded = ToyBackbone()
    load_adapter(loaded, tmp_path / "adapter")
    adapter = {n: p for n, p in loaded.denoiser.named_parameters() if "lora_" in n}
    with ddpo.ema.swapped():
        averaged = {
            n: p.detach().clone()
            for n, p in ddpo.backbone.denoiser.named_parameters()
            if "lora_" in n
        }
    assert adapter.keys() == averaged.keys() and all(
        torch.equal(adapter[n], averaged[n]) for n in adapter
    )
    assert any(
        not torch.equal(averaged[n], p)
        for n, p in ddpo.backbone.denoiser.named_parameters()
        if "lora_" in n
    )


def test_a_round_without_a_mood_has_no_number_for_it(tmp_path):
    table = MetricsCSV(tmp_path / "metrics.csv")
    first = prompt_round(8)
    second = PromptBatch(
        tuple(prompt for prompt in first.prompts if prompt.labels["mood"] == "sad"), (0, 0, 1, 1), 1
    )
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[table], **quiet).fit(
        module(), Given(first, second)
    )
    assert ["reward/happy/mean" in row for row in table.rows] == [
        True,
        False,
    ]  # not that of the round before
    assert all("reward/sad/mean" in row for row in table.rows)


def test_a_run_that_was_killed_before_its_results_were_written_gets_them_on_resume(
    tmp_path, project_root
):
    def smoke(*more):
        overrides = [
            "module.sampler.steps=2",
            "data.seconds=0.512",
            "trainer.max_epochs=1",
            f"out_dir={tmp_path}",
            *more,
        ]
        return fit(
            read_configuration([project_root / "configs/ddpo/quickstart_smoke.yaml"], overrides)
        )

    smoke("trainer.enable_model_summary=false")
    results = ["adapter", "audio/after", "report.html", "curve.png"]
    written = {path.name: path.read_bytes() for path in (tmp_path / "audio/after").iterdir()}
    for name in results:
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    smoke("trainer.enable_model_summary=false", "resume=true")
    assert all((tmp_path / name).exists() for name in results)
    assert written == {
        path.name: path.read_bytes() for path in (tmp_path / "audio/after").iterdir()
    }


def test_columns_that_come_later_do_not_shift_earlier_rows(tmp_path):
    from lightning_modules.callbacks import write_rows

    write_rows(tmp_path / "m.csv", [{"round": 1.0, "b": 2.0}, {"round": 2.0, "a": 3.0}])
    assert list(csv.reader((tmp_path / "m.csv").open())) == [
        ["round", "a", "b"],
        ["1.0", "", "2.0"],
        ["2.0", "3.0", ""],
    ]
    assert read_rows(tmp_path / "m.csv")[0] == {"round": 1.0, "b": 2.0}
    assert MetricsCSV(tmp_path / "x").state_key == MetricsCSV(tmp_path / "y").state_key


def test_samples_are_spread_and_counted():
    def ids(batch: PromptBatch, count: int) -> list[str]:
        return [prompt.id for prompt in spread(batch, count).prompts]

    # moods take turns: p0 happy, p1 sad, p2 happy ...
    assert ids(prompt_round(8, repeats=1), 4) == ["p0", "p1", "p4", "p5"]
    assert ids(prompt_round(8, repeats=1), 1) == ["p0"]
    assert len(spread(prompt_round(2, repeats=1), 4)) == 2
    repeated = prompt_round(48, repeats=4)  # 12 prompts, four times each
    assert ids(repeated, 8) == ["p0", "p1", "p2", "p3", "p6", "p7", "p8", "p9"]
    more = spread(repeated, 14)
    assert [p.id for p in more.prompts] == [
        f"p{i}" for i in (0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    ]
    assert more.sample_index[:4] == (0, 1, 0, 1)
    assert spread(repeated, 48).sample_index == (0, 1, 2, 3) * 12
    with pytest.raises(UserError):
        AudioSamples("x", 0)


def test_a_rare_class_is_included():
    batch = prompt_round(20, repeats=1)
    rare = tuple(
        replace(prompt, labels={"mood": "rare" if i == 13 else "common"})
        for i, prompt in enumerate(batch.prompts)
    )
    batch = PromptBatch(rare, batch.sample_index, 0)
    assert [p.id for p in spread(batch, 4).prompts] == ["p0", "p6", "p12", "p13"]
    # more classes than samples: evenly spaced classes; without the label, all are one class
    many = PromptBatch(
        tuple(replace(prompt, labels={"id": prompt.id}) for prompt in rare), batch.sample_index, 0
    )
    for label in ("id", "mood"):
        assert [p.id for p in spread(many, 4, label).prompts] == ["p0", "p5", "p10", "p15"]
