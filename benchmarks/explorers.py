"""How long from key press to changed picture, for every explorer's sliders, in a real browser, against a floor.

The floor is a slider that only rewrites one line of text through the kernel; a key press on it alternates with one on
the slider that is measured, so that both meet the same load. Then each slider is dragged fast from end to end.
"""

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
from lab import Notebook, chromium, jupyter_lab

from bnlib import explore

from . import table

PRESSES = 15
STEPS, DRAG = 60, 0.5  # a fast drag: so many moves of the mouse in so many seconds
MOMENT = 0.05  # a press comes at any time within so many seconds: nobody presses in step with the screen
CALLS = {name: f"{name}()" for name in explore.__all__ if name != "train_it_yourself"}  # it shows what it has trained
CALLS["norms"] = "who_shares_a_mean('norms')"
CALLS["inside_the_layers"] = (
    "inside_the_layers([explore.inside_the_layers.record(lenet(seed=k), torch.rand(64, 1, 28, 28)) for k in range(3)])"
)
FLOOR = """
import ipywidgets as widgets
slider, line = widgets.IntSlider(50, 0, 100), widgets.HTML()
slider.observe(lambda change: setattr(line, "value", f"<p role='status'>{change.new}</p>"), "value")
widgets.VBox([slider, line])
"""
INTERACT = """
from bnlib.explore.lesson03 import RunningStatistics
import ipywidgets as widgets
import matplotlib.pyplot as plt

class Plain(RunningStatistics):
    def moves(self, artist):  # all drawn by matplotlib, each time
        return artist

plain = Plain()
def draw(size):
    plain.still(plt.figure(figsize=plain.size, dpi=100))
    plain.show(size, 0.1, "exponential", True)
    plt.show()
widgets.interact(draw, size=widgets.IntSlider(8, 1, 64));
"""
# milliseconds from the key press to the frame that shows a changed text, or a new picture loaded, and the frames
# meanwhile without any picture; null if nothing changes
WATCH = """([root, picture]) => {
    window.seen = new Promise(resolve => {
        let pressed, empty = 0, over = false;
        const look = () => {
            if (picture && !root.querySelector('img')?.naturalWidth) empty += 1;
            if (!over) requestAnimationFrame(look);
        };
        look();
        const done = () => { observer.disconnect(); root.removeEventListener('load', done, true);
                             requestAnimationFrame(() => {
                                 over = true;
                                 resolve([performance.now() - pressed, empty]);
                             }); };
        const observer = new MutationObserver(done);
        document.addEventListener('keydown', () => {
            pressed = performance.now();
            if (picture) root.addEventListener('load', done, true);
            else observer.observe(root.querySelector('[role=status]').parentElement, {childList: true, subtree: true});
        }, {capture: true, once: true});
        setTimeout(() => { over = true; resolve(null); }, 5000);
    });
}"""
# when a slider had its last new value, and when its last new picture or text was shown; 0 for never
DRAGGED = """([root, handle]) => {
    window.moved = window.shown = 0;
    const later = () => requestAnimationFrame(() => { window.shown = performance.now(); });
    new MutationObserver(() => { window.moved = performance.now(); })
        .observe(handle, {attributeFilter: ['aria-valuenow']});
    new MutationObserver(later).observe(root.querySelector('[role=status]').closest('.widget-html'),
                                        {childList: true, subtree: true});
    root.addEventListener('load', later, true);
}"""


def range_of(slider):
    """Return a slider's handle, and where it can stand: lowest, highest, now."""
    handle = slider.locator(".noUi-handle")
    return handle, *(float(handle.get_attribute(f"aria-value{end}")) for end in ("min", "max", "now"))


def press(page, root, slider, picture):
    """Press an arrow key on a slider; return what `WATCH` saw in `root`."""
    handle, low, high, now = range_of(slider)
    handle.focus()
    page.evaluate(WATCH, [root.element_handle(), picture])
    time.sleep(random.uniform(0, MOMENT))
    page.keyboard.press("ArrowLeft" if now - low > (high - low) / 2 else "ArrowRight")
    return page.evaluate("window.seen")


