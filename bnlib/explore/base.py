"""What every explorer shares: controls, one picture that moves at once, one caption that says the same in words.

The figure is drawn once, off screen. After that a change costs: compute, move the artists, draw only those over the
stored background, encode. A full draw by matplotlib (25 ms and more) happens again only when axes have to move.
"""

import base64
import functools
import html
import struct
import textwrap
import threading
import zlib
from typing import ClassVar

import ipywidgets as widgets
import matplotlib as mpl
import numpy as np
from IPython import get_ipython
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.text import Text
from PIL import Image, ImageDraw, ImageFont

from ..plots import png_with_words

DPI = 100
ACROSS = {"left": "l", "center": "m", "right": "r"}  # matplotlib's alignments, and Pillow's
UP = {"top": "a", "center": "m", "center_baseline": "m", "baseline": "s", "bottom": "d"}
CAPTION = '<p role="status" aria-live="polite" style="line-height: 1.4; margin: 0">{}</p>'
STYLE = {  # on a page 900 pixels wide JupyterLab leaves about 470 of 680 for a picture: 13 points become 9
    "font.size": 13,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 13,
    "xtick.labelsize": 12.5,
    "ytick.labelsize": 12.5,
    "legend.fontsize": 12.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": False,
    "figure.facecolor": "white",
}


