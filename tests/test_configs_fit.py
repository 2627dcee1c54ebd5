"""Every shipped configuration at toy size: it trains two steps, resumes, exports and reloads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_sounds import write_packages

import zoo
from datamodules.preferences.dialects import read_labels
from datamodules.preferences.stand_in import StandInLabels
from lightning_modules import run
from lightning_modules.own_clips import OwnClips
from lightning_modules.report import read_rows
from lightning_modules.rl.settings import SamplerSettings
from zoo.configuration import read_configuration
from zoo.generations import read_samples
from zoo.hub.artifact_check import verify_artifact
from zoo.hub.export import export_run
from zoo.types import Backbone, Prompt, Reward

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MUSIC = [
    "renderer=additive",
    "clips=8",
    "val_clips=4",
    "batch_size=4",
    "batches_per_epoch=2",
    "workers=1",
    "cache_dir=null",
]
SCHEDULE = ["module.optimizer.total_steps=4", "module.optimizer.warmup_steps=1"]
SMALL_TOWERS = [
    f"module.reward.arguments.{size}"
    for size in ("channels=[4,4,4,4]", "width=8", "depth=1", "text_depth=1", "embedding=8")
]


def fit(config: str, out_dir: Path, overrides: list[str], first: str, then: str) -> None:
    """Fits until ``first`` and resumes until ``then`` (trainer overrides)."""
    run.fit(read_configuration([CONFIGS / config], [f"out_dir={out_dir}", *overrides, first]))
    run.fit(
        read_configuration(
            [CONFIGS / config], [f"out_dir={out_dir}", *overrides, then, "resume=true"]
        )
    )


def assert_whole_after_two_rounds(folder: Path) -> None:
    assert [row["round"] for row in read_rows(folder / "metrics.csv")][-1] == 2
    for made in (
        "config.yaml",
        "adapter/adapter_model.safetensors",
        "audio/before",
        "audio/after",
        "curve.png",
        "report.html",
    ):
        assert (folder / made).exists(), made


def assert_exports_and_reloads(tmp_path: Path) -> None:
    """The export of the run in ``tmp_path / "run"`` generates bitwise the same as the run."""
    folder = export_run(tmp_path / "run", tmp_path / "exported", card="ddpo_quickstart")
    assert any("fits its base embedded/music" in fact for fact in verify_artifact(folder, zoo.load))
    both = (zoo.load(folder), zoo.open_model(str(tmp_path / "run")))
    (one,), (other,) = (
        zoo.generate(backbone, ["a sad piano"], steps=2, seconds=1.024) for backbone in both
    )
    assert torch.equal(one.samples_CN, other.samples_CN)


@pytest.mark.slow
def test_codec_then_denoiser(tmp_path: Path) -> None:
    data = [f"data.{item}" for item in [*MUSIC, "seconds=0.512", "crop_seconds=0.256"]]
    module = [*SCHEDULE, "module.codec.width=16"]
    fit(
        "embedded/codec.yaml",
        tmp_path / "codec",
        [*data, *module],
        "trainer.max_steps=2",
        "trainer.max_steps=4",
    )
    weights = tmp_path / "codec" / "codec.safetensors"
    assert weights.is_file()
    module = [f"module.backbone.codec={weights}"]
    module += [
        "module.backbone.codec_width=16",
        "module.backbone.width=16",
        "module.backbone.depth=1",
    ]
    module += [
        "module.backbone.heads=2",
        "module.backbone.text_width=16",
        "trainer.precision=32-true",
        *SCHEDULE,
    ]
    data = [f"data.source.{item}" for item in [*MUSIC, "seconds=0.512"]]
    fit(
        "embedded/denoiser.yaml",
        tmp_path / "denoiser",
        [*module, *data],
        "trainer.max_steps=2",
        "trainer.max_steps=4",
    )
    backbone = zoo.load(str(tmp_path / "denoiser" / "model"))
    assert isinstance(backbone, Backbone)
    (wave,) = zoo.generate(backbone, [Prompt("p", "sad piano", seconds=0.512)], seeds=[0], steps=2)
    assert wave.samples_CN.shape[0] == 2 and wave.samples_CN.isfinite().all()


@pytest.mark.slow
def test_mood(tmp_path: Path) -> None:
    data = [f"data.{item}" for item in [*MUSIC, "seconds=2.2"]]
    module = [
        "module.codec=null",
        "module.optimizer.total_steps=4",
        "module.reward.channels=[4,4,4,4,4,4,4]",
    ]
    fit(
        "embedded/mood.yaml",
        tmp_path / "mood",
        [*data, *module],
        "trainer.max_epochs=1",
        "trainer.max_epochs=2",
    )
    reward = zoo.load(str(tmp_path / "mood" / "model"))
    assert isinstance(reward, Reward)
    output = reward(
        torch.randn(1, 2, 35_200), 16_000, [Prompt("p", "sad piano", labels={"mood": "sad"})]
    )
    assert -1 <= float(output.score_B) <= 0


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddpo/quickstart.yaml", "ddpo/quickstart_smoke.yaml"])
def test_quickstarts(config: str, tmp_path: Path) -> None:
    small = [
        "data.prompts_per_round=2",
        "data.repeats=2",
        "data.val_prompts=1",
        "data.val_repeats=1",
        "data.seconds=1.024",
    ]
    small += [
        "module.sampler.steps=4",
        "module.sampler.batch_size=2",
        "module.update.batch_size=2",
        "module.update.per_round=2",
    ]
    small += [
        "module.update.window=null",
        "module.backbone.name=embedded/music",
        "data.seconds=2.2",
    ]
    fit(config, tmp_path / "run", small, "trainer.max_epochs=1", "trainer.max_epochs=2")
    assert_whole_after_two_rounds(tmp_path / "run")
    assert_exports_and_reloads(tmp_path)


@pytest.mark.slow
def test_the_ensemble_of_music(tmp_path: Path) -> None:
    """With another CLAP as the held-out scorer: its own is trained first."""
    small = [
        "data.prompts_per_round=2",
        "data.repeats=4",
        "data.val_prompts=2",
        "data.val_repeats=1",
        "data.seconds=1.024",
    ]
    small += [
        "module.sampler.steps=3",
        "module.sampler.batch_size=4",
        "module.update.batch_size=4",
        "module.update.per_round=2",
    ]
    small += ["module.held_out_reward.name=embedded/clap", "trainer.check_val_every_n_epoch=1"]
    fit(
        "ddpo/ensemble_music.yaml",
        tmp_path / "run",
        small,
        "trainer.max_epochs=1",
        "trainer.max_epochs=2",
    )
    assert_whole_after_two_rounds(tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert [row["round"] for row in rows] == [0, 1, 2]  # the base model, and each round once
    assert all({"held_out_scorer/mean", "held_out_scorer/rise_errors"} <= set(row) for row in rows)
    assert {"reward_part/mood", "reward_part/guards/diversity_db", "reward_combined/std"} <= set(
        rows[2]
    )
    assert (
        rows[0]["held_out_scorer/rise_errors"] == 0 != rows[2]["held_out_scorer/rise_errors"]
    )  # the reference was kept
    assert "second opinion (not trained on)" in (tmp_path / "run" / "report.html").read_text(
        "utf-8"
    )
    reward = run.build(read_configuration([tmp_path / "run" / "config.yaml"])).module.reward
    assert reward.members[0].weight == 1 and not reward.differentiable
    assert_exports_and_reloads(tmp_path)


@pytest.mark.slow
def test_the_quickstart_of_sounds(tmp_path: Path) -> None:
    """It needs no sound packages: captions come from the rule table."""
    small = [
        "data.prompts_per_round=2",
        "data.repeats=2",
        "data.val_prompts=1",
        "data.val_repeats=1",
    ]
    small += [
        "module.sampler.steps=3",
        "module.sampler.batch_size=2",
        "module.update.batch_size=2",
        "module.update.per_round=2",
    ]
    small += ["module.update.window=null", "data.prompts.seconds=1.024"]
    fit(
        "ddpo/quickstart_sounds.yaml",
        tmp_path / "run",
        small,
        "trainer.max_epochs=1",
        "trainer.max_epochs=2",
    )
    assert_whole_after_two_rounds(tmp_path / "run")
    backbone = zoo.load("embedded/sounds", adapters=[(tmp_path / "run" / "adapter", 1.0)])
    (wave,) = zoo.generate(
        backbone, [Prompt("p", "a cow, then a car horn", seconds=1.024)], seeds=[0], steps=2
    )
    assert wave.samples_CN.isfinite().all()


@pytest.mark.slow
def test_the_papers_questions_with_a_clap_of_music(tmp_path: Path) -> None:
    data = [f"data.{item}" for item in [*MUSIC, "seconds=1.024"]]
    module = [*SCHEDULE, *SMALL_TOWERS, "module.codec=null"]
    fit(
        "embedded/clap_music.yaml",
        tmp_path / "clap",
        [*data, *module],
        "trainer.max_steps=2",
        "trainer.max_steps=4",
    )
    small = [
        "data.prompts_per_round=2",
        "data.repeats=2",
        "data.seconds=2.2",
        "module.update.window=null",
    ]
    small += [
        "module.sampler.batch_size=2",
        "module.update.batch_size=2",
        "module.update.per_round=2",
    ]
    small += [f"module.reward.name={tmp_path / 'clap' / 'model'}"]
    fit(
        "ddpo/paper_questions.yaml",
        tmp_path / "run",
        small,
        "trainer.max_epochs=1",
        "trainer.max_epochs=2",
    )
    assert [row["round"] for row in read_rows(tmp_path / "run" / "metrics.csv")][-1] == 2
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


SCENES = ["val_clips=4", "batch_size=4", "batches_per_epoch=2", "bank.cache_dir=null"]


@pytest.fixture(params=["packages written here", "installed packages"])
def sound_packages(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Overrides for scenes: small packages of tones, or the real small set where installed."""
    if request.param == "installed packages":
        return [f"bank.root={request.getfixturevalue('sounds_root')}", *SCENES]
    return [
        f"bank.root={write_packages(tmp_path / 'packages')}",
        "bank.licences=null",
        "three_share=0.0",
        *SCENES,
    ]