def drag(page, root, slider):
    """Drag a slider's handle to its farther end; return the milliseconds that the last picture comes after."""
    handle, low, high, now = range_of(slider)
    handle.scroll_into_view_if_needed()
    box, track = handle.bounding_box(), slider.locator(".noUi-base").bounding_box()
    page.evaluate(DRAGGED, [root.element_handle(), handle.element_handle()])
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    end = track["x"] + (0 if now - low > (high - low) / 2 else track["width"])
    page.mouse.move(x, y)
    page.mouse.down()
    start = time.perf_counter()
    for step in range(1, STEPS + 1):
        page.mouse.move(x + (end - x) * step / STEPS, y)
        time.sleep(max(0, start + DRAG * step / STEPS - time.perf_counter()))
    page.mouse.up()
    page.wait_for_timeout(1000)
    moved, shown = page.evaluate("[window.moved, window.shown]")
    if not (moved and shown):
        raise RuntimeError("a drag moved nothing, or nothing was shown")
    return max(0, shown - moved)


def ratios(page, floor, root, slider):
    """Return (milliseconds, empty frames, floor's milliseconds) for every press that changed the picture."""
    seen = []
    for _ in range(PRESSES + 1):  # the first warms up
        below = press(page, floor, floor.locator(".widget-slider"), False)
        above = press(page, root, slider, True)
        if above and below:
            seen.append((*above, below[0]))
    return seen[1:]


def row(what, seen, dragged):
    """Return a row: medians of a press and of the floor beside it, the worst press, and a fast drag's end (all ms)."""
    if not seen:
        raise RuntimeError(f"{what}: the picture never changed")
    took, empty, below = zip(*seen, strict=True)
    floor = statistics.median(below)
    return {
        "what": what,
        "ms": statistics.median(took),
        "floor": floor,
        "ratio": statistics.median(took) / floor,
        "worst": max(took) / floor,
        "empty": sum(empty),
        "drag": dragged,
    }


def measure():
    """Return one row for the picture under interact and plt.show(), then one for each slider that can be moved."""
    cells = [
        FLOOR,
        INTERACT,
        *(f"import torch\nfrom bnlib import explore, lenet\nexplore.{call}" for call in CALLS.values()),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        (Path(folder) / "notebooks").mkdir()
        nbformat.write(notebook, Path(folder) / "notebooks" / "explorers.ipynb")
        with jupyter_lab(folder, Path(folder)) as address, chromium(address) as page:
            Notebook(page, "explorers").run_all(seconds=120)
            floor, *outputs = page.locator(".jp-CodeCell").all()
            for name, output in zip(["interact", *CALLS], outputs, strict=True):
                for slider in output.locator(".widget-slider").all():
                    if slider.is_visible() and not slider.locator("[disabled]").count():
                        what = f"{name}: {slider.locator('.widget-label').inner_text()}"
                        seen = ratios(page, floor, output, slider)
                        rows.append(row(what, seen, None if name == "interact" else drag(page, output, slider)))
    return rows


def tell(rows):
    """Return the rows as a section of a page, Markdown."""
    interact, *ours = rows

    def median(column):
        return statistics.median(row[column] for row in ours)

    slowest, worst, last = (max(ours, key=lambda row: row[column]) for column in ("ratio", "worst", "drag"))
    lines = [
        [r["what"], f"{r['ratio']:.2f}", f"{r['ms']:.0f}", f"{r['floor']:.0f}", f"{r['worst']:.1f}", f"{r['drag']:.0f}"]
        for r in ours
    ]
    return "\n\n".join(
        [
            "## Sliders",
            "From key press to changed picture, in JupyterLab as `make lab` starts it, in Chromium, against a slider "
            f"that only rewrites a line of text through the kernel: {median('ratio'):.2f} times its time in the median "
            f"of {len(ours)} sliders, {slowest['ratio']:.2f} for the slowest ({slowest['what']}), "
            f"{worst['worst']:.1f} for the worst press of "
            f"all ({worst['what']}). The same picture drawn by `interact` and `plt.show()` takes "
            f"{interact['ratio']:.1f} times. In {sum(row['empty'] for row in ours)} frames there was no picture.",
            f"After a fast drag ({STEPS} moves in {DRAG} s) the last picture comes {median('drag'):.0f} ms after the "
            f"last value in the median, {last['drag']:.0f} ms at worst ({last['what']}).",
            table(["slider", "ratio", "ms", "floor, ms", "worst press, ratio", "end of a fast drag, ms"], lines),
        ]
    )


if __name__ == "__main__":
    print(tell(measure()))
