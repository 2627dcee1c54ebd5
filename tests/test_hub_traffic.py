"""zoo.push and zoo.pull against a Hub on 127.0.0.1, with the real huggingface_hub client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import READER, WRITER, HubServer, connect, environment
from toy_artifacts import contents, model_folder, quickstart_run

import zoo
from zoo.backbones.tiny import TinyAudio
from zoo.hub.export import export_run
from zoo.hub.pull import pull, push

pytestmark = pytest.mark.long

REPO = "tester/model"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "made" / "model")


@pytest.fixture(autouse=True)
def _client(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client talks to our Hub, with an empty cache and its own working folder."""
    connect(monkeypatch, hub, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)


def put(hub: HubServer, model: Path, repo_id: str = REPO, **access: bool) -> bytes:
    """Puts the folder into a repository and returns the bytes of its weights."""
    hub.put(repo_id, contents(model), **access)
    return (model / "model.safetensors").read_bytes()


def kept(tmp_path: Path) -> list[Path]:
    """Files that a refused pull left among pulled models."""
    return [path for path in (tmp_path / "home/attune/models").rglob("*") if path.is_file()]


def test_a_round_trip(hub: HubServer, model: Path) -> None:
    plan = push(model, REPO, private=True, yes=True)
    assert hub.repos[REPO].private
    assert plan.url == f"{hub.url}/{REPO}/commit/{hub.repos[REPO].commits[-1][0]}"
    steps: list[tuple[int, int]] = []
    folder = pull(REPO, progress=lambda *step: steps.append(step))
    assert contents(folder) == contents(model) == hub.files(REPO)
    total = sum(map(len, contents(model).values()))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (total, total)
    loaded = zoo.load(REPO)
    assert isinstance(loaded, TinyAudio)
    here = zoo.load(model).state_dict()
    assert all(torch.equal(here[name], tensor) for name, tensor in loaded.state_dict().items())
    hub.requests.clear()
    assert pull(REPO) == folder
    assert [
        request for request in hub.requests if request.on_cdn
    ] == []  # nothing is downloaded twice


def test_a_push_is_a_plan_without_yes(hub: HubServer, model: Path) -> None:
    words = push(model, REPO).describe()
    assert "Nothing was sent" in words
    assert all(name in words for name in contents(model))
    assert hub.requests == []
    assert hub.repos == {}


def test_a_revision_is_pulled_as_it_was(hub: HubServer, model: Path, tmp_path: Path) -> None:
    first = hub.put(REPO, contents(model))
    changed = model_folder(tmp_path / "changed", seed=1)
    second = hub.put(REPO, contents(changed))
    assert contents(pull(REPO, first, lock=tmp_path / "one.json")) == contents(model)
    assert contents(pull(REPO, second, lock=tmp_path / "two.json")) == contents(changed)
    assert contents(pull(REPO, to=tmp_path / "newest", lock=tmp_path / "three.json")) == contents(
        changed
    )
    with pytest.raises(FileNotFoundError, match="has no revision 'v9'"):
        pull(REPO, "v9", lock=tmp_path / "four.json")


def test_the_first_pull_pins_the_repository(hub: HubServer, model: Path, tmp_path: Path) -> None:
    put(hub, model)
    first = pull(REPO)
    put(hub, model_folder(tmp_path / "changed", seed=1))
    assert pull(REPO) == first
    with pytest.raises(ValueError, match="attune.lock.json"):
        pull(REPO, hub.repos[REPO].commits[-1][0])


