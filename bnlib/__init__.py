"""Batch normalization by hand: the small library behind the lessons."""

from importlib import import_module

from .compare import compare as compare  # now: imported later, a module would take the place of its function
from .examine import examine as examine
from .selfcheck import selfcheck as selfcheck

_HOME = {  # name -> the module it is loaded from when first used, so that `import bnlib` costs little more than torch
    "batch_norm": "functional",
    "batch_norm_loops": "functional",
    "BatchNorm1d": "layers",
    "BatchNorm2d": "layers",
    "BatchNorm3d": "layers",
    "to_torch": "convert",
    "normalise": "norms",
    "layer_norm": "norms",
    "instance_norm": "norms",
    "group_norm": "norms",
    "rms_norm": "norms",
    "masked_batch_norm": "norms",
    "compare": "compare",
    "GRADES": "data",
    "load_images": "data",
    "lenet": "models",
    "fit": "training",
    "evaluate": "training",
    "reestimate_statistics": "training",
    "fold": "folding",
    "examine": "examine",
    "check": "exercises",
    "selfcheck": "selfcheck",
    "explore": None,  # sub-packages, by their own name
    "plots": None,
}
__all__ = list(_HOME)
__version__ = "0.1.0"


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"bnlib has no {name!r}; it has {', '.join(__all__)}")
    home = _HOME[name]
    value = import_module(f".{home or name}", __name__)
    if home:
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
