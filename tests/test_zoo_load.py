"""The public interface: names, lazy imports, and generating and scoring with models."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import SMALL, ToyBackbone

import zoo
from zoo import generation
from zoo.backbones.lora import add_lora
from zoo.backbones.tiny import TinyAudio
from zoo.errors import UserError
from zoo.hub import adapter_files, artifact, entry, registry, resolve
from zoo.hub.adapter_files import write_adapter
from zoo.hub.adapters import save_adapter
from zoo.hub.artifact import read_config, save_artifact
from zoo.hub.registry import ENTRIES
from zoo.hub.weights import save_weights
from zoo.types import Prompt, RewardOutput, Waveform

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / "tiny"
    torch.manual_seed(0)
    save_artifact(
        folder,
        kind="backbone",
        architecture="tiny_audio",
        arguments=SMALL,
        module=TinyAudio(**SMALL),
    )
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model whose gates are not zero, so that an adapter has an effect."""
    folder = tmp_path_factory.mktemp("zoo") / "base"
    torch.manual_seed(0)
    model = TinyAudio(**SMALL)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_artifact(folder, kind="backbone", architecture="tiny_audio", arguments=SMALL, module=model)
    return folder


@pytest.mark.long
def test_importing_the_package_imports_no_model_library():
    code = (
        "import sys, zoo; names = zoo.names(); zoo.load; heavy = {'transformers', 'diffusers',"
        " 'peft', 'lightning', 'laion_clap', 'torchaudio'} & set(sys.modules); assert not heavy,"
        " heavy; print(' '.join(names))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "embedded/music" in result.stdout


def test_names_and_attributes():
    assert (
        "embedded/music" in zoo.names("backbone")
        and "embedded/mood" in zoo.names("reward")
        and zoo.names("x") == ()
    )
    assert set(zoo.names()) == set(registry.ENTRIES)
    assert {"load", "generate", "score", "names", "entries", "pull", "push"} <= set(dir(zoo))
    assert zoo.generate is generation.generate
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = zoo.lod


@pytest.mark.long
def test_a_folder_in_diffusers_layout_is_a_model(tmp_path):
    import toy_audioldm2

    folder = toy_audioldm2.written_folder(toy_audioldm2.small_model(), tmp_path / "a folder")
    index = json.loads((folder / "model_index.json").read_text())
    add_lora(model := zoo.load(folder), rank=2)
    save_adapter(model, tmp_path / "adapter")
    for again in (
        zoo.load(folder, adapters=[(tmp_path / "adapter", 1.0)]),
        zoo.open_model(str(folder), tmp_path / "adapter"),
    ):
        assert type(again).__name__ == "AudioLDM2" and not again.training
    (folder / "model_index.json").write_text(
        json.dumps({**index, "_class_name": "MusicLDMPipeline"})
    )
    with pytest.raises(ValueError, match="MusicLDMPipeline.*AudioLDMPipeline"):
        zoo.load(folder)


def test_load_by_path(artefact):
    model = zoo.load(str(artefact))
    assert isinstance(model, TinyAudio) and not model.training
    assert next(zoo.load(str(artefact), dtype="bfloat16").parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "embedded/musik",
            {},
            "no model 'embedded/musik', neither a name nor a folder; did you mean 'embedded/music'",
        ),
        ("nothing-like-it", {}, "choose from audioldm-m-full, .*and [0-9]+ more"),
        ("embedded/music", {"dtype": "int8"}, "dtype must be float32, .*got 'int8'"),
        ("embedded/music", {"dtype": "half of it"}, "dtype must be float32"),
    ],
)
def test_bad_names(name, settings, message):
    with pytest.raises(ValueError, match=message):
        zoo.load(name, **settings)


def test_a_name_without_its_files(monkeypatch, tmp_path):
    monkeypatch.setattr(entry, "PACKAGE", tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match="embedded/music",
    ):
        zoo.load("embedded/music")


