"""The front door: names, laziness, generating and scoring with models by name or as objects."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import SMALL, ToyBackbone

import zoo
from zoo import entry, generation, registry
from zoo.backbones.lora import add_lora, save_adapter
from zoo.backbones.tiny import TinyAudio
from zoo.checkpoint import save_artifact
from zoo.types import Prompt, RewardOutput, Waveform

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / "tiny"
    torch.manual_seed(0)
    save_artifact(folder, kind="backbone", architecture="tiny_audio", arguments=SMALL, module=TinyAudio(**SMALL))
    return folder


def test_importing_the_package_imports_no_model_library():
    code = (
        "import sys, zoo; names = zoo.names(); zoo.load; "
        "heavy = {'transformers', 'diffusers', 'peft', 'lightning', 'laion_clap', 'torchaudio'} & set(sys.modules); "
        "assert not heavy, heavy; print(' '.join(names))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "embedded/music" in result.stdout


def test_names_and_attributes():
    assert "embedded/music" in zoo.names("backbone") and "embedded/mood" in zoo.names("reward") and zoo.names("x") == ()
    assert set(zoo.names()) == set(registry.ENTRIES)
    assert {"load", "generate", "score", "names", "entries", "pull", "push"} <= set(dir(zoo))
    assert zoo.generate is generation.generate
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = zoo.lod


def test_a_folder_in_diffusers_layout_is_a_model(tmp_path):
    import toy_audioldm2

    folder = toy_audioldm2.written_folder(toy_audioldm2.small_model(), tmp_path / "a folder")
    index = json.loads((folder / "model_index.json").read_text())
    add_lora(model := zoo.load(folder), rank=2)
    save_adapter(model, tmp_path / "adapter")
    for again in (zoo.load(folder, adapters=[(tmp_path / "adapter", 1.0)]), zoo.open_model(str(folder), tmp_path / "adapter")):
        assert type(again).__name__ == "AudioLDM2" and not again.training
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "MusicLDMPipeline"}))
    with pytest.raises(ValueError, match="holds a diffusers MusicLDMPipeline; did you mean .AudioLDMPipeline"):
        zoo.load(folder)


def test_load_by_path(artefact):
    model = zoo.load(str(artefact))
    assert isinstance(model, TinyAudio) and not model.training
    assert next(zoo.load(str(artefact), dtype="bfloat16").parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("embedded/musik", {}, "no model 'embedded/musik', neither a name nor a folder; did you mean 'embedded/music'"),
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
    with pytest.raises(FileNotFoundError, match="the weights of embedded/music are not in .*install the package again"):
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
        str(artefact), prompts, **settings, batch_size=3, progress=lambda done, total: seen.append((done, total))
    )
    alone = zoo.generate(zoo.load(str(artefact)), prompts, **settings, batch_size=1)
    assert [wave.samples_CN.shape for wave in together] == [(2, n) for n in (8000, 8000, 11200, 11200, 8000, 8000)]
    assert seen == [(3, 6), (4, 6), (6, 6)] and all(wave.sample_rate_hz == 16_000 for wave in together)
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one.samples_CN, other.samples_CN, atol=1e-3)
        assert one.samples_CN.abs().max() <= 1
    assert not torch.allclose(together[0].samples_CN, together[1].samples_CN, atol=1e-2)


def test_generate_uses_guidance_negative_and_eta():
    backbone = ToyBackbone()

    def first(**settings):
        return zoo.generate(backbone, "happy tune", **{"steps": 4, "seconds": 1.0, **settings})[0].samples_CN

    base = first()
    assert torch.equal(base, first()) and base.shape == (1, 8)
    for changed in ({"guidance_scale": 1.0}, {"negative": "sad noise"}, {"eta": 0.0}, {"seeds": 5}):
        assert not torch.allclose(base, first(**changed)), changed
    assert torch.equal(first(guidance_scale=1.0), first(guidance_scale=1.0, negative="sad noise"))


def test_generate_bad_input():
    backbone = ToyBackbone()
    for prompts, settings, message in (
        ([], {}, "at least one prompt, one seed and a batch of one, got 0 prompts"),
        (["a"], {"seeds": []}, "0 seeds"),
        (["a"], {"batch_size": 0}, "batch_size 0"),
        (["  "], {}, "a prompt must not be empty"),
        (["a"], {"steps": 0}, "steps must be a whole number"),
        (["a"], {"seconds": -1.0}, "seconds must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.generate(backbone, prompts, **settings)
    with torch.no_grad():
        backbone.denoiser.out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="the model gave NaN or infinity"):
        zoo.generate(backbone, ["a"], steps=2)


class Loudness:
    differentiable = True

    def __call__(self, wave_BCN, sample_rate_hz, prompts):
        level = wave_BCN.square().mean(dim=(1, 2))
        return RewardOutput(level, {"asked": torch.tensor([prompt.labels["n"] for prompt in prompts])})


def test_score_keeps_the_order_over_waves_of_different_length(monkeypatch):
    waves = [Waveform(torch.full((1, length), float(value)), 8) for value, length in ((1, 4), (2, 6), (3, 4))]
    prompts = [Prompt(str(i), "x", labels={"n": i}) for i in range(3)]
    output = zoo.score(Loudness(), waves, prompts)
    assert output.score_B.tolist() == [1, 4, 9] and output.parts["asked"].tolist() == [0, 1, 2]
    monkeypatch.setattr(generation, "load", lambda name: Loudness())
    assert zoo.score("embedded/mood", waves, prompts).score_B.tolist() == [1, 4, 9]
    for some, others in ((waves, prompts[:2]), ([], [])):
        with pytest.raises(ValueError, match="expected one prompt a wave, at least one"):
            zoo.score(Loudness(), some, others)
