"""A start and --dry-run refuse what the first round would refuse, before there is a run folder."""

from __future__ import annotations

import shutil

import pytest
import torch
from toy_run import ROOT, load

import zoo
from lightning_modules import run
from zoo.audio_files import write_audio
from zoo.backbones.lengths import check_seconds
from zoo.backbones.tiny import TinyAudio
from zoo.configuration import read_configuration
from zoo.types import Waveform

SMOKE = ROOT / "configs" / "ddpo" / "quickstart_smoke.yaml"


@pytest.mark.long
@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("module.sampler.batch_size=7", r"sampler\.batch_size=7"),
        ("module.update.batch_size=3", r"update\.batch_size=3"),
        ("data=null", "data is missing"),
        ("data.repeats=1", "data.repeats"),
        (
            (
                "data={_target_: datamodules.prompts.PromptDataModule, template: 'a {word}"
                " {instrument}', words: {none: [happy, sad]}, instruments: [piano]}"
            ),
            "mood 'none'.*classifier",
        ),
        (
            "data={_target_: datamodules.music.music.MusicDataModule}",
            "MusicDataModule yields AudioBatch",
        ),
        (
            "module.reward={_target_: zoo.backbones.tiny.TinyAudio}",
            r"module\.reward: .*TinyAudio.*differentiable",
        ),
        (
            "module.held_out_reward={_target_: zoo.backbones.tiny.TinyAudio}",
            r"module\.held_out_reward: .*TinyAudio",
        ),
        (
            "module.backbone={_target_: zoo.rewards.guards.GuardReward}",
            r"module\.backbone: .*GuardReward.*denoiser",
        ),
        ("module.optimizer.learning_rate=.inf", "learning_rate inf"),
        ("data.seconds=.01", r"data\.seconds 0\.01: too short.*use at least 0\.\d+ s"),
        ("data.seconds=1e9", r"data\.seconds 1e\+09: .*use at most \d+ s"),
        ("data.seconds=1e308", r"data\.seconds 1e\+308: .*use at most \d+ s"),
        ("module.optimizer.betas=[1.5, .9]", "invalid betas"),
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true.*bf16-mixed"),
        ("module.optimizer.weight_decay=.inf", "weight_decay inf"),
        ("module.sampler.guidance_scale=0", "detach_unconditional"),
        ("module.adapter.rank=1000000000", "rank 1000000000"),
        ("trainer.gradient_clip_val=1.0", "module.optimizer.max_grad_norm"),
        ("trainer.accumulate_grad_batches=2", "module.update.per_round"),
        ("trainer.check_val_every_n_epoch=0", "check_val_every_n_epoch 0"),
        ("trainer.max_epochs=0", "max_epochs 0"),
        ("trainer.limit_train_batches=0", "limit_train_batches 0"),
    ],
)
def test_impossible_runs_are_refused_before_there_is_a_folder(tmp_path, override, word):
    for start in (run.dry_run, run.fit):
        with pytest.raises(ValueError, match=word) as refused:
            start(read_configuration([SMOKE], [f"out_dir={tmp_path / 'run'}", override]))
        assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_start_that_a_later_hook_refuses_leaves_no_folder(tmp_path):
    where = f"out_dir={tmp_path / 'run'}"
    watch = "trainer.callbacks=[{_target_: lightning_modules.rl.held_out.HeldOutWatch}]"
    with pytest.raises(ValueError, match="held_out_reward"):
        run.fit(read_configuration([SMOKE], [where, watch]))
    assert not list(tmp_path.iterdir())  # so that the next start finds no run there


@pytest.mark.parametrize("seconds", [0.01, 1e9])
def test_the_length_that_is_advised_works(seconds):
    backbone = TinyAudio(width=16, depth=1, heads=2, codec_width=8, text_width=16, text_depth=1)
    with pytest.raises(ValueError, match="invalid seconds") as refused:
        zoo.generate(backbone, "rain", seconds=seconds, steps=1)
    advised = float(str(refused.value).rpartition("use at ")[2].split()[1])
    check_seconds(backbone, advised, 1, 2, "seconds")
    if advised < 1:
        assert (
            zoo.generate(backbone, "rain", seconds=advised, steps=1)[0].samples_CN.isfinite().all()
        )


@pytest.mark.parametrize("place", ["''", "/"])
def test_no_place_for_a_run(tmp_path, place):
    with pytest.raises(ValueError, match="invalid out_dir"):
        run.fit(load(tmp_path, f"out_dir={place}"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_device_is_named_with_an_existing_one(tmp_path):
    with pytest.raises(ValueError, match="trainer.accelerator=cuda: .*trainer.accelerator=cpu"):
        run.fit(load(tmp_path, "trainer.accelerator=cuda"))


def test_a_folder_that_holds_a_run_hides_no_other_mistake(tmp_path):
    run.fit(load(tmp_path, "trainer.max_epochs=1"))
    for start in (run.dry_run, run.fit):
        with pytest.raises(ValueError, match="width"):
            start(load(tmp_path, "module.widht=3"))


@pytest.mark.parametrize(
    "move", [shutil.move, lambda old, new: shutil.copytree(old, new, symlinks=True)]
)
def test_old_checkpoints_are_deleted_after_a_move_or_a_copy(tmp_path, move):
    run.fit(load(tmp_path, "trainer.max_epochs=3"))
    old, new = tmp_path / "run", tmp_path / "elsewhere"
    move(str(old), str(new))
    before = sorted(old.rglob("*"))
    run.fit(load(tmp_path, "trainer.max_epochs=5", f"out_dir={new}", "resume=true"))
    names = sorted(path.name for path in (new / "checkpoints").iterdir())
    assert names == [f"epoch={i}-step={4 * i + 4}.ckpt" for i in (2, 3, 4)] + ["last.ckpt"]
    assert sorted(old.rglob("*")) == before


def test_a_dry_run_finds_missing_clips(tmp_path):
    """Both cases: a missing folder, and a row of a table without its file."""
    folder = tmp_path / "clips"
    node = (
        f"data={{_target_: datamodules.audio.AudioDataModule, folder: {folder}, "
        f"captions: {tmp_path / 't.csv'}, sample_rate_hz: 16000, channels: 2, seconds: 1.0, "
        "batch_size: 1}"
    )
    asked = [node, f"out_dir={tmp_path / 'run'}"]
    config = read_configuration([ROOT / "configs/embedded/codec.yaml"], asked)
    with pytest.raises((ValueError, OSError), match="clips"):
        run.dry_run(config)
    folder.mkdir()
    write_audio(folder / "here.wav", Waveform(torch.zeros(2, 16000), 16000))
    (tmp_path / "t.csv").write_text("file,caption\nhere.wav,rain\ngone.wav,wind\n")
    with pytest.raises((ValueError, OSError), match=r"gone\.wav"):
        run.dry_run(config)
    emopia = [f"data.audio_dir={tmp_path / 'none'}", f"data.split_dir={tmp_path / 'none'}"]
    config = read_configuration([ROOT / "configs/emotion/emopia.yaml"], [*emopia, asked[1]])
    with pytest.raises((ValueError, OSError), match="none"):
        run.dry_run(config)
    assert not (tmp_path / "run").exists()