def test_generate_order_length_and_independence_of_the_batch(artefact):
    prompts = [
        Prompt("one", "a sad piano", seconds=0.5),
        Prompt("two", "a happy harp", seconds=0.7),
        Prompt("three", "a guitar", seconds=0.5),
    ]
    seen = []
    settings = {"seeds": [0, 1], "steps": 2, "guidance_scale": 2.0}
    together = zoo.generate(
        str(artefact),
        prompts,
        **settings,
        batch_size=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    alone = zoo.generate(zoo.load(str(artefact)), prompts, **settings, batch_size=1)
    assert [wave.samples_CN.shape for wave in together] == [
        (2, n) for n in (8000, 8000, 11200, 11200, 8000, 8000)
    ]
    assert seen == [(3, 6), (4, 6), (6, 6)] and all(
        wave.sample_rate_hz == 16_000 for wave in together
    )
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one.samples_CN, other.samples_CN, atol=1e-3)
        assert one.samples_CN.abs().max() <= 1
    assert not torch.allclose(together[0].samples_CN, together[1].samples_CN, atol=1e-2)


def test_generate_uses_guidance_negative_and_eta():
    backbone = ToyBackbone()

    def first(**settings):
        return zoo.generate(backbone, "happy tune", **{"steps": 4, "seconds": 1.0, **settings})[
            0
        ].samples_CN

    base = first()
    assert torch.equal(base, first()) and base.shape == (1, 8)
    for changed in ({"guidance_scale": 1.0}, {"negative": "sad noise"}, {"eta": 0.0}, {"seeds": 5}):
        assert not torch.allclose(base, first(**changed)), changed
    assert torch.equal(first(guidance_scale=1.0), first(guidance_scale=1.0, negative="sad noise"))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("steps", "3"),
        ("steps", 2.5),
        ("steps", True),
        ("guidance_scale", "2"),
        ("guidance_scale", None),
        ("eta", "1"),
        ("eta", ["1", "1"]),
        ("rule", 1),
        ("negative", None),
        ("negative", ["noise"]),
        ("seconds", "4"),
        ("batch_size", "8"),
        ("seeds", "0-3"),
        ("seeds", 1.5),
        ("seeds", [0.5]),
        ("seeds", None),
        ("progress", "yes"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(name, wrong):
    with pytest.raises(
        ValueError, match=rf"\b{name}\b.*{re.escape(repr(wrong))}|steps must be a whole number.*2.5"
    ):
        zoo.generate(ToyBackbone(), ["a"], **{name: wrong})


def test_invalid_backbones_prompts_and_waves_are_named():
    with pytest.raises(ValueError, match="backbone: a int"):
        zoo.generate(3, ["a"])
    with pytest.raises(ValueError, match="Prompt.* 3"):
        zoo.generate(ToyBackbone(), [3])
    with pytest.raises(ValueError, match="waves: expected Waveform.*Tensor"):
        zoo.score(Loudness(), [torch.zeros(1, 4)], ["a"])
    with pytest.raises(ValueError, match="embedded/music.*TinyAudio"):
        zoo.score("embedded/music", [Waveform(torch.zeros(1, 400), 16_000)], ["a"])


def test_a_misspelled_name_is_named_before_the_network_is_used(monkeypatch):
    asked = []
    monkeypatch.setattr("zoo.hub.pull.pull", lambda name: asked.append(name) or 1 / 0)
    for name in ("embeded/music", "Embedded/Music", "embedded/moods"):
        with pytest.raises(ValueError, match=f"no model '{name}'.*did you mean 'embedded/m"):
            zoo.load(name)
    assert not asked
    with pytest.raises(ZeroDivisionError):
        zoo.load("somebody/music")
    assert asked == ["somebody/music"]


def test_a_misspelled_path_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    with pytest.raises(ValueError, match="'runs/frist'.*'runs/first'"):
        zoo.load("runs/frist")


def a_run(folder, base, code="", seed=1):
    """A folder like that of a DDPO run: its configuration, and an adapter trained on ``base``."""
    torch.manual_seed(seed)
    model = zoo.load(base)
    add_lora(model, rank=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    save_adapter(model, folder / "adapter")
    (folder / "config.yaml").write_text(
        code or f"module: {{backbone: {{_target_: zoo.load, name: {str(base)!r}}}}}"
    )
    return folder


def sounds(model):
    (wave,) = zoo.generate(model, ["piano"], steps=2, seconds=0.5)
    return wave.samples_CN


@pytest.mark.long
def test_a_run_folder_is_loaded_with_its_adapter(base, tmp_path):
    run = a_run(tmp_path / "run", base)
    expected = sounds(zoo.open_model(str(run)))
    assert not torch.equal(expected, sounds(zoo.load(base))), "the adapter changes something"
    model = zoo.load(run)
    assert torch.equal(sounds(model), expected) and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert next(zoo.load(run, dtype="bfloat16").parameters()).dtype == torch.bfloat16
    for adapters in (
        run / "adapter",
        str(run / "adapter"),
        [run / "adapter"],
        [str(run / "adapter")],
        [[run / "adapter", 1]],
    ):
        assert torch.equal(sounds(zoo.load(base, adapters=adapters)), expected), adapters
    half = sounds(zoo.load(base, adapters=[(run / "adapter", 0.5), (run / "adapter", 0.5)]))
    assert torch.allclose(half, expected, atol=1e-4)
    other = a_run(tmp_path / "other", base, seed=2) / "adapter"
    both = sounds(zoo.load(base, adapters=[run / "adapter", other]))
    assert torch.equal(sounds(zoo.load(run, adapters=[other])), both), (
        "others go on top of the run's own"
    )


def test_a_run_without_an_adapter_gives_the_whole_denoiser_or_its_exported_model(base, tmp_path):
    run = a_run(tmp_path / "run", base)
    shutil.rmtree(run / "adapter")
    with pytest.raises(ValueError, match="adapter/.*model/"):
        zoo.load(run)
    changed = zoo.load(base)
    with torch.no_grad():
        for parameter in changed.denoiser.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_weights(changed.denoiser.state_dict(), run / "denoiser.safetensors")
    for model in (zoo.load(run), zoo.open_model(str(run))):
        assert torch.equal(sounds(model), sounds(changed))
    save_artifact(
        run / "model", kind="backbone", architecture="tiny_audio", arguments=SMALL, module=changed
    )
    assert torch.equal(sounds(zoo.load(run)), sounds(changed))


@pytest.mark.parametrize(
    "node",
    [
        "{_target_: test_zoo_load.Bomb}",
        "{_target_: zoo.load, name: {_target_: test_zoo_load.Bomb}}",
        "{_target_: zoo.load, name: x, adapters: [{_target_: test_zoo_load.Bomb}]}",
    ],
)
def test_load_runs_no_code_that_a_folder_names(base, tmp_path, node):
    run = a_run(tmp_path / "run", base, f"module: {{backbone: {node}}}")
    with pytest.raises(
        ValueError, match="test_zoo_load.Bomb builds its backbone; .*zoo.open_model"
    ):
        zoo.load(run)
    assert not Bomb.built
    (run / "config.yaml").write_text("module: [1]")
    with pytest.raises(ValueError, match="no module.backbone"):
        zoo.load(run)


class Bomb:
    built = False

    def __init__(self):
        Bomb.built = True


@pytest.mark.parametrize(
    "wrong", [[3], [("a", "b")], ["a", 0.7], [("a", 1, 2)], None, [("a", True)]]
)
def test_invalid_adapters_are_refused(artefact, wrong):
    with pytest.raises(ValueError, match="adapters.*strength"):
        zoo.load(artefact, adapters=wrong)


def test_generate_bad_input():
    backbone = ToyBackbone()
    for prompts, settings, message in (
        ([], {}, "at least one prompt and one seed, got 0 and 1"),
        (["a"], {"seeds": []}, "got 1 and 0"),
        (["a"], {"batch_size": 0}, "batch_size 0"),
        (["  "], {}, "a prompt must not be empty"),
        (["a"], {"steps": 0}, "steps must be a whole number"),
        (["a"], {"seconds": -1.0}, "seconds must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.generate(backbone, prompts, **settings)
    with torch.no_grad():
        backbone.denoiser.out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="the model returned NaN or infinity"):
        zoo.generate(backbone, ["a"], steps=2)


class Loudness:
    differentiable = True

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        level = wave_BCN.square().mean(dim=(1, 2))
        return RewardOutput(
            level, {"asked": torch.tensor([prompt.labels["n"] for prompt in prompts])}
        )


def test_score_takes_words_as_generate_does():
    torch.manual_seed(0)
    wave = Waveform(torch.rand(1, 16_000) - 0.5, 16_000)
    expected = zoo.score("embedded/clap", [wave], [Prompt("p", "a dog barks", seconds=1.0)]).score_B
    assert torch.equal(zoo.score("embedded/clap", [wave], ["a dog barks"]).score_B, expected)
    assert torch.equal(zoo.score(zoo.load("embedded/clap"), wave, "a dog barks").score_B, expected)
    seen = []

    def reward(wave_BCN, sample_rate_hz, prompts):
        seen.extend(prompts)
        return RewardOutput(wave_BCN.mean(dim=(1, 2)), {})

    zoo.score(reward, [wave, Waveform(torch.zeros(1, 8), 16)], ["rain", "wind"])
    assert [(prompt.text, prompt.seconds, dict(prompt.labels)) for prompt in seen] == [
        ("rain", 1.0, {}),
        ("wind", 0.5, {}),
    ]


def test_score_keeps_the_order_over_waves_of_different_length(monkeypatch):
    waves = [
        Waveform(torch.full((1, length), float(value)), 8)
        for value, length in ((1, 4), (2, 6), (3, 4))
    ]
    prompts = [Prompt(str(i), "x", labels={"n": i}) for i in range(3)]
    output = zoo.score(Loudness(), waves, prompts)
    assert output.score_B.tolist() == [1, 4, 9] and output.parts["asked"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="1 waves and 3 prompts"):
        zoo.score(Loudness(), waves[0], prompts)
    monkeypatch.setattr(generation, "load", lambda name: Loudness())
    assert zoo.score("embedded/mood", waves, prompts).score_B.tolist() == [1, 4, 9]
    for some, others in ((waves, prompts[:2]), ([], [])):
        with pytest.raises(ValueError, match="at least one, got"):
            zoo.score(Loudness(), some, others)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("embedded/music", {"checkpoint_activations": True}, "checkpoint_activations"),
        ("embedded/music", {"tokenizer": "words.json"}, "tokenizer"),
        ("embedded/clap", {"truncate_prompts": True}, "truncate_prompts"),
    ],
)
def test_an_option_that_a_model_does_not_take_is_refused_by_name(name, options, key):
    with pytest.raises(UserError, match=rf"{key}: {name} takes no '{key}'"):
        zoo.load(name, **options)


def test_options_of_an_importer_are_checked_by_its_keywords(small_zoo):
    with pytest.raises(UserError, match="checkpoint_activation: .*mean 'checkpoint_activations'"):
        zoo.load("audioldm2-music", checkpoint_activation=True)
    with pytest.raises(UserError, match="frame_window: .*'seen'"):
        zoo.load("stable-audio-open-1.0", frame_window="seen")
    with pytest.raises(UserError, match="adaptors: .*did you mean 'adapters'"):
        zoo.load("tango2", adaptors=())
    model = zoo.load(
        "stable-audio-open-1.0",
        frame_window="heard",
        checkpoint_activations=True,
        truncate_prompts=True,
    )
    assert model.arguments["frame_window"] == "heard" and model.arguments["truncate_prompts"]
    assert model.denoiser.is_gradient_checkpointing


def test_opening_an_adapter_reads_each_config_once(tmp_path, monkeypatch):
    add_lora(model := zoo.load("embedded/music"), rank=2)
    base = {"name": "embedded/music"}
    folder = write_adapter(model.denoiser, tmp_path / "adapter", base=base)
    read = []

    def counted(path):
        read.append(Path(path))
        return read_config(path)

    for module in (resolve, artifact, adapter_files):
        monkeypatch.setattr(module, "read_config", counted)
    for opened in (zoo.load, zoo.open_model):
        read.clear()
        opened(str(folder))
        assert sorted(read) == sorted([folder, ENTRIES["embedded/music"].path])
    read.clear()
    zoo.load("embedded/music", adapters=[folder])
    assert sorted(read) == sorted([folder, ENTRIES["embedded/music"].path])
