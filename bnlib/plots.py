"""Every picture that is not an explorer: arrays in, a `Picture` out, which carries its own words.

No pyplot, so nothing stays open and no notebook needs a matplotlib magic.
"""

import base64
import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#666666"


def png_with_words(png, caption):
    """Return the mime bundle and metadata of a PNG (bytes) whose alternative text is `caption`."""
    return (
        {"image/png": base64.b64encode(png).decode(), "text/plain": caption},
        {"image/png": {"alt": caption}},
    )


class Picture:
    """A matplotlib figure and the sentence that says the same; a notebook shows the first and stores both."""

    def __init__(self, figure: Figure, caption: str):
        FigureCanvasAgg(figure)
        self.figure = figure
        self.caption = caption

    def png(self) -> bytes:
        """Return the picture as PNG."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    def __repr__(self):
        return self.caption

    def _repr_mimebundle_(self, include=None, exclude=None):
        return png_with_words(self.png(), self.caption)
