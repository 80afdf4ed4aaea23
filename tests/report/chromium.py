"""A headless Chromium, spoken to over its debugging pipe: enough to open a page, press keys and look."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ARTEFACTS = Path(__file__).parents[2] / "artefacts"
PROGRAM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

# Scripts that find what a reader cannot use: charts that cannot be saved, controls without a name, tables with hidden
# columns, and text of too little contrast.
UNSAVED = """[...document.querySelectorAll('svg.chart')]
  .filter((one) => [...one.closest('figure').querySelectorAll('.tools button')].map((button) => button.textContent)
    .slice(0, 2).join() !== 'CSV,PNG')
  .map((one) => one.outerHTML.slice(0, 200))"""
# What a click on a download button of a figure saves: the file's name, and its bytes in base64.
SAVED = """new Promise((done) => {{
  HTMLAnchorElement.prototype.click = async function () {{
    const bytes = new Uint8Array(await (await savedBlob).arrayBuffer());
    done([this.download, btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''))]);
  }};
  let savedBlob;
  const make = URL.createObjectURL;
  URL.createObjectURL = (blob) => {{ savedBlob = blob; return make.call(URL, blob); }};
  [...document.querySelectorAll('{figure} .tools button')].find((one) => one.textContent === '{kind}').click();
}})"""
NAMELESS = """[...document.querySelectorAll('button, select, input, svg[role], [tabindex="0"]:not(.token)')]
  .filter((one) => one.checkVisibility() && !one.ariaLabel && !one.labels?.length
    && (one.tagName === 'SELECT' || !one.textContent.trim()))
  .map((one) => one.outerHTML.slice(0, 200))"""
HIDDEN = """[...document.querySelectorAll('.scroll')]
  .filter((one) => one.checkVisibility() && one.scrollWidth > one.clientWidth)
  .map((one) => one.textContent.trim().slice(0, 80))"""
FAINT = """(() => {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const over = (colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => (node ? [...ground(node.parentElement), getComputedStyle(node).backgroundColor] : []);
  const faint = [];
  for (const node of document.body.querySelectorAll('*')) {
    const written = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!written || !node.checkVisibility() || node.closest('.overlay, script, option, :disabled')) continue;
    const below = ground(node);
    const style = getComputedStyle(node);
    const pair = [light(over([...below, node.closest('svg') ? style.fill : style.color])), light(over(below))];
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (contrast < 4.5) faint.push([node.outerHTML.slice(0, 80), contrast]);
  }
  return faint;
})()"""


def require_browser() -> str:
    """The browser's path. Without one a test is skipped, but fails in continuous integration (`CI` is set)."""
    if PROGRAM is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("found neither chromium nor google-chrome on PATH: install one (Debian: apt-get install chromium)")
    return PROGRAM


class Chromium:
    """One page of a browser; `complaints` collects console errors, exceptions and network requests."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self.requests = os.pipe()
        self.replies, from_browser = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4.
        shell = f"exec {program} {' '.join(FLAGS)} --user-data-dir={profile} 3<&{to_browser} 4>&{from_browser}"
        self.process = subprocess.Popen(
            ["bash", "-c", shell],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(profile)},  # what it leaves behind goes with the profile
        )
        os.close(to_browser)
        os.close(from_browser)
        self.buffer = b""
        self.last_id = 0
        self.session: str | None = None
        self.complaints: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.requests, json.dumps(message).encode() + b"\0")
        while True:
            reply = self.receive()
            if reply.get("id") == self.last_id:
                assert "error" not in reply, reply
                return reply["result"]
            self.note(reply)

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = os.read(self.replies, 1 << 20)
            assert part, "the browser has gone"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def note(self, event: dict[str, Any]) -> None:
        method, parameters = event["method"], event["params"]
        self.loaded |= method == "Page.loadEventFired"
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(parameters)[:600])
        if method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith(("data:", "file:", "about:")):
                self.complaints.append(f"request: {url}")

    def show(self, page: Path, width: int = 1280, height: int = 900, theme: str = "light") -> None:
        """Load a file and wait until it has loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1 if width > 600 else 2,
            mobile=width <= 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.loaded = False
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self.loaded:
            self.note(self.receive())

    def evaluate(self, script: str) -> Any:
        """The value of a script; that of its promise, once there is one."""
        reply = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def keep_picture(self, name: str) -> None:
        """Write the whole page as it is shown to `artefacts/NAME.png`, for eyes."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        png = base64.b64decode(self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"])
        ARTEFACTS.mkdir(exist_ok=True)
        (ARTEFACTS / f"{name}.png").write_bytes(png)

    def saved(self, figure: str, kind: str) -> tuple[str, bytes]:
        """The file that a download button of a figure makes: its name and content."""
        name, content = self.evaluate(SAVED.format(figure=figure, kind=kind))
        return name, base64.b64decode(content)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def point_at(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press at one place, move to another and release there."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            button = {"button": "left", "clickCount": 0 if kind == "mouseMoved" else 1, "buttons": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.requests)
        os.close(self.replies)
