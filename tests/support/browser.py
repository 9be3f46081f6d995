"""A real Chromium, driven through its debugging pipe: no library and no port is needed."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

BROWSER = shutil.which("chromium") or ""
FLAGS = [
    *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-debugging-pipe"],
    *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
    # Whatever the browser itself would like to fetch goes to a closed port; loopback is not proxied.
    *["--proxy-server=127.0.0.1:9", "--proxy-bypass-list=<-loopback>;127.0.0.1"],
]


class Page:
    """One page of the browser, commanded by the DevTools protocol."""

    def __init__(self, to_browser: int, from_browser: BinaryIO) -> None:
        self._to, self._from, self._number = to_browser, from_browser, 0
        self._session: str | None = None
        self.errors: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> Any:
        """The result of one command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"])[:500])
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(answer["params"]["entry"]["text"])

    def _read(self) -> Any:
        content = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "the browser has ended"
            content += byte
        return json.loads(content)

    def open(self, url: str, *, width: int = 1200, height: int = 900) -> None:
        """Show an address in a window of a size, and wait until it is complete."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """What a script gives."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str, *, seconds: float = 20) -> None:
        """Wait until a script gives something true."""
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, f"not true after {seconds} s: {script}"
            time.sleep(0.05)

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to an input element."""
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag with the left button from one point of the window to another."""
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        for kind, (x, y) in (
            ("mousePressed", start),
            ("mouseMoved", middle),
            ("mouseMoved", end),
            ("mouseReleased", end),
        ):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def press(self, key: str, *, text: str = "") -> None:
        """Press and release a key, such as Tab, or Enter with the text of a line end."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        for kind in ("keyDown", "keyUp"):
            shown = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes.get(key, 0), **shown)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.ask("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """Write what is shown as a PNG."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a new browser with an empty profile."""
    read_by_browser, to_browser = os.pipe()
    from_browser, written_by_browser = os.pipe()
    # The browser reads commands from descriptor 3 and answers on 4, which the shell connects.
    line = f'exec "$0" "$@" 3<&{read_by_browser} 4>&{written_by_browser}'
    words = ["bash", "-c", line, BROWSER, *FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        words, pass_fds=(read_by_browser, written_by_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(read_by_browser)
    os.close(written_by_browser)
    try:
        with os.fdopen(from_browser, "rb") as answers:
            yield Page(to_browser, answers)
    finally:
        process.terminate()
        process.wait(20)
        os.close(to_browser)
