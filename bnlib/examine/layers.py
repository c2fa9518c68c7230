"""Where the batch normalizations are; what the model's own modules that normalise are like, by their outputs alone."""

from dataclasses import dataclass

import torch
from torch import nn

from .copies import apart, clone, set_mode
from .data import size
from .watch import Norm, moments, overhear, owner, wide


def find(p):
    """Find the batch normalizations: calls of torch's, and modules of the model's own that behave like one."""
    shapes, k = {}, p.copy(False)

    def note(name, _, x, out):
        if x.shape == out.shape and x.is_floating_point():
            shapes.setdefault(name, tuple(x.shape))

    overhear(k, note)
    torchs = {owner(call.name) for call in p.watched(k, p.few)[1]}
    like = [
        name
        for name, shape in shapes.items()
        if name
        and not type(p.model.get_submodule(name)).__module__.startswith("torch.nn.")
        and not any(t == name or t.startswith(name + ".") for t in torchs)
        and _normalises(p.model.get_submodule(name), shape)
    ]
    inner = [n for n in like if not any(o.startswith(n + ".") for o in like)]
    p.own = {n: _vitals(p.model.get_submodule(n), shapes[n]) for n in inner}
    _, calls = p.watched(p.given(False), p.few)
    weights = {id(c.x) for c in calls if c.mean is None and c.x.shape[0] != size(p.few)}  # are being standardised
    p.calls = [c for c in calls if id(c.x) not in weights]
    p.first = {c.name: c for c in reversed(p.calls)}
    p.names = list(dict.fromkeys(c.name for c in p.calls))
    if not p.names:
        p.say("BN209", "note", "model", "nothing in it normalises over the batch as a step of its own")
    for n, own in p.own.items():
        if own.biased and own.momentum > 1e-4:
            p.say("BN210", "note", n, "the running variance is too small by 1/n")
        if own.apart > 0.1 and not own.leaks:
            words = f"settled on one batch, its eval() output is {own.apart:.0%} of the spread from train()'s"
            p.say("BN114", "wrong", n, words)


def modes(p):
    """See which layers are in another mode than the model."""
    if not p.names:
        return
    on = [n for n in p.names if p.model.get_submodule(owner(n)).training]
    if not p.original.training:
        for n in on:
            p.say("BN109", "wrong", n, f"in train() inside a model in eval(); {len(on)} of {len(p.names)}")
        return
    again = clone(p.model).train()
    still = [n for n in p.names if not again.get_submodule(owner(n)).training]
    off = [n for n in p.names if n not in on and n not in still]
    severity = "note" if len(off) + len(still) == len(p.names) else "doubtful"
    words = f"in eval() inside a model in train(): frozen on purpose? model.train() undoes it; {len(off)} of them"
    for n in off:
        p.say("BN109", severity, n, words)


def _fresh(m, fill=None):
    """Return a float32 copy, helpers in it (an activation) out of the way, its parameters all `fill` if given."""
    m = clone(m).float()
    for name, _ in list(m.named_children()):
        setattr(m, name, nn.Identity())
    for p in m.parameters() if fill is not None else ():
        p.data.fill_(fill)
    return m


def _normalises(m, shape):
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
class Vitals(Norm):
    """What the outputs of a module say of the batch normalization in it."""

    apart: float  # how far the two modes are from each other, settled on one batch
    biased: bool  # the variance stored


def _vitals(m, shape):
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
