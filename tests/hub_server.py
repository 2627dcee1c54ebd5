"""A Hub in this process, on 127.0.0.1, for an unmodified huggingface_hub client.

The client can create, push, list and pull model repositories.

Two ports stand for two hosts: ``url`` is the Hub, ``cdn_url`` the storage of large files, where no
token may go. Repos keep every commit, so a pull at a revision gives that revision. Tests make it
fail on purpose: ``break_off``, ``corrupt``.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_protocol import Handler

WRITER = "hf_writerAAAAAAAAAAAAAAAAAAAAAAAAAA"
READER = "hf_readerBBBBBBBBBBBBBBBBBBBBBBBBBB"


@dataclass
class Repo:
    """``commits``:

    (sha, {path: content}) from the first to the newest. ``granted``: who may read a gated repo.
    """

    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=lambda: [("0" * 40, {})])


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None
    range: str | None
    on_cdn: bool


class HubServer:
    """The state that both ports serve.

    ``users``: token -> (name, role). Use ``serving`` or the fixture ``hub``.
    """

    def __init__(self) -> None:
        self.users = {WRITER: ("tester", "write"), READER: ("reader", "read")}
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self._broken: dict[bytes, list[int]] = {}
        self._corrupt: dict[bytes, bytes] = {}
        self.hostile: dict[
            str, Callable[[Handler], None]
        ] = {}  # path's end -> what answers instead
        self.url = self.cdn_url = ""

    def create(self, repo_id: str, *, private: bool = False, gated: bool = False) -> Repo:
        """The repo of this name; an existing one stays as it is."""
        return self.repos.setdefault(repo_id, Repo(private=private, gated=gated))

    def put(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Commits these files (any path, also a hostile one) and returns the revision."""
        repo = self.create(repo_id, private=private, gated=gated)
        return self.commit(repo, {**repo.commits[-1][1], **files})

    def commit(self, repo: Repo, files: dict[str, bytes]) -> str:
        for content in files.values():
            self.lfs[hashlib.sha256(content).hexdigest()] = content
        listing = "".join(
            f"{path} {hashlib.sha256(content).hexdigest()}"
            for path, content in sorted(files.items())
        )
        sha = hashlib.sha1((repo.commits[-1][0] + listing).encode()).hexdigest()
        repo.commits.append((sha, files))
        return sha

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        found = self.at(self.repos[repo_id], revision)
        assert found is not None, f"{repo_id} has no revision {revision}"
        return found[1]

    @staticmethod
    def at(repo: Repo, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return repo.commits[-1]
        return next((commit for commit in repo.commits[1:] if commit[0] == revision), None)

    def break_off(self, content: bytes, *after_bytes: int) -> None:
        """Makes the next downloads of this content fail after so many bytes each."""
        self._broken[content] = list(after_bytes)

    def corrupt(self, content: bytes) -> None:
        """Downloads of this content get one changed bit under the original headers."""
        self._corrupt[content] = bytes([content[0] ^ 1]) + content[1:]

    def mend(self, content: bytes) -> None:
        self._corrupt.pop(content)

    def saw(self, *request: object) -> None:
        self.requests.append(Request(*request))

    def served(self, content: bytes) -> tuple[bytes, int | None]:
        """(bytes to send, after how many the connection is lost)."""
        breaks = self._broken.get(content)
        return self._corrupt.get(content, content), breaks.pop(0) if breaks else None


@contextmanager
def serving() -> Iterator[HubServer]:
    """A running server; both ports are closed at the end."""
    hub = HubServer()
    handler = type("ThisHub", (Handler,), {"hub": hub})
    ports = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.url, hub.cdn_url = (f"http://127.0.0.1:{port.server_port}" for port in ports)
    for port in ports:
        port.daemon_threads = True
        threading.Thread(
            target=port.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
    try:
        yield hub
    finally:
        for port in ports:
            port.shutdown()
            port.server_close()


def environment(
    hub: HubServer, home: Path, token: str | None = WRITER, offline: bool = False
) -> dict[str, str]:
    """The environment variables that direct a process to this server; set before the import."""
    found = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return found | ({"HF_TOKEN": token} if token is not None else {})


def connect(
    monkeypatch: pytest.MonkeyPatch,
    hub: HubServer,
    home: Path,
    token: str | None = WRITER,
    offline: bool = False,
) -> None:
    """Directs this process to the server, even if huggingface_hub has read its environment."""
    from huggingface_hub import constants, hf_api

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for name, value in environment(hub, home, token, offline).items():
        monkeypatch.setenv(name, value)
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": True,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
