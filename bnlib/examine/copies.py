"""Copies of a model: made, put into a mode, run, compared."""

import copy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .data import size, tensors


def held(model):
    """Return (module name, its dict of attributes, key, tensor) of tensors that hang in a gradient graph."""
    return [
        (name, store, key, value)
        for name, part in model.named_modules()
        for store in (part._buffers, part.__dict__)
        for key, value in list(store.items())
        if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf
    ]


def lazy(model):
    """Return the parameters and buffers that have no shape yet."""
    every = (*model.parameters(), *model.buffers())
    return [t for t in every if isinstance(t, nn.parameter.UninitializedTensorMixin)]


def clone(model):
    """Return a deep copy, past what `deepcopy` would refuse: tensors in a graph (detached), and without a shape."""
    kept = held(model)
    try:
        for _, store, key, value in kept:
            store[key] = value.detach()
        return copy.deepcopy(model, {id(t): type(t)(device=t.device, dtype=t.dtype) for t in lazy(model)})
    finally:
        for _, store, key, value in kept:
            store[key] = value


def set_mode(module, training):
    """Put every part into a mode, past `train` methods of their own."""
    for part in module.modules():
        part.training = training
    return module


def state(model):
    """Return every tensor that hangs on a module, by name: parameters, buffers, plain attributes, in lists, too."""
    return {
        f"{name}.{key}[{i}]" if i else f"{name}.{key}": leaf.detach().clone()
        for name, part in model.named_modules()
        for key, value in {**part.__dict__, **part._parameters, **part._buffers}.items()
        if key not in ("_parameters", "_buffers", "_modules")
        for i, leaf in enumerate(tree_leaves(value))
        if isinstance(leaf, Tensor)
    }


def changed(before, after):
    """Return the names of the tensors of two states that are not the same."""
    both = [key for key in after if key in before]
    return [key for key in both if not torch.equal(before[key].nan_to_num(), after[key].nan_to_num())]


def outputs(model, x):
    """Return all tensors that the model gives for x, its chance set to the same place each time."""
    # torch.manual_seed notes down the way to it for each kind of device that might come
    (torch if torch.accelerator.is_available() else torch.default_generator).manual_seed(0)
    out = model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple | list) else model(x)
    if hasattr(out, "__dict__") and not isinstance(out, Tensor | dict | tuple | list):
        return tensors(list(vars(out).values()))  # an output object, such as a dataclass
    return tensors(dict(out) if isinstance(out, dict) else out)


def output(model, x):
    """Return the model's main output (N, ...) as float32."""
    leaves, n = outputs(model, x), size(x)
    if not leaves:
        raise TypeError("the model returns no tensor")
    return next((t for t in leaves if t.is_floating_point() and t.dim() and t.shape[0] == n), leaves[0]).float()


def largest(a, b, of=None):
    """Return the largest difference of two outputs, in standard deviations of `of`, or of `a`."""
    spread = (a if of is None else of).std().nan_to_num().item() + 1e-12
    return (a - b).abs().nan_to_num().max().item() / spread


def apart(a, b):
    """Return how far an output is from another, in standard deviations of that."""
    return ((a - b).square().mean().sqrt() / (b.std() + 1e-12)).nan_to_num().item()
