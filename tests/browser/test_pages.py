"""Two explorers on a page without Python: they move, speak and look as in the notebook."""

import os
import random
import shutil

import pytest

from bnlib import explore
from web.figures import Figures, explorer_of

CALLS = ("03_batchnorm2d_loops", "bnlib.explore.loops(x)"), ("02_batchnorm1d", "bnlib.explore.who_shares_a_mean()")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a page that shows the explorers of `CALLS`, and what each of their sliders stops at."""
    if not shutil.which("chromium"):
        give_up = pytest.fail if os.environ.get("BNLIB_REQUIRE_BROWSER") == "1" else pytest.skip
        give_up("a browser test needs Chromium")
    from pages import write_page

    folder = tmp_path_factory.mktemp("site")
    figures = Figures(folder / "_static", folder / "kept")
    made = [figures.figure(*call) for call in CALLS]
    figures.write_fonts()
    write_page(folder, [markup for markup, _ in made])
    return folder, [figures.made(*call)["stops"] for call in CALLS]


@pytest.fixture(scope="module")
def browser(site):
    from pages import chromium

    with chromium() as browser:
        yield browser


def opened(browser, site, **options):
    page = browser.new_context(viewport={"width": 900, "height": 900}, **options).new_page()
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto((site[0] / "page.html").as_uri())
    return page


@pytest.mark.parametrize("number", [0, 1])
def test_forty_random_states_say_and_show_what_python_does(browser, site, number, monkeypatch):
    from pages import NO_TEXT, alive, clearly_off, moved, without_text

    page = browser.new_context(viewport={"width": 900, "height": 900}).new_page()
    page.add_init_script(NO_TEXT)
    page.goto((site[0] / "page.html").as_uri())
    figure, chance = alive(page, number), random.Random(number)
    with without_text(monkeypatch):
        twin = explorer_of(*CALLS[number])
        for _ in range(40):
            (words, drawn), (said, expected), _ = moved(figure, twin, site[1][number], chance)
            assert words == said
            assert drawn.shape == expected.shape
            assert clearly_off(drawn, expected) <= 0.005


def test_the_keyboard_moves_every_control_and_reset_puts_all_back(browser, site):
    from pages import alive, caption

    page, twin = opened(browser, site), explorer_of(*CALLS[0])
    figure = alive(page, 0)
    start = caption(figure)
    assert start == twin.caption
    slider = figure.get_by_role("slider", name="Step")
    slider.focus()
    page.keyboard.press("End")
    twin.set(step=48)
    assert caption(figure) == twin.caption
    page.keyboard.press("ArrowLeft")
    twin.set(step=47)
    assert caption(figure) == twin.caption
    assert slider.get_attribute("aria-valuetext") == "47"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    twin.set(channel=1)
    assert caption(figure) == twin.caption
    for name, step in (("Back", 46), ("Step", 47)):
        figure.get_by_role("button", name=name, exact=True).press("Enter")
        twin.set(step=step)
        assert caption(figure) == twin.caption
    figure.get_by_role("button", name="Reset").press("Enter")
    page.wait_for_function("words => document.querySelector('figcaption').textContent === words", arg=start)
    assert not page.complaints


def test_play_goes_to_the_end_and_stops_there(browser, site):
    from pages import alive, caption

    page, twin = opened(browser, site), explorer_of(*CALLS[0])
    figure = alive(page, 0)
    figure.get_by_role("radio", name="16").check(force=True)
    figure.get_by_role("button", name="Play").click()
    assert figure.get_by_role("button", name="Pause").count() == 1
    page.wait_for_function("document.querySelector('[data-play]').textContent === 'Play'")
    twin.set(step=48)
    assert caption(figure) == twin.caption


def test_greyed_out_controls_limits_and_messages_are_as_in_the_notebook(browser, site):
    from pages import alive, caption

    page, twin = opened(browser, site), explore.who_shares_a_mean()
    figure = alive(page, 1)
    figure.get_by_role("slider", name="L (positions)").press("End")
    figure.get_by_role("radio", name="mistaken").check(force=True)
    figure.get_by_role("slider", name="Index on axis 1").press("End")
    twin.set(length=4, reading="mistaken")
    twin.set(channel=3)
    assert caption(figure) == twin.caption
    figure.get_by_role("radio", name="2D (N, C)").check(force=True)
    twin.set(reading="2D")
    assert caption(figure) == twin.caption
    assert figure.get_by_role("slider", name="L (positions)").is_disabled()
    assert (
        int(figure.get_by_role("slider", name="Index on axis 1").get_attribute("max")) == twin.controls["channel"].max
    )


def test_without_a_script_picture_and_caption_stand_and_no_dead_control(browser, site):
    from pages import caption

    page, twin = opened(browser, site, java_script_enabled=False), explorer_of(*CALLS[0])
    figure = page.locator("figure.explorer").first
    assert not figure.locator("form").is_visible()
    assert figure.locator("img").is_visible()
    assert caption(figure) == twin.caption


def test_a_browser_too_old_shows_the_picture_and_says_why(browser, site):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((site[0] / "page.html").as_uri())
    figure = page.locator("figure.explorer").first
    assert "this browser is older" in figure.locator(".fewer").last.text_content()
    assert figure.locator("img").is_visible()
    assert not figure.locator("form").is_visible()


def test_a_pack_that_does_not_come_is_named(browser, site, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(site[0], folder)
    for pack in (folder / "_static" / "packs").iterdir():
        pack.unlink()
    page = opened(browser, (folder, None))
    words = page.locator("figure.explorer").first.locator("p.fewer").last
    page.wait_for_function("document.querySelectorAll('figure.explorer > p.fewer').length > 0")
    assert "loops" in words.text_content()
    assert "could not be loaded" in words.text_content()