@pytest.mark.slow
def test_sounds_codec_then_denoiser(tmp_path: Path, sound_packages: list[str]) -> None:
    data = [f"data.{item}" for item in sound_packages]
    module = [*SCHEDULE, "module.codec.width=16"]
    fit(
        "embedded/sounds_codec.yaml",
        tmp_path / "codec",
        [*data, *module],
        "trainer.max_steps=2",
        "trainer.max_steps=4",
    )
    module = [
        f"module.backbone.codec={tmp_path / 'codec' / 'codec.safetensors'}",
        *SCHEDULE,
        "trainer.precision=32-true",
    ]
    module += [
        f"module.backbone.{item}"
        for item in ("codec_width=16", "width=16", "depth=1", "heads=2", "text_width=16")
    ]
    data = [
        f"data.source.{item}"
        for item in [*sound_packages, "clips=8", "seconds=2.048", "classes=null"]
    ]
    fit(
        "embedded/sounds.yaml",
        tmp_path / "sounds",
        [*module, *data],
        "trainer.max_steps=2",
        "trainer.max_steps=4",
    )
    backbone = zoo.load(str(tmp_path / "sounds" / "model"))
    (wave,) = zoo.generate(backbone, [Prompt("p", "a cow", seconds=0.512)], seeds=[0], steps=2)
    assert wave.samples_CN.shape[0] == 2 and wave.samples_CN.isfinite().all()


