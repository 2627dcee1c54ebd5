"""Pulls that must fail and what they leave behind; entries of the table on a local Hub."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import HubServer, connect, serving

from zoo.commands.zoo import main
from zoo.errors import reported
from zoo.hub import client, registry, store
from zoo.hub import pull as zoo_hub
from zoo.hub.client import RemoteFile, plain
from zoo.hub.lock import LOCK_FILE, read_lock
from zoo.hub.pull import pull
from zoo.hub.table import ENTRIES

BIG = bytes(range(256)) * 256
CARD = b"---\nlicense: mit\n---\n# x\n"
HASH = "0" * 64
FILES = {
    "README.md": CARD,
    "config.json": b'{"kind": "reward"}',
    "sub/model.bin": BIG,
    "a.ckpt": b"old",
}


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture
def there(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A repository of FILES, an empty home and working folder; returns the server."""
    server.repos.clear()
    connect(monkeypatch, server, tmp_path / "home")
    monkeypatch.delenv("ATTUNE_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    server.put("owner/model", FILES)
    return server


def leftovers(tmp_path: Path) -> list[str]:
    """Files and folders of this test, except unfinished downloads."""
    found = [path.relative_to(tmp_path) for path in tmp_path.rglob("*")]
    return sorted(
        str(path)
        for path in found
        if path.parts[:3] != ("home", "attune", "downloads") and path.parts[0] != "home"
    )


def entry(monkeypatch: pytest.MonkeyPatch, **change: object) -> None:
    """Replaces the row "tango2" for this test."""
    row = dataclasses.replace(
        ENTRIES["tango2"], **{"repo_id": "owner/model", "licence": "mit", **change}
    )
    monkeypatch.setitem(ENTRIES, "tango2", row)


def test_an_entry_pulls_only_its_files(there: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(monkeypatch, skip=("*.ckpt",))
    folder = pull("tango2")
    assert (
        folder == store.newest("tango2")
        and folder.name == there.repos["owner/model"].commits[-1][0]
    )
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert here == {"README.md", "config.json", "sub/model.bin", store.RECORD}
    assert set(read_lock()["owner/model"].files) == here - {store.RECORD}
    entry(monkeypatch, files=("*.ckpt",), skip=())
    shutil.rmtree(folder)
    assert {path.name for path in pull("tango2").iterdir()} == {"a.ckpt", store.RECORD}
    assert len(read_lock()["owner/model"].files) == 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"sha256": {"sub/model.bin": "0" * 64}},
            ValueError,
            "sub/model.bin of .* has sha256 .*the zoo's table says 0000",
        ),
        (
            {"sha256": {"config.json": "0" * 64}},
            ValueError,
            "config.json of owner/model has sha256 .*the zoo's table says 0000",
        ),
        ({"sha256": {"gone.bin": "0" * 64}}, FileNotFoundError, "does not hold gone.bin"),
        ({"files": ("BEWO.ckpt",)}, FileNotFoundError, "does not hold BEWO.ckpt"),
        ({"revision": "5" * 40}, FileNotFoundError, f"owner/model has no revision '{'5' * 40}'"),
        (
            {"licence": "cc-by-nc-4.0"},
            ValueError,
            "cc-by-nc-4.0: not for commercial use.*Not pulled: agree .*--accept-licence",
        ),
        ({"gated": True}, ValueError, "gated: access is granted on its Hub page.*Not pulled"),
    ],
)
def test_the_table_is_enforced(there, monkeypatch, tmp_path, change, error, message) -> None:
    entry(monkeypatch, **change)
    with pytest.raises(error, match=message):
        pull("tango2")
    assert leftovers(tmp_path) == [] and store.newest("tango2") is None


