"""Modules of the model's own that normalise over the batch: recognised, and read, by their outputs alone."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .copies import apart, clone, set_mode


def wide(v, x):
    """Return v (C,) seen as (1, C, 1, ...), for x."""
    return v.view(1, -1, *[1] * (x.dim() - 2))


def moments(x):
    """Return mean (C,), unbiased variance (C,) and the count of values that share them."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    dims, n = [d for d in range(x.dim()) if d != 1], x.numel() // max(x.shape[1], 1)
    return x.mean(dims), x.var(dims, correction=0) * (n / max(n - 1, 1)), n


def _fresh(m, fill=None):
    """Return a float32 copy, helpers in it (an activation) out of the way, its parameters all `fill` if given."""
    m = clone(m).float()
    for name, _ in list(m.named_children()):
        setattr(m, name, nn.Identity())
    for p in m.parameters() if fill is not None else ():
        p.data.fill_(fill)
    return m


def normalises(m, shape):
    """Return whether, in training, stretching and shifting channels changes nothing, but other companions do."""
    if len(shape) < 2 or any(p.numel() > shape[1] for p in m.parameters(recurse=False)):
        return False
    g, shape = torch.Generator().manual_seed(0), (8, shape[1], *(min(s, 4) for s in shape[2:]))
    sizes = shape, shape, shape[1:2], shape[1:2]
    z, other, a, b = (100 * torch.randn(s, generator=g) for s in sizes)  # ε is small there
    inputs = z, z * wide(a.abs() / 100 + 0.5, z) + wide(b, z), torch.cat([z[:1], other[1:]])
    try:
        y, stretched, elsewhere = (set_mode(_fresh(m, 1.0), True)(x).detach() for x in inputs)
        return bool(y.shape == z.shape and (y - stretched).abs().max() < 2e-2 < (y - elsewhere)[:1].abs().max())
    except Exception:  # a module that takes no such input is no batch normalization
        return False


@dataclass
class Vitals:
    """What the outputs of a module say of the batch normalization in it."""

    mean: Tensor  # running
    var: Tensor
    gamma: Tensor
    beta: Tensor
    momentum: float
    eps: float
    leaks: bool  # in evaluation, an example's output hangs on its companions
    apart: float  # how far the two modes are from each other, settled on one batch
    biased: bool  # the variance stored


def vitals(m, shape):
    """Return the Vitals of any module that normalises."""
    z = torch.randn(8, shape[1], *(min(s, 2) for s in shape[2:]), generator=torch.Generator().manual_seed(1))
    mean, var, n = moments(z)
    z = (z - wide(mean, z)) / wide((var * (n - 1) / n).sqrt(), z)  # mean 0, variance 1
    k, own, dims = _fresh(m, 1.0), set_mode(_fresh(m), False), [d for d in range(z.dim()) if d != 1]

    def line(y, x=z):  # y = slope · x + level, per channel
        return (y * z).mean(dims) / (x * z).mean(dims), y.mean(dims)

    def training(m, x=z):
        return line(set_mode(m, True)(x).detach(), x)

    def evaluation():
        with torch.no_grad():
            e, level = line(set_mode(k, False)(z))
        return (beta - level) / e, (unit / e).square() - eps  # running mean, running variance

    with torch.no_grad():
        leak = (own(z)[:1] - own(torch.cat([z[:1], 3 * z[1:] + 1]))[:1]).nan_to_num().abs().max().item()
    slope, beta = training(_fresh(m, 1.0))
    small, _ = training(_fresh(m, 1.0), 3e-3 * z)
    gamma, level = training(_fresh(m))
    q = (slope / small).square()  # (9e-6 + ε) / (1 + ε)
    eps = max(((q - 9e-6) / (1 - q)).nan_to_num().median().item(), 0.0)
    unit = slope * (1 + eps) ** 0.5
    first = evaluation()
    for _ in range(3):  # the third update tells a constant momentum from a cumulative average
        m1, v1 = evaluation()
        training(k, z + wide((m1 + 10).nan_to_num(), z))
    m2, v2 = evaluation()
    momentum = ((m2 - m1) / 10).nan_to_num().median().item()
    stored = ((v2 - (1 - momentum) * v1) / momentum).median().item() if abs(momentum) > 1e-4 else n / (n - 1)
    gap = 0.0
    if momentum > 0.02 and n > 8:  # settled on one batch, both modes should say the same
        for _ in range(150):
            training(k, 3 * z + 1)
        with torch.no_grad():
            trained, evaluated = (set_mode(k, training)(3 * z + 1) for training in (True, False))
        gap = apart(evaluated, trained)
    biased = abs(stored - 1) < abs(stored - n / (n - 1))
    return Vitals(*first, gamma * (1 + eps) ** 0.5, level, momentum, eps, leak > 1e-3, gap, biased)