@pytest.mark.slow
def test_clap(tmp_path: Path, sound_packages: list[str]) -> None:
    data = [f"data.{item}" for item in sound_packages]
    fit(
        "embedded/clap.yaml",
        tmp_path / "clap",
        [*data, *SCHEDULE, *SMALL_TOWERS],
        "trainer.max_steps=2",
        "trainer.max_steps=4",
    )
    reward = zoo.load(str(tmp_path / "clap" / "model"))
    assert isinstance(reward, Reward)
    output = reward(torch.randn(1, 2, 35_200), 16_000, [Prompt("p", "a cow mooing")])
    assert -1 <= float(output.score_B) <= 1


@pytest.mark.long
@pytest.mark.parametrize(
    "config", ["reward_integrity", "reward_temporal", "reward_integrity_pairwise"]
)
def test_the_reward_models_of_baton(config: str, tmp_path: Path, small_zoo: Path) -> None:
    """On LAION's CLAP at toy size, from its own file and at its 48 kHz."""
    from toy_preferences import write_labels

    write_labels(tmp_path, prompts=16, per_prompt=2)
    small = [
        f"data.source.files={tmp_path / 'labels.csv'}",
        f"data.source.audio_root={tmp_path / 'audio'}",
        f"module.features.cache_dir={tmp_path / 'features'}",
        "module.reward.embedding=8",
        "module.reward.hidden=16",
        "data.val_share=0.3",
        "data.test_share=0.3",
    ]
    fit(
        f"baton/{config}.yaml",
        tmp_path / "run",
        small,
        "trainer.max_epochs=1",
        "trainer.max_epochs=2",
    )
    assert {path.suffix for path in (tmp_path / "features").iterdir()} == {".safetensors"}
    assert [row for row in read_rows(tmp_path / "run" / "metrics.csv") if "test/accuracy" in row]
    reward = zoo.load(str(tmp_path / "run" / "model"))
    assert isinstance(reward, Reward) and reward.clap.towers.sample_rate_hz == 48_000
    output = reward(torch.randn(1, 1, 16_000), 16_000, [Prompt("p", "a dog barks")])
    assert 0 <= float(output.score_B) <= 1
    assert "clap/" in " ".join(output.parts)