def test_a_private_repository_needs_its_owner(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(hub, model, private=True)
    for token in (None, READER):
        connect(monkeypatch, hub, tmp_path / "home", token)
        with pytest.raises(
            FileNotFoundError, match="no repository tester/model .*or it is private"
        ):
            pull(REPO)
    with pytest.raises(PermissionError, match="token is wrong"):
        pull(REPO, token="hf_wrongwrongwrongwrongwrong")
    assert kept(tmp_path) == []
    assert contents(pull(REPO, token=WRITER)) == contents(model)
    assert {request.token for request in hub.requests if request.on_cdn} == {None}


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no repository tester/nothing"):
        pull("tester/nothing")
    assert kept(tmp_path) == []


def test_a_gated_repository_says_where_to_agree(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    put(hub, model, gated=True)
    with pytest.raises(ValueError, match="gated.*--accept-licence"):
        pull(REPO)
    with pytest.raises(
        PermissionError,
        match=f"tester/model is gated: agree to its terms on {hub.url}/tester/model",
    ):
        pull(REPO, accept_licence=True)
    assert kept(tmp_path) == []
    hub.repos[REPO].granted.add("tester")
    assert contents(pull(REPO, accept_licence=True)) == contents(model)


def test_a_lost_connection_resumes(hub: HubServer, model: Path) -> None:
    weights = put(hub, model)
    hub.break_off(weights, 10 * 1024, 20 * 1024)
    assert contents(pull(REPO)) == contents(model)
    assert [request.range for request in hub.requests if request.on_cdn] == [
        None,
        "bytes=10240-",
        "bytes=30720-",
    ]


def test_a_download_continues_in_a_later_pull(hub: HubServer, model: Path, tmp_path: Path) -> None:
    weights = put(hub, model)
    hub.break_off(weights, 10 * 1024, *[0] * 200)
    with pytest.raises(ConnectionError, match="what arrived is kept"):
        pull(REPO)
    assert kept(tmp_path) == []
    hub.break_off(weights)
    hub.requests.clear()
    assert contents(pull(REPO)) == contents(model)
    assert [request.range for request in hub.requests if request.on_cdn] == ["bytes=10240-"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_another_hash_is_refused(
    hub: HubServer, model: Path, tmp_path: Path, name: str
) -> None:
    put(hub, model)
    true = contents(model)[name]
    hub.corrupt(true)
    with pytest.raises(ValueError, match=rf"{name} of tester/model .*nothing was kept"):
        pull(REPO)
    assert kept(tmp_path) == []
    assert not (tmp_path / "attune.lock.json").exists()
    hub.mend(true)
    assert contents(pull(REPO)) == contents(model)


def test_offline_the_store_is_enough_and_missing_files_are_named(
    hub: HubServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, model)
    folder = pull(REPO)
    connect(monkeypatch, hub, tmp_path / "home", offline=True)
    hub.requests.clear()
    assert pull(REPO) == folder
    assert isinstance(zoo.load(REPO), TinyAudio)
    with pytest.raises(FileNotFoundError, match="tester/other.*HF_HUB_OFFLINE"):
        pull("tester/other")
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        push(model, REPO, yes=True)
    assert hub.requests == []


def test_a_token_without_write_access_is_named(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect(monkeypatch, hub, tmp_path / "home", READER)
    with pytest.raises(PermissionError, match="refused reader/model"):
        push(model, "reader/model", yes=True)
    assert hub.repos == {}


PULL_AND_PLAY = """
import sys, torch
import zoo
folder = zoo.pull(sys.argv[1], accept_licence=True)
(wave,) = zoo.generate(zoo.load(sys.argv[1]), "playful piano", seeds=11, steps=3, seconds=1.024)
torch.save(wave.samples_CN, sys.argv[2])
print(folder)
"""


@pytest.mark.slow
def test_the_quickstarts_adapter_survives_a_round_trip(
    hub: HubServer, tmp_path: Path, project_root: Path
) -> None:
    """Exports and pushes; another process pulls and generates the same bits."""
    run = quickstart_run(tmp_path / "runs/quickstart")
    (expected,) = zoo.generate(
        zoo.open_model(str(run)), "playful piano", seeds=11, steps=3, seconds=1.024
    )
    (base,) = zoo.generate("embedded/music", "playful piano", seeds=11, steps=3, seconds=1.024)
    assert not torch.allclose(expected.samples_CN, base.samples_CN, atol=1e-3)
    exported = export_run(run, tmp_path / "exported")
    push(exported, "tester/playful", yes=True)
    command = [sys.executable, "-c", PULL_AND_PLAY, "tester/playful", str(tmp_path / "wave.pt")]
    # as many threads as here: the order of summation, and so the last bits, depends on them
    settings = os.environ | {
        "PYTHONPATH": str(project_root),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    settings |= environment(hub, tmp_path / "another_home")
    done = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pulled = Path(done.stdout.split()[-1])
    assert pulled.is_relative_to(tmp_path / "another_home")
    assert contents(pulled) == contents(exported)
    assert torch.equal(torch.load(tmp_path / "wave.pt", weights_only=True), expected.samples_CN)
