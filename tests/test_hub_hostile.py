"""A Hub, or a proxy before it, that answers with anything: each answer is refused in one line.

Nothing lands outside the folder of pulled models, nothing is believed, no token goes elsewhere.
"""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_protocol import Handler, _entry
from hub_server import WRITER, HubServer, connect, serving
from toy_artifacts import contents, model_folder

from zoo.commands.zoo import main
from zoo.errors import reported
from zoo.hub import requests
from zoo.hub.pull import pull, push

pytestmark = pytest.mark.long

FILES = {"README.md": b"---\nlicense: mit\n---\n# x\n", "big.bin": bytes(range(256)) * 256}
TREE = "/tree/"


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    server.repos.clear()
    server.hostile.clear()
    server.requests.clear()
    server.put("owner/model", FILES)
    connect(monkeypatch, server, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return server


def listing(hub: HubServer, *entries: dict[str, Any]) -> None:
    """A listing of README.md and these files."""
    sha = hub.repos["owner/model"].commits[-1][0]
    readme = _entry("README.md", FILES["README.md"])
    hub.hostile[f"{TREE}{sha}"] = lambda asked: asked._json([readme, *entries])


def info(hub: HubServer, **change: Any) -> None:
    sha = hub.repos["owner/model"].commits[-1][0]
    answer = {"id": "owner/model", "sha": sha, "gated": False, "tags": [], "cardData": {}}
    hub.hostile["/api/models/owner/model"] = lambda asked: asked._json(answer | change)


def pulled_files(tmp_path: Path) -> list[str]:
    """Files below the folder of this test, except locks and unfinished downloads."""
    found = (path for path in tmp_path.rglob("*") if path.is_file())
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    return [name for name in names if not name.startswith("home/attune/downloads/")]


def sent(status: int, content: bytes, **headers: str) -> Callable[[Handler], None]:
    return lambda asked: asked._send(status, content, **headers)


GOOD, OID = "a" * 64, "b" * 40
LFS = {"oid": GOOD, "size": 3, "pointerSize": 130}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lfs": LFS | {"oid": "/tmp/attune-outside"}}, "hash"),
        ({"lfs": LFS | {"oid": "../../../outside"}}, "hash"),
        ({"lfs": LFS | {"oid": "A" * 64}}, "hash"),
        ({"lfs": LFS | {"oid": "a" * 40}}, "hash"),
        ({"lfs": LFS | {"oid": 5}}, "oid"),
        ({"lfs": [1]}, "lfs"),
        ({"oid": "../../x"}, "hash"),
        ({"oid": None}, "without a hash"),
        ({"oid": 7}, "hash"),
        ({"size": -1}, "size"),
        ({"size": True}, "size"),
        ({"size": "3"}, "size"),
        ({"size": 2**70}, "size"),
        ({"path": None}, "path"),
        ({"path": "../x"}, "leaves its folder"),
        ({"path": ".git/hooks/post-checkout"}, "git's own folder"),
        ({"path": "sub/.GIT /config"}, "git's own folder"),
        ({"path": "/".join("a" * 2000)}, "too long"),
        ({"path": "x" * 300}, "too long"),
        ({"path": "a\x1b[2Jb"}, "control character"),
        ({"path": "safe\u202egnp.exe"}, "control character"),
        ({"path": "\ud800"}, "surrogate|control character"),
        ({"path": "README.md/x"}, "a file and a folder"),
        ({"type": None}, "type"),
    ],
)
def test_a_listing_is_checked(
    hub: HubServer, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    listing(hub, {"type": "file", "path": "x.bin", "size": 3, "oid": OID} | change)
    with pytest.raises(ValueError, match=message) as caught:
        pull("owner/model")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    assert pulled_files(tmp_path) == []
    assert not any("resolve" in request.path for request in hub.requests)


def test_a_hash_that_is_a_path_and_a_broken_connection(hub: HubServer, tmp_path: Path) -> None:
    """The partial download stayed at that path."""
    outside = tmp_path / "outside"
    lfs = {"oid": str(outside), "size": len(FILES["big.bin"]), "pointerSize": 130}
    listing(hub, _entry("big.bin", FILES["big.bin"]) | {"lfs": lfs})
    hub.break_off(FILES["big.bin"], *[100] * 200)
    with pytest.raises(ValueError, match="40 or 64 hex digits"):
        pull("owner/model")
    hub.break_off(FILES["big.bin"])
    assert list(tmp_path.glob("outside*")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha": "../.."}, "expected a commit"),
        ({"sha": None}, "sha"),
        ({"cardData": [1]}, "cardData"),
        ({"tags": "x"}, "tags"),
    ],
)
def test_facts_about_a_repository_are_checked(
    hub: HubServer, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    info(hub, **change)
    with pytest.raises(ValueError, match=message):
        pull("owner/model")
    assert pulled_files(tmp_path) == []


def test_a_licence_is_shown_without_control_characters_and_cut(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    info(hub, cardData={"license": "other", "license_name": "cc-by-nc\x1b[2J\n" + "x" * 5000})
    assert reported(main, ["pull", "owner/model"]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and "cc-by-nc" in shown and len(shown) < 600


PAGE = b"<html><body>Welcome to the hotel</body></html>"
DEEP = b"[" * 100_000


@pytest.mark.parametrize("where", ["/api/models/owner/model", TREE])
@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (sent(200, PAGE, Content_Type="text/html"), ConnectionError, "login page"),
        (sent(200, PAGE, Content_Type="application/json"), ConnectionError, "login page"),
        (sent(302, b"", Location="http://portal.example/login"), ConnectionError, "portal.example"),
        (sent(302, b"", Location="file:///etc/passwd"), ValueError, "http"),
        (sent(302, b"", Location="http://999.1.1.1:x/"), ValueError, "http"),
        (sent(302, b""), ValueError, "redirected more than"),
        (sent(200, DEEP, Content_Type="application/json"), ValueError, "nested"),
        (sent(200, b'{"a": 1, "a": 2}', Content_Type="application/json"), ValueError, "twice"),
        (sent(200, b"\xff\xfe", Content_Type="application/json"), ValueError, "JSON"),
        (sent(200, b"7", Content_Type="application/json"), ValueError, "expected an object|list"),
        (sent(500, b"\x1b[31m" * 9, X_Error_Message="\x1b"), ConnectionError, "answered 500"),
        (sent(418, PAGE * 99, X_Error_Code="RepoNotFound; x"), ConnectionError, "answered 418"),
    ],
)
def test_answers_that_are_not_of_a_hub(
    hub: HubServer, tmp_path: Path, where: str, answer: Any, error: type[Exception], message: str
) -> None:
    end = where if where != TREE else TREE + hub.repos["owner/model"].commits[-1][0]
    hub.hostile[end] = answer
    with pytest.raises(error, match=message) as caught:
        pull("owner/model")
    assert str(caught.value).isprintable()
    assert pulled_files(tmp_path) == []


def test_gzip_is_not_unpacked_and_a_long_answer_not_read(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = gzip.compress(b"[" + b" " * 2**26 + b"]")
    json_type = {"Content_Type": "application/json"}
    hub.hostile["/api/models/owner/model"] = sent(200, bomb, Content_Encoding="gzip", **json_type)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="compressed"):
            pull("owner/model")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**25
    monkeypatch.setattr(requests, "ANSWER_BYTES", 1000)
    hub.hostile["/api/models/owner/model"] = sent(200, b" " * 2000 + b"{}", **json_type)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        pull("owner/model")


def _paged(hub: HubServer, link: Callable[[int], str]) -> None:
    """A listing whose n-th page names ``link(n)`` as the next one."""
    sha = hub.repos["owner/model"].commits[-1][0]
    count = iter(range(10**6))

    def answer(asked: Handler) -> None:
        content = json.dumps([_entry(f"file{next(count)}", b"x")]).encode()
        following = link(next(count))
        more = {"Link": f'<{following}>; rel="next"'}
        asked._send(200, content, Content_Type="application/json", **more)

    hub.hostile[TREE + sha] = answer


def test_a_listing_that_never_ends(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PAGES", 5)
    sha = hub.repos["owner/model"].commits[-1][0]
    where = f"{hub.url}/api/models/owner/model/tree/{sha}"
    _paged(hub, lambda n: f"{where}?cursor={n}")
    with pytest.raises(ValueError, match="more than 5 pages"):
        pull("owner/model")
    assert sum(TREE in request.path for request in hub.requests) == 5
    _paged(hub, lambda n: where)
    with pytest.raises(ValueError, match="returns to an earlier page"):
        pull("owner/model")


def test_pages_of_one_listing_are_joined(hub: HubServer) -> None:
    sha = hub.repos["owner/model"].commits[-1][0]
    first, second = (_entry(name, content) for name, content in FILES.items())

    def answer(asked: Handler) -> None:
        is_last = "cursor" in asked.path
        more = {} if is_last else {"Link": f'<{asked.path}&cursor=2>; rel="next"'}
        page = json.dumps([second if is_last else first]).encode()
        asked._send(200, page, Content_Type="application/json", **more)

    hub.hostile[TREE + sha] = answer
    assert contents(pull("owner/model")) == FILES


@pytest.mark.parametrize("how", ["next page", "redirect"])
def test_a_token_stays_at_home(hub: HubServer, how: str) -> None:
    """The storage's port plays another host."""
    sha = hub.repos["owner/model"].commits[-1][0]
    if how == "next page":
        _paged(hub, lambda n: f"{hub.cdn_url}/more")
    else:
        hub.hostile[TREE + sha] = sent(307, b"", Location=f"{hub.cdn_url}/more")
    with pytest.raises((ValueError, ConnectionError), match="another host"):
        pull("owner/model", token=WRITER)
    assert not any(request.on_cdn for request in hub.requests)
    assert any(request.token == WRITER for request in hub.requests)


def test_redirected_files_get_no_token_and_no_compression(hub: HubServer, tmp_path: Path) -> None:
    packed = gzip.compress(FILES["big.bin"])
    hub.hostile["/resolve/" + hub.repos["owner/model"].commits[-1][0] + "/big.bin"] = sent(
        302, b"", Location=f"{hub.cdn_url}/elsewhere"
    )
    hub.hostile["/elsewhere"] = sent(200, packed, Content_Encoding="gzip")
    with pytest.raises(ValueError, match=r"big\.bin.*owner/model.*compressed"):
        pull("owner/model", token=WRITER)
    assert {request.token for request in hub.requests if request.on_cdn} == {None}
    hub.hostile["/elsewhere"] = sent(200, b"less")
    with pytest.raises(ValueError, match="4 bytes arrived, expected the 65536"):
        pull("owner/model", token=WRITER)
    hub.hostile["/elsewhere"] = sent(200, FILES["big.bin"] + b"more")
    with pytest.raises(ValueError, match="longer than the 65536 bytes"):
        pull("owner/model", token=WRITER)
    assert [name for name in pulled_files(tmp_path) if name != "attune.lock.json"] == []


@pytest.mark.parametrize("what", ["file", "folder", "pipe"])
def test_a_link_where_a_download_waits(hub: HubServer, tmp_path: Path, what: str) -> None:
    sha = hub.repos["owner/model"].commits[-1][0]
    outside = tmp_path / "outside"
    waiting = tmp_path / "home/attune/downloads/owner--model"
    waiting.mkdir(parents=True)
    name = hub_file_name("big.bin")
    if what == "folder":
        outside.mkdir()
        (waiting / sha).symlink_to(outside)
    else:
        (waiting / sha).mkdir()
        place = waiting / sha / name
        place.symlink_to(outside) if what == "file" else os.mkfifo(place)
    with pytest.raises(ValueError, match="link or something else"):
        pull("owner/model")
    assert not outside.exists() or list(outside.iterdir()) == []


def hub_file_name(name: str) -> str:
    from zoo.hub.client import RemoteFile

    entry = _entry(name, FILES[name])
    return RemoteFile(name, entry["size"], entry["lfs"]["oid"], entry["oid"]).waiting_name


def test_a_push_says_when_a_page_answers(hub: HubServer, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "made")
    hub.hostile["/api/repos/create"] = sent(200, PAGE, Content_Type="text/html")
    with pytest.raises(ConnectionError, match="login page"):
        push(model, "tester/model", yes=True)


def test_a_token_that_cannot_be_sent(hub: HubServer) -> None:
    with pytest.raises(ValueError, match="access token holds a character") as caught:
        pull("owner/model", token="hf_" + "x" * 30 + "\nHost: y")
    assert "xxxx" not in str(caught.value)
