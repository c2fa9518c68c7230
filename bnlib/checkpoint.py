"""Saving a training so that it can be continued, and nothing is lost when the process dies in the middle."""

import os
import pickle
import tempfile
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
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def load_checkpoint(path, model, shuffle, settings) -> History | None:
    """Return the history saved at `path`, with `model` and `shuffle` as they were then; None if there is no such file.

    Only tensors and plain values are read (`weights_only=True`), never code. Raises ValueError, and leaves the file
    and the model as they are, if it is damaged, foreign, of another network or of other settings.
    """
    if not Path(path).exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise KeyError(state["format"])
        history = History(**state["history"])
        saved = state["settings"]
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        OSError,
    ) as error:
        raise ValueError(
            f"{path} is damaged or not a checkpoint of this library ({type(error).__name__}); it is left as it is. "
            "Give another path, or move the file away to start anew."
        ) from error
    differ = [
        f"{name} {saved.get(name)!r}, now {value!r}" for name, value in settings.items() if saved.get(name) != value
    ]
    if differ:
        raise ValueError(f"{path} belongs to a training with other settings: it has {'; '.join(differ)}")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in state["model"].items()}:
        raise ValueError(f"{path} belongs to another network: its tensors have other names or shapes")
    model.load_state_dict(state["model"])
    shuffle.set_state(state["shuffle"])
    history.points = [Point(*point) for point in history.points]
    return history
