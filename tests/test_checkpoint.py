"""Artefacts are strict, atomic, and never code."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from toys import SMALL

import zoo
from zoo import files
from zoo.backbones.tiny import TinyAudio
from zoo.errors import describe, is_disk_full
from zoo.hub import weights
from zoo.hub.artifact import load_artifact, read_config, save_artifact, save_weights
from zoo.types import Prompt


def save(folder, model=None, **changes):
    settings = {
        "kind": "backbone",
        "architecture": "tiny_audio",
        "arguments": SMALL,
        "module": model or TinyAudio(**SMALL),
    }
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
    (tmp_path / "copy").mkdir()
    for path in good[0].iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "copy"


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.pop("sha256")
    config.update(changes)
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not ...})
    )


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
    assert (
        config["licence"] == "Apache-2.0"
        and config["arguments"] == SMALL
        and config["versions"]["torch"].startswith("2.")
    )
    conditioning = again.encode_prompts([Prompt("a", "a sad piano")])
    latent = torch.randn(1, *again.latent_shape(1.0))
    assert again.predict(latent, torch.full((1,), 0.5), conditioning).shape == latent.shape


def test_half_precision_on_disk_computes_in_float32(tmp_path):
    model = TinyAudio(**SMALL)
    save(tmp_path, model, dtype=torch.float16)
    stored = load_file(tmp_path / "model.safetensors")
    assert all(
        value.dtype == torch.float16 for value in stored.values() if value.is_floating_point()
    )
    again = load_artifact(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for name, value in model.state_dict().items():
        assert torch.equal(
            again.state_dict()[name], value.half().float() if value.is_floating_point() else value
        )
    assert {p.dtype for p in load_artifact(tmp_path, dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "tiny_audoi"},
            "unknown architecture 'tiny_audoi'; did you mean 'tiny_audio'",
        ),
        ({"architecture": "os.system"}, "unknown architecture 'os.system'; choose from"),
        ({"kind": "backbones"}, "unknown kind 'backbones'; did you mean 'backbone'"),
        ({"kind": ...}, "has no kind"),
        ({"kind": "adapter"}, "holds an adapter, not a model"),
        (
            {"format": 2},
            (
                r"written by a newer version \(format 2, attune .*reads format 1: install a newer"
                r" attune"
            ),
        ),
        ({"format": "1"}, "format must be a whole number of at least 1, got '1'"),
        (
            {"versions": {"attune": "17.0.0"}},
            r"written by a newer version \(format 1, attune 17.0.0\)",
        ),
        (
            {"architecture": "not yet known", "versions": {"attune": "0.999.0"}},
            (
                "unknown architecture 'not yet known'.*written by attune 0.999.0, this is .*: a"
                " newer version may know it"
            ),
        ),
        (
            {"arguments": {"widht": 32}},
            "arguments.widht: TinyAudio takes no 'widht'; did you mean 'width'",
        ),
        ({"arguments": {"width": "32"}}, "arguments.width: TinyAudio expects int, got '32'"),
        ({"arguments": [1]}, "arguments must be an object"),
        (
            {"arguments": {"width": {"_target_": "os.system", "command": "true"}}},
            "holds a _target_: .*not code",
        ),
        ({"notes": [{"_target_": "os.system"}]}, "not code"),
        (
            {"arguments": {**SMALL, "width": 48}},
            r"(?s)do not fit the architecture; .* of another shape: .* expected ",
        ),
        (
            {"arguments": {**SMALL, "depth": 2}},
            r"do not fit the architecture; \d+ missing: denoiser",
        ),
    ],
)
def test_bad_configurations(copy, changes, message):
    edit(copy, **changes)
    with pytest.raises(ValueError, match=message):
        load_artifact(copy)


def test_a_checkout_that_was_never_installed_knows_its_version(copy, monkeypatch):
    def nothing_is_installed(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", nothing_is_installed)
    edit(copy, versions={"attune": zoo.__version__})
    assert isinstance(load_artifact(copy), TinyAudio)
    save(copy)
    assert read_config(copy)["versions"]["attune"] == zoo.__version__


def test_every_tensor_is_accounted_for(copy):
    edit(copy)
    state = load_file(copy / "model.safetensors")
    first = sorted(state)[0]
    save_file({**state, "extra.weight": torch.zeros(2)}, copy / "model.safetensors")
    with pytest.raises(ValueError, match="1 unknown: extra.weight"):
        load_artifact(copy)
    save_file(
        {name: value for name, value in state.items() if name != first}, copy / "model.safetensors"
    )
    with pytest.raises(ValueError, match=f"1 missing: {first}"):
        load_artifact(copy)


def test_broken_files(copy):
    weights = (copy / "model.safetensors").read_bytes()
    text = (copy / "config.json").read_text()
    (copy / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(ValueError, match="is not the file that config.json describes"):
        load_artifact(copy)
    (copy / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors.*cut off"):
        load_artifact(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        load_artifact(copy)
    for content, message in ((text[:40], "not valid JSON"), ("[1]", "must hold an object")):
        (copy / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_artifact(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_artifact(copy)


def test_a_failed_save_leaves_the_old_artefact(copy, good):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    bad = TinyAudio(**SMALL)
    with torch.no_grad():
        next(bad.parameters()).view(-1)[0] = torch.nan
    large = TinyAudio(**SMALL)
    with torch.no_grad():
        next(large.parameters()).view(-1)[0] = 1e6
    for changes, message in (
        ({"model": bad}, "holds NaN or infinity; .* was not written"),
        (
            {"model": large, "dtype": torch.float16},
            r"as torch.float16 \(it was finite; export at more precision\)",
        ),
        ({"module": torch.nn.Linear(1, 1)}, "is TinyAudio, got Linear"),
        ({"arguments": {"widht": 3}}, "did you mean 'width'"),
        ({"facts": {1, 2}}, "plain JSON values"),
        ({"shard_bytes": 0}, "shard_bytes must be at least 1"),
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
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save(copy)
    assert is_disk_full(caught.value) and "free some space" in describe(caught.value)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_weights_that_share_memory_are_saved_apart(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    save_weights(
        {"a": shared, "b": shared, "c": shared.T, "n": torch.tensor(3)},
        tmp_path / "w.safetensors",
        torch.float16,
    )
    state = load_file(tmp_path / "w.safetensors")
    assert (
        torch.equal(state["c"], shared.T.half())
        and torch.equal(state["a"], state["b"])
        and state["n"].dtype == torch.int64
    )


def test_large_weights_are_split_with_an_index_and_come_back_the_same(good, tmp_path):
    folder = tmp_path / "split"
    save(folder, good[1], shard_bytes=40_000, dtype=torch.float32)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(
        (folder / name).stat().st_size < 60_000 or len(load_file(folder / name)) == 1
        for name in files
    )
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        t.numel() * t.element_size() for t in good[1].state_dict().values()
    )
    assert read_config(folder)["sha256"].keys() == {*files, "model.safetensors.index.json"}
    again = load_artifact(folder).state_dict()
    assert all(torch.equal(again[name], value) for name, value in good[1].state_dict().items())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../other.safetensors")
    edit(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="leaves its folder"):
        load_artifact(folder)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.safetensors.*model\.safetensors\.index\.json"):
        load_artifact(folder)


def test_shards_are_hashed_one_by_one(good, tmp_path):
    folder = tmp_path / "split"
    save(folder, good[1], shard_bytes=100_000)
    shard = folder / next(
        name for name in read_config(folder)["sha256"] if name.startswith("model-00002")
    )
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"model-00002-of-.*config\.json"):
        load_artifact(folder)


def test_load_export_load_is_bitwise_equal(good, tmp_path):
    once = load_artifact(good[0])
    save(tmp_path / "again", once)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        good[0] / "model.safetensors"
    ).read_bytes()
    twice = load_artifact(tmp_path / "again").state_dict()
    assert all(torch.equal(twice[name], value) for name, value in once.state_dict().items())


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        save(tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "model.safetensors.first").touch()  # begins like a file of ours
    with pytest.raises(ValueError, match="holds other files .model.safetensors.first"):
        save(tmp_path / "kept")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        save(tmp_path / "file")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("number", [13, 1, 30])  # EACCES, EPERM, EROFS
def test_a_read_only_target(tmp_path, monkeypatch, number):
    def refuse(path, *_, **__):
        raise OSError(number, "as the system says", str(path))

    monkeypatch.setattr(files.Path, "mkdir", refuse)
    with pytest.raises(
        OSError,
        match="as the system says",
    ) as caught:
        save(tmp_path / "model")
    assert (
        describe(caught.value).endswith(f": {tmp_path / 'model'}")
        and list(tmp_path.iterdir()) == []
    )


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
import zoo.hub.weights
from toys import SMALL
from zoo.backbones.tiny import TinyAudio
from zoo.hub.artifact import save_artifact
write = zoo.hub.weights.save_file
def killed(tensors, path, metadata):
    write(tensors, path, metadata)
    os.kill(os.getpid(), signal.SIGKILL)
zoo.hub.weights.save_file = killed
save_artifact(sys.argv[1], kind="backbone", architecture="tiny_audio", arguments=SMALL,
              module=TinyAudio(**SMALL))
"""


@pytest.mark.long
def test_a_killed_export_leaves_the_old_artefact_and_the_next_one_clears_up(good, copy):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    here = Path(__file__).resolve().parent
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(copy), str(here), str(here.parent)], check=False
    )
    assert result.returncode == -9
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert len(list(copy.parent.iterdir())) == 2  # and a hidden part
    save(copy, good[1])
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_folder_that_a_killed_writer_had_moved_away_comes_back(tmp_path):
    (tmp_path / ".model.999999999.old").mkdir()
    (tmp_path / ".model.999999999.old" / "config.json").write_text("{}")
    with (
        pytest.raises(ZeroDivisionError),
        files.folder_written_beside(tmp_path / "model", replace=True) as part,
    ):
        (part / "x").touch()
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (
        tmp_path / "model" / "config.json"
    ).is_file()
