"""What a push would send and refuses to send; nothing here connects to a server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import zoo
from zoo.files import sha256_of
from zoo.hub.push import plan_push
from zoo.hub.store import PullRecord, write_record

CARD = "---\nlicense: cc-by-nc-4.0\ntags:\n- attune\n---\n\n# A model\n"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(
        sys.modules, "zoo.hub.cards", SimpleNamespace(licence_of=lambda folder: "cc-by-nc-4.0")
    )
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.zeros(2)}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"base": {"name": "o/base"}}))
    (folder / "README.md").write_text(CARD)
    return folder


def test_a_plan_says_everything_and_sends_nothing(model: Path) -> None:
    plan = zoo.push(model, "me/model", private=True)
    words = plan.describe()
    assert plan.url is None and plan.private and plan.licence == "cc-by-nc-4.0"
    assert plan.size_bytes == sum(path.stat().st_size for path in model.iterdir())
    assert (
        f"Would send 3 files, {plan.size_bytes} bytes, to the private repository"
        f" {plan.endpoint}/me/model" in words
    )
    assert "not for commercial use; what you derive from it inherits that" in words
    assert "    license: cc-by-nc-4.0\n    tags:\n    - attune" in words
    for path in model.iterdir():
        assert f"{path.name}" in words and sha256_of(path) in words
    assert words.endswith("Nothing was sent. Add --yes to send it (in Python: yes=True).")
    assert "to the public repository" in zoo.push(model, "me/model").describe()


def test_the_record_of_a_pull_stays_here(model: Path) -> None:
    write_record(
        model, PullRecord("o/n", "a" * 40, "mit", {"config.json": sha256_of(model / "config.json")})
    )
    assert {file.name for file in plan_push(model, "me/model").files} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", None, "has no model card .README.md."),
        ("README.md", "# no header", "has no header"),
        ("README.md", "---\nlicense: [\n---\n", "is not valid YAML"),
        ("README.md", "---\n- a\n---\n", "must be a mapping"),
        (
            "README.md",
            "---\ntags: []\n---\n",
            "names no license in its header; its base says cc-by-nc-4.0",
        ),
        (
            "README.md",
            "---\nlicense: mit\n---\n",
            "says license mit, but its base requires cc-by-nc-4.0",
        ),
        ("config.json", None, "is not a model"),
        ("model.safetensors", None, "there are no weights in it"),
        ("model.bin", "x", "holds model.bin, which a model's repository does not get"),
        ("last.ckpt", "x", "holds last.ckpt"),
        ("code.py", "x", "holds code.py"),
        (".env", "x", "holds .env"),
        (".model.7.part.json", "x", "is half-written"),
        (
            "notes.txt",
            "token: hf_" + "a" * 30,
            "notes.txt in .* holds what looks like an access token",
        ),
    ],
)
def test_files_that_are_not_sent(model: Path, name: str, content: str | None, message: str) -> None:
    plan_push(model, "me/model")
    if content is None:
        (model / name).unlink()
    else:
        (model / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        zoo.push(model, "me/model", yes=True)
    assert "hf_aaaa" not in str(caught.value)


@pytest.mark.parametrize(
    "repo_id", ["model", "a/b/c", "../model", "embedded/music", "https://hub/a/b"]
)
def test_an_invalid_repository_is_refused(model: Path, repo_id: str) -> None:
    with pytest.raises(ValueError, match="owner/name"):
        zoo.push(model, repo_id)


def test_a_licence_that_the_hub_has_no_name_for(model: Path) -> None:
    sys.modules["zoo.hub.cards"].licence_of = lambda folder: "stable-audio-community"
    (model / "README.md").write_text(
        "---\nlicense: other\nlicense_name: stable-audio-community\n---\n# x\n"
    )
    assert plan_push(model, "me/model").licence == "stable-audio-community"


def test_only_a_model_without_a_base_chooses_a_licence(model: Path) -> None:
    sys.modules["zoo.hub.cards"].licence_of = lambda folder: "unknown"
    with pytest.raises(ValueError, match="requires unknown"):
        plan_push(model, "me/model")
    (model / "config.json").write_text("{}")
    assert plan_push(model, "me/model").licence == "cc-by-nc-4.0"