class Explorer(widgets.VBox):
    """One question about batch normalization: controls, one picture, one caption, and a Reset button.

    To write one, keep the numbers in a pure function (values in, small dataclass of arrays out), and subclass:

        class Spread(Explorer):
            name = "spread"                 # the function's name in bnlib.explore
            size = (6.8, 3.6)               # inches at 100 dots: 680 x 360 pixels
            grid = {"n": [2, 4, 8, 16, 64]} # where no Python runs, on the course's pages, the slider stops here

            def __init__(self):
                n = slider("Batch size (values)", 8, 2, 64, tooltip="How many values share one mean")
                super().__init__({"n": n})

            def still(self, figure):        # once: axes, ticks, labels, legends; what will move is marked
                axes = figure.subplots()
                self.line = self.moves(axes.plot([], [], color=BLUE)[0])

            def show(self, n):              # at each change, with the controls' values by name: compute, move, say
                result = spread_of(n)
                self.line.set_data(result.x, result.y)
                return f"{n} values: their standard deviation is {result.sd:.2f}."

    `controls` maps names to widgets whose `value` goes to `show`; `buttons` are further widgets that stand beside
    Reset. What `show` raises stands in the caption and in the picture, in place of both, and the explorer goes on
    working. `refresh()` shows again, for changes that come from elsewhere than a control, from any thread.
    `axes_moved()`, called in `show`, has everything drawn anew, for the changes that move an axis, a title or a tick.
    `set(n=16)` moves several controls at once, `reset()` puts all back; extend it where more than controls can change.
    `limit("n", 32)`, in `show`, moves a slider's end.
    `caption` is the caption as plain text, `png()` the picture; `failed` says whether both are a message. Moving
    artists are drawn in the order of their `zorder`, over all that is still; moving texts last (upright, without box or
    mathtext: Pillow writes them, faster).

    `grid` holds the stops of the controls that have too many values to record every state: on a page without Python
    the picture of each of its states was drawn before. The start's values belong to it; {} is every value of all.
    """

    name: ClassVar[str]
    size: ClassVar[tuple[float, float]] = (6.8, 3.6)
    grid: ClassVar[dict[str, list] | None] = None

    def __init__(self, controls, buttons=()):
        self.controls = dict(controls)
        self.buttons = list(buttons)
        self.caption = ""
        self.failed = False
        self._start = self.values()
        self._width = f"{self.size[0] * DPI:.0f}px"
        self._setting = False
        self._lock = threading.RLock()
        self._moving = []
        self._background = None
        self._painter = None
        self.figure = Figure(self.size, dpi=DPI)
        self._canvas = FigureCanvasAgg(self.figure)
        with mpl.rc_context(STYLE):
            self.still(self.figure)
        self._picture = widgets.Image(
            format="url",  # a data URL is shown in half the time that a PNG takes through the browser's blob store
            layout=widgets.Layout(width=self._width, max_width="100%", height="auto", margin="4px 0"),
        )
        self._words = widgets.HTML(layout=widgets.Layout(max_width=self._width))
        reset = button("Reset", self.reset, icon="undo", tooltip="Put every control back to where it started")
        for control in self.controls.values():
            control.observe(self._changed, "value")
        knobs = self._row(self.controls.values()), self._row([*self.buttons, reset])
        super().__init__([*knobs, self._picture, self._words])
        replace(self)
        self.refresh()

    def still(self, figure):
        """Draw what does not move on the empty `figure`, and mark with `moves` the artists that will."""
        raise NotImplementedError

    def show(self, **values):
        """Move the artists to the controls' `values` and return the caption, plain text."""
        raise NotImplementedError

    def moves(self, artist):
        """Return `artist`, marked as one that changes: it is drawn at every change, over what is still."""
        artist.set_animated(True)
        self._moving.append(artist)
        return artist

    def axes_moved(self):
        """Have the still part drawn anew as well, this once."""
        self._background = None

    def limit(self, name, high):
        """Set the highest value of a slider, from `show`, and return the slider's value, which may have fallen."""
        setting, self._setting = self._setting, True
        try:
            self.controls[name].max = high
        finally:
            self._setting = setting
        return self.controls[name].value

    def values(self):
        """Return the controls' values, a dict by name."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **values):
        """Set several controls at once, by name, and show the result once."""
        self._setting = True
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self._setting = False
        self.refresh()

    def reset(self):
        """Put every control back to where it started."""
        self.set(**self._start)

    def refresh(self):
        """Show the controls' present values."""
        with self._lock:
            if self.comm is None:  # closed
                return
            try:
                self.caption = self.show(**self.values())
                self.failed = False
            except Exception as error:  # in a widget's callback it would go to a log that nobody reads
                self.caption = f"This cannot be shown: {error}"
                self.failed = True
            if self._painter:
                stale, self._background = self._background is None, self._painter
                self._painter(stale)
                return
            self._draw()
            self._picture.value = b"data:image/png;base64," + base64.b64encode(self.png())
            # a new element each time: ipywidgets keeps role and aria-live, and has no other place to put them
            self._words.value = CAPTION.format(html.escape(self.caption))

    def close(self):
        """Close all its widgets and forget the picture, megabytes; what is closed shows no change any more."""
        if self.comm is None:  # closed before, or never opened: its data were refused
            return
        with self._lock:
            close_all(self.children)
            self.layout.close()
            super().close()
            self.figure.canvas = self._canvas = self._background = self._page = None

    def png(self):
        """Return the picture as it is now, PNG bytes."""
        return encode(self._page)

    def paint_with(self, painter):
        """Draw no pixels from now on: call `painter(stale)` at each change, `stale` if the still part changed, too.

        The painter finds the still part in `figure` (drawn by `figure.draw(renderer)`), the rest in `moving()`.
        """
        self._painter = painter
        self.axes_moved()
        self.refresh()

    def moving(self):
        """Return the moving artists in the order in which they are drawn: shapes, then texts."""
        return sorted(self._moving, key=lambda artist: (isinstance(artist, Text), artist.get_zorder()))

    def _row(self, children):
        return widgets.HBox(
            list(children), layout=widgets.Layout(flex_flow="row wrap", align_items="center", max_width=self._width)
        )

    def _changed(self, _):
        if not self._setting:
            self.refresh()

    def _draw(self):
        if self._background is None:
            with mpl.rc_context(STYLE):  # ticks are made while drawing
                self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self.figure.bbox)
        self._canvas.restore_region(self._background)
        moving = [] if self.failed else self.moving()
        for artist in moving:
            if not isinstance(artist, Text):
                artist.draw(self._canvas.get_renderer())
        size = self._canvas.get_width_height()
        self._page = Image.frombuffer("RGBA", size, self._canvas.buffer_rgba()).convert("RGB")
        if self.failed:
            lines, font = textwrap.fill(self.caption, 64), pillow_font("sans-serif", "normal", 18)
            ImageDraw.Draw(self._page).text((size[0] / 2, size[1] / 2), lines, "black", font, "mm")
        for artist in moving:
            if isinstance(artist, Text) and artist.get_visible():
                write(self._page, artist)

    def __repr__(self):
        return f"bnlib.explore.{self.name}: move its controls in a live notebook"

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        still, metadata = png_with_words(self.png(), self.caption)
        return {**still, **bundle, "text/plain": repr(self)}, metadata


