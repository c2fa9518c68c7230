"""JupyterLab as `make lab` starts it, and a headless Chromium that reads and moves what a notebook shows."""

import base64
import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

from PIL import Image, ImageChops
from playwright.sync_api import TimeoutError, sync_playwright

SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells stand in the page, not only those in view
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
NUMBERED = (
    "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(p => /^\\[\\d+\\]:$/.test(p.textContent))"
)
FAILURES = "[data-mime-type='application/vnd.jupyter.stderr'], .jupyter-widgets-error-widget, .jp-Dialog"  # errors, too
KERNEL = """[...jupyterapp.shell.widgets('main')].find(widget => widget.context?.path === path)
    ?.sessionContext.session?.kernel?.status"""
IDLE = f"{KERNEL} === 'idle'"
CUT_OFF = """root => [root, ...root.querySelectorAll('*')]
    .filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && !e.closest('.slider-container, select'))
    .map(e => `${e.className}: ${e.innerText}`)"""


@contextmanager
def jupyter_lab(folder, home):
    """Run JupyterLab in `folder`, where notebooks/ is, with all it remembers under `home`; yield its address."""
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    config = home / "config" / "jupyter_server_config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"ServerApp": {"allow_root": True}, "LabApp": {"expose_app_in_browser": True}}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    token = secrets.token_hex(16)
    environment = {
        **os.environ,
        **{f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
        **{f"JUPYTERLAB_{name}_DIR": str(home / name.lower()) for name in ("SETTINGS", "WORKSPACES")},
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PORT": port,
        "JUPYTER_TOKEN": token,
        "BNLIB_DATA": "",  # with the next line: the images are the digits, on any machine
        "BNLIB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # kernel, server and browser share the processor
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    address = f"http://127.0.0.1:{port}/lab?token={token}"
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(300):
            if server.poll() is not None:
                raise RuntimeError(f"JupyterLab ended with {server.returncode}:\n{(home / 'log').read_text()}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                    break
            time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


@contextmanager
def chromium(address):
    """Open JupyterLab's `address` in a Chromium without a window; yield the page, which waits for nothing over 20 s."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(20_000)
        page.goto(address)
        page.wait_for_function("window.jupyterapp")
        page.evaluate("jupyterapp.restored")
        yield page
        browser.close()


def wait_until(true, seconds):
    """Return whether `true()` becomes so within `seconds`, asked every 20 ms."""
    end = time.monotonic() + seconds
    while not (now := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return now


def alike(state, other):
    """Return whether two states have the same caption and pictures that differ by at most 16 of 255 shades."""
    (words, png), (others, another) = state, other
    if words != others or png == another:
        return words == others
    difference = ImageChops.difference(Image.open(io.BytesIO(png)), Image.open(io.BytesIO(another)))
    return max(high for _, high in difference.getextrema()) <= 16


class Notebook:
    """A notebook open in JupyterLab, of which `page` shows one at a time."""

    def __init__(self, page, name):
        self.page = page
        self.name = name
        self._path = f"notebooks/{name}.ipynb"
        page.evaluate("path => jupyterapp.commands.execute('docmanager:open', {path}).then(() => {})", self._path)
        self._wait(IDLE)  # cells run before that are forgotten

    def run_all(self, seconds):
        """Choose Run > Run All Cells; return when every code cell has its number or one of them has failed."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self._wait(f"document.querySelector({json.dumps(FAILURES)}) || ({NUMBERED} && {IDLE})", seconds)

    def restart(self):
        """Choose Kernel > Restart Kernel and Clear Outputs."""
        self.page.evaluate("void jupyterapp.commands.execute('kernelmenu:restart-and-clear')")
        self.page.locator(".jp-Dialog").get_by_role("button", name="Confirm Kernel Restart").click()
        self._wait(f"!{NUMBERED} && {IDLE}")

    def _wait(self, true, seconds=20):
        """Wait until an expression of JavaScript comes true; the page itself asks, which costs it least."""
        try:
            self.page.wait_for_function(f"path => {true}", arg=self._path, timeout=seconds * 1000, polling=200)
        except TimeoutError as error:
            prompts = " ".join(self.page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts())
            kernel = self.page.evaluate(f"path => {KERNEL}", self._path)
            error.add_note(f"{self.name} after {seconds} s: {prompts} kernel: {kernel}, {self.complaints()}")
            raise

    def finished(self):
        """Return whether every code cell has its number: none was skipped after an error."""
        return self.page.evaluate(NUMBERED)

    def complaints(self):
        """Return the text of every error, warning, broken widget, dialog and notification in sight."""
        return self.page.locator(f"{FAILURES}, .Toastify__toast").all_inner_texts()

    def explorers(self):
        """Return the explorers on the page, in order."""
        return [ExplorerView(root) for root in self.page.locator(".widget-vbox:has([role=status])").all()]

    def look(self, width, theme):
        """Make the window `width` pixels wide and JupyterLab's theme "light" or "dark"."""
        self.page.set_viewport_size({"width": width, "height": 900})
        name = f"JupyterLab {theme.title()}"
        self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", name)
        self.page.wait_for_function(f"document.body.dataset.jpThemeName === '{name}'")

    def close(self):
        """Close the notebook and end its kernel."""
        self.page.evaluate("void jupyterapp.commands.execute('notebook:close-and-shutdown')")  # it waits for the answer
        self.page.locator(".jp-Dialog").get_by_role("button", name="Ok").click()
        self._wait(f"{KERNEL} === undefined")


class ExplorerView:
    """An explorer as the reader has it: a picture, a caption, and handles to move."""

    def __init__(self, root):
        self.root = root
        self.picture = root.locator("img")
        self.caption = root.locator("[role=status]")
        self.sliders = root.locator(".widget-slider")

    def button(self, words):
        """Return the button that says `words`."""
        return self.root.locator("button").get_by_text(words, exact=True)

    def play_buttons(self):
        """Return the buttons that start and pause a Play widget."""
        return self.root.locator(".widget-play button:first-child").all()

    def says(self, words, seconds=10):
        """Return whether the caption comes to hold `words`."""
        return wait_until(lambda: words in self.caption.inner_text(), seconds)

    def live_sliders(self):
        """Return the numbers of the sliders that can be seen and moved."""
        sliders = enumerate(self.sliders.all())
        return [i for i, slider in sliders if slider.is_visible() and not slider.locator("[disabled]").count()]

    def label(self, slider):
        """Return the words before slider number `slider`."""
        return self.sliders.nth(slider).locator(".widget-label").inner_text()

    def readout(self, slider):
        """Return the value that stands behind slider number `slider`, as text."""
        return self.sliders.nth(slider).locator(".widget-readout").inner_text()

    def press(self, slider):
        """Move slider number `slider` by one arrow key, away from the nearer end."""
        handle = self.sliders.nth(slider).locator(".noUi-handle")
        handle.focus()
        handle.press("ArrowLeft" if self.share(slider) > 0.5 else "ArrowRight")

    def drag(self, slider):
        """Drag slider number `slider` with the mouse, to near the farther end."""
        view = self.sliders.nth(slider)
        view.scroll_into_view_if_needed()
        handle, track = view.locator(".noUi-handle").bounding_box(), view.locator(".noUi-base").bounding_box()
        mouse = self.root.page.mouse
        mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
        mouse.down()
        y = track["y"] + track["height"] / 2
        mouse.move(track["x"] + track["width"] * (0.1 if self.share(slider) > 0.5 else 0.9), y, steps=5)
        mouse.up()

    def share(self, slider):
        """Return how far along its track slider number `slider` stands, from 0 to 1."""
        handle = self.sliders.nth(slider).locator(".noUi-handle")
        low, high, now = (float(handle.get_attribute(f"aria-value{name}")) for name in ("min", "max", "now"))
        return (now - low) / (high - low)

    def state(self):
        """Return the caption and the picture's bytes."""
        return self.caption.inner_text(), base64.b64decode(self.picture.get_attribute("src").partition(",")[2])

    def leaves(self, state, seconds=10):
        """Return whether both caption and picture become others than those of `state`."""
        return wait_until(lambda: all(now != then for now, then in zip(self.state(), state, strict=True)), seconds)

    def comes_to_rest(self, seconds=20):
        """Return whether, within `seconds`, a second passes in which it does not change: what was under way arrives."""
        return wait_until(lambda: not self.leaves(self.state(), seconds=1), seconds)

    def redraws(self, picture, seconds=10):
        """Return whether the picture becomes another than `picture` (its bytes)."""
        return wait_until(lambda: self.state()[1] != picture, seconds)

    def comes_to(self, state, seconds=10):
        """Return whether caption and picture become those of `state`, but for rounding: a few shades of grey."""
        return wait_until(lambda: alike(self.state(), state), seconds)

    def cut_off(self):
        """Return what is wider than the box it stands in."""
        return self.root.evaluate(CUT_OFF)
