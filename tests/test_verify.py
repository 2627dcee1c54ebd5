"""Whether a model folder is whole: hashes, headers, indexes, what an interruption leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zoo.files import sha256_of
from zoo.hub.store import PullRecord, write_record
from zoo.hub.verify import is_unfinished, verify_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.arange(6.0)}, str(folder / "model.safetensors"))
    hashes = {"model.safetensors": sha256_of(folder / "model.safetensors")}
    (folder / "config.json").write_text(json.dumps({"kind": "backbone", "sha256": hashes}))
    return folder


def with_record(folder: Path) -> Path:
    hashes = {path.name: sha256_of(path) for path in folder.iterdir()}
    write_record(folder, PullRecord("o/n", "a" * 40, "mit", hashes))
    return folder


def test_a_whole_folder_is_listed_with_who_knows_what(model: Path) -> None:
    (model / "README.md").write_text("# a model\n")
    files = {
        file.name: file
        for file in verify_folder(model, {"README.md": sha256_of(model / "README.md")})
    }
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert (
        files["model.safetensors"].known_by == ("config.json",)
        and files["config.json"].known_by == ()
    )
    assert (
        files["README.md"].known_by == ("the zoo's table",) and files["README.md"].size_bytes == 10
    )
    assert files["model.safetensors"].sha256 == sha256_of(model / "model.safetensors")
    assert all("the pull" in file.known_by for file in verify_folder(with_record(model)))


def cut(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def one_bit(model: Path) -> None:
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)


def half_pulled(model: Path) -> None:
    with_record(model)
    (model / "model.safetensors").unlink()


def changed_since_the_pull(model: Path) -> None:
    with_record(model)
    (model / "config.json").write_text("{}")


def index_to_elsewhere(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "../../secret.safetensors"}})
    )


def shard_missing(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "model-00001-of-00002.safetensors"}})
    )


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "not whole.*sha256.*config.json says.*model.safetensors.*cut off"),
        (one_bit, "model.safetensors has sha256 .*config.json says"),
        (
            half_pulled,
            "model.safetensors is missing .promised by the pull.*there are no weights in it",
        ),
        (changed_since_the_pull, "config.json has sha256 .*the pull says"),
        (index_to_elsewhere, "leaves its folder"),
        (shard_missing, "half-downloaded"),
        (
            lambda model: (model / "model.safetensors").unlink(),
            "there are no weights|model.safetensors is missing",
        ),
        (
            lambda model: (model / "config.json").unlink(),
            "is not a model: it has neither config.json nor adapter_config.json",
        ),
        (lambda model: (model / "config.json").write_text("{"), "not valid JSON"),
        (
            lambda model: (model / ".model.12.part.safetensors").write_text("x"),
            "half-written, it holds .model.12.part",
        ),
        (lambda model: (model / "x").symlink_to("/etc/hostname"), "links: x -> /etc/hostname"),
    ],
)
def test_what_is_wrong_is_named(model: Path, harm, message: str) -> None:
    verify_folder(model)
    harm(model)
    with pytest.raises(ValueError, match=message):
        verify_folder(model)


def test_a_hash_from_another_source(model: Path) -> None:
    with pytest.raises(ValueError, match="config.json has sha256 .*the zoo's table says 0000"):
        verify_folder(model, {"config.json": "0" * 64})
    with pytest.raises(ValueError, match=r"more\.safetensors"):
        verify_folder(model, {"more.safetensors": "0" * 64})
    with pytest.raises(OSError, match="is not a folder"):
        verify_folder(model / "nowhere")


@pytest.mark.parametrize(
    ("name", "unfinished"),
    [
        ("model.safetensors", False),
        ("a.part", True),
        (".model.1.part.safetensors", True),
        ("sub/x.incomplete", True),
        ("x.tmp", True),
        ("part", False),
        ("my.parts.json", False),
        ("a.part/model.safetensors", False),
    ],
)
def test_leftovers_of_an_interruption(name: str, unfinished: bool) -> None:
    assert is_unfinished(name) is unfinished
