"""The page of a labelling study: a small Starlette application (extra ``app``).

Gradio, which serves the blind test, owns its players and its keyboard; this page has to know when
a clip was heard to its end, and to send a click again until it is saved. Its files are in
``label_page``. Sounds leave as unnamed FLAC, and all text as JSON that the page inserts as text,
never as HTML.
"""

from __future__ import annotations

import functools
import hmac
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from zoo.audio_files import encoded
from zoo.errors import UserError, describe
from zoo.files import parsed_json
from zoo.listening import study_views
from zoo.listening.serving import address, cannot_serve, check_port, is_this_machine
from zoo.listening.study import (
    NameTaken,
    NotHeard,
    Study,
    access_token,
    found_trial,
    join,
    play_ended,
    play_started,
    restart,
    sounds,
    vote,
)
from zoo.listening.vote_store import served_alone

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_FILES = Path(__file__).with_name("label_page")
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " media-src blob:; img-src data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_HERE = ("localhost", "127.0.0.1", "[::1]")
_MAX_BODY = 64 * 1024
_CACHED_SOUNDS = 64
_COOKIE = "attune_label"
_COOKIE_S = 90 * 86_400

Action = Callable[[Study, dict[str, Any]], Any]


def _joined(study: Study, sent: dict[str, Any]) -> Any:
    rater = join(study, str(sent.get("rater", "")), sent.get("resume") is True)
    return study_views.next_view(study, rater)


def _viewed(study: Study, sent: dict[str, Any]) -> Any:
    at = sent.get("at")
    return study_views.next_view(study, str(sent.get("rater", "")), at if type(at) is int else None)


def _voted(study: Study, sent: dict[str, Any]) -> Any:
    rater = vote(
        study,
        str(sent.get("key", "")),
        sent.get("click"),
        sent.get("answer"),
        sent.get("time_ms"),
    )
    return study_views.next_view(study, rater)


def _started(study: Study, sent: dict[str, Any]) -> Any:
    side = sent.get("side")
    key = str(sent.get("key", ""))
    return {"play": play_started(study, key, side if type(side) is int else -1)}


def _ended(study: Study, sent: dict[str, Any]) -> Any:
    return {"heard": play_ended(study, str(sent.get("play", "")))}


def _restarted(study: Study, sent: dict[str, Any]) -> Any:
    restart(study, str(sent.get("rater", "")))
    return _viewed(study, sent | {"at": None})


def _headphones(study: Study, sent: dict[str, Any]) -> Any:
    rater = str(sent.get("rater", ""))
    study_views.answer_headphones(study, rater, sent.get("attempt"), sent.get("answers"))
    return _viewed(study, sent)


def _questions(study: Study, sent: dict[str, Any]) -> Any:
    study_views.answer_questionnaire(study, str(sent.get("rater", "")), sent.get("answer"))
    return _viewed(study, sent)


_ACTIONS: dict[str, Action] = {
    "join": _joined,
    "view": _viewed,
    "vote": _voted,
    "play": _started,
    "heard": _ended,
    "restart": _restarted,
    "headphones": _headphones,
    "questions": _questions,
}


def starlette() -> Any:
    """Imports Starlette and uvicorn. Raises ``UserError``, which says how to install them."""
    try:
        import starlette
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            "the labelling page needs Starlette and uvicorn; install them with: pip install -e"
            ' ".[app]"'
        ) from error
    return starlette