class Redrawn(Explorer):
    """An explorer of something drawn at random, from `seed`, with a button that draws another; Reset draws the first.

    tooltip  what the button Draw again draws
    draws    how many are recorded for a page without Python
    """

    seed = 0
    draws: ClassVar[int] = 2

    def __init__(self, controls, tooltip):
        super().__init__(controls, [button("Draw again", self._draw_again, icon="refresh", tooltip=tooltip)])

    def _draw_again(self):
        self.seed += 1
        self.refresh()

    def reset(self):
        """Put every control back to where it started, and draw what was drawn first."""
        self.seed = 0
        super().reset()


_made = {}  # a notebook's cell -> the run that was its last, and the explorers made in it


def replace(explorer):
    """Close the explorers that an earlier run of this notebook cell made: nothing shows them any more."""
    shell = get_ipython()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    cell = parent.get("metadata", {}).get("cellId")
    if cell is None:
        return
    run = parent["header"]["msg_id"]
    last, explorers = _made.get(cell, (run, []))
    if last != run:
        for old in explorers:
            old.close()
        explorers = []
    _made[cell] = run, [*explorers, explorer]


def close_all(children):
    """Close widgets, with all that they hold."""
    for child in children:
        close_all(getattr(child, "children", ()))
        for part in (child.layout, getattr(child, "style", None), child):
            if part is not None:
                part.close()


def encode(page):
    """Return an RGB Pillow image as PNG bytes, rows unfiltered: to find the best filter takes longer than all else."""
    width, height = page.size
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # a row begins with its filter, 0 is none
    rows[:, 1:] = np.asarray(page).reshape(height, -1)
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def write(page, text):
    """Write the matplotlib `text` on a Pillow page, in a thirtieth of the time that matplotlib takes."""
    x, y = text.get_transform().transform(text.get_unitless_position())
    font = text.get_fontfamily()[0], text.get_fontweight(), round(text.get_fontsize() * DPI / 72)
    anchor = ACROSS[text.get_horizontalalignment()] + UP[text.get_verticalalignment()]
    mask, left, top = stamp(text.get_text(), font, anchor)
    page.paste(to_hex(text.get_color()), (round(x) + left, page.height - round(y) + top), mask)


@functools.lru_cache(4096)
def stamp(words, font, anchor):
    """Return the words as a mask, and where its left top corner is from the anchor (both pixels)."""
    font = pillow_font(*font)
    left, top, right, bottom = font.getbbox(words, anchor=anchor)
    mask = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), words, 255, font, anchor)
    return mask, int(left), int(top)


@functools.cache
def pillow_font(family, weight, pixels):
    """Return the font that matplotlib would take, for Pillow."""
    return ImageFont.truetype(findfont(FontProperties(family=family, weight=weight)), pixels)


def button(words, action, *, tooltip, icon=""):
    """Return a button that says `words` and calls `action()`."""
    made = widgets.Button(description=words, icon=icon, tooltip=tooltip, layout=widgets.Layout(width="auto"))
    made.on_click(lambda _: action())
    return made


def slider(label, value, low, high, step=1, *, tooltip, format=None):
    """Return a slider from `low` to `high`, of whole numbers if `value` is one; `label` names quantity and unit."""
    whole = isinstance(value, int)
    return (widgets.IntSlider if whole else widgets.FloatSlider)(
        value=value,
        min=low,
        max=high,
        step=step,
        readout_format=format or ("d" if whole else ".2f"),
        **_labelled(label, tooltip),
    )


def stops(label, value, options, *, tooltip):
    """Return a slider that stops at `options` only: values, or pairs of words and value."""
    return widgets.SelectionSlider(value=value, options=options, **_labelled(label, tooltip))


def choice(label, value, options, *, tooltips, width="100%"):
    """Return buttons of which one is down: `options` as in `stops`, a tooltip for each."""
    return widgets.ToggleButtons(
        value=value,
        options=options,
        tooltips=tooltips,
        description=label,
        style={"description_width": "initial", "button_width": "auto"},
        layout=widgets.Layout(width=width),
    )


def _labelled(label, tooltip):
    return {
        "description": label,
        "tooltip": tooltip,
        "style": {"description_width": "165px"},
        "layout": widgets.Layout(width="100%"),
    }
