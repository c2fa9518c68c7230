"""The whole web edition, as `make site` builds it: every explorer on every page, beside the same explorer in Python."""

import functools
import gzip
import http.server
import json
import random
import re
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from web.figures import Figures, explorer_of, shows_an_explorer

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))
from pages import NO_TEXT, alive, caption, chromium, clearly_off, moved, without_text  # noqa: E402

LESSONS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
CELLS = {
    name: ["".join(cell["source"]) for cell in notebook["cells"] if shows_an_explorer(cell)]
    for name, notebook in LESSONS.items()
}
EXPLORERS = [(name, number) for name, cells in CELLS.items() for number in range(len(cells))]
WIDTHS = 390, 1400


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site, built as a reader would."""
    out = tmp_path_factory.mktemp("site") / "site"
    built = subprocess.run([sys.executable, "-m", "web.build", "--out", out], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    return out


@pytest.fixture(scope="session")
def address(site):
    """Where the site is served on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize(("lesson", "number"), EXPLORERS)
def test_forty_random_states_say_and_show_what_python_does(site, browser, lesson, number, monkeypatch, tmp_path):
    source, chance = CELLS[lesson][number], random.Random(f"{lesson} {number}")
    stops = Figures(tmp_path, ROOT / "build" / "web" / "packs").made(lesson, source)["stops"]
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.add_init_script(NO_TEXT)
    page.goto((site / f"{lesson}.html").as_uri())
    figure, shares, times = alive(page, number), [], []
    with without_text(monkeypatch):
        twin = explorer_of(lesson, source)
        for _ in range(40):
            (words, drawn), (said, expected), spent = moved(figure, twin, stops, chance)
            assert words == said
            assert drawn.shape == expected.shape
            if not twin.failed:  # a message is a text
                shares.append(clearly_off(drawn, expected))
            times.append(spent)
    page.close()
    print(f"{lesson} {number}: off {max(shares):.3%}, work {statistics.median(times):.1f} ms")
    assert max(shares) <= 0.005


@pytest.mark.parametrize(("lesson", "number"), EXPLORERS)
def test_draw_again_and_reset_lead_where_the_notebooks_buttons_lead(site, browser, lesson, number):
    page = browser.new_page()
    page.goto((site / f"{lesson}.html").as_uri())
    figure, twin = alive(page, number), explorer_of(lesson, CELLS[lesson][number])
    again = figure.get_by_role("button", name="Draw again")
    if again.count():
        again.click()
        twin.seed = 1
        twin.refresh()
        assert caption(figure) == twin.caption
    sliders = figure.locator("input[type=range]:enabled")
    if sliders.count():
        sliders.first.press("End")
    figure.get_by_role("button", name="Reset").click()
    page.wait_for_timeout(100)
    assert caption(figure) == explorer_of(lesson, CELLS[lesson][number]).caption
    page.close()


def pages(site):
    return sorted(site.glob("*.html"))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_is_wider_than_its_window_or_asks_another_host(site, address, browser, width, theme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    for path in pages(site):
        page, asked, complaints = context.new_page(), [], []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("pageerror", lambda error, complaints=complaints: complaints.append(str(error)))
        page.goto(f"{address}/{path.name}")
        for number in range(page.locator("figure.explorer").count()):
            alive(page, number)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        assert not complaints, path.name
        assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))], path.name
        page.close()
    context.close()


def test_on_a_phone_every_cure_is_in_view(site, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((site / "symptoms.html").as_uri())
    ends = page.locator("table a").evaluate_all("links => links.map(link => link.getBoundingClientRect().right)")
    assert len(ends) >= 35
    assert max(ends) <= 390
    page.close()


def test_no_link_is_dead(site):
    dead = []
    for path in pages(site):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r'(?:href|src|data-pack)="([^"]+)"', text):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if file.is_dir():
                file /= "index.html"
            if not file.exists() or (
                parts.fragment and file.suffix == ".html" and f'id="{unquote(parts.fragment)}"' not in file.read_text()
            ):
                dead.append((path.name, target))
    assert not dead


def test_the_site_and_a_lessons_first_load_stay_small(site, address, browser):
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) <= 15e6
    for lesson in LESSONS:
        page, asked = browser.new_page(viewport={"width": 1400, "height": 900}), set()
        page.on("request", lambda request, asked=asked: asked.add(request.url))
        page.goto(f"{address}/{lesson}.html")
        page.wait_for_timeout(500)
        bodies = [(site / unquote(urlsplit(url).path[1:])).read_bytes() for url in asked if url.startswith(address)]
        size, travels = sum(map(len, bodies)), sum(len(gzip.compress(body)) for body in bodies)
        print(f"{lesson}: first load {size / 1e3:.0f} KB, compressed {travels / 1e3:.0f} KB")
        assert size <= 500_000, f"{lesson}: {size}"
        assert travels <= 250_000, f"{lesson}: {travels}"
        page.close()


def test_every_picture_keeps_its_words(site):
    for lesson, notebook in LESSONS.items():
        text = (site / f"{lesson}.html").read_text(encoding="utf-8")
        stored = [o for cell in notebook["cells"] for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
        images = re.findall(r"<img [^>]*>", text.split("<article", 1)[1])
        assert len([image for image in images if re.search(r'alt="[^"]{15,}', image)]) >= len(stored)


def test_a_second_build_packs_nothing_anew(site, tmp_path):
    packs = ROOT / "build" / "web" / "packs"
    before = {path.name: path.stat().st_mtime_ns for path in packs.iterdir()}
    subprocess.run([sys.executable, "-m", "web.build", "--out", tmp_path / "site"], cwd=ROOT, check=True)
    assert {path.name: path.stat().st_mtime_ns for path in packs.iterdir()} == before
    assert sorted(p.name for p in pages(site)) == sorted(p.name for p in pages(tmp_path / "site"))
