"""The server of the labelling page, over real HTTP: what it answers and what it refuses."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import soundfile
from toy_raters import Client
from toy_study import generations, small_study

from zoo.errors import UserError
from zoo.listening import label_app, vote_store
from zoo.listening.label_app import LabelPage, serve_study
from zoo.listening.study import Study, access_token, join
from zoo.listening.study_views import next_view

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("starlette", reason="the labelling page needs the extra app")
uvicorn = pytest.importorskip("uvicorn", reason="the labelling page needs the extra app")


@contextmanager
def served(study: Study, token: str | None = None) -> Iterator[int]:
    """Serves a study in a thread; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        config = uvicorn.Config(LabelPage(study, token).app(), log_level="critical", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            yield place.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def test_a_rater_labels_over_http(tmp_path: Path) -> None:
    study = small_study(tmp_path, "mos", repeats=0, negatives=0)
    with served(study) as port:
        client = Client(port)
        status, headers, content = client.ask("GET", "/")
        assert (
            status == 200
            and b"label.js" in content
            and "default-src 'none'" in (headers["content-security-policy"])
        )
        assert b"<script>" not in content and b"style=" not in content, "as that policy wants"
        for name, kind in (("label.js", "text/javascript"), ("label.css", "text/css")):
            status, headers, _ = client.ask("GET", f"/{name}")
            assert status == 200 and headers["content-type"].startswith(kind)
        status, view = client.act("join", rater="ann")
        assert status == 200 and view["stage"] == "trial"
        assert client.act("join", rater="ann")[0] == 409
        assert client.act("join", rater="ann", resume=True) == (200, view)
        status, headers, flac = client.ask("GET", "/" + view["sounds"][0])
        assert headers["content-type"] == "audio/flac" and headers["cache-control"] == "no-store"
        samples, _ = soundfile.read(io.BytesIO(flac))
        assert len(samples) == 1600 and soundfile.SoundFile(io.BytesIO(flac)).copy_metadata() == {}
        answer = {"quality": "2", "relevance": "5"}
        click = {"key": view["key"], "click": "click 01", "answer": answer, "time_ms": 12}
        status, refused = client.act("vote", **click)
        assert (status, refused["heard"]) == (409, False)
        _, play = client.act("play", key=view["key"], side=0)
        assert client.act("heard", **play) == (200, {"heard": False})
        assert client.act("vote", **click)[0] == 409, "it ended too early"
        _, play = client.act("play", key=view["key"], side=0)
        threading.Event().wait(0.21)
        assert client.act("heard", **play) == (200, {"heard": True})
        assert client.act("vote", **click)[1]["done"] == 1
        assert client.act("vote", **click)[1]["done"] == 1, "the same click again"
        assert client.act("view", rater="ann", at=0)[1]["answer"] == answer
        assert client.act("restart", rater="ann")[1]["done"] == 0


def test_what_a_request_gets_wrong(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    with served(study) as port:
        client = Client(port)
        client.act("join", rater="ann")
        for action, sent, status in (
            ("join", {"rater": "<img src=x onerror=alert(1)>"}, 400),
            ("join", {}, 400),
            ("view", {"rater": "nobody"}, 400),
            ("vote", {"key": "x", "click": "click 01", "answer": {}}, 400),
            ("vote", {"key": "x", "click": 7}, 400),
            ("play", {"key": "x", "side": 0}, 400),
            ("play", {"key": "x", "side": "0"}, 400),
            ("heard", {}, 400),
            ("headphones", {"rater": "ann", "attempt": 0, "answers": [9]}, 400),
            ("questions", {"rater": "ann", "answer": {"device": "radio"}}, 400),
            ("restart", {"rater": 7}, 400),
            ("nothing", {}, 404),
        ):
            found, answer = client.act(action, **sent)
            assert found == status, (action, sent, answer)
        for body, status in ((b"[1]", 400), (b"{", 400), (b"x" * 70_000, 413), (b"\xff", 400)):
            found = client.ask("POST", "/api/join", body, Content_Type="application/json")
            assert found[0] == status
        assert client.ask("POST", "/api/join", b"{}", Content_Type="text/plain")[0] == 415
        for path in (
            "/audio/x/0", "/headphones/x/0", "/audio/x/y", "/../label_app.py", "/index.html",
            "/label_app.py", "/audio/..%2f..%2fvotes.sqlite/0",
        ):  # fmt: skip
            assert client.ask("GET", path)[0] in (404, 410), path
        # another web page, whose name leads to this machine
        assert client.ask("GET", "/", Host=f"evil.example:{port}")[0] == 421
        assert client.ask("GET", "/", Host=f"localhost:{port}")[0] == 200


def test_outside_of_this_machine_a_token_is_needed(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    token = access_token(study)
    assert len(token) >= 20 and access_token(small_study(tmp_path)) == token
    key = next_view(study, join(study, "ann"))["key"]
    with served(study, token) as port:
        client = Client(port)
        for path in ("/", "/label.js", f"/audio/{key}/0", "/?token=wrong", "/?token=%C3%A9"):
            assert client.ask("GET", path)[0] == 403
        assert client.act("view", rater="ann")[0] == 403
        status, headers, _ = client.ask("GET", f"/?token={token}&rater=p%2026")
        assert (status, headers["location"]) == (303, "/?rater=p+26")
        cookie = headers["set-cookie"]
        assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower()
        inside = Client(port, Cookie=cookie.split(";")[0], Host="study.example")
        for path in ("/", "/label.js", f"/audio/{key}/0"):
            assert inside.ask("GET", path)[0] == 200
        assert inside.act("view", rater="ann")[0] == 200
        assert Client(port, Cookie="attune_label=").ask("GET", "/")[0] == 403


def test_a_locked_file_is_told_as_something_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    study = small_study(tmp_path)
    with served(study) as port:
        client = Client(port)
        monkeypatch.setattr(vote_store, "BUSY_S", 0.05)
        with study.store.writing():
            status, answer = client.act("join", rater="ann")
        assert status == 503 and str(tmp_path) not in json.dumps(answer)
        assert str(study.store.path) in capsys.readouterr().err, "the organiser is told"
        assert client.act("join", rater="ann")[0] == 200


def test_mistakes_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_study(tmp_path)
    for knobs in ({"host": "example"}, {"port": -1}, {"port": 70_000}):
        with pytest.raises(UserError, match=next(iter(knobs))):
            serve_study(study, **knobs)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="--port"):
            serve_study(study, port=taken.getsockname()[1])
    with vote_store.served_alone(study.store.path):
        with pytest.raises(UserError, match="process"):
            serve_study(study, port=0)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"\[app\]"):
        label_app.starlette()


@pytest.mark.long
def test_the_command_serves_until_it_is_stopped(tmp_path: Path) -> None:
    folder = generations(tmp_path)
    words = [sys.executable, "tools/listen.py", "label", str(folder), "--task", "temporal"]
    words += ["--votes", str(tmp_path / "votes.sqlite"), "--port", "0", "--host", "0.0.0.0"]
    server = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert server.stdout.readline().startswith("temporal: 4 clips of 4 prompts")
        found = re.fullmatch(
            r"open http://0\.0\.0\.0:(\d+)/\?token=(\S+)\n", server.stdout.readline()
        )
        status, _, _ = Client(int(found[1])).ask("GET", f"/?token={found[2]}")
        assert status == 303
        second = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
        assert second.returncode == 2 and f"process {server.pid}" in second.stderr
    finally:
        server.terminate()
        _, error = server.communicate(timeout=60)
    assert server.returncode == 128 + 15 and "Traceback" not in error
