"""Raters without a browser: they speak to the server of the labelling page over HTTP."""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections.abc import Callable
from typing import Any


class Client:
    """One browser, without a page."""

    def __init__(self, port: int, **headers: str) -> None:
        self.port = port
        self.headers = headers

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {
            name.replace("_", "-"): value for name, value in {**self.headers, **headers}.items()
        }
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content

    def act(self, action: str, **sent: Any) -> tuple[int, Any]:
        body = json.dumps(sent, allow_nan=False).encode()
        status, headers, content = self.ask(
            "POST", f"/api/{action}", body, Content_Type="application/json"
        )
        is_json = "json" in headers["content-type"]
        return status, json.loads(content) if is_json else content.decode()


def rate(
    port: int, name: str, seconds: float, answer: Callable[[dict[str, Any]], dict[str, Any]]
) -> str:
    """Hears clips of so many seconds, answers every question, and returns the completion code."""
    client = Client(port)
    status, view = client.act("join", rater=name)
    while True:
        assert status == 200, view
        if view["stage"] == "done":
            return view["code"]
        if view["stage"] == "questions":
            first = {one["name"]: next(iter(one["options"])) for one in view["fields"]}
            status, view = client.act("questions", rater=name, answer=first)
            continue
        for side in range(len(view["sounds"])):
            _, play = client.act("play", key=view["key"], side=side)
            time.sleep(seconds)
            assert client.act("heard", **play) == (200, {"heard": True})
        click = {"key": view["key"], "click": secrets.token_hex(8), "answer": answer(view)}
        status, view = client.act("vote", **click, time_ms=1000 * seconds)
