"""Malicious model folders and repositories: nothing runs or leaves the folder, each is named."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, connect
from toy_artifacts import CARD, contents, model_folder
from toys import SMALL

import zoo
from zoo.backbones.lora import add_lora
from zoo.backbones.tiny import TinyAudio
from zoo.hub.adapters import load_adapter, save_adapter
from zoo.hub.artifact import build_within
from zoo.hub.pull import pull, push
from zoo.hub.verify import verify_folder

REPO = "mallory/model"


class Calls:
    """An object whose pickle creates a folder when it is read."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def claim(path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def with_index(folder: Path, name: str) -> None:
    names = TinyAudio(**SMALL).state_dict()
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, name)})
    )


def pickled(folder: Path, name: str, sentinel: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Calls(sentinel)}, folder / name)


def run_folder(folder: Path, sentinel: Path) -> None:
    """Not a model, but like a run folder whose configuration names code."""
    shutil.rmtree(folder)
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter/adapter_config.json").write_text("{}")
    node = {"module": {"backbone": {"_target_": "os.mkdir", "path": str(sentinel)}}}
    (folder / "config.yaml").write_text(json.dumps(node))


def adapter(folder: Path, **changes: object) -> None:
    """A small adapter in place of the model, with a changed adapter_config.json and its hash."""
    shutil.rmtree(folder)
    backbone = TinyAudio(**SMALL)
    add_lora(backbone, 2)
    save_adapter(backbone, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folder / "config.json").unlink()  # as a plain peft folder


Harm = Callable[[Path, Path], object]
HUGE = {"a": {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10_000_000_000]}}
SIDEWAYS = {"format": 1, "versions": {"attune": "0.1.0"}}
# what was done to a whole model folder(folder, sentinel) -> what is said
MODELS: dict[str, tuple[Harm, str]] = {
    "a _target_ beside": (
        lambda f, s: configure(f, _target_="os.mkdir", path=str(s)),
        "holds a _target_",
    ),
    "a _target_ inside": (
        lambda f, s: configure(
            f, arguments=SMALL | {"width": [{"_target_": "os.mkdir", "path": str(s)}]}
        ),
        "holds a _target_",
    ),
    "an architecture that is code": (
        lambda f, s: configure(f, architecture="os.mkdir"),
        "unknown architecture 'os.mkdir'",
    ),
    "a class in place of a key": (
        lambda f, s: configure(f, architecture="zoo.backbones.tiny:TinyAudio"),
        "unknown architecture",
    ),
    "an unknown kind": (lambda f, s: configure(f, kind="os"), "unknown kind 'os'"),
    "a kind that is no text": (lambda f, s: configure(f, kind=["backbone"]), "kind must be a name"),
    "an argument too many": (
        lambda f, s: configure(f, arguments=SMALL | {"hook": "os.mkdir"}),
        "takes no 'hook'",
    ),
    "an argument of another type": (
        lambda f, s: configure(f, arguments=SMALL | {"width": "os.mkdir('x')"}),
        "expects int",
    ),
    "arguments that are a list": (
        lambda f, s: configure(f, arguments=["os.mkdir"]),
        "arguments must be an object",
    ),
    "arguments that fill the memory": (
        lambda f, s: configure(f, arguments=SMALL | {"depth": 10**9, "width": 1024}),
        "far larg",
    ),
    "a layer of terabytes": (
        lambda f, s: configure(f, arguments=SMALL | {"width": 10**6}),
        "far larger than the weights",
    ),
    "arguments that cannot be": (
        lambda f, s: configure(f, arguments=SMALL | {"heads": 0}),
        "cannot be built from these",
    ),
    "hashes of files outside": (
        lambda f, s: configure(f, sha256={"../outside": "0" * 64}),
        r"'\.\./outside' leaves",
    ),
    "a configuration of 5 MB": (lambda f, s: configure(f, notes="x" * 5_000_000), "is not read"),
    "a configuration nested 100 000 deep": (
        lambda f, s: (f / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
        "nested",
    ),
    "a configuration nested 100 deep": (
        lambda f, s: (f / "config.json").write_text('{"a":' * 100 + "1" + "}" * 100),
        "nested",
    ),
    "a header that claims 10 GB": (
        lambda f, s: claim(f / "model.safetensors", HUGE),
        "model.safetensors.*not fully covered",
    ),
    "a header of 10 GB": (
        lambda f, s: (f / "model.safetensors").write_bytes((10**10).to_bytes(8, "little") + b"{}"),
        "model.safetensors.*header too large",
    ),
    "tensors over each other": (
        lambda f, s: claim(
            f / "model.safetensors",
            {n: {"dtype": "U8", "shape": [0], "data_offsets": [1, 1]} for n in "ab"},
        ),
        "model.safetensors.*`[ab]`",
    ),
    "an index that leaves the folder": (
        lambda f, s: with_index(f, "../outside.safetensors"),
        "leaves its folder",
    ),
    "an index with an absolute path": (
        lambda f, s: with_index(f, str(f.parent / "outside.safetensors")),
        "is absolute",
    ),
    "a pickle under the name of weights": (
        lambda f, s: pickled(f, "model.safetensors", s),
        "cannot be read",
    ),
    "a pickle instead of weights": (
        lambda f, s: pickled(f, "pytorch_model.bin", s),
        "has no model.safetensors",
    ),
    "a run's configuration": (
        run_folder,
        "os.mkdir builds its backbone|was downloaded and has a config.yaml, which may",
    ),
}
ADAPTERS: dict[str, tuple[Harm, str]] = {
    "a module of megatron": (
        lambda f, s: adapter(f, megatron_config={"a": 1}, megatron_core="megatron.os"),
        "megatron",
    ),
    "layers as a pattern": (lambda f, s: adapter(f, target_modules="(a+)+$"), "target_modules"),
    "a start that changes the base": (lambda f, s: adapter(f, init_lora_weights="pissa"), "pissa"),
    "another method": (lambda f, s: adapter(f, peft_type="ADALORA"), "ADALORA"),
    "layers to be replaced": (
        lambda f, s: adapter(f, modules_to_save=["denoiser"]),
        "modules_to_save",
    ),
    "a rank that fills the memory": (lambda f, s: adapter(f, r=10**9), "rank|shape|r="),
    "a header that claims 10 GB": (
        lambda f, s: (adapter(f), claim(f / "adapter_model.safetensors", HUGE)),
        "model.safetensors.*not fully covered",
    ),
}


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "was_here"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "made/model")


