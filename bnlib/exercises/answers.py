"""Read what an attempt returned: put it into the right form where that can be done, and say what was odd about it."""

import numpy as np
import torch

from .catalogue import Mistake

NOTHING, TYPE, DTYPE, SHAPE = (
    "returns nothing",
    "returns the wrong type",
    "returns the wrong dtype",
    "returns the wrong shape",
)


def read(value, names, wanted, dtype):
    """Return (tensors, mistakes of form) of an answer; no tensors where the form cannot be mended.

    names   of the results, such as ("mean", "var")
    wanted  the right tensors, for their number and shapes
    dtype   that of the input, and so of the answer
    """
    many = len(names) > 1
    if value is None:
        return (), (Mistake(NOTHING, f"the function ends without a value: end it with `return {', '.join(names)}`"),)
    if many and isinstance(value, torch.Tensor) and value.shape == (len(names), *wanted[0].shape):
        value = tuple(value)  # it unpacks like a pair
    sequence = isinstance(value, (tuple, list))
    if many and not (sequence and len(value) == len(names)):
        cause = f"it returns {describe(value)}; expected {len(names)} tensors: {', '.join(names)}"
        return (), (Mistake(TYPE, cause),)
    odd = []
    if not many and sequence and any(isinstance(part, torch.Tensor) and part.dim() for part in value):
        odd.append(Mistake(TYPE, f"it returns {describe(value)}; expected one tensor, {names[0]}"))
        tensors = [part for part in value if isinstance(part, torch.Tensor)]
        rows = len(tensors) == len(wanted[0]) and all(part.shape == wanted[0].shape[1:] for part in tensors)
        fitting = next((part for part in tensors if part.shape == wanted[0].shape), tensors[0])
        value = torch.stack(tensors) if rows else fitting
    outputs = []
    for name, part, target in zip(names, value if many else (value,), wanted, strict=True):
        if part is None:
            odd.append(Mistake(TYPE, f"{name} is None; expected a tensor of shape {tuple(target.shape)}"))
            return (), tuple(odd)
        if not isinstance(part, torch.Tensor):
            odd.append(Mistake(TYPE, f"{name} is {describe(part)}; expected a tensor of shape {tuple(target.shape)}"))
            try:
                part = torch.tensor(np.asarray(part, dtype=float), dtype=dtype)
            except (TypeError, ValueError, RuntimeError):
                return (), tuple(odd)
        if part.is_complex() or part.layout != torch.strided:
            odd.append(Mistake(TYPE, f"{name} is {describe(part)}; expected an ordinary tensor of real numbers"))
            return (), tuple(odd)
        if part.dtype != dtype:
            cause = (
                f"{name} is {short(part.dtype)} for an input of {short(dtype)}: keep the input's dtype, "
                "as in `torch.zeros_like(x)` or `.to(x.dtype)`"
            )
            odd.append(Mistake(DTYPE, cause))
            part = part if part.is_floating_point() else part.to(dtype)
        outputs.append(part)
    return tuple(outputs), tuple(odd)


def reshaped(outputs, names, wanted):
    """Return the outputs in the wanted shapes where the count of numbers allows it, and the mistake, else None."""
    mended, mistake = [], None
    for name, output, target in zip(names, outputs, wanted, strict=False):
        if output.shape != target.shape and output.numel() == target.numel():
            mistake = mistake or wrong_shape(name, output, target)
            turned = output.dim() == 2 and output.T.shape == target.shape
            output = (output.T if turned else output).reshape(target.shape)
        mended.append(output)
    return tuple(mended), mistake


def wrong_shape(name, output, target):
    """Return the mistake of a result that has another shape than the right one."""
    return Mistake(SHAPE, f"{name} has shape {tuple(output.shape)}, expected {tuple(target.shape)}")


def describe(value):
    """Return what a value is, in a few words."""
    if isinstance(value, torch.Tensor):
        return f"a {short(value.dtype)} tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of shape {value.shape}"
    if isinstance(value, (tuple, list, dict, set)):
        return f"a {type(value).__name__} of {len(value)}"
    kind = "class" if isinstance(value, type) else type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def short(dtype):
    """Return a dtype's name without the `torch.` before it."""
    return str(dtype).removeprefix("torch.")
