"""Drives a headless Chromium through its debugging pipe: no driver and no package is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
)
PATIENCE_S = 60.0
# the browser reads commands from descriptor 3 and writes to 4
_AT_3_AND_4 = """
import fcntl, os, sys
reader, writer = (fcntl.fcntl(int(word), fcntl.F_DUPFD, 10) for word in sys.argv[1:3])
os.dup2(reader, 3)
os.dup2(writer, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def chromium() -> str:
    """The browser. Skips the test, saying so, where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("NOT RUN: no chromium on this machine (Debian: apt install chromium)")
    return found


class Browser:
    """A running Chromium: commands of the DevTools protocol, one at a time."""

    def __init__(self, profile: Path) -> None:
        self.program = chromium()
        to_child, self.writer = os.pipe()
        self.reader, from_child = os.pipe()
        words = [self.program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        start = [sys.executable, "-S", "-c", _AT_3_AND_4, str(to_child), str(from_child), *words]
        self.process = subprocess.Popen(
            start,
            pass_fds=(to_child, from_child),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self.count = 0
        self.left = b""

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self.writer, json.dumps(message, allow_nan=False).encode() + b"\0")
        until = time.monotonic() + PATIENCE_S
        while (answer := self._message(until)).get("id") != self.count:
            pass
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.left:
            ready, _, _ = select.select([self.reader], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self.reader, 1 << 20)
            assert part, "the browser has ended"
            self.left += part
        message, _, self.left = self.left.partition(b"\0")
        return json.loads(message)

    def page(self, address: str, width: int = 1000, height: int = 760) -> Page:
        """A new window without cookies of the others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)[
            "targetId"
        ]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        page.resize(width, height)
        page.go(address)
        return page

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        os.close(self.reader)
        os.close(self.writer)


class Page:
    """One window."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser = browser
        self.session = session

    def call(self, method: str, **parameters: Any) -> Any:
        return self.browser.call(method, self.session, **parameters)

    def go(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && !!document.body")

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression, also of a promise."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 30.0) -> Any:
        """Waits until an expression is true and returns its value."""
        until = time.monotonic() + seconds
        while True:
            value = self.value(expression)
            if value:
                return value
            if time.monotonic() > until:
                text = self.value("document.body && document.body.innerText")
                raise AssertionError(f"waited in vain for {expression}; the page: {text}")
            time.sleep(0.03)

    def click(self, selector: str) -> None:
        enabled = json.dumps(f"{selector}:not(:disabled)")
        self.wait(f"!!document.querySelector({enabled})")
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def key(self, key: str) -> None:
        """Presses a key as a keyboard does."""
        codes = {" ": ("Space", 32), "Enter": ("Enter", 13), "ArrowLeft": ("ArrowLeft", 37)}
        name = f"Digit{key}" if key.isdigit() else f"Key{key.upper()}"
        code, number = codes.get(key, (name, ord(key[0].upper())))
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        written = {"Enter": "\r"}.get(key, key)
        text = {} if len(written) > 1 else {"text": written}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    running = Browser(profile)
    try:
        yield running
    finally:
        running.close()
