"""A headless Chromium, driven through its DevTools protocol on two pipes."""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import time
from typing import Any

# By what names it is installed.
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Nothing that it does by itself: no network, no first steps.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Seconds for an answer; a machine with other work to do is slow.
LIMIT = 120
# How many charts are drawn in a place: Bokeh does so within shadow roots, which selectors do not
# see.
_DRAWN = """
(() => {
  const svg = (x) => x.tagName.toLowerCase() === "svg";
  const drawn = (root) => [...root.querySelectorAll("*")].reduce(
    (n, x) => n + svg(x) + (x.shadowRoot ? drawn(x.shadowRoot) : 0), 0);
  return [...document.querySelectorAll("PLACE")].reduce((n, x) => n + drawn(x), 0);
})()
"""


def path() -> str | None:
    """Where Chromium is; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A page in Chromium.

    Args:
        folder: an empty folder for its profile.
        width: of the window, in pixels.
        height: of the window.

    Attributes:
        problems: errors and warnings of the console, and exceptions, so far.
        requests: the addresses that the page has asked for.
    """

    def __init__(self, folder: pathlib.Path, width: int = 1200, height: int = 900) -> None:
        commands, answers = os.pipe(), os.pipe()
        # It reads commands from 3 and answers on 4.
        shell = f'exec "$@" 3<&{commands[0]} 4>&{answers[1]}'
        arguments = [str(path()), *FLAGS, f"--user-data-dir={folder}"]
        arguments += [f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *arguments],
            pass_fds=(commands[0], answers[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands[0])
        os.close(answers[1])
        self._commands, self._answers = commands[1], answers[0]
        self._read, self._number = b"", 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.requests: list[str] = []
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(x["targetId"] for x in targets if x["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict:
        """The result of a command."""
        self._number += 1
        message: dict = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def _next(self) -> dict:
        """The next message, noted where it is of a problem."""
        until = time.monotonic() + LIMIT
        while b"\0" not in self._read:
            left = until - time.monotonic()
            assert left > 0 and select.select([self._answers], [], [], left)[0], "No answer."
            self._read += os.read(self._answers, 2**16)
        message, _, self._read = self._read.partition(b"\0")
        found = json.loads(message)
        self._note(found.get("method"), found.get("params", {}))
        return found

    def _note(self, method: str | None, params: dict) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:2000])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(json.dumps(params["args"])[:2000])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, file: pathlib.Path) -> None:
        """Opens a file, and waits until it is loaded."""
        self.send("Page.navigate", url=file.resolve().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """The value of a script, once it is there."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for_charts(self, place: str, count: int) -> None:
        """Until so many charts are drawn in the elements of a selector."""
        until = time.monotonic() + LIMIT
        while (found := self.run(_DRAWN.replace("PLACE", place))) < count:
            assert time.monotonic() < until, f"{found} of {count} charts in {place}."
            time.sleep(0.05)

    def screenshot(self, file: pathlib.Path, whole: bool = False) -> None:
        """Writes what is seen, or the whole page, as PNG."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    def picture(
        self, page: pathlib.Path, file: pathlib.Path, size: tuple[int, int], layer: str = ""
    ) -> None:
        """Writes what a screen of a size shows of a report: its top, or a layer, opened, as PNG."""
        self.resize(*size)
        self.open(page)
        self.wait_for_charts("#depth", 1)
        if layer:
            row = f"document.querySelector('tr[data-name={json.dumps(layer)}]')"
            self.run(f"{row}.querySelector('button').click()")
            charts = "tr.detail .chart"
            self.wait_for_charts(charts, self.run(f"document.querySelectorAll('{charts}').length"))
            self.run(f"{row}.scrollIntoView()")
        self.screenshot(file)

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Shows the page on a screen of another size."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    def close(self) -> None:
        """Ends Chromium."""
        self._session = None
        try:
            self.send("Browser.close")
            self._process.wait(LIMIT)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._commands)
            os.close(self._answers)