def test_terms_are_shown_and_answered(
    there: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry(monkeypatch, licence="cc-by-nc-4.0", note="ask first")
    asked: list[str] = []
    with pytest.raises(ValueError, match="Not pulled"):
        pull("tango2", accept_licence=lambda terms: bool(asked.append(terms)))
    terms = (
        "cc-by-nc-4.0: not for commercial use; what you derive from it inherits that (ask first)"
    )
    assert asked == [f"tango2 from owner/model comes under {terms}"]
    assert leftovers(tmp_path) == []
    folder = pull("tango2", accept_licence=lambda terms: True)
    assert store.read_record(folder).licence == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("known", "published", "expected"),
    [
        (None, None, "unknown"),
        (None, "mit", "mit"),
        ("unknown", "mit", "mit"),
        ("unknown", None, "unknown"),
        ("mit", None, "mit"),
        ("mit", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("cc-by-nc-4.0", "mit", "cc-by-nc-4.0"),
        ("mit", "apache-2.0", "mit"),
    ],
)
def test_a_licence_only_becomes_stricter(known, published, expected) -> None:
    assert zoo_hub._stricter(known, published) == expected


def test_a_full_disk_is_seen_before_and_during(
    there: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    assert reported(main, ["pull", "owner/model"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: the disk has 0 MB left, 0 MB are needed")
    assert message.endswith("free some space and start again")
    monkeypatch.setattr(shutil, "disk_usage", real)

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(OSError, match="No space left on device"):
        pull("owner/model", to="target")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left on device"):
        pull("embedded/mood", to="target")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["owner/model", "embedded/mood"])
def test_a_second_pull_to_the_same_folder_is_fine(
    there: HubServer, tmp_path: Path, name: str
) -> None:
    folder = pull(name, to="target")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert pull(name, to="target") == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before, (
        "nothing is written again"
    )
    (folder / "config.json").write_text("{}")
    with pytest.raises((ValueError, FileExistsError)):
        pull(name, to="target")


def test_an_occupied_or_unwritable_target_is_refused(
    there: HubServer, monkeypatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    before = leftovers(tmp_path)
    for name in ("owner/model", "embedded/mood"):
        for to in ("file", "full"):
            with pytest.raises(
                FileExistsError, match=f"{to} exists and does not hold what is being pulled"
            ):
                pull(name, to=to)
        with pytest.raises((NotADirectoryError, FileExistsError)):
            pull(name, to="file/below")
    real = Path.mkdir

    def read_only(path: Path, *args: object, **settings: object) -> None:
        if path.parent == tmp_path / "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path, *args, **settings)

    monkeypatch.setattr(Path, "mkdir", read_only)
    for name in ("owner/model", "embedded/mood"):
        with pytest.raises(
            PermissionError,
            match="Permission denied",
        ):
            pull(name, to=tmp_path / "locked/model")
    assert [name for name in leftovers(tmp_path) if name != "locked"] == before


def test_a_lock_that_cannot_be_written_stops_the_pull(there: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        pull("owner/model", to="target", lock="file/lock.json")
    assert leftovers(tmp_path) == ["file"] and store.newest("owner/model") is None


def test_a_damaged_store_is_pulled_again_and_a_damaged_target_is_named(
    there: HubServer, tmp_path: Path
) -> None:
    folder = pull("owner/model")
    target = pull("owner/model", to="target")
    for place in (folder, target):
        (place / "sub/model.bin").write_bytes(BIG[:-1])
    assert (pull("owner/model") / "sub/model.bin").read_bytes() == BIG
    with pytest.raises(ValueError, match=r"sub/model\.bin.*sha256"):
        pull("owner/model", to="target")


def test_another_project_pins_stored_files_without_a_download(
    there: HubServer, tmp_path: Path
) -> None:
    folder = pull("owner/model")
    there.requests.clear()
    assert pull("owner/model", lock="another.json") == folder
    assert pull("owner/model", folder.name, lock="third.json") == folder
    assert read_lock("another.json") == read_lock("third.json") == read_lock()
    assert not any("resolve" in request.path or request.on_cdn for request in there.requests)


def test_processes_that_load_the_same_model_wait_for_each_other(
    there: HubServer, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: pull("owner/model"), range(4)))
    assert len(folders) == 1
    assert (
        sum(
            request.method == "GET" and request.path.endswith("sub/model.bin")
            for request in there.requests
        )
        <= 1
    )
    assert sum(request.on_cdn for request in there.requests) == 1


def test_the_lock_file_rules_on_another_machine(
    there: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pull("owner/model")
    there.put("owner/model", {"config.json": b"{}"})
    monkeypatch.setenv("ATTUNE_CACHE", str(tmp_path / "home/another"))
    assert pull("owner/model").name == first.name  # the pinned commit, though there is a newer one
    text = (tmp_path / LOCK_FILE).read_text()
    wrong = text.replace(hashlib.sha256(BIG).hexdigest(), "0" * 64)
    (tmp_path / LOCK_FILE).write_text(wrong)
    for cache in ("another", "third"):  # also for what is here already
        monkeypatch.setenv("ATTUNE_CACHE", str(tmp_path / "home" / cache))
        with pytest.raises(
            ValueError, match=f"sub/model.bin of owner/model has sha256 .*{LOCK_FILE} pins 0000"
        ):
            pull("owner/model")
    assert (tmp_path / LOCK_FILE).read_text() == wrong
    with pytest.raises(ValueError, match="pins owner/model"):
        pull("owner/model", "main")


def test_offline_pinned_files_come_from_the_clients_cache_or_are_named(
    there, tmp_path, monkeypatch
) -> None:
    import huggingface_hub

    commit = pull("owner/model").name
    shutil.rmtree(store.cache_root())
    huggingface_hub.snapshot_download("owner/model", revision=commit, ignore_patterns=["*.ckpt"])
    connect(monkeypatch, there, tmp_path / "home", offline=True)
    with pytest.raises(
        FileNotFoundError,
        match=r"a\.ckpt.*HF_HUB_OFFLINE",
    ):
        pull("owner/model")
    connect(monkeypatch, there, tmp_path / "home")
    huggingface_hub.hf_hub_download("owner/model", "a.ckpt", revision=commit)
    connect(monkeypatch, there, tmp_path / "home", offline=True)
    there.requests.clear()
    with pytest.raises(
        FileNotFoundError,
        match="'main'.*owner/model",
    ):
        pull("owner/model", "main")
    folder = pull("owner/model")
    assert (folder / "sub/model.bin").read_bytes() == BIG and not (
        folder / "sub/model.bin"
    ).is_symlink()
    assert registry.find("owner/model") == folder and there.requests == []


def test_cached_files_are_not_downloaded(there: HubServer) -> None:
    import huggingface_hub

    huggingface_hub.snapshot_download("owner/model")
    there.requests.clear()
    assert (pull("owner/model") / "sub/model.bin").read_bytes() == BIG
    assert not any("resolve" in request.path or request.on_cdn for request in there.requests)


def test_a_listing_that_names_a_file_twice_or_nothing(
    there: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = [RemoteFile("x", 1, HASH), RemoteFile("x", 1, HASH)]
    monkeypatch.setattr(client.HubRepo, "files", lambda self, sha: twice)
    with pytest.raises(ValueError, match="its listing names a file twice"):
        pull("owner/model")
    monkeypatch.setattr(client.HubRepo, "files", lambda self, sha: [])
    with pytest.raises(FileNotFoundError, match="owner/model.*[0-9a-f]{40}"):
        pull("owner/model")


def test_a_file_that_is_longer_than_listed_is_stopped(
    there: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = client.HubRepo.files

    def shorter(self: client.HubRepo, sha: str) -> list[RemoteFile]:
        return [
            dataclasses.replace(file, size_bytes=file.size_bytes - 1) for file in real(self, sha)
        ]

    monkeypatch.setattr(client.HubRepo, "files", shorter)
    with pytest.raises(ValueError, match="is longer than|bytes arrived"):
        pull("owner/model")
    monkeypatch.setattr(
        client.HubRepo, "files", lambda self, sha: [RemoteFile("sub/model.bin", 10**16, HASH)]
    )
    with pytest.raises(OSError, match="10,000,000,000 MB are needed"):
        pull("owner/model")


def test_errors_of_the_client_never_show_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecretsecret")
    message = str(
        plain(
            Exception("Bearer hf_secretsecretsecretsecret"), "o/n", None, "https://hub", sent=True
        )
    )
    assert "hf_secret" not in message and "https://hub" in message


def test_load_pulls_what_is_on_the_hub_only(
    there: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.hub.resolve import found_or_pulled

    folder = found_or_pulled("owner/model")
    assert folder == store.newest("owner/model")
    monkeypatch.setattr(zoo_hub, "pull", lambda name: pytest.fail("it is here"))
    assert found_or_pulled("owner/model") == folder
    with pytest.raises(ValueError, match="cannot be loaded yet"):
        found_or_pulled("bewo-nl")
