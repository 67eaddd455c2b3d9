"""Headless Chromium for tests of pages: its DevTools protocol over a pair of pipes, without another package.

Source: https://chromedevtools.github.io/devtools-protocol; messages are JSON that ends with a zero byte, on the
descriptors 3 and 4 of the browser (``--remote-debugging-pipe``).
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "no Chromium on this machine; install it, on Debian with `apt-get install chromium`"


class Tab:
    """A page in a browser.

    Attributes:
        complaints: what it wrote to its console, and exceptions, since it was opened.
    """

    def __init__(self, sent: int, received: int):
        self.complaints: list[str] = []
        self._sent, self._received, self._rest, self._number, self._events = sent, received, b"", 0, list[str]()
        self._session: str | None = None
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, *, width: int, dark: bool = False, media: str = "screen") -> None:
        """Opens a file in a window of this width."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self._call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
        self._events.clear()
        self._call("Page.navigate", {"url": path.resolve().as_uri()})
        while "Page.loadEventFired" not in self._events:
            self._next()

    def value(self, expression: str) -> Any:
        """The value of an expression in JavaScript."""
        found = self._call("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """Writes the whole page as PNG."""
        shot = self._call("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self._call("Page.printToPDF", {"preferCSSPageSize": True})["data"])

    def _call(self, method: str, given: dict[str, Any] | None = None) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": given or {}}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._sent, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._received, 2**16)
            assert more, "the browser has ended"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        if name := message.get("method"):
            self._events.append(name)
            if name in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.complaints.append(json.dumps(message["params"])[:2000])
        return message


@contextlib.contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A browser without a window, with one page; skips the test where there is no Chromium.

    Args:
        profile: an empty folder for what it remembers.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(MISSING)
    commands, answers = os.pipe(), os.pipe()

    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += [f"--user-data-dir={profile}", "--remote-debugging-pipe", "--hide-scrollbars"]
    pipes = f'exec "$0" "$@" 3</proc/self/fd/{commands[0]} 4>/proc/self/fd/{answers[1]}'
    process = subprocess.Popen(
        ["sh", "-c", pipes, program, *options],
        pass_fds=(commands[0], answers[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands[0])
    os.close(answers[1])
    try:
        yield Tab(commands[1], answers[0])
    finally:
        process.kill()
        process.wait()
        os.close(commands[1])
        os.close(answers[0])
