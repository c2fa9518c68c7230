"""What lesson 00 prints: whether this machine is ready, and what the lessons will use on it."""

import html
import platform
from importlib.metadata import version

import torch

from .data import where


class SelfCheck:
    """A short table, from what was looked at to what was found; readable as text, rich in a notebook."""

    def __init__(self, rows: dict[str, str]):
        self.rows = rows

    def __repr__(self):
        width = max(map(len, self.rows))
        return "\n".join(f"{name:{width}}  {found}" for name, found in self.rows.items())

    def _repr_html_(self):
        rows = (
            f'<tr><th scope="row" style="text-align: left">{html.escape(name)}</th>'
            f'<td style="text-align: left">{html.escape(found)}</td></tr>'
            for name, found in self.rows.items()
        )
        return f"<table>{''.join(rows)}</table>"


def selfcheck() -> SelfCheck:
    """Return the table of Python, torch, device, images and widgets; nothing is downloaded, no error is raised."""
    return SelfCheck(
        {
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "device": device(),
            "images": images(),
            "widgets": widgets(),
        }
    )


def device():
    """Return in words what `fit` trains on by default."""
    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name()})"
    if torch.backends.mps.is_available():
        return "mps (Apple GPU)"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' * (threads > 1)}); no GPU found, and none is needed"


def images():
    """Return in words which images `load_images()` would give, or what stops it."""
    try:
        return str(where())
    except OSError as error:
        return f"none: {error}"


def widgets():
    """Return in words what the kernel can know; whether the page draws them, only the reader sees."""
    from IPython import get_ipython

    if not hasattr(get_ipython(), "kernel"):
        return "not here: this is no Jupyter kernel; open the lesson with make lab"
    return (
        f"ipywidgets {version('ipywidgets')} in a Jupyter kernel; they work if a slider shows below an explorer's cell"
    )