def files_of(tmp_path: Path) -> dict[str, bytes]:
    """All files outside the client's home, which holds pulled models."""
    return {
        str(p): p.read_bytes()
        for p in tmp_path.rglob("*")
        if p.is_file() and not p.is_relative_to(tmp_path / "home")
    }


def refused(action: Callable[[], object], message: str, tmp_path: Path, sentinel: Path) -> None:
    """``action`` fails quickly with a reason and changes no file."""
    before = files_of(tmp_path)
    start = time.process_time()
    with pytest.raises((ValueError, OSError), match=message) as caught:
        action()
    assert len(str(caught.value)) < 1000
    assert time.process_time() - start < 30
    assert not sentinel.exists()
    assert files_of(tmp_path) == before


@pytest.mark.long
@pytest.mark.parametrize("case", MODELS)
def test_from_a_folder(case: str, folder: Path, tmp_path: Path, sentinel: Path) -> None:
    harm, message = MODELS[case]
    harm(folder, sentinel)
    refused(lambda: zoo.load(folder), message, tmp_path, sentinel)


@pytest.mark.long
@pytest.mark.parametrize("case", MODELS)
def test_from_a_hub(
    case: str,
    folder: Path,
    tmp_path: Path,
    sentinel: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harm, message = MODELS[case]
    harm(folder, sentinel)
    connect(monkeypatch, hub, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "made")
    hub.put(REPO, contents(folder) | {"README.md": CARD.encode()})
    pulled = tmp_path / "home/pulled"
    pull(REPO, to=pulled, lock=tmp_path / "home/lock.json")
    refused(lambda: zoo.load(pulled), message, tmp_path, sentinel)
    refused(lambda: zoo.open_model(str(pulled)), message, tmp_path, sentinel)


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters(case: str, folder: Path, tmp_path: Path, sentinel: Path) -> None:
    harm, message = ADAPTERS[case]
    harm(folder, sentinel)
    backbone = TinyAudio(**SMALL)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    refused(lambda: load_adapter(backbone, folder), message, tmp_path, sentinel)
    assert before.keys() == backbone.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def link(folder: Path, name: str) -> None:
    target = folder.parent / f"outside_{name}"
    (folder / name).rename(target)
    (folder / name).symlink_to(target)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_and_pipes_are_not_followed(
    name: str, folder: Path, tmp_path: Path, sentinel: Path
) -> None:
    link(folder, name)
    refused(lambda: zoo.load(folder), f"{name} is a link", tmp_path, sentinel)
    refused(lambda: verify_folder(folder), f"links: {name} ->", tmp_path, sentinel)
    refused(lambda: push(folder, "tester/model"), f"links: {name} ->", tmp_path, sentinel)
    (folder / name).unlink()
    os.mkfifo(folder / name)  # to open it would wait for ever
    refused(lambda: zoo.load(folder), f"{name} is not a regular file", tmp_path, sentinel)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "a/../../evil.json",
        "/tmp/evil.json",
        "a\\b.json",
        "C:evil.json",
        "a\nb.json",
    ],
)
def test_a_listing_that_leaves_the_folder(
    name: str,
    folder: Path,
    tmp_path: Path,
    sentinel: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect(monkeypatch, hub, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    hub.put(REPO, contents(folder) | {name: b"{}"})
    refused(lambda: pull(REPO), "mallory/model is not pulled: the file name", tmp_path, sentinel)
    assert [
        path
        for path in (tmp_path / "home").rglob("*")
        if "evil" in path.name or path.name == "config.json"
    ] == []
    assert [request for request in hub.requests if "/resolve/" in request.path] == []


def test_a_forged_record_of_a_pull_is_not_taken(
    folder: Path, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, hub, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    hub.put(
        REPO,
        contents(folder) | {".attune-pull.json": b'{"repo_id": "stabilityai/x", "licence": "mit"}'},
    )
    record = json.loads((pull(REPO) / ".attune-pull.json").read_text())
    assert record["repo_id"] == REPO
    assert record["licence"] == "apache-2.0"


def test_code_beside_the_weights_stays_a_file(
    folder: Path, sentinel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' remote code: named in config.json, and never read here."""
    monkeypatch.chdir(folder)
    for name in ("modeling_tiny.py", "zoo.py", "safetensors.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(f"import os; os.mkdir({str(sentinel)!r})")
    configure(folder, auto_map={"AutoModel": "modeling_tiny.Evil"}, trust_remote_code=True)
    assert isinstance(zoo.load("."), TinyAudio)
    assert not sentinel.exists()


def test_a_card_with_code_is_data(folder: Path, tmp_path: Path, sentinel: Path) -> None:
    (folder / "README.md").write_text(
        f"---\nlicense: !!python/object/apply:os.mkdir ['{sentinel}']\n---\n# x\n"
    )
    refused(
        lambda: push(folder, "tester/model"),
        "header of .*README.md is not valid YAML",
        tmp_path,
        sentinel,
    )


def test_filling_weights_does_not_count_as_making_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries fill a weight several times, so counting that would refuse large honest models."""
    monkeypatch.setattr("zoo.hub.artifact.SLACK_BYTES", 0)

    class Refilled(torch.nn.Linear):
        def reset_parameters(self) -> None:
            for _ in range(9):
                torch.nn.init.normal_(self.weight)
                torch.nn.init.zeros_(self.bias)

    state = Refilled(50, 50).state_dict()
    assert build_within(
        Refilled, {"in_features": 50, "out_features": 50}, state, "x"
    ).weight.shape == (50, 50)
    with pytest.raises(ValueError, match="far larger"):
        build_within(Refilled, {"in_features": 50, "out_features": 150}, state, "x")
