"""Saving a training so that it can be continued, and nothing is lost when the process dies in the middle."""

import glob
import os
import tempfile
import zipfile
from pathlib import Path

import torch

from .history import History, Point

FORMAT = "bnlib checkpoint 1"


def save_checkpoint(path, model, shuffle, history, settings):
    """Write a training's state to `path`, whole or not at all: to a temporary file beside it, synced, then renamed.

    shuffle   the torch.Generator that orders the images
    settings  the arguments of `fit` that a continuation must share, as a dict
    """
    path = Path(path)
    state = {
        "format": FORMAT,
        "settings": settings,
        "model": model.state_dict(),
        "shuffle": shuffle.get_state(),
        "history": vars(history) | {"points": [tuple(point) for point in history.points]},
    }
    number, scratch = tempfile.mkstemp(".part", f".{path.name}.", path.parent)
    try:
        with open(number, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def load_checkpoint(path, model, shuffle, settings) -> History | None:
    """Return the history saved at `path`, with `model` and `shuffle` as they were then; None if there is no such file.

    What a killed process has left half-written beside it is removed. Only tensors and plain values are read
    (`weights_only=True`), never code. Raises FileNotFoundError if the folder is not there; ValueError, and leaves the
    file and the model as they are, if it is damaged, foreign, of another network or of other settings.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"checkpoint {path} cannot be written: make the folder {path.parent} first")
    for scratch in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        scratch.unlink(missing_ok=True)
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as file:  # torch.load does not look at the checksums
            if damaged := file.testzip():
                raise zipfile.BadZipFile(damaged)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise KeyError(state["format"])
        history = History(**state["history"])
        history.points = [Point(*point) for point in history.points]
        shuffle.set_state(state["shuffle"])
        differ = [
            f"{name} {state['settings'].get(name)!r}, now {value!r}"
            for name, value in settings.items()
            if state["settings"].get(name) != value
        ]
        shapes = {name: tensor.shape for name, tensor in state["model"].items()}
    except Exception as error:  # whatever bytes can make zipfile, pickle and torch raise
        raise ValueError(
            f"{path} is damaged or not a checkpoint of this library ({type(error).__name__}); it is left as it is. "
            "Give another path, or move the file away to start anew."
        ) from error
    if differ:
        raise ValueError(f"{path} belongs to a training with other settings: it has {'; '.join(differ)}")
    if shapes != {name: tensor.shape for name, tensor in model.state_dict().items()}:
        raise ValueError(f"{path} belongs to another network: its tensors have other names or shapes")
    model.load_state_dict(state["model"])
    return history
