"""The reader's data, in whatever form: some hundred examples of them, as a tensor, a tuple or a dict of tensors."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

MOST = 512  # examples looked at


def examples(data, test=False):
    """Return (x, labels or None): at most MOST examples, evenly taken, shuffled; x a tensor, tuple or dict."""
    name = "test" if test else "train"
    if hasattr(data, f"{name}_images"):
        x, y = getattr(data, f"{name}_images"), getattr(data, f"{name}_labels")
    elif isinstance(data, Tensor | dict):
        x, y = data, None
    elif isinstance(data, tuple | list) and data and all(isinstance(part, Tensor) for part in data):
        x, y = (data[0], data[1]) if len(data) == 2 and _labels(*data) else (data, None)
        x = x[0] if isinstance(x, tuple | list) and len(x) == 1 else x
    elif hasattr(data, "__iter__"):
        x, y = _gathered(data)
    else:
        raise TypeError(f"expected a tensor, (x, labels), a DataLoader or images, got {type(data).__name__}")
    n = size(x)
    if n == 0:
        raise ValueError("the data hold not one example")
    chosen = torch.linspace(0, n - 1, min(n, MOST)).long()
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
    return take(x, chosen), None if y is None else y[chosen]


def _labels(x, y):
    whole = not y.is_floating_point() and len(x) == len(y) and y.dim() <= x.dim()
    return whole and (y.dim() == 1 or x.is_floating_point())


def _gathered(batches):
    parts, seen = [], 0
    for batch in batches:
        parts.append(examples(batch))
        seen += size(parts[-1][0])
        if seen >= MOST:
            break
    if not parts:
        raise ValueError("the data hold not one batch")
    x = tree_map(lambda *xs: torch.cat(xs), *[x for x, _ in parts])
    return x, torch.cat([y for _, y in parts]) if parts[0][1] is not None else None


def tensors(value):
    """Return the tensors in a tensor, or in tuples, lists and dicts of them."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def size(x):
    """Return how many examples x holds."""
    return len(tensors(x)[0])


def take(x, indices):
    """Return some of the examples."""
    return tree_map_only(Tensor, lambda t: t[indices], x)


def floats(x, change):
    """Return x with its tensors of floating-point numbers changed."""
    return tree_map_only(Tensor, lambda t: change(t) if t.is_floating_point() else t, x)
