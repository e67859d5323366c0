"""A real browser for tests: headless Chromium, spoken to over the pipe of its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None) if os.name == "posix" else None  # pipes as descriptors
_SECONDS = 240  # for all that one test asks; then the browser is ended, and what waits for it fails


class Page:
    """One page in a browser of its own. Keeps all that goes wrong on it, and every address it asks for."""

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._loaded = False
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # The protocol's ends are descriptors 3 and 4; a shell puts them there, as subprocess can only keep numbers.
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", CHROMIUM, *flags, "--disable-background-networking",
             f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe"],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._in = os.fdopen(ours_in, "rb")
        self._out = os.fdopen(ours_out, "wb", buffering=0)
        self._limit = threading.Timer(_SECONDS, self._process.kill)
        self._limit.start()
        self._session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._limit.cancel()
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()
        self._profile.cleanup()

    def open(self, file: Path, width: int, scheme: str = "light") -> None:
        """Load a file in a window of that width, and wait until it is drawn."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.ask("Emulation.setScrollbarsHidden", hidden=True)  # a screenshot of the whole page has none
        self._loaded = False
        found = self.ask("Page.navigate", url=file.as_uri())
        assert "errorText" not in found, found
        while not self._loaded:  # the event may come before the answer
            self._read()

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """Write the whole page as a PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def ask(self, method: str, **params: Any) -> Any:
        """Send one command and return its answer; events before it are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser ended"
            text += byte
        message: dict[str, Any] = json.loads(text)
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.problems.append(json.dumps(params))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
                self.problems.append(json.dumps(params))
        return message


def check_page(file: Path, title: str, sections: list[str], also: str = "true") -> None:
    """Look at a report in a wide and a narrow window, light and dark: nothing is missing, spilt or from outside.

    Args:
        file: The page.
        title: Its heading.
        sections: Names of its sections, in order.
        also: A JavaScript expression that holds in each view.
    """
    backgrounds = set()
    with Page() as page:
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
            page.open(file, width, scheme)
            page.run("document.querySelectorAll('details').forEach(part => part.open = true)")
            assert page.run("innerWidth") == width
            assert page.run("document.documentElement.scrollWidth") <= width
            spilt = "[...document.querySelectorAll('section, .card')].filter(s => s.scrollWidth > s.clientWidth)"
            assert page.run(f"{spilt}.map(s => s.id || s.className)") == []
            seen = "[...document.querySelectorAll('section')].filter(s => s.offsetHeight > 60).map(s => s.id)"
            assert page.run(seen) == sections
            assert page.run("document.querySelectorAll('script, img, link, iframe').length") == 0
            assert page.run("document.querySelector('h1').innerText") == title
            assert page.run(also) is True
            backgrounds.add(page.run("getComputedStyle(document.body).backgroundColor"))
        assert page.problems == []
        assert set(page.requests) == {file.as_uri()}
        picture = file.with_suffix(".png")
        page.screenshot(picture)
    assert len(backgrounds) == 2
    assert picture.stat().st_size > 10_000
