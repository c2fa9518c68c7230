"""How long from key press to changed picture, for every explorer's sliders, in a real browser, against a floor.

The floor is a slider that only rewrites one line of text through the kernel; a key press on it alternates with one on
the slider that is measured, so that both meet the same load.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
from lab import Notebook, chromium, jupyter_lab

PRESSES = 15
EXPLORERS = (
    "gamma_beta()",
    "class_size()",
    "who_shares_a_mean()",
    "loops()",
    "running_statistics()",
    "who_shares_a_mean('norms')",
    # "train_eval_gap()",
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
# milliseconds from the key press to the frame that shows a changed text, or a new picture loaded; null if none comes
WATCH = """([root, picture]) => {
    window.took = new Promise(resolve => {
        let pressed;
        const done = () => { observer.disconnect(); root.removeEventListener('load', done, true);
                             requestAnimationFrame(() => resolve(performance.now() - pressed)); };
        const observer = new MutationObserver(done);
        document.addEventListener('keydown', () => {
            pressed = performance.now();
            if (picture) root.addEventListener('load', done, true);
            else observer.observe(root.querySelector('[role=status]').parentElement, {childList: true, subtree: true});
        }, {capture: true, once: true});
        setTimeout(() => resolve(null), 3000);
    });
}"""


def press(page, root, slider, picture):
    """Press an arrow key on a slider; return the milliseconds until `root` shows the result, None if it never does."""
    handle = slider.locator(".noUi-handle")
    handle.focus()
    page.evaluate(WATCH, [root.element_handle(), picture])
    low, high, now = (float(handle.get_attribute(f"aria-value{end}")) for end in ("min", "max", "now"))
    page.keyboard.press("ArrowLeft" if now - low > (high - low) / 2 else "ArrowRight")
    return page.evaluate("window.took")


def ratios(page, floor, root, slider):
    """Return (milliseconds, floor's milliseconds), one each for every press that changed the picture."""
    pairs = []
    for _ in range(PRESSES + 1):  # the first warms up
        below = press(page, floor, floor.locator(".widget-slider"), False)
        took = press(page, root, slider, True)
        if took is not None:
            pairs.append((took, below))
    return pairs[1:]


def row(what, pairs):
    if not pairs:
        return {"what": what, "ratio": float("inf"), "spread": 0.0, "note": "the picture never changed"}
    took, below = (statistics.median(column) for column in zip(*pairs, strict=True))
    quarters = statistics.quantiles([a / below for a, _ in pairs], n=4)
    worst = max(a for a, _ in pairs) / below
    return {
        "what": what,
        "ratio": took / below,
        "spread": (quarters[2] - quarters[0]) / 2,
        "note": f"{took:.0f} ms, floor {below:.0f} ms, worst of {len(pairs)} {worst:.1f}x",
    }


def measure():
    """Return one row for each slider that can be moved, and one for the same picture under interact and plt.show()."""
    cells = [FLOOR, INTERACT, *(f"import bnlib\nbnlib.explore.{call}" for call in EXPLORERS)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        (Path(folder) / "notebooks").mkdir()
        nbformat.write(notebook, Path(folder) / "notebooks" / "explorers.ipynb")
        with jupyter_lab(Path(folder) / "notebooks", Path(folder)) as address, chromium(address) as page:
            Notebook(page, "explorers").run_all(seconds=120)
            outputs = page.locator(".jp-CodeCell .jp-OutputArea")
            floor, interact = outputs.nth(0), outputs.nth(1)
            rows.append(
                row("interact and plt.show()", ratios(page, floor, interact, interact.locator(".widget-slider")))
            )
            for call, output in zip(EXPLORERS, outputs.all()[2:], strict=True):
                for slider in output.locator(".widget-slider").all():
                    if slider.is_visible() and not slider.locator("[disabled]").count():
                        words = slider.locator(".widget-label").inner_text()
                        rows.append(row(f"{call}: {words}", ratios(page, floor, output, slider)))
    return rows


if __name__ == "__main__":
    for each in measure():
        print(f"{each['ratio']:5.2f} ± {each['spread']:.2f}  {each['what']:60} {each['note']}")
