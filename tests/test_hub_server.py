"""The tests' Hub against an unmodified huggingface_hub client: requests and answers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import READER, WRITER, HubServer, connect, environment
from huggingface_hub import (
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

BIG = bytes(range(256)) * 1024
FILES = {
    "config.json": b"{}",
    "model.safetensors": BIG,
    "unet/model.safetensors": b"small, but LFS",
    "notes.txt": b"x" * 5000,
}

ROUND_TRIP = """
import sys
from huggingface_hub import HfApi, snapshot_download
api = HfApi()
assert api.whoami()["name"] == "tester"
api.create_repo("tester/model", private=True)
api.create_repo("tester/model", private=True, exist_ok=True)
commit = api.upload_folder(repo_id="tester/model", folder_path=sys.argv[1], commit_message="first")
print(commit.oid, snapshot_download("tester/model", revision=commit.oid))
"""


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def contents(path: str | Path) -> dict[str, bytes]:
    found = (
        file for file in Path(path).rglob("*") if file.is_file() and ".cache" not in file.parts
    )
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in found}


@pytest.mark.long
def test_a_round_trip_of_another_process(hub: HubServer, tmp_path: Path) -> None:
    """Settings come only from the environment, as for users."""
    script = [sys.executable, "-c", ROUND_TRIP, str(folder(tmp_path / "model", FILES))]
    done = subprocess.run(
        script, env=os.environ | environment(hub, tmp_path / "home"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    revision, pulled = done.stdout.split()
    assert contents(pulled) == FILES == hub.files("tester/model", revision)
    assert Path(pulled).is_relative_to(tmp_path / "home")
    assert hub.repos["tester/model"].private


def test_large_files_travel_as_lfs_and_no_token_reaches_the_storage(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, hub, tmp_path / "home")
    api = HfApi()
    api.create_repo("tester/model")
    api.upload_folder(repo_id="tester/model", folder_path=folder(tmp_path / "model", FILES))
    stored = {
        hashlib.sha256(content).hexdigest()
        for name, content in FILES.items()
        if name != "config.json"
    }
    put = {request.path.split("/")[-1] for request in hub.requests if request.method == "PUT"}
    assert put == stored
    hub.requests.clear()
    assert contents(snapshot_download("tester/model")) == FILES
    assert {request.token for request in hub.requests if request.on_cdn} == {None}
    assert {request.token for request in hub.requests if not request.on_cdn} == {WRITER}
    listing = {file.path: file for file in api.list_repo_tree("tester/model", recursive=True)}
    assert listing["model.safetensors"].lfs.sha256 == hashlib.sha256(BIG).hexdigest()
    assert listing["config.json"].lfs is None
    assert listing["config.json"].blob_id == hashlib.sha1(b"blob 2\0{}").hexdigest()


def test_a_revision_keeps_its_files(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, hub, tmp_path / "home")
    api = HfApi()
    api.create_repo("tester/model")
    first = api.upload_folder(
        repo_id="tester/model", folder_path=folder(tmp_path / "model", FILES)
    ).oid
    second = api.upload_file(
        repo_id="tester/model", path_or_fileobj=b'{"a": 1}', path_in_repo="config.json"
    ).oid
    third = api.create_commit(
        "tester/model", [CommitOperationDelete("notes.txt")], commit_message="less"
    ).oid
    assert contents(snapshot_download("tester/model", revision=first)) == FILES
    assert contents(snapshot_download("tester/model", revision=second)) == FILES | {
        "config.json": b'{"a": 1}'
    }
    assert "notes.txt" not in contents(snapshot_download("tester/model"))
    assert api.model_info("tester/model").sha == third
    assert api.model_info("tester/model", revision=first).sha == first
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("tester/model", revision="f" * 40, local_dir=tmp_path / "none")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(
            "tester/model",
            [CommitOperationDelete("config.json")],
            commit_message="late",
            parent_commit=first,
        )


def test_what_is_missing_private_or_gated(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("tester/private", FILES, private=True)
    hub.put("tester/gated", FILES, gated=True)
    for token, reads_private in ((None, False), (READER, False), (WRITER, True)):
        with monkeypatch.context() as patched:
            connect(patched, hub, tmp_path / str(token), token)
            with pytest.raises(RepositoryNotFoundError):
                snapshot_download("tester/nothing")
            if reads_private:
                assert contents(snapshot_download("tester/private")) == FILES
            else:
                with pytest.raises(RepositoryNotFoundError):
                    snapshot_download("tester/private")
            assert HfApi().model_info("tester/gated").gated == "manual"
            with pytest.raises(GatedRepoError):
                hf_hub_download("tester/gated", "config.json")
    connect(monkeypatch, hub, tmp_path / "granted", READER)
    hub.repos["tester/gated"].granted.add("reader")
    assert contents(snapshot_download("tester/gated")) == FILES
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("tester/gated", "gone.json")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().create_repo("reader/new")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().upload_file(repo_id="tester/gated", path_or_fileobj=b"x", path_in_repo="x")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_wrong").whoami()


def test_a_lost_connection_resumes_where_it_broke(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, hub, tmp_path / "home")
    monkeypatch.setattr(
        constants, "DOWNLOAD_CHUNK_SIZE", 1024
    )  # the client writes, and so resumes, in whole chunks
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
    hub.put("tester/model", FILES)
    hub.break_off(BIG, 100 * 1024, 50 * 1024)
    assert Path(hf_hub_download("tester/model", "model.safetensors")).read_bytes() == BIG
    ranges = [request.range for request in hub.requests if request.on_cdn]
    assert ranges[0] is None
    assert ranges[1:] == [f"bytes={100 * 1024}-", f"bytes={150 * 1024}-"]


def test_a_changed_file_is_not_noticed_by_the_client(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So hashes are checked on our side."""
    connect(monkeypatch, hub, tmp_path / "home")
    hub.put("tester/model", FILES)
    hub.corrupt(BIG)
    pulled = Path(hf_hub_download("tester/model", "model.safetensors")).read_bytes()
    assert len(pulled) == len(BIG)
    assert pulled != BIG


def test_offline_reads_the_cache_only(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("tester/model", {**FILES, "config.json": json.dumps({"a": 1}).encode()})
    with monkeypatch.context() as patched:
        connect(patched, hub, tmp_path / "home")
        path = snapshot_download("tester/model")
    connect(monkeypatch, hub, tmp_path / "home", offline=True)
    hub.requests.clear()
    assert snapshot_download("tester/model") == path
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download("tester/other")
    assert hub.requests == []
