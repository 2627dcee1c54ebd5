"""Artefacts: strict, atomic, and never code."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import SMALL

from zoo import checkpoint
from zoo.backbones.tiny import TinyAudio
from zoo.checkpoint import load_artifact, save_artifact, save_weights
from zoo.types import Prompt


def save(folder, model=None, **changes):
    settings = {"kind": "backbone", "architecture": "tiny_audio", "arguments": SMALL, "module": model or TinyAudio(**SMALL)}
    save_artifact(folder, **{**settings, **changes})


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefact") / "model"
    torch.manual_seed(1)
    model = TinyAudio(**SMALL)
    save(folder, model, licence="Apache-2.0")
    return folder, model


@pytest.fixture
def copy(good, tmp_path):
    for path in good[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.pop("sha256")
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def test_round_trip_is_exact_frozen_and_leaves_the_random_state(good):
    folder, model = good
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    again = load_artifact(folder)
    assert torch.equal(torch.rand(3), expected)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    config = json.loads((folder / "config.json").read_text())
    assert config["licence"] == "Apache-2.0" and config["arguments"] == SMALL and config["versions"]["torch"].startswith("2.")
    conditioning = again.encode_prompts([Prompt("a", "a sad piano")])
    latent = torch.randn(1, *again.latent_shape(1.0))
    assert again.predict(latent, torch.full((1,), 0.5), conditioning).shape == latent.shape


def test_half_precision_on_disk_computes_in_float32(tmp_path):
    model = TinyAudio(**SMALL)
    save(tmp_path, model, dtype=torch.float16)
    stored = load_file(tmp_path / "model.safetensors")
    assert all(value.dtype == torch.float16 for value in stored.values() if value.is_floating_point())
    again = load_artifact(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float() if value.is_floating_point() else value)
    assert {p.dtype for p in load_artifact(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "tiny_audoi"}, "unknown architecture 'tiny_audoi'; did you mean 'tiny_audio'"),
        ({"architecture": "os.system"}, "unknown architecture 'os.system'; choose from"),
        ({"kind": "backbones"}, "unknown kind 'backbones'; did you mean 'backbone'"),
        ({"kind": ...}, "has no kind"),
        ({"arguments": {"widht": 32}}, "arguments.widht: TinyAudio takes no 'widht'; did you mean 'width'"),
        ({"arguments": {"width": "32"}}, "arguments.width: TinyAudio expects int, got '32'"),
        ({"arguments": [1]}, "arguments must be an object"),
        (
            {"arguments": {"width": {"_target_": "os.system", "command": "true"}}},
            "holds a _target_: a model artefact names no code",
        ),
        ({"notes": [{"_target_": "os.system"}]}, "names no code"),
        ({"arguments": {**SMALL, "width": 48}}, r"(?s)do not fit the architecture; .* of another shape: .* expected "),
        ({"arguments": {**SMALL, "depth": 2}}, r"do not fit the architecture; \d+ missing: denoiser"),
    ],
)
def test_bad_configurations(copy, changes, message):
    edit(copy, **changes)
    with pytest.raises(ValueError, match=message):
        load_artifact(copy)


def test_every_tensor_is_accounted_for(copy):
    edit(copy)
    state = load_file(copy / "model.safetensors")
    first = sorted(state)[0]
    save_file({**state, "extra.weight": torch.zeros(2)}, copy / "model.safetensors")
    with pytest.raises(ValueError, match="1 not used: extra.weight"):
        load_artifact(copy)
    save_file({name: value for name, value in state.items() if name != first}, copy / "model.safetensors")
    with pytest.raises(ValueError, match=f"1 missing: {first}"):
        load_artifact(copy)


def test_broken_files(copy):
    weights, text = (copy / "model.safetensors").read_bytes(), (copy / "config.json").read_text()
    (copy / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(ValueError, match="is not the file that config.json describes"):
        load_artifact(copy)
    (copy / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read .*cut off"):
        load_artifact(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        load_artifact(copy)
    for content, message in ((text[:40], "not valid JSON"), ("[1]", "must hold an object")):
        (copy / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_artifact(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="is no model: it has no config.json"):
        load_artifact(copy)


def test_what_cannot_be_saved_leaves_the_old_artefact(copy, good):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    bad = TinyAudio(**SMALL)
    with torch.no_grad():
        next(bad.parameters()).view(-1)[0] = torch.nan
    large = TinyAudio(**SMALL)
    with torch.no_grad():
        next(large.parameters()).view(-1)[0] = 1e6
    for changes, message in (
        ({"model": bad}, "holds NaN or infinity; .* was not written"),
        ({"model": large, "dtype": torch.float16}, r"as torch.float16 \(it was finite; export at more precision\)"),
        ({"module": torch.nn.Linear(1, 1)}, "is TinyAudio, got Linear"),
        ({"arguments": {"widht": 3}}, "did you mean 'width'"),
        ({"facts": {1, 2}}, "plain JSON values"),
        ({"architecture": "tiny"}, "unknown architecture 'tiny'"),
    ):
        with pytest.raises(ValueError, match=message):
            save(copy, **changes)
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == before, message


def test_a_full_disk_leaves_the_old_artefact(copy, monkeypatch):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def full(tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"x")
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_weights_that_share_memory_are_saved_apart(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    save_weights({"a": shared, "b": shared, "c": shared.T, "n": torch.tensor(3)}, tmp_path / "w.safetensors", torch.float16)
    state = load_file(tmp_path / "w.safetensors")
    assert torch.equal(state["c"], shared.T.half()) and torch.equal(state["a"], state["b"]) and state["n"].dtype == torch.int64
