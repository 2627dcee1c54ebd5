"""Requests to the Hub whose answers have a bound: in bytes, seconds, redirects and pages.

They go through the session of an unmodified ``huggingface_hub`` (its proxies, certificates and
offline switch), but are read here: the client itself decompresses and reads whatever comes. A token
goes to the Hub's own host only.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from zoo.errors import UserError
from zoo.hub.untrusted import parse_json, shown
from zoo.secrets import without_secrets

ANSWER_BYTES = 8 * 2**20  # a page of 1,000 listed files is half a megabyte
ANSWER_SECONDS = 120.0  # for the whole of such an answer
PAGES = 100  # of a listing, 1,000 files each
_REDIRECTS = 5
_ATTEMPTS = 5  # of a download, with less than this in between
_PROGRESS_BYTES = 64 * 2**10
_BUSY = (408, 429, 500, 502, 503, 504)
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")


class HubAnswerError(OSError):
    """The Hub answered with an error.

    ``status``: of HTTP; ``code``: the Hub's word, "" for none.
    """

    def __init__(self, status: int, code: str, is_bad_token: bool) -> None:
        super().__init__(f"the Hub answered {status}")
        self.status = status
        self.code = code
        self.is_bad_token = is_bad_token


@dataclass(frozen=True)
class Asker:
    """Who asks: the Hub's address, and the token that it may see (None: the client's own)."""

    endpoint: str
    token: str | None

    def __str__(self) -> str:
        return without_secrets(self.endpoint)  # it may hold a proxy's password

    def headers(self, url: str) -> dict[str, str]:
        """The client's headers for ``url``; no other host than the Hub's sees the token.

        Raises ``UserError`` for a token that cannot be sent.
        """
        from huggingface_hub.utils import build_hf_headers

        found = build_hf_headers(token=self.token)
        headers = {name.lower(): value for name, value in found.items()}
        if not re.fullmatch(r"[\x20-\x7e]*", headers.get("authorization", "")):
            raise UserError(
                "the access token holds a character that cannot be sent (a line "
                "break?); set HF_TOKEN again"
            )
        if origin(url) != origin(self.endpoint):
            headers.pop("authorization", None)
        return headers | {"accept-encoding": "identity"}


def origin(url: str) -> tuple[str, str, int | None]:
    """(scheme, host, port) of an address. Raises ``UserError`` for anything but plain http(s)."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port
    except ValueError:  # a port that is not a number, a bracket that is not closed
        host = ""
    if (
        len(url) > 8192
        or not re.fullmatch(r"[\x21-\x7e]+", url)
        or not _HOST.fullmatch(host)
        or (parts.scheme not in ("http", "https"))
    ):
        raise UserError(
            f"the Hub named an address that is not a plain one of http or https: {shown(url, 80)}"
        )
    return parts.scheme, host, port or {"http": 80, "https": 443}[parts.scheme]


def answer(asker: Asker, url: str) -> tuple[Any, str | None]:
    """(the JSON at an address of the Hub, the address of its next page or None).

    Raises ``HubAnswerError``, ``ConnectionError`` for what is not JSON (the login page of a hotel's
    network), ``UserError`` for JSON that is too long or deep, or that leads to another host, and
    the client's ``HTTPError``.
    """
    end = time.monotonic() + ANSWER_SECONDS
    with _opened(asker, url, stays=True) as response:
        kind = shown(response.headers.get("content-type", "no type"), 60)
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > ANSWER_BYTES:
                raise UserError(
                    f"{asker} answered with more than {ANSWER_BYTES:,} bytes where a "
                    "short list was expected; nothing was kept"
                )
            if time.monotonic() > end:
                raise ConnectionError(
                    f"{asker} took more than {ANSWER_SECONDS:.0f} s for a short "
                    "answer; try again later"
                )
        if "json" not in kind.lower() or content[:64].lstrip().startswith(b"<"):
            raise ConnectionError(
                f"{asker} answered with a page ({kind}) instead of JSON: is there a "
                "login page of this network (hotel, company) to pass, or does "
                "HF_ENDPOINT name something other than a Hub?"
            )
        found = response.links.get("next", {}).get("url")
    return parse_json(bytes(content), f"the answer of {asker}"), _next_page(asker, url, found)


def pages(asker: Asker, url: str) -> Iterator[Any]:
    """Each page of a listing that continues at ``Link: <...>; rel="next"``.

    Raises as ``answer``, and ``UserError`` for one that leads back or has more than ``PAGES``
    pages.
    """
    seen: set[str] = set()
    while url not in seen:
        if len(seen) == PAGES:
            raise UserError(f"the listing of {asker} has more than {PAGES} pages; nothing is kept")
        seen.add(url)
        page, following = answer(asker, url)
        yield page
        if following is None:
            return
        url = following
    raise UserError(f"the listing of {asker} returns to an earlier page; nothing was kept")


