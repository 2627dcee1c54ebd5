"""tools/generate.py: from a model, a run folder or an adapter to files, and errors."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from toys import SMALL

from datamodules.prompt_sources import file_prompts
from zoo import audio_files
from zoo.audio_files import read_audio, write_audio
from zoo.backbones.lora import add_lora
from zoo.backbones.tiny import TinyAudio
from zoo.commands import generate
from zoo.commands.generate import parse_seeds
from zoo.errors import reported
from zoo.generation import score
from zoo.generations import output_paths, read_samples
from zoo.hub.adapters import save_adapter
from zoo.hub.artifact import save_artifact
from zoo.hub.runs import run_settings
from zoo.loading import open_model
from zoo.types import Prompt, Waveform

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    backbone = TinyAudio(**SMALL)
    with torch.no_grad():  # an untrained denoiser says nothing; this one says something
        for parameter in backbone.denoiser.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_artifact(
        folder, kind="backbone", architecture="tiny_audio", arguments=SMALL, module=backbone
    )
    return folder


@pytest.fixture(scope="module")
def run_dir(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ddpo"
    folder.mkdir()
    backbone = open_model(str(model))
    add_lora(backbone, rank=2)
    with torch.no_grad():
        for name, parameter in backbone.denoiser.named_parameters():
            if "lora_" in name:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                )
    save_adapter(backbone, folder / "adapter")
    config = {
        "module": {
            "backbone": {"_target_": "zoo.load", "name": str(model)},
            "sample_steps": 3,
            "guidance_scale": 2.0,
            "eta": 1.0,
        },
        "data": {"negative": "noise", "seconds": 0.5},
        "out_dir": "x",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def run(*argv) -> None:
    generate.main([str(word) for word in argv], file_prompts)


def sound(path: Path) -> torch.Tensor:
    return read_audio(path).samples_CN


def test_files_for_prompts_and_seeds(model, tmp_path, capsys):
    run(
        model,
        "A sad piano",
        "Größe / ..\\x",
        "--seeds",
        "0-1",
        "--steps",
        2,
        "--seconds",
        0.5,
        "--out",
        tmp_path / "o",
    )
    names = sorted(path.name for path in (tmp_path / "o").glob("*.wav"))
    assert names == [
        f"00{i}_{slug}_seed{s}.wav"
        for i, slug in enumerate(("a-sad-piano", "groe-x"))
        for s in (0, 1)
    ]
    assert names[0] in capsys.readouterr().out
    assert sound(tmp_path / "o" / names[0]).shape == (2, 8000)
    with pytest.raises(
        ValueError,
        match=r"000_a-sad-piano_seed0\.wav.*--out.*--overwrite",
    ):
        run(model, "A sad piano", "--out", tmp_path / "o")
    before = sound(tmp_path / "o" / names[0])
    run(
        model, "A sad piano", "--out", tmp_path / "o", "--overwrite", "--steps", 3, "--seconds", 0.5
    )
    assert not torch.equal(sound(tmp_path / "o" / names[0]), before)
    listed = read_samples(tmp_path / "o")
    assert [(sample.path.name, sample.seed) for sample in listed] == [
        (name, i % 2) for i, name in enumerate(names)
    ]
    run(model, "A sad piano", "--out", tmp_path / "one.flac", "--steps", 2, "--seconds", 0.5)
    assert torch.allclose(sound(tmp_path / "one.flac"), before, atol=1e-3)


def test_a_run_folder_brings_its_adapter_and_settings(model, run_dir, tmp_path):
    common = ["piano", "--steps", 3, "--guidance", 2, "--seconds", 0.5, "--negative", "noise"]
    run(run_dir, "piano", "--out", tmp_path / "run.wav")
    run(model, *common, "--out", tmp_path / "base.wav")
    run(model, *common, "--adapter", run_dir / "adapter", "--out", tmp_path / "adapter.wav")
    run(run_dir, *common, "--strength", 0, "--out", tmp_path / "off.wav")
    run(run_dir, *common, "--strength", 0.5, "--out", tmp_path / "half.wav")
    wave = {path.stem: sound(path) for path in tmp_path.iterdir()}
    assert torch.equal(wave["run"], wave["adapter"]) and torch.equal(wave["off"], wave["base"])
    assert len({wave[name].numpy().tobytes() for name in ("run", "base", "half")}) == 3
    run(run_dir, "piano", "--negative", "", "--out", tmp_path / "other.wav")
    assert not torch.equal(sound(tmp_path / "other.wav"), wave["run"])


def test_an_exported_model_in_a_run_folder(model, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(model)
    (tmp_path / "run" / "config.yaml").write_text("module: {learning_rate: 1}")
    run(tmp_path / "run", "piano", "--steps", 2, "--seconds", 0.5, "--out", tmp_path / "a.wav")
    assert sound(tmp_path / "a.wav").shape == (2, 8000)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".txt", "﻿a sad piano\r\n\r\n  \na happy harp\n".encode()),
        (
            ".csv",
            "text,negative,seconds\na sad piano,noise,0.5\na happy harp,,\n".encode("utf-8-sig"),
        ),
        (".jsonl", b'{"text": "a sad piano"}\n\n{"text": "a happy harp", "seconds": 0.5}\n'),
    ],
)
def test_batch_files(model, tmp_path, suffix, content):
    (tmp_path / f"prompts{suffix}").write_bytes(content)
    run(
        model,
        "--batch-file",
        tmp_path / f"prompts{suffix}",
        "--seconds",
        0.5,
        "--steps",
        1,
        "--batch-size",
        1,
        "--out",
        tmp_path / "o",
    )
    names = ["000_a-sad-piano_seed0.wav", "001_a-happy-harp_seed0.wav", "samples.json"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == names
    assert [sample.prompt.text for sample in read_samples(tmp_path / "o")] == [
        "a sad piano",
        "a happy harp",
    ]


def test_the_best_of_several_is_kept_with_what_it_was_chosen_from(model, tmp_path, capsys):
    how = ["--steps", 2, "--guidance", 2, "--seconds", 0.5]
    words = [model, "rain", "a dog", *how]
    run(*words, "--best-of", 3, "--by", "embedded/clap", "--seeds", "0,5", "--out", tmp_path / "o")
    assert "12 network evaluations (a single sample: 4) and 3 reward" in capsys.readouterr().out
    samples = read_samples(tmp_path / "o")
    assert [sample.path.name for sample in samples] == [
        f"00{i}_{slug}_seed{seeds}.wav"
        for i, slug in enumerate(("rain", "a-dog"))
        for seeds in ("0-2", "5-7")
    ]
    run(*words, "--seeds", "0-2,5-7", "--out", tmp_path / "all")
    waves = {
        (sample.prompt.text, sample.seed): read_audio(sample.path)
        for sample in read_samples(tmp_path / "all")
    }
    for sample in samples:
        assert sample.choice.by == "embedded/clap" and sample.choice.seeds in ((0, 1, 2), (5, 6, 7))
        own = [waves[sample.prompt.text, seed] for seed in sample.choice.seeds]
        scores = score("embedded/clap", own, [sample.prompt] * 3).score_B
        # the choice hears the wave, and here a file of 16 bits is heard
        assert scores.tolist() == pytest.approx(sample.choice.scores, abs=1e-3)
        assert sample.seed == sample.choice.seeds[int(scores.argmax())]
        assert sample.score == max(sample.choice.scores)
        assert torch.allclose(
            sound(sample.path), waves[sample.prompt.text, sample.seed].samples_CN, atol=1e-4
        )
    assert len({sample.seed - sample.choice.seeds[0] for sample in samples}) > 1  # not the first


@pytest.mark.parametrize(
    "choice", [3, {"by": "x"}, {"by": "x", "seeds": [1], "scores": []}, {"seeds": 1, "scores": 1}]
)
def test_a_choice_that_cannot_be_read_names_its_entry(tmp_path, choice):
    write_audio(tmp_path / "a.wav", Waveform(torch.zeros(1, 800), 8000))
    entry = {"file": "a.wav", "id": "a", "text": "a", "choice": choice}
    (tmp_path / "samples.json").write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match="entry 1: choice must name"):
        read_samples(tmp_path)


def test_a_latin_1_file_is_read_with_a_note(model, tmp_path, caplog):
    (tmp_path / "p.txt").write_bytes("Flöte\n".encode("latin-1"))
    run(
        model,
        "--batch-file",
        tmp_path / "p.txt",
        "--seconds",
        0.5,
        "--steps",
        1,
        "--out",
        tmp_path / "o",
    )
    assert [path.name for path in (tmp_path / "o").glob("*.wav")] == ["000_flote_seed0.wav"]
    assert "not UTF-8, read as Latin-1" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{model}"], "no prompt: write one after the model, or give --batch-file"),
        (["{model}", " "], "a prompt must not be empty"),
        (["{tmp}/nowhere", "piano"], "neither a name nor a folder"),
        (["embedded/musik", "piano"], "did you mean 'embedded/music'"),
        (["{tmp}", "piano"], "is neither a model .* nor a run "),
        (["{model}", "piano", "--seeds", "a"], "expected whole numbers such as 0 or 0,1,2 or 0-7"),
        (["{model}", "piano", "--seeds", "5-2"], "expected whole numbers"),
        (["{model}", "piano", "--seeds", "1,1"], "names a seed twice"),
        (["{model}", "piano", "--best-of", "2"], "--by REWARD belong together"),
        (["{model}", "piano", "--by", "embedded/clap"], "--by REWARD belong together"),
        (["{model}", "piano", "--best-of", "1", "--by", "embedded/clap"], "--best-of 1"),
        (
            ["{model}", "piano", "--best-of", "4", "--by", "embedded/clap", "--seeds", "8,3,6"],
            "both would choose among seed 6; give seeds that are 4 apart, such as 3,7",
        ),
        (
            ["{model}", "piano", "--best-of", "2", "--by", "embedded/music"],
            "a TinyAudio, which scores nothing",
        ),
        (
            ["{model}", "piano", "--best-of", "2", "--by", "embedded/mood"],
            "prompt 'piano' .*mood",
        ),
        (["{model}", "piano " * 200, "--best-of", "2", "--by", "embedded/clap"], "cannot read all"),
        (["{model}", "piano", "--steps", "0"], "sampling steps 0"),
        (["{model}", "piano", "--seconds", "0"], "seconds must be positive"),
        (["{model}", "piano", "--batch-size", "0"], "batch_size 0"),
        (["{model}", "piano", "--strength", "0.5"], "--strength .* has none"),
        (["{tmp}/nowhere", "piano", "--strength", "0"], "neither a name nor a folder"),
        (["{model}", "piano", "--adapter", "{tmp}/none"], "holds no adapter"),
        (["{model}", "piano", "--batch-file", "{tmp}/none.txt"], "none.txt"),
        (
            ["{model}", "a", "b", "--out", "{tmp}/a.wav"],
            "is one file, but there are 2 samples; name a folder",
        ),
        (["{model}", "a", "--out", "{tmp}/file"], "is a file without audio suffix"),
        (["{model}", "a", "--out", "{tmp}/a.aac"], r"a.aac: .*\.wav, \.flac, \.ogg, \.mp3"),
        (["{model}", "a", "--out", "{tmp}/x.mp4"], r"x.mp4: .*\.wav, \.flac, \.ogg, \.mp3"),
        (["{model}", "a", "--out", "{tmp}/x.wavv"], r"x.wavv: .*\.wav"),
        (["{model}", "a", "--out", "{tmp}/file/deep"], "cannot be written here .*file/deep"),
        (
            ["{model}", "a", "--out", "/proc/deep/a.wav"],
            "cannot be written here .*/proc/deep/a.wav",
        ),
        (
            ["{model}", "a", "--device", "gpu"],
            "the device 'gpu' cannot be used .*; this machine has cpu",
        ),
        (
            ["{model}", "a", "--device", "cuda:99"],
            "the device 'cuda:99' cannot be used .*; this machine has cpu",
        ),
    ],
)
def test_bad_requests_say_so_and_write_nothing(model, tmp_path, words, message):
    (tmp_path / "file").write_text("x")
    words = [word.format(model=model, tmp=tmp_path) for word in words]
    with pytest.raises((ValueError, OSError), match=message):
        run(*words, *([] if "--out" in words else ["--out", tmp_path / "o"]))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_run_folders_that_cannot_generate(model, run_dir, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("module: {backbone: {_target_: zoo.load, name: embedded/music}}")
    with pytest.raises(ValueError, match="adapter/.*model/"):
        open_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"module\.backbone"):
        path.write_text("module: {learning_rate: 1}")
        open_model(str(tmp_path), adapter=run_dir / "adapter")
    path.write_text("a: [")
    with pytest.raises(ValueError, match="cannot be read"):
        run_settings(tmp_path)
    (tmp_path / "eta").mkdir()
    (tmp_path / "eta" / "config.yaml").write_text("module: {sample_steps: 3, eta: [1, 1, 0]}")
    with pytest.raises(ValueError, match="eta.* 3 .*--eta.*--steps.* 5"):
        run(tmp_path / "eta", "piano", "--steps", 5)


def test_a_reward_generates_nothing(tmp_path):
    from zoo.rewards.mood import EmotionReward

    reward = EmotionReward()
    save_artifact(
        tmp_path / "r",
        kind="reward",
        architecture="emotion",
        arguments=reward.arguments,
        module=reward,
    )
    with pytest.raises(ValueError, match="EmotionReward"):
        open_model(str(tmp_path / "r"))


def test_names_and_seeds():
    assert parse_seeds("0, 3-5,9") == [0, 3, 4, 5, 9]
    long = Prompt("x", "word " * 60)
    other = Prompt("y", "音楽")
    paths = output_paths([long, other], [3], Path("o"), "mp3")
    assert len(paths[0].name) < 90 and paths[1] == Path("o/001_prompt_seed3.mp3")


def test_a_folder_may_have_a_dot_in_its_name(tmp_path):
    for out in ("eta_0.5", "v1.final/"):
        assert (
            output_paths([Prompt("x", "rain")], [0], f"{tmp_path}/{out}", "wav")[0].parent
            == tmp_path / out
        )
    (tmp_path / "set.mp4").mkdir()
    assert (
        output_paths([Prompt("x", "rain")], [0], tmp_path / "set.mp4", "wav")[0].parent
        == tmp_path / "set.mp4"
    )


def test_the_command(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", ["tools", *sys.path])
    scope: dict = {"__file__": str(ROOT / "tools" / "generate.py"), "__name__": "generate"}
    exec(compile((ROOT / "tools" / "generate.py").read_text(), "generate.py", "exec"), scope)
    assert sys.path[0] == str(ROOT)
    words = [
        str(model),
        "piano",
        "--steps",
        "1",
        "--seconds",
        "0.5",
        "--out",
        str(tmp_path / "a.ogg"),
    ]
    assert reported(scope["main"], words) == 0 and sound(tmp_path / "a.ogg").shape[0] == 2
    assert reported(scope["main"], words) == 2
    assert "exists; give another --out" in capsys.readouterr().err


def test_finished_files_stay_when_a_later_one_fails(model, tmp_path, monkeypatch):
    """Two batches of two. The last file fails; the one before is not in the index and is gone."""
    written = []

    def write(path, wave: Waveform):
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        write_audio(path, wave)

    monkeypatch.setattr(audio_files, "write_audio", write)
    with pytest.raises(OSError, match="No space left") as caught:
        run(
            model,
            "one",
            "two",
            "--seeds",
            "0,1",
            "--steps",
            1,
            "--seconds",
            0.5,
            "--batch-size",
            2,
            "--out",
            tmp_path,
        )
    assert caught.value.filename == str(tmp_path / "001_two_seed1.wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000_one_seed0.wav",
        "000_one_seed1.wav",
        "samples.json",
    ]
    assert [sample.prompt.text for sample in read_samples(tmp_path)] == [
        "one",
        "one",
    ], "the index lists what is there"
    assert sound(tmp_path / "000_one_seed0.wav").shape == (2, 8000)


def test_leftovers_of_a_killed_call_are_removed(model, tmp_path):
    (tmp_path / ".together.999999999.part").mkdir()
    kept = [f".a.{os.getppid()}.part.wav", ".notes.999999999.part.txt"]
    for name in (
        ".000_one_seed0.999999999.part.wav",
        ".samples.999999999.part.json",
        ".b.999999999.part.flac",
        *kept,
    ):
        (tmp_path / name).touch()
    run(model, "one", "--steps", 1, "--seconds", 0.5, "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *kept,
        "000_one_seed0.wav",
        "samples.json",
    }
    (tmp_path / ".x.999999999.part.wav").touch()
    (tmp_path / ".y.999999999.part.wav").touch()
    run(model, "one", "--steps", 1, "--seconds", 0.5, "--out", tmp_path / "x.wav")
    assert {path.name for path in tmp_path.glob(".?.999999999.*")} == {".y.999999999.part.wav"}, (
        "only of the file itself"
    )
