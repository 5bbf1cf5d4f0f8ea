"""Opens a page in a headless Chromium, through the DevTools protocol over a pipe: no port, no driver, no network."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str | None:
    """Returns the reason that there is no browser to use; None if there is one."""
    if any(map(shutil.which, NAMES)):
        return None
    return f"needs one of {', '.join(NAMES)} on PATH (Debian: apt-get install chromium)"


class Page:
    """A page opened from a file. A context manager."""

    def __init__(self, file: Path, profile: Path) -> None:
        executable = next(filter(None, map(shutil.which, NAMES)))
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # Above the numbers that the shell gives away below.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
        flags = ["--headless", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", "--no-first-run"]
        if hasattr(os, "getuid") and os.getuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to sandbox root's pages
        shell = 'exec 3<&$0 4>&$1; shift 1; exec "$@"'  # the protocol's pipes are file descriptors 3 and 4
        self._process = subprocess.Popen(
            ["bash", "-c", shell, *map(str, ends), executable, *flags, f"--user-data-dir={profile}"],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_browser, from_browser, *ends):
            os.close(end)
        self._ids, self._buffer = itertools.count(1), b""
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True}, session=None)
        self._session: str = attached["sessionId"]
        for domain in ("Page", "Network", "Log"):
            self._call(f"{domain}.enable")
        self._url = file.resolve().as_uri()

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._write)
        os.close(self._read)

    def load(self, width: int, height: int, *, phone: bool) -> None:
        """Shows the page in a window of that size in CSS pixels."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._call("Emulation.setDeviceMetricsOverride", screen)
        self.events.clear()
        self._call("Page.navigate", {"url": self._url})
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()

    def ask(self, script: str) -> Any:
        """Returns the value of a JavaScript expression, as JSON gives it."""
        return self._call("Runtime.evaluate", {"expression": script, "returnByValue": True})["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Returns the window as a PNG, or the whole page."""
        found = self._call("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(found["data"]))

    def requests(self) -> list[str]:
        """Returns the URLs requested since the page was loaded."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Returns what the browser's console says against the page."""
        return [e["params"]["entry"]["text"] for e in self.events if e["method"] == "Log.entryAdded"]

    def _call(self, method: str, params: dict[str, Any] | None = None, session: Any = ...) -> dict[str, Any]:
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": params or {}}
        if session is ...:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError(f"the browser has gone, exit code {self._process.wait(timeout=30)}")
            self._buffer += part
        text, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message
