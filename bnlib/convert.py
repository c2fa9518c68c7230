"""A model's layers turned into torch's own, for the tools that look for those: `layers` says which they are."""

import copy

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from .layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d


def to_torch(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which each of our BatchNorm1d, 2d and 3d is `torch.nn`'s.

    Parameters and buffers keep their numbers, names, dtype, device and `requires_grad`, each layer its mode, settings,
    hooks and parametrizations; what is used in two places stays one. `model`, any module or one of the layers, is left
    as it is. The copy's parameters are its own and have no gradients: it needs an optimizer of its own.

    Raises TypeError for what is no module, and for a layer of ours that computes in another way: its class is derived
    from ours, or its `forward` was replaced, as `bnlib.distributed.synchronise` does.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; of a class, make a model first")
    twin = copy.deepcopy(model)
    for name, layer in twin.named_modules():
        if isinstance(layer, BatchNorm):
            layer.__class__ = _torchs_class(layer, name)  # they have the same attributes
    return twin


def _torchs_class(layer, name):
    """Return the class of torch's that does what `layer` does, with the properties of its parametrizations, if any."""
    mine, ours = type(layer), type_before_parametrizations(layer)
    if ours not in (BatchNorm1d, BatchNorm2d, BatchNorm3d) or "forward" in vars(layer):
        why = f"its class {ours.__name__} is not ours, only derived from it, or its forward was replaced"
        place = f"layer {name!r}" if name else "the model"
        raise TypeError(f"torch has no layer that does what {place} does: {why}; convert the model without it")
    theirs = getattr(nn, ours.__name__)
    if mine is ours:
        return theirs
    own = {key: value for key, value in vars(mine).items() if key not in ("__dict__", "__weakref__")}
    return type(mine.__name__, (theirs,), own)
