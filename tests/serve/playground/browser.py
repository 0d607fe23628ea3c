"""A real Chromium, driven over its own debugging protocol: what a person would see, and all that goes over the network."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESKTOP = (390, 844), (1280, 900)
ARTEFACTS = Path(__file__).parents[3] / "build" / "screenshots"
"""Where the screenshots of the tests lie, for people to look at; git leaves the folder alone."""


class Tab:
    """One page, with what it asked of the network and what its console said."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.asked: list[str] = []
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **given: Any) -> Any:
        """One command, and its answer; events that come in between are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": given}))
        while True:
            met = json.loads(self._socket.recv(timeout=60))
            if met.get("id") == self._number:
                assert "error" not in met, (method, met["error"])
                return met["result"]
            self._note(met)

    def _note(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.asked.append(told["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def look(self, size: tuple[int, int], *, dark: bool = False) -> None:
        """Be a screen of this size, in light or in dark mode."""
        phone = size[0] < 600
        self.do("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=phone)
        scheme = "dark" if dark else "light"
        self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url: str, ready: str) -> None:
        """Go there, and wait until `ready` (JavaScript) is true."""
        self.do("Page.navigate", url=url)
        self.until(ready)

    def value(self, script: str) -> Any:
        """What an expression is worth in the page."""
        found = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (script, found["exceptionDetails"])
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 40.0) -> None:
        """Wait for an expression to be true."""
        end = time.monotonic() + seconds
        while not self.value(f"!!({script})"):
            assert time.monotonic() < end, f"waited in vain for {script}; errors: {self.errors}"
            time.sleep(0.05)

    def type(self, selector: str, text: str) -> None:
        """Write into a field as a person does."""
        self.value(f"document.querySelector({json.dumps(selector)}).focus()")
        self.value(f"document.querySelector({json.dumps(selector)}).select?.()")
        self.do("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Press a button."""
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def screenshot(self, name: str, *, whole: bool = True) -> bytes:
        """A picture of the page from its top to its end, kept under ARTEFACTS."""
        shape = self.do("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": shape["width"], "height": shape["height"], "scale": 1}
        more = {"clip": clip, "captureBeyondViewport": True} if whole else {}
        picture = base64.b64decode(self.do("Page.captureScreenshot", format="png", **more)["data"])
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        (ARTEFACTS / f"{name}.png").write_bytes(picture)
        return picture


@contextmanager
def browser() -> Iterator[Tab]:
    """A fresh tab of a fresh Chromium. The test is skipped where there is none, but not in CI: there it must be."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no Chromium: install Debian's package")
        pytest.skip("no Chromium here")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"]
        flags += ["--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={home}", "about:blank"]
        process = subprocess.Popen(
            [program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": home}
        )
        try:
            with connect(_address(Path(home), process), max_size=2**26, open_timeout=30) as socket:
                yield Tab(socket)
        finally:
            process.terminate()
            process.wait(20)


def _address(home: Path, process: subprocess.Popen[bytes]) -> str:
    """Where the first tab listens, once Chromium has told."""
    import httpx

    end = time.monotonic() + 60
    told = home / "DevToolsActivePort"
    while time.monotonic() < end:
        assert process.poll() is None, "Chromium ended at once"
        if told.exists() and len(lines := told.read_text().split()) == 2:
            tabs = httpx.get(f"http://127.0.0.1:{lines[0]}/json/list").json()
            if pages := [tab for tab in tabs if tab["type"] == "page"]:
                return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise AssertionError("Chromium did not say where it listens")
