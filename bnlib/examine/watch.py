"""Watching a model at work: each batch normalization that it calls, and what goes in and out of its modules."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

STATISTICS, AFFINE, REST = ("running_mean", "running_var"), ("weight", "bias"), ("training", "momentum", "eps")
SIGNATURES = {  # what is watched, and the order of its arguments
    torch.nn.functional.batch_norm: ("input", *STATISTICS, *AFFINE, *REST),
    torch.batch_norm: ("input", *AFFINE, *STATISTICS, *REST),
}
DEFAULTS = dict(weight=None, bias=None, training=False, momentum=0.1, eps=1e-5)


@dataclass
class Norm:
    """What a batch normalization works with."""

    mean: Tensor | None  # running; None if it keeps none
    var: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    momentum: float
    eps: float
    leaks: bool  # a module of the model's own: in evaluation, an example's output hangs on its companions


@dataclass
class Call(Norm):
    """A batch normalization seen at work."""

    name: str
    x: Tensor
    y: Tensor  # held, so that no other tensor takes its storage
    came: tuple  # the input's storage and version
    went: tuple
    training: bool


def mark(t):
    """Return what tells a tensor, as it is now, from all others."""
    return t.untyped_storage().data_ptr(), t._version


def owner(name):
    """Return the name of the module that a call, such as the second in one, comes from."""
    return name.split("[")[0]


def wide(v, x):
    """Return v (C,) seen as (1, C, 1, ...), for x."""
    return v.view(1, -1, *[1] * (x.dim() - 2))


def moments(x):
    """Return mean (C,), unbiased variance (C,) and the count of values that share them."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    dims, n = [d for d in range(x.dim()) if d != 1], x.numel() // max(x.shape[1], 1)
    return x.mean(dims), x.var(dims, correction=0) * (n / max(n - 1, 1)), n


class Watch(TorchFunctionMode):
    """Sees each batch normalization; may give it other statistics, `put` (name -> mean, variance), or the batch's own.

    norms   the modules of the model's own that normalise: name -> Vitals
    see     is called with each Call, which else is kept in `calls`, and its tensors with it
    """

    def __init__(self, model, norms, put=None, own=False, see=None):
        super().__init__()
        self.calls, self.stack, self.handles, self.put, self.own = [], [], [], put or {}, own
        self.see = see or self.calls.append
        self.seen = {}  # module -> the normalizations called in it, by their tensors
        self.entered = Counter()  # how often each module began its forward pass: in a recomputation no mode watches
        for name, part in model.named_modules():
            self.handles.append(part.register_forward_pre_hook(partial(self._enter, name)))
            self.handles.append(part.register_forward_hook(self._leave, always_call=True))
        for name, vitals in norms.items():
            self.handles.append(model.get_submodule(name).register_forward_hook(partial(self._module, name, vitals)))

    def _enter(self, name, *_):
        self.stack.append(name)
        self.entered[name] += 1

    def _leave(self, *_):
        self.stack.pop()

    def _module(self, name, v, m, args, out):
        x = args[0]
        if self.own or name in self.put:
            if self.own:
                mean, var, n = moments(x)
                var = var * (n - 1) / n
            else:
                mean, var = self.put[name]
            y = (x.float() - wide(mean, x)) * wide(v.gamma / (var + v.eps).sqrt(), x) + wide(v.beta, x)
            for child in m.children():
                y = child(y)
            out = y.to(out.dtype)
        norm = v.mean, v.var, v.gamma, v.beta, v.momentum, v.eps, v.leaks
        self.see(Call(*norm, name, x, out, mark(x), mark(out), m.training))
        return out

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in SIGNATURES:
            return func(*args, **(kwargs or {}))
        given = DEFAULTS | dict(zip(SIGNATURES[func], args, strict=False)) | (kwargs or {})
        given.pop("cudnn_enabled", None)
        name = self.stack[-1] if self.stack else ""
        key, order = (id(given["running_mean"]), id(given["weight"])), self.seen.setdefault(name, [])
        if key not in order:
            order.append(key)
        if order.index(key):  # a second functional call in one module
            name = f"{name}[{order.index(key)}]"
        x, kept, put = given["input"], given["running_mean"], dict(given)
        came = mark(x)
        mean, var = (None if t is None else t.detach().clone() for t in (kept, given["running_var"]))
        if kept is not None and self.own and x.numel() > x.shape[1]:
            put |= dict(running_mean=None, running_var=None, training=True)
        elif name in self.put:
            other, spread = (t.to(x.dtype if kept is None else kept.dtype) for t in self.put[name])
            put |= dict(running_mean=other, running_var=spread, training=False)
        out = torch.nn.functional.batch_norm(**put)
        norm = mean, var, *(given[key] for key in ("weight", "bias", "momentum", "eps")), False
        self.see(Call(*norm, name, x, out, came, mark(out), bool(given["training"])))
        return out

    def __exit__(self, *args):
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*args)


def overhear(model, note):
    """Have note(name, module, input, output) called by each module that makes a tensor of a tensor."""
    for name, part in model.named_modules():

        def hook(m, args, out, name=name):
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                note(name, m, args[0], out)

        part.register_forward_hook(hook)
