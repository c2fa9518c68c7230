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
EXPLORERS = (  # train_it_yourself is left out: its sliders only choose what to train
    "gamma_beta()",
    "class_size()",
    "who_shares_a_mean()",
    "loops()",
    "running_statistics()",
    "who_shares_a_mean('norms')",
    "train_eval_gap()",
    "three_paths()",
    "nudge()",
    "what_a_norm_does_not_see()",
    "who_is_in_the_batch()",
    "many_machines()",
    "other_data()",
    "inside_the_layers([explore.inside_the_layers.record(lenet(seed=k), torch.rand(64, 1, 28, 28)) for k in range(3)])",
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


def press(page, root, slider, picture):
    """Press an arrow key on a slider; return what `WATCH` saw in `root`."""
    handle = slider.locator(".noUi-handle")
    handle.focus()
    page.evaluate(WATCH, [root.element_handle(), picture])
    low, high, now = (float(handle.get_attribute(f"aria-value{end}")) for end in ("min", "max", "now"))
    page.keyboard.press("ArrowLeft" if now - low > (high - low) / 2 else "ArrowRight")
    return page.evaluate("window.seen")


def ratios(page, floor, root, slider):
    """Return (milliseconds, empty frames, floor's milliseconds) for every press that changed the picture."""
    seen = []
    for _ in range(PRESSES + 1):  # the first warms up
        below = press(page, floor, floor.locator(".widget-slider"), False)
        above = press(page, root, slider, True)
        if above and below:
            seen.append((*above, below[0]))
    return seen[1:]


def row(what, seen):
    if not seen:
        return {
            "what": what,
            "ratio": float("inf"),
            "spread": (float("inf"), float("inf")),
            "note": "the picture never changed",
        }
    took, empty, below = zip(*seen, strict=True)
    floor = statistics.median(below)
    quarters = statistics.quantiles([a / b for a, b in zip(took, below, strict=True)], n=4)
    return {
        "what": what,
        "ratio": statistics.median(took) / floor,
        "spread": (quarters[0], quarters[2]),
        "note": f"{statistics.median(took):.0f} ms, floor {floor:.0f} ms, worst of {len(seen)} "
        f"{max(took) / floor:.1f}x, {sum(empty)} frames without a picture",
    }


def measure():
    """Return one row for each slider that can be moved, and one for the same picture under interact and plt.show()."""
    cells = [
        FLOOR,
        INTERACT,
        *(f"import torch\nfrom bnlib import explore, lenet\nexplore.{call}" for call in EXPLORERS),
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
            floor, interact, *explorers = page.locator(".jp-CodeCell").all()
            seen = ratios(page, floor, interact, interact.locator(".widget-slider"))
            rows.append(row("running_statistics() under interact and plt.show(): Batch size n", seen))
            for call, output in zip(EXPLORERS, explorers, strict=True):
                name = call.split("([")[0]
                for slider in output.locator(".widget-slider").all():
                    if slider.is_visible() and not slider.locator("[disabled]").count():
                        words = slider.locator(".widget-label").inner_text()
                        rows.append(row(f"{name}: {words}", ratios(page, floor, output, slider)))
    medians = [each["ratio"] for each in rows[1:]]
    rows.append(
        {
            "what": "median over all sliders of the explorers",
            "ratio": statistics.median(medians),
            "spread": (min(medians), max(medians)),
            "note": f"of {len(medians)} sliders; the picture under interact: {rows[0]['ratio']:.2f}",
        }
    )
    return rows


if __name__ == "__main__":
    for each in measure():
        low, high = each["spread"]
        print(f"{each['ratio']:5.2f} ({low:.2f} to {high:.2f})  {each['what']:50} {each['note']}")
