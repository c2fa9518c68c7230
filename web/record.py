"""What an explorer draws, as a list of operations that a canvas can draw again, sharp at any size.

    ["p", style, [[closed, places], ...]]                    paths: their corners
    ["m", style, marker, places]                             one marker at many places
    ["c", x, y, colours]                                     an image's cells: edges across and down, colours by row
    ["t", font, colour, anchor, angle, x, y, words]          a text, its anchor on the baseline

Places and edges are in quarters of a pixel from the left top corner; of places all x stand before all y, each as its
difference from the one before: from state to state x often repeats. Styles, markers and fonts are numbers in tables.
"""

import matplotlib as mpl
import numpy as np
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_hex
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Affine2D

from bnlib.explore.base import STYLE, pillow_font

QUARTERS = 4  # steps a pixel
FINE = 16  # steps a pixel of a marker's outline
MOST_CELLS = 2000


class Recorder(RendererBase):
    """A matplotlib renderer that notes down what it is asked to draw; `take()` returns it and forgets it.

    Raises NotImplementedError for what a page cannot show: mathematics in a text, a photograph.
    """

    def __init__(self, figure):
        super().__init__()
        self.width, self.height = (round(side) for side in figure.bbox.size)
        self.dpi = figure.dpi
        self.styles, self.markers, self.fonts = {}, {}, {}  # each with its number
        self._operations = []
        self._agg = RendererAgg(self.width, self.height, self.dpi)  # measures texts
        self._flip = Affine2D().scale(1, -1).translate(0, self.height)  # as Agg does, before it snaps to pixels

    def take(self):
        """Return the operations since the last call."""
        taken, self._operations = self._operations, []
        return taken

    def still(self, figure):
        """Return the operations of what does not move in `figure`."""
        with mpl.rc_context(STYLE):  # ticks are made while drawing
            figure.draw(self)
        return self.take()

    def moving(self, artist):
        """Return the operations of a moving artist: a text is placed as the explorer's own writer places it."""
        if artist.get_visible():
            self._written(artist) if isinstance(artist, Text) else artist.draw(self)
        return self.take()

    def message(self, lines):
        """Return the operations of lines of text in the middle of the picture."""
        for k, line in enumerate(lines):
            y = self.height / 2 + 6 + 21 * (k - (len(lines) - 1) / 2)
            self._text(line, ("normal", 18, "sans-serif"), "black", "center", 0, self.width / 2, y)
        return self.take()

    # ---- what matplotlib asks

    def points_to_pixels(self, points):
        """Return a length in pixels."""
        return points * self.dpi / 72

    def get_canvas_width_height(self):
        """Return the picture's size in pixels."""
        return self.width, self.height

    def get_text_width_height_descent(self, s, prop, ismath):
        """Return the size of a text in pixels."""
        return self._agg.get_text_width_height_descent(s, prop, ismath)

    def flipy(self):
        """Return that y grows downwards."""
        return True

    # ---- what is noted down

    def draw_path(self, gc, path, transform, rgbFace=None):
        """Note down a path, snapped and simplified as Agg would."""
        style = self._style(gc, rgbFace)
        if style is None:
            return
        filled = rgbFace is not None or gc.get_hatch()
        clean = path.cleaned(
            transform + self._flip,
            remove_nans=True,
            clip=None if filled else (-1, -1, self.width + 1, self.height + 1),  # or dashes begin elsewhere
            simplify=not filled and path.should_simplify,
            curves=False,
            snap=gc.get_snap(),
            stroke_width=self.points_to_pixels(gc.get_linewidth()),
        )
        parts = [[closed, places(corners)] for closed, corners in outlines(clean, QUARTERS)]
        if parts:
            self._operations.append(["p", style, parts])

    def draw_markers(self, gc, marker_path, marker_trans, path, trans, rgbFace=None):
        """Note down a marker once, and where it stands."""
        width = self.points_to_pixels(gc.get_linewidth())
        turned = marker_trans + Affine2D().scale(1, -1)
        clean = marker_path.cleaned(turned, curves=False, snap=gc.get_snap(), stroke_width=width)
        shape = [[closed, places(corners)] for closed, corners in outlines(clean, FINE)]
        centres = trans.transform(path.vertices)
        centres = centres[np.isfinite(centres).all(1)]
        if (clip := gc.get_clip_rectangle()) is not None:  # what lies far outside need not travel
            low, high = clip.min - 12, clip.max + 12
            centres = centres[((centres > low) & (centres < high)).all(1)]
        style = self._style(gc, rgbFace)
        if len(centres) and style is not None:
            marker = self.markers.setdefault(str(shape), len(self.markers))
            whole = np.floor(self._flip.transform(centres) + 0.5).astype(int)  # Agg moves a marker by whole pixels
            self._operations.append(["m", style, marker, places(QUARTERS * whole)])

    def draw_image(self, gc, x, y, im, transform=None):
        """Note down an image of few large pixels as cells."""
        colours = np.ascontiguousarray(im[::-1]).view(np.uint32)[..., 0]
        down, across = (
            np.flatnonzero(np.r_[True, (np.diff(colours, axis=axis) != 0).any(1 - axis), True]) for axis in (0, 1)
        )
        if (len(down) - 1) * (len(across) - 1) > MOST_CELLS:
            raise NotImplementedError(f"an image of more than {MOST_CELLS} cells is drawn; a page holds no photograph")
        cells = im[::-1][np.ix_(down[:-1], across[:-1])].reshape(-1, 4) / 255
        top = self.height - y - im.shape[0]
        edges = (
            np.rint(QUARTERS * (start + sides)).astype(int).tolist() for start, sides in ((x, across), (top, down))
        )
        self._operations.append(["c", *edges, [to_hex(cell, keep_alpha=True) for cell in cells]])

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        """Note down a text of the still part; x, y (pixels) are the start of its baseline."""
        if ismath:
            raise NotImplementedError(f"the text {s!r} is set as mathematics; write it with letters")
        width = self._agg.get_text_width_height_descent(s, prop, False)[0]
        align = mtext.get_horizontalalignment() if mtext is not None and not angle else "center"
        along = {"left": 0, "center": width / 2, "right": width}[align]  # anchored, for other fonts' other widths
        x, y = (x, y - along) if angle else (x + along, y)
        font = weight(prop.get_weight()), self._pixels(prop.get_size_in_points()), prop.get_family()[0]
        self._text(s, font, gc.get_rgb(), align, round(angle), x, y)

    def _written(self, text):
        x, y = text.get_transform().transform(text.get_unitless_position())
        font = weight(text.get_fontweight()), self._pixels(text.get_fontsize()), text.get_fontfamily()[0]
        ascent, descent = pillow_font(font[2], *font[:2]).getmetrics()
        ups = {"top": ascent, "bottom": -descent, "baseline": 0}
        y = self.height - y + ups.get(text.get_verticalalignment(), (ascent - descent) / 2)
        self._text(text.get_text(), font, text.get_color(), text.get_horizontalalignment(), 0, x, y)

    def _text(self, words, font, colour, align, angle, x, y):
        if words:
            number = self.fonts.setdefault(font, len(self.fonts))
            place = round(QUARTERS * x), round(QUARTERS * y)
            self._operations.append(["t", number, to_hex(colour), align, angle, *place, words])

    def _pixels(self, points):
        return round(self.points_to_pixels(points))

    def _style(self, gc, face):
        """Return the number of a style, None for one that leaves no trace."""
        width, rgba = round(self.points_to_pixels(gc.get_linewidth()), 2), gc.get_rgb()
        stroke = to_hex(rgba, keep_alpha=True) if width and rgba[3] else None
        fill = None
        if face is not None and (len(face) < 4 or face[3]):
            alpha = gc.get_alpha() if gc.get_forced_alpha() else (*face, 1.0)[3]
            fill = to_hex((*face[:3], alpha), keep_alpha=True)
        hatch = None
        if gc.get_hatch():
            tile = Affine2D().scale(self.dpi, -self.dpi).translate(0, self.dpi)  # Agg's, from the left top corner
            lines = outlines(gc.get_hatch_path().cleaned(tile, curves=False), QUARTERS)
            drawn = tuple((closed, tuple(places(corners))) for closed, corners in lines)
            hatch = to_hex(gc.get_hatch_color()), round(self.points_to_pixels(gc.get_hatch_linewidth()), 2), drawn
        if not (stroke or fill or hatch):
            return None
        dashes = tuple(round(self.points_to_pixels(dash), 2) for dash in gc.get_dashes()[1] or ())
        cap = {"projecting": "square"}.get(gc.get_capstyle(), gc.get_capstyle())
        style = stroke, width, fill, dashes, cap, gc.get_joinstyle(), self._clip(gc), hatch
        return self.styles.setdefault(style, len(self.styles))

    def _clip(self, gc):
        clip = gc.get_clip_rectangle()
        if clip is None:
            return None
        (left, bottom), (right, top) = clip.min, clip.max
        if left <= 0 and bottom <= 0 and right >= self.width and top >= self.height:
            return None
        return round(left), round(self.height - top), round(right - left), round(top - bottom)


def weight(of):
    """Return a font's weight as CSS has it."""
    return "bold" if of in ("bold", 700) else "normal"


def outlines(path, steps):
    """Return the parts of a path without curves: whether each is closed, and its corners in `steps` a pixel."""
    parts = []
    for vertex, code in zip(path.vertices, path.codes, strict=True):
        if code == Path.STOP:
            break
        if code == Path.CLOSEPOLY:
            parts[-1][0] = 1
            continue
        if code == Path.MOVETO or not parts:
            parts.append([0, []])
        corner = tuple(round(steps * value) for value in vertex)
        if parts[-1][1][-1:] != [corner]:
            parts[-1][1].append(corner)
    return parts


def places(corners):
    """Return corners as differences, all of x and then all of y."""
    corners = np.asarray(corners)
    return np.diff(corners, axis=0, prepend=np.zeros((1, 2), int)).T.flatten().tolist()