def download(
    asker: Asker, url: str, path: Path, size_bytes: int, report: Callable[[int], None]
) -> None:
    """The bytes of a file into ``path``, from where an earlier attempt stopped.

    The storage that the Hub redirects to gets no token.

    Args:
        asker, url: who asks, and for which file.
        path: where the bytes go; links are not followed.
        size_bytes: how many the Hub listed.
        report: called with how many bytes are there.

    Raises ``HubAnswerError``, ``UserError`` for another number of bytes than ``size_bytes``,
    ``OSError`` of the disk, and the client's ``HTTPError`` after five attempts that returned
    next to nothing.
    """
    from huggingface_hub.errors import HTTPError

    attempt = 0
    while not path.is_file() or path.stat().st_size < size_bytes:
        start = path.stat().st_size if path.is_file() else 0
        try:
            _download_once(asker, url, path, size_bytes, report)
        except HubAnswerError as error:
            attempt += 1
            if error.status != 416 or not start or attempt == _ATTEMPTS:
                raise
            path.unlink()  # what waits here is longer than what the storage has
        except HTTPError:
            there = path.stat().st_size if path.is_file() else 0
            attempt = 1 if there >= start + _PROGRESS_BYTES else attempt + 1
            if attempt == _ATTEMPTS:
                raise
            time.sleep(1)


def _download_once(
    asker: Asker, url: str, path: Path, size_bytes: int, report: Callable[[int], None]
) -> None:
    start = path.stat().st_size if path.is_file() else 0
    with (
        _opened(asker, url, stays=False, start=start) as response,
        open(path, "ab", opener=_no_link) as file,
    ):
        if response.status_code == 200 and start:  # the whole again
            file.truncate(0)
            start = 0
        elif start and not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
            raise UserError("the storage sent another part than the requested one; pull again")
        for chunk in response.iter_raw():
            if start + len(chunk) > size_bytes:
                raise UserError(f"it is longer than the {size_bytes} bytes that the Hub listed")
            file.write(chunk)
            start += len(chunk)
            report(start)
    if start != size_bytes:
        raise UserError(
            f"{start} bytes arrived, expected the {size_bytes} that the Hub listed; pull again"
        )


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextlib.contextmanager
def _opened(asker: Asker, url: str, *, stays: bool, start: int = 0) -> Iterator[Any]:
    """The answer at an address after redirects, its body unread. ``stays``: not to another host."""
    for _ in range(_REDIRECTS + 1):
        response = _sent(asker, url, start)
        try:
            if response.status_code not in (301, 302, 303, 307, 308):
                if response.status_code not in (200, 206):
                    raise _error(response)
                encoding = response.headers.get("content-encoding", "identity").strip().lower()
                if encoding not in ("", "identity"):
                    raise UserError(
                        f"{asker} answered compressed ({shown(encoding, 20)}) although "
                        "that was not asked for; nothing was read"
                    )
                yield response
                return
            url = _target(asker, url, response.headers.get("location", ""), stays)
        finally:
            response.close()
    raise UserError(f"{asker} redirected more than {_REDIRECTS} times; stopped")


def _sent(asker: Asker, url: str, start: int) -> Any:
    from huggingface_hub import constants, get_session

    headers = asker.headers(url) | ({"range": f"bytes={start}-"} if start else {})
    for seconds in (1, 2, 4, None):
        session = get_session()
        try:
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            request = session.build_request("GET", url, headers=headers, timeout=timeout)
        except Exception as error:  # its own InvalidURL, of no public base class
            raise UserError(f"the Hub named an impossible address: {shown(url, 80)}") from error
        response = session.send(request, stream=True, follow_redirects=False)
        if response.status_code not in _BUSY or seconds is None:
            break
        response.close()
        time.sleep(seconds)  # what the server proposes could be a year
    return response


def _error(response: Any) -> HubAnswerError:
    """Only known words of the answer are kept: its text is not read."""
    words = {name: response.headers.get(name, "") for name in ("x-error-code", "x-error-message")}
    known = ("RepoNotFound", "RevisionNotFound", "EntryNotFound", "GatedRepo")
    code = words["x-error-code"] if words["x-error-code"] in known else ""
    is_bad_token = words["x-error-message"].startswith("Invalid credentials")
    return HubAnswerError(response.status_code, code, is_bad_token)


def _target(asker: Asker, url: str, location: str, stays: bool) -> str:
    new = urljoin(url, location)
    if stays and origin(new) != origin(asker.endpoint):
        raise ConnectionError(
            f"{asker} sent this request on to another host ({_host(new)}): is there "
            "a login page of this network (hotel, company) to pass?"
        )
    if origin(url)[0] == "https" and origin(new)[0] != "https":
        raise UserError(f"{asker} redirected from https to an address without encryption; stopped")
    return new


def _next_page(asker: Asker, url: str, found: str | None) -> str | None:
    if found is None:
        return None
    from huggingface_hub.utils import fix_hf_endpoint_in_url

    new = fix_hf_endpoint_in_url(urljoin(url, found), asker.endpoint)
    if origin(new) != origin(asker.endpoint):
        raise UserError(
            f"the listing of {asker} continues at another host ({_host(new)}); it is not followed"
        )
    return new


def _host(url: str) -> str:
    return shown(urlsplit(url).hostname or "", 60)