class LabelPage:
    """The endpoints of one study.

    Args:
        study: what is asked.
        token: what the address must hold, once per browser. None: anybody on this machine may take
            part; requests for another host name than its own are refused then, so that no web page
            elsewhere reaches this server through a rater's browser.
    """

    def __init__(self, study: Study, token: str | None = None) -> None:
        self.study = study
        self.token = token
        self.clip = functools.lru_cache(_CACHED_SOUNDS)(functools.partial(_clip, study))
        self.tones = functools.lru_cache(_CACHED_SOUNDS)(functools.partial(_tones, study))

    def app(self) -> Starlette:
        """The application. Raises ``UserError`` without the extra ``app``."""
        starlette()
        from starlette.applications import Starlette
        from starlette.routing import Route

        routes = [
            Route("/", self.index),
            Route("/label.css", self.file),
            Route("/label.js", self.file),
            Route("/api/{action}", self.act, methods=["POST"]),
            Route("/audio/{key}/{number:int}", self.sound),
            Route("/headphones/{key}/{number:int}", self.sound),
        ]
        return Starlette(routes=routes)

    async def index(self, request: Request) -> Response:
        from starlette.responses import RedirectResponse

        if (no := self._refused(request)) is not None:
            return no
        if self.token is None or "token" not in request.query_params:
            return _file("index.html")
        rest = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
        response = RedirectResponse(f"/?{urlencode(rest)}" if rest else "/", 303, _HEADERS)
        response.set_cookie(_COOKIE, self.token, _COOKIE_S, httponly=True, samesite="strict")
        return response

    async def file(self, request: Request) -> Response:
        return self._refused(request) or _file(request.url.path.removeprefix("/"))

    async def act(self, request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse

        if (no := self._refused(request)) is not None:
            return no
        # a form on another site cannot send this type
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _text(415, "expected application/json")
        action = _ACTIONS.get(request.path_params["action"])
        body = await _body(request)
        if action is None or body is None:
            return _text(404 if action is None else 413, "there is no such thing to do")
        status, answer = await run_in_threadpool(_answered, self.study, action, body)
        return JSONResponse(answer, status, _HEADERS)

    async def sound(self, request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import Response

        if (no := self._refused(request)) is not None:
            return no
        make = self.tones if request.url.path.startswith("/headphones/") else self.clip
        key, number = request.path_params["key"], request.path_params["number"]
        try:
            flac = await run_in_threadpool(make, key, number)
        except (UserError, OSError) as error:
            _log(f"a sound cannot be played: {describe(error)}")
            return _text(410, "this sound cannot be played any more")
        return Response(flac, 200, _HEADERS, "audio/flac")

    def _refused(self, request: Request) -> Response | None:
        if self.token is None:
            host = request.headers.get("host", "").lower()
            name, _, port = host.rpartition(":")
            is_here = (name if port.isdigit() else host) in _HERE
            return None if is_here else _text(421, "this page is served to its own machine only")
        for given in (request.cookies.get(_COOKIE, ""), request.query_params.get("token", "")):
            if hmac.compare_digest(given.encode(), self.token.encode()):
                return None
        return _text(403, "open the whole address that you were given; it ends in a token")


def _file(name: str) -> Response:
    from starlette.responses import Response

    path = _FILES / name
    return Response(path.read_bytes(), 200, _HEADERS, _KINDS[path.suffix])


def _text(status: int, text: str) -> Response:
    from starlette.responses import Response

    return Response(f"{text}\n", status, _HEADERS, "text/plain")


async def _body(request: Request) -> bytes | None:
    """The body of a request; None for one that is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY:
            return None
    return body


def _answered(study: Study, action: Action, body: bytes) -> tuple[int, Any]:
    """(status, answer) of an action. Only mistakes of the rater are told to the rater."""
    try:
        sent = parsed_json(body.decode(errors="replace"))
        if not isinstance(sent, dict):
            raise UserError("expected an object")
        return 200, action(study, sent)
    except NameTaken as error:
        return 409, {"error": describe(error), "taken": True}
    except NotHeard as error:
        return 409, {"error": describe(error), "heard": False}
    except UserError as error:
        return 400, {"error": describe(error)}
    except OSError as error:
        _log(f"not saved: {describe(error)}")
        return 503, {"error": "not saved yet; the page tries again"}


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _clip(study: Study, key: str, number: int) -> bytes:
    with study.store.reading() as connection:
        _, trial = found_trial(connection, key)
    waves = sounds(study, trial)
    if not 0 <= number < len(waves):
        raise UserError(f"there is no sound {number} in this question")
    return encoded(waves[number], ".flac")


def _tones(study: Study, key: str, number: int) -> bytes:
    return encoded(study_views.headphone_sound(study, key, number), ".flac")


def serve_study(study: Study, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serves the page until it is interrupted; by default only to this machine.

    Args:
        study: what is asked.
        host: an address of this machine. Any that others reach asks for the token of the study.
        port: 0 takes a free one.

    Raises:
        UserError: for an invalid host or port, while another process serves the same file of
            votes, and without the extra ``app``.
        OSError: for a port that is in use.
    """
    is_here = is_this_machine(host)
    check_port(port, lowest=0)
    token = None if is_here else access_token(study)
    app = LabelPage(study, token).app()
    import uvicorn

    with served_alone(study.store.path):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            server = socket.create_server((host, port), family=family)
        except OSError as error:
            raise cannot_serve(host, port, error) from error
        place = address(host, server.getsockname()[1])
        print(f"open {place}/" + ("" if token is None else f"?token={token}"), flush=True)
        if token is not None:
            print("whoever has this address can take part; it stays the same after a restart")
        with server:
            config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
            uvicorn.Server(config).run(sockets=[server])
