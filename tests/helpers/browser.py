"""Chromium over its DevTools protocol: one process, one page, and what tests of a static page need.

It downloads neither a driver nor a browser. `find()` looks for the system's, and tests are skipped
where there is none.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from websocket import create_connection

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
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
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
PATIENCE = 30  # seconds, for any single answer


def find() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A page in a browser.

        with Browser() as page:
            page.open(path)
            page.run("document.title")

    Attributes:
        complaints: Console errors and failed requests.
    """

    def __init__(self, width: int = 1280, height: int = 900):
        self.size = width, height

    def __enter__(self) -> Browser:
        self.profile = tempfile.TemporaryDirectory(
            prefix="pcb-chromium-", ignore_cleanup_errors=True
        )
        self.process = subprocess.Popen(
            [find(), *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        address = next(
            m[1]
            for line in self.process.stderr
            if (m := re.search(r"DevTools listening on (ws://\S+)", line))
        )
        self.socket = create_connection(address, timeout=PATIENCE)
        self.count, self.session, self.events, self.complaints = 0, None, [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(*self.size)
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.process.stderr.close()
        self.profile.cleanup()

    def send(self, method: str, **params) -> dict:
        """Send a command and return its result; events that arrive meanwhile are kept."""
        self.count += 1
        command = {"id": self.count, "method": method, "params": params}
        self.socket.send(
            json.dumps(command | ({"sessionId": self.session} if self.session else {}))
        )
        while (message := json.loads(self.socket.recv())).get("id") != self.count:
            self.note(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def note(self, message: dict) -> None:
        self.events.append(message.get("method"))
        match message.get("method"), message.get("params", {}):
            case "Runtime.exceptionThrown", what:
                self.complaints.append(what["exceptionDetails"])
            case "Runtime.consoleAPICalled", {"type": "error" | "warning"} as what:
                self.complaints.append(what["args"])
            case "Log.entryAdded", {"entry": {"level": "error" | "warning"} as entry}:
                self.complaints.append(entry)
            case "Network.loadingFailed", {"canceled": False} as what:
                self.complaints.append(what)

    def open(self, page: str | Path) -> None:
        """Load a file or an address, and wait until it has loaded."""
        self.events.clear()
        self.send(
            "Page.navigate", url=page if "://" in str(page) else Path(page).absolute().as_uri()
        )
        while "Page.loadEventFired" not in self.events:
            self.note(json.loads(self.socket.recv()))

    def run(self, expression: str):
        """The value of a JavaScript expression, awaited if it is a promise."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """Click in the middle of the first element that matches."""
        x, y = self.run(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center", inline: "center", behavior: "instant"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowDown": 40}[key]
        self.send(
            "Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text
        )
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    def dark(self, dark: bool = True) -> None:
        self.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    def picture(self, path: str | Path, whole: bool = False) -> None:
        """Save a screenshot of what is in view, or of the whole page."""
        Path(path).write_bytes(
            base64.b64decode(
                self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
            )
        )
