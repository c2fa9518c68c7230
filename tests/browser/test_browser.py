"""Each lesson in JupyterLab, in a real browser, as a reader has it."""

import json
import re
from pathlib import Path

import ipywidgets
import pytest

from bnlib import explore

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
LESSONS = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
SCREENSHOTS = Path(__file__).parent / "screenshots"
SLIDERS = (ipywidgets.IntSlider, ipywidgets.FloatSlider, ipywidgets.SelectionSlider)

every_lesson = pytest.mark.parametrize("notebook", LESSONS, indirect=True, scope="module")


def explorers(notebook):
    """Return, for each explorer: its view in the browser, and the code that made it."""
    cells = json.loads((NOTEBOOKS / f"{notebook.name}.ipynb").read_text())["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    calls = re.findall(r"explore\.\w+\(.*\)", source)
    return list(zip(notebook.explorers(), calls, strict=True))


def twin_of(call):
    """Return an explorer made here by the code that made the browser's."""
    try:
        return eval(call, {"explore": explore})
    except NameError:  # it takes what the lesson has computed before
        return None


def parts(widget, kind):
    """Return the widgets of a kind that stand in `widget`, in the order of the page."""
    if isinstance(widget, kind):
        return [widget]
    return [part for child in getattr(widget, "children", ()) for part in parts(child, kind)]


def differences(view, twin):
    """Return in words where the browser does not come to show what its twin shows."""
    if view.comes_to((twin.caption, twin.png())):
        return []
    caption, _ = view.state()
    same = caption == twin.caption
    return ["another picture than the one computed" if same else f"it says {caption!r}, computed: {twin.caption!r}"]


@every_lesson
def test_run_all_runs_every_cell_without_a_complaint(notebook):
    assert notebook.complaints() == []
    assert notebook.finished()


@every_lesson
def test_every_slider_moves_picture_and_caption_to_what_bnlib_computes(notebook):
    wrong = []
    for view, call in explorers(notebook):
        twin = twin_of(call)
        for i in view.live_sliders():
            for move in (view.press, view.drag):
                before = view.state()
                move(i)
                readout = view.readout(i)
                found = [] if view.leaves(before) else ["picture or caption stand still"]
                if twin is None:
                    found += [] if view.says(readout) else [f"it says {view.caption.inner_text()!r}"]
                else:
                    control = parts(twin, SLIDERS)[i]
                    if isinstance(control, ipywidgets.SelectionSlider):
                        control.label = readout
                    else:
                        control.value = type(control.value)(readout.replace("−", "-"))
                    found += differences(view, twin)
                wrong += [f"{call}, {move.__name__} {view.label(i)} to {readout}: {words}" for words in found]
    assert wrong == []


@every_lesson
def test_every_choice_and_button_does_what_bnlib_computes(notebook):
    wrong = []
    for view, call in explorers(notebook):
        twin = twin_of(call)
        if twin is None:
            continue
        view.button("Reset").click()
        wrong += [f"{call}, Reset: {words}" for words in differences(view, twin)]
        for choice in parts(twin, ipywidgets.ToggleButtons):
            for label in choice._options_labels:
                view.button(label).click()
                choice.label = label
                wrong += [f"{call}, {choice.description} {label}: {words}" for words in differences(view, twin)]
        for button in parts(twin, ipywidgets.Button):
            if button.description not in ("Start", "Stop"):
                view.button(button.description).click()
                button.click()
                wrong += [f"{call}, {button.description}: {words}" for words in differences(view, twin)]
    assert wrong == []


@every_lesson
def test_play_plays_until_it_is_paused(notebook):
    for view, call in explorers(notebook):
        for button in view.play_buttons():
            view.button("Reset").click()  # slowly enough to be paused before the end
            assert view.comes_to_rest()
            button.click()
            for _ in range(3):
                assert view.leaves(view.state()), f"{call}: it stands still"
            button.click()
            assert view.comes_to_rest(), f"{call}: it plays on"
            assert view.share(0) < 1, f"{call}: it played to the end"


@pytest.mark.parametrize("notebook", ["05_lenet_gpu"], indirect=True, scope="module")
def test_start_trains_while_controls_answer_and_stop_stops(notebook):
    (view,) = (view for view in notebook.explorers() if view.button("Start").count())
    view.button("Reset").click()
    assert view.says("No training yet"), "it trains before Start"
    view.button("Start").click()
    assert view.says(": training", seconds=20)
    for _ in range(3):
        _, picture = view.state()
        assert view.redraws(picture), "the curves do not grow"
    view.press(0)
    assert view.says(f"Start would train our layer (momentum 0.1), constant learning rate {view.readout(0)}", seconds=3)
    assert ": training" in view.caption.inner_text(), "it was over too soon to show that controls answer"
    view.button("Stop").click()
    assert view.says(": stopped in epoch", seconds=2)
    _, picture = view.state()
    assert not view.redraws(picture, seconds=1), "it trains on"
    view.button("Start").click()
    assert view.says("The run before, our layer")
    view.button("Stop").click()
    assert notebook.complaints() == []


@pytest.mark.parametrize("notebook", ["02_batchnorm1d"], indirect=True, scope="module")
def test_after_a_restart_of_the_kernel_all_runs_again_and_sliders_move(notebook):
    notebook.restart()
    notebook.run_all(seconds=60)
    assert notebook.finished()
    assert notebook.complaints() == []
    view = notebook.explorers()[0]
    before = view.state()
    view.press(0)
    assert view.leaves(before)


@every_lesson
@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (900, "light"), (900, "dark"), (1400, "dark")])
def test_nothing_is_cut_off(notebook, width, theme):
    notebook.look(width, theme)
    SCREENSHOTS.mkdir(exist_ok=True)
    cut = []
    for number, (view, call) in enumerate(explorers(notebook), 1):
        view.root.screenshot(path=SCREENSHOTS / f"{notebook.name}_{number}_{width}_{theme}.png")
        cut += [f"{call}: {what}" for what in view.cut_off()]
    assert cut == []