@pytest.mark.slow
def test_batons_quickstart_leaves_clips_labels_a_report_and_a_model(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    run_dir = tmp_path / "run"
    small = [f"data.labelled.clips.folder={clips}", "trainer.enable_progress_bar=false"]
    fit(
        "baton/quickstart_smoke.yaml",
        run_dir,
        small,
        "trainer.max_steps=3",
        "trainer.max_steps=6",
    )
    for made in ("audio/before", "audio/after", "curve.png", "report.html", "model/config.json"):
        assert (run_dir / made).exists(), made
    labels = read_labels(clips / "labels.jsonl").checked()
    assert len(labels) == 12
    assert {record.votes[0].value for record in labels} == {0, 1}
    assert all(record.votes[0].rater.startswith("stand-in") for record in labels)
    page = (run_dir / "report.html").read_text("utf-8")
    assert page.count("<audio") == 2 * len(read_samples(run_dir / "audio" / "before"))
    assert "losses over steps" in page
    base = zoo.load("embedded/sounds")
    tuned = zoo.load(run_dir / "model")
    moved = [
        name
        for name, value in tuned.state_dict().items()
        if not torch.equal(value, base.state_dict()[name])
    ]
    assert moved and all(name.startswith("denoiser.") for name in moved)


@pytest.mark.slow
def test_the_head_of_batons_quickstart_learns_the_labels_that_it_left(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    own = OwnClips(
        zoo.load("embedded/sounds"),
        zoo.load("embedded/clap"),
        [Prompt(f"p{i}", text) for i, text in enumerate(("a cow", "a crow", "glass", "a lion"))],
        str(clips),
        clips=2,
        sampler=SamplerSettings(steps=2, guidance_scale=1.0, eta=0.0),
    )
    assert len(StandInLabels(own).rated_clips()) == 8
    overrides = [
        f"data.source.files={clips / 'labels.jsonl'}",
        f"data.source.audio_root={clips}",
        f"module.features.cache_dir={tmp_path / 'features'}",
        f"out_dir={tmp_path / 'head'}",
        "data.val_share=0.5",
        "data.test_share=0.0",
        "module.pretraining.steps=2",
        "trainer.max_epochs=2",
    ]
    run.fit(read_configuration([CONFIGS / "baton" / "quickstart_reward.yaml"], overrides))
    head = zoo.load(tmp_path / "head" / "model")
    found = head(torch.randn(1, 2, 65_536) * 0.1, 16_000, [Prompt("p", "a cow")])
    assert 0 < float(found.score_B) < 1
