"""Pages of the web edition in a headless Chromium, and the same explorers moved in Python beside them."""

import base64
import io
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.text import Text
from PIL import Image
from playwright.sync_api import sync_playwright

from bnlib.explore import base

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
NO_TEXT = "CanvasRenderingContext2D.prototype.fillText = () => {}"
MOVE = """(figure, places) => {
    const form = figure.querySelector("form");
    for (const [name, place] of Object.entries(places)) {
        const input = form.elements.namedItem(name);
        if (input.type === "range") input.max = 999;
        input.value = place;
    }
    const start = performance.now();
    form.dispatchEvent(new Event("input", {bubbles: true}));
    const spent = performance.now() - start;
    return [figure.querySelector("figcaption").textContent, figure.querySelector("canvas").toDataURL(), spent];
}"""
SHELL = """<!doctype html><meta charset="utf-8"><title>A page</title><link rel="stylesheet" href="_static/site.css">
<style>body {{ width: 700px }}</style>{}<script defer src="_static/explorer.js"></script>"""


@contextmanager
def chromium():
    """Open a Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


def write_page(folder, figures):
    """Write a page with `figures`, HTML, in `folder`, where their static files are; return its address."""
    for name in ("explorer.js", "site.css"):
        shutil.copy(Path(__file__).parents[1] / "web" / name, folder / "_static")
    (folder / "page.html").write_text(SHELL.format("".join(figures)), encoding="utf-8")
    return (folder / "page.html").as_uri()


def alive(page, number):
    """Return the figure of explorer `number` on the page, scrolled into view, when its sliders move."""
    figure = page.locator("figure.explorer").nth(number)
    figure.scroll_into_view_if_needed()
    page.wait_for_function("i => 'live' in document.querySelectorAll('figure.explorer')[i].dataset", arg=number)
    page.wait_for_function("document.fonts.status === 'loaded'")
    page.wait_for_timeout(200)  # the first picture comes with the fonts
    return figure


def caption(figure):
    """Return what the caption says."""
    return figure.locator("figcaption").text_content()


def moved(figure, twin, stops, chance):
    """Move page and twin to a state drawn at random; return both captions, pictures (height, width, 3) and the time."""
    places = {name: chance.randrange(len(values)) for name, values in stops.items()}
    values = {name: stops[name][place] for name, place in places.items()}
    words, url, milliseconds = figure.evaluate(MOVE, places)
    for _ in range(2):  # the first opens limits that the values need
        twin.set(**values)
    drawn = pixels(base64.b64decode(url.split(",")[1]))
    return (words, drawn), (twin.caption, pixels(twin.png())), milliseconds


def pixels(png):
    """Return a picture as numbers."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def clearly_off(drawn, expected):
    """Return the share of pixels that differ by more than 96 of 255 shades."""
    return (abs(drawn - expected).max(2) > 96).mean()


@contextmanager
def without_text(monkeypatch):
    """Let explorers draw no text: letters are drawn by other rules in a browser."""
    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", lambda *_: None)
        patch.setattr(base, "write", lambda *_: None)
        yield
