"""The exercise `lenet_with_bn`: a function that returns the network of lesson 05, checked piece by piece.

How the network is put together is free (Sequential, a class, functions between the layers): a `Watch` follows its
convolutions, linear layers and norms as they are called. What lies between two of them is known by what it makes of
the one's output, each piece by itself, so any number of mistakes can be told. Where a layer does not fit, the watch
goes on as if the right one stood there.
"""

import copy
import inspect
import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise, product
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from .answers import NOTHING, SHAPE, TYPE, describe
from .base import ENDLESS, NO_GRADIENT, RAISES, UNKNOWN, Unanswered, judged, located
from .catalogue import Mistake
from .guard import holds_dots, what_was_raised
from .parts import parts, role_of

LAYERS = {
    "the first convolution": ("convolution", 1, 6),
    "the second convolution": ("convolution", 6, 16),
    "the first linear layer": ("linear layer", 256, 120),
    "the second linear layer": ("linear layer", 120, 84),
    "the last linear layer": ("linear layer", 84, 10),
}
NAMES, LAST = list(LAYERS), len(LAYERS) - 1
TABLE = (
    "Conv2d 1→6, k=5     (B, 6, 24, 24)\nBatchNorm           (B, 6, 24, 24)\nSigmoid             (B, 6, 24, 24)\n"
    "MaxPool 2           (B, 6, 12, 12)\nConv2d 6→16, k=5    (B, 16, 8, 8)\nBatchNorm           (B, 16, 8, 8)\n"
    "Sigmoid             (B, 16, 8, 8)\nMaxPool 2           (B, 16, 4, 4)\nFlatten             (B, 256)\n"
    "Linear 256→120      (B, 120)\nBatchNorm           (B, 120)\nSigmoid             (B, 120)\n"
    "Linear 120→84       (B, 84)\nBatchNorm           (B, 84)\nSigmoid             (B, 84)\nLinear 84→10        (B, 10)"
)

# ---- what may lie between two layers, common things first

ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "ReLU": torch.relu,
    "tanh": torch.tanh,
    "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: x.log_softmax(1),
    "softmax over the batch": lambda x: x.softmax(0),
    "log softmax over the batch": lambda x: x.log_softmax(0),
    "softmax over the last axis": lambda x: x.softmax(-1),
    "LeakyReLU": F.leaky_relu,
    **{f"LeakyReLU of slope {slope}": partial(F.leaky_relu, negative_slope=slope) for slope in (0.1, 0.2, 0.3)},
    "PReLU": partial(F.leaky_relu, negative_slope=0.25),
    "ReLU6": F.relu6,
    "GELU": F.gelu,
    "GELU by tanh": partial(F.gelu, approximate="tanh"),
    "SiLU": F.silu,
    "ELU": F.elu,
    "SELU": F.selu,
    "Mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "log sigmoid": F.logsigmoid,
    "hard sigmoid": F.hardsigmoid,
    "hard tanh": F.hardtanh,
    "hard swish": F.hardswish,
    "scaled tanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x),
    "sine": torch.sin,
    "square": torch.square,
    "absolute value": torch.abs,
}
COMMON = list(ACTIVATIONS)[:4]  # of which two in a row are looked for
WINDOWS = ((3, 2, 0), (3, 2, 1), (2, 1, 0))  # (kernel, stride, padding) that no adaptive pooling comes to
POOLS = {
    "max pooling": F.adaptive_max_pool2d,
    "average pooling": F.adaptive_avg_pool2d,
    **{
        f"{name} (kernel {kernel}, stride {stride}, padding {padding})": lambda x, side, pool=pool, window=window: pool(
            x, *window
        )
        for window in WINDOWS
        for name, pool in (("max pooling", F.max_pool2d), ("average pooling", F.avg_pool2d))
        for kernel, stride, padding in (window,)
    },
    "every second pixel": lambda x, side: x[..., ::2, ::2],
}
LAYOUTS = {
    "": lambda x, y: x.flatten(1) if y.dim() == 2 else x,
    "channels last": lambda x, y: x.movedim(1, -1).flatten(1) if y.dim() == 2 else x.movedim(1, -1),
    "mixed images": lambda x, y: x.reshape(y.shape) if x.numel() == y.numel() else x,
}


def leading(x, y):
    """Return the names of what leads from x to y, the fewest, () if they are equal; None if nothing known does."""
    acts = [(), *((name,) for name in ACTIVATIONS), *product(COMMON, repeat=2)]
    chains = acts
    if x.dim() == 4 and x.numel() > y.numel():
        chains = [chain for act in acts for pool in POOLS for chain in {(*act, pool): 0, (pool, *act): 0}]
    side = math.isqrt(y.numel() // max(1, math.prod(x.shape[:2]))) or 1
    for chain in chains:
        try:
            value = x
            for name in chain:
                value = POOLS[name](value, side) if name in POOLS else ACTIVATIONS[name](value)
            for layout, laid in LAYOUTS.items():
                if (z := laid(value, y)).shape == y.shape and close(z, y):
                    return (*chain, layout) if layout else chain
        except (RuntimeError, IndexError):
            continue
    return None


def close(a, b):
    """Return whether two tensors are equal but for rounding."""
    return torch.allclose(a.to(b.dtype), b, 1e-3, 1e-4, equal_nan=True)


# ---- following a network

WATCHED = {  # function -> (kind, its arguments)
    F.conv2d: ("convolution", "x weight bias stride padding dilation groups"),
    F.linear: ("linear layer", "x weight bias"),
    F.batch_norm: ("norm", "x running_mean running_var weight bias training momentum eps"),
    torch.batch_norm: ("norm", "x weight bias running_mean running_var training momentum eps"),
    **{f: ("norm", "x") for f in (F.layer_norm, F.group_norm, F.instance_norm, F.local_response_norm, F.rms_norm)},
}
RUNNING = ("running_mean", "running_var")
ROLES = dict(weight="gamma", bias="beta", running_mean="running mean", running_var="running variance")
OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm, nn.RMSNorm)


@dataclass
class Call:
    """A call of a layer: its kind, what was called, input and output, the tensors and settings that it works with.

    before, after  the running statistics
    error     what was raised, if another stands in for it
    between   the names of the functions that were called since the call before
    """

    kind: str
    layer: object
    x: torch.Tensor
    y: torch.Tensor
    given: dict
    before: dict
    after: dict
    error: str
    between: list

    @property
    def sizes(self):
        """The numbers of inputs and outputs that its weight is made for."""
        weight = self.given["weight"]
        return weight.shape[1] * self.given.get("groups", 1), weight.shape[0]


class Watch(TorchFunctionMode):
    """Follow a network while it is called: `calls` are those of its layers with weights and of its norms, in order.

    roles   {norm: {role: name of its tensor}} of the modules that are norms
    """

    def __init__(self, roles, training, when=""):
        super().__init__()
        self.roles, self.training, self.when = roles, training, when
        self.calls, self.found, self.between = [], [], []
        self.y = self.trouble = self.last = None
        self.inside = False

    def run(self, guard, model, x, grad=True):
        """Call the network, keep what it returns or why it does not."""

        def call():
            with ExitStack() as stack:
                for norm in self.roles:
                    stack.enter_context(patch.object(norm, "forward", partial(self.norm, norm, norm.forward)))
                for context in (torch.compiler.set_stance("force_eager"), torch.set_grad_enabled(grad), self):
                    stack.enter_context(context)
                return model(x.clone())

        model.train(self.training)
        self.y, self.trouble = guard.call(call)
        return self

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self.inside:
            return func(*args, **kwargs)
        if "dropout" in name:
            on = inspect.signature(func).bind(*args, **kwargs) if inspect.isfunction(func) else None
            on and on.apply_defaults()
            if not on or (on.arguments["training"] and on.arguments["p"]):
                self.found.append(("dropout added", f"there is a dropout{self.when}; the table has none"))
            return args[0]
        if func in WATCHED:
            kind, names = WATCHED[func]
            given = dict(zip(names.split(), args, strict=False)) | kwargs
            x = given.pop("x") if "x" in given else given.pop("input")
            given |= {"by": name} if names == "x" else {}
            return self.record(kind, name, partial(func, *args, **kwargs), x, given)
        try:
            self.last = func(*args, **kwargs)
        except RuntimeError as error:
            if name not in ("view", "reshape") or args[0].dim() != 4:
                raise
            shape = tuple(args[0].shape)
            cause = f"{name} raises an error: {error}; it gets {shape}, flatten that with `x.flatten(1)`"
            self.found.append(("flattened to the wrong size", cause))
            self.last = args[0].flatten(1)
        if not name.startswith("__get") and name not in ("size", "dim"):
            self.between.append(name)
        return self.last

    def norm(self, norm, forward, x, *more):
        """Stand in for a norm's forward."""
        if self.inside:
            return forward(x, *more)
        return self.record("norm", norm, lambda: forward(x, *more), x, self.tensors(norm))

    def tensors(self, norm):
        """Return the tensors of a norm by what they are for."""
        held = parts(norm)
        names = {key: self.roles[norm].get(role) for key, role in ROLES.items()}
        return {key: held[name].tensor if name in held else None for key, name in names.items()}

    def record(self, kind, layer, call, x, given):
        """Return what a layer gives, or one that fits in its place, and record it."""
        given = dict(weight=None, bias=None) | given
        start, before, self.inside, error = x.detach().clone(), running(given), True, ""
        try:
            y = call()
        except Exception as raised:
            trouble = what_was_raised(raised)
            y, error = fitting(kind, x, given, self.training), located(trouble)
            if y is None or trouble.kind == "unanswered":
                raise
        finally:
            self.inside = False
        after = running(self.tensors(layer) if isinstance(layer, nn.Module) else given)
        self.calls.append(Call(kind, layer, start, y.detach().clone(), given, before, after, error, self.between))
        self.between, self.last = [], y
        return y


def running(tensors):
    """Return copies of the running mean and variance among a norm's tensors, None where there are none."""
    return [None if (part := tensors.get(key)) is None else part.detach().double().flatten() for key in RUNNING]


def fitting(kind, x, given, training):
    """Return what a layer of the right size would give that raised an error; None if its size is not why."""
    generator = torch.Generator().manual_seed(0)
    weight = given["weight"]
    if kind == "norm":
        values = [given.get(key) for key in ("running_mean", "running_var", "weight", "bias")]
        values = [v.flatten() if v is not None and v.numel() == x.shape[1] else None for v in values]
        if values[0] is None or values[1] is None:
            values[:2] = None, None
        return F.batch_norm(x, *values, training=training or values[0] is None)
    if kind == "linear layer" and x.dim() > 1 and (x.shape[-1] != weight.shape[1] or x.dim() > 2):
        x = x.flatten(1)
        return F.linear(x, torch.randn(weight.shape[0], x.shape[1], generator=generator) / x.shape[1] ** 0.5)
    if kind == "convolution" and x.dim() == 4 and x.shape[1] != weight.shape[1] * given.get("groups", 1):
        kernel = torch.randn(weight.shape[0], x.shape[1], *weight.shape[2:], generator=generator)
        return F.conv2d(x, kernel / kernel[0].numel() ** 0.5, None, given.get("stride", 1), given.get("padding", 0))
    return None


def norms_of(model):
    """Return the modules that normalise, the innermost ones: torch's, this library's, or of the reader's own."""

    def normalises(module):
        own = {role_of(p) for p in parts(module).values() if "." not in p.name}
        named = "norm" in type(module).__name__.lower() or type(module).__name__.lower() in ("bn", "bn1d", "bn2d")
        return named or {"running mean", "running variance"} <= own

    found = [m for m in model.modules() if m is not model and normalises(m)]
    return [m for m in found if not any(isinstance(c, (nn.Conv2d, nn.Linear)) or c in found for c in inner(m))]


def inner(module):
    """Return the modules within a module."""
    return [other for other in module.modules() if other is not module]


# ---- what is found


class Findings:
    """Mistakes by name, each with a cause in which `{at}` stands for the places where it shows."""

    def __init__(self):
        self.causes, self.places = {}, {}

    def note(self, name, cause, at="", when=""):
        """Add a mistake, or one more place of it; `when` it shows if not in the first training batch."""
        self.causes.setdefault(name, cause)
        self.places.setdefault(name, {}).setdefault(at, when)

    def mistakes(self):
        """Return them as a list of Mistake."""
        return [Mistake(name, cause.replace("{at}", listed(self.places[name]))) for name, cause in self.causes.items()]


def listed(places):
    """Return places as words, each with when it shows there."""
    *most, last = [at + (f" ({when})" if when else "") for at, when in places.items()]
    return f"{', '.join(most)} and {last}" if most else last


def look(watch, images, findings):
    """Note what is wrong in what a watch saw; return the layers that it saw, as text."""

    def note(name, cause, at=""):
        findings.note(name, cause, at, watch.when)

    calls = watch.calls
    at = [i for i, call in enumerate(calls) if call.kind != "norm"]
    rows = aligned([calls[i] for i in at])
    names = [
        f"an extra {calls[i].kind} {calls[i].sizes[0]}→{calls[i].sizes[1]}" if row is None else NAMES[row]
        for i, row in zip(at, rows, strict=True)
    ]
    for name, cause in watch.found:
        note(name, cause)
    if not watch.trouble:
        counted(calls, rows, names, note)
    lines = beginning(calls[: at[0] if at else len(calls)], calls, images, note)
    for n, (i, row, name) in enumerate(zip(at, rows, names, strict=True)):
        if row is not None:
            look_at_layer(calls[i], row, name, note)
        j = at[n + 1] if n + 1 < len(at) else len(calls)
        for call in calls[i + 1 : j]:
            look_at_norm(call, name, watch.training, note)
        ends = j == len(calls)
        after = [*calls[i + 1 : j], None if ends else calls[j]]
        steps, strange = [], []
        for call, following in zip(calls[i:j], after, strict=True):
            steps += ["batch norm"] if call.kind == "norm" else []
            target = following.x if following else watch.last if watch.trouble else watch.output
            way = None if target is None else leading(call.y, target)
            lines += [line_of(call), *lines_of(call.y, way or (), target)]
            if way is None:
                words = [w for w in (following or watch).between if w not in LAID]
                way = words if len(words) == 1 else ()
                strange += [words]
            steps += way
        cut = ends and bool(watch.trouble)
        if row is not None:
            look_between(row, name, steps, cut, strange, note)
        for words in strange:
            expected = row is not None and not (ends and (cut or row < LAST or watch.output.shape != (len(images), 10)))
            if expected and len(words) != 1:
                after = names[n + 1] if not ends else "the output"
                called = f"; called there: {', '.join(dict.fromkeys(words))}" if words else ""
                note(
                    UNKNOWN,
                    f"what stands between {{at}} is not what the table has there{called}",
                    f"{name} and {after}",
                )
    shared = Counter(id(call.layer) for call in calls if call.kind == "norm" and not isinstance(call.layer, str))
    if any(count > 1 for count in shared.values()):
        note(
            "one batch norm used twice",
            "the same batch norm is called in two places, so two layers share γ, β and running statistics; make one "
            "for each",
        )
    for call in calls:
        if not call.y.isfinite().all():
            what = "nan (not a number)" if call.y.isnan().any() else "inf (a number too large)"
            note("not finite", f"{what} comes out of {{at}}", line_of(call).split("  ")[0])
            break
    return lines


LAID = {
    "flatten",
    "view",
    "reshape",
    "max_pool2d",
    "permute",
    "transpose",
    "contiguous",
    "squeeze",
    "unsqueeze",
    "max_pool2d_with_indices",
    "boolean_dispatch",
}


def aligned(calls):
    """Return the row of the table that each call stands for, None for one too many."""
    fewer = min(len(calls), len(LAYERS))
    table = list(LAYERS.values())

    def fit(pairs):
        found = [(calls[i], table[row]) for i, row in pairs]
        return sum(
            4 * (call.kind == kind) + 2 * (call.sizes[1] == after) + (call.sizes[0] == before)
            for call, (kind, before, after) in found
        )

    choices = product(combinations(range(min(len(calls), 12)), fewer), combinations(range(len(LAYERS)), fewer))
    best = dict(max((list(zip(*choice, strict=True)) for choice in choices), key=fit))
    return [best.get(i) for i in range(len(calls))]


def counted(calls, rows, names, note):
    """Note layers that are missing, or too many."""
    kinds = Counter(call.kind for call in calls)
    missing = [name for row, name in enumerate(NAMES) if row not in rows]
    extra = [name for row, name in zip(rows, names, strict=True) if row is None]
    if missing or extra:
        words = [f"{listed(dict.fromkeys(missing, ''))} missing"] if missing else []
        words += [f"{listed(dict.fromkeys(extra, ''))} too many"] if extra else []
        cause = (
            f"called are {kinds['convolution']} convolutions and {kinds['linear layer']} linear layers; the table has 2 "
            f"and 3: {', '.join(words)}"
        )
        note("wrong number of layers", cause)


def beginning(norms, calls, images, note):
    """Note what comes before the first convolution."""
    for norm in norms:
        note(
            "batch norm before the first convolution",
            "a batch norm normalises the images before the first convolution; the table has it after each layer",
        )
    first = calls[0].x if calls else images
    if first.shape != images.shape:
        sizes = f"{tuple(first.shape)} in place of {tuple(images.shape)}"
        note(
            "images changed",
            f"the images are changed before the first layer, to {sizes}; the table takes 28×28 as it is",
        )
    elif not close(first, images):
        note("images changed", "the images are changed before the first layer: other numbers enter it than came in")
    return [line_of(norm) for norm in norms]


def look_at_layer(call, row, name, note):
    """Note in what a convolution or linear layer differs from the table's."""
    kind, before, after = list(LAYERS.values())[row]
    weight, given = call.given["weight"], call.given
    sizes, got = "{}→{}".format(*call.sizes), f"{name} is {{}}; the table has {{}}"
    raised = f"; it gets {tuple(call.x.shape)} and raises an error" if call.error else ""
    if call.kind != kind:
        right = f"Linear {before}→{after}" if kind == "linear layer" else f"Conv2d {before}→{after}"
        note(f"{call.kind} instead of {kind}", got.format(f"a {call.kind} {sizes}", right) + raised)
        return
    if call.sizes != (before, after):
        what = "channels" if kind == "convolution" else "features"
        note(f"wrong number of {what}", "{at}", got.format(sizes, f"{before}→{after}") + raised)
    elif call.error and not (kind == "linear layer" and call.x.flatten(1).shape[1] == before):
        note("sizes do not fit", f"{{at}}", f"{name} takes {before}, but gets {tuple(call.x.shape)}: {call.error}")
    if kind == "linear layer" and call.x.dim() != 2:
        note(
            "flatten missing",
            f"{name} gets {tuple(call.x.shape)}; flatten what the pooling gives to (B, 256) first{raised}",
        )
    if kind == "convolution":
        settings = [pair(given.get(key, usual)) for key, usual in (("stride", 1), ("padding", 0), ("dilation", 1))]
        if tuple(weight.shape[2:]) != (5, 5):
            note("wrong kernel size", f"{{at}}; the table has 5×5", f"{name} has a kernel of {tuple(weight.shape[2:])}")
        if settings[1] not in ((0, 0), "valid"):
            note("padding", "{at}; the table has no padding, 28 → 24 → 12 → 8 → 4", f"{name} pads with {settings[1]}")
        if settings[0] != (1, 1):
            note(
                "stride",
                "{at}; the table has a stride of 1, the pooling halves the sides",
                f"{name} has a stride of {settings[0]}",
            )
        if settings[2] != (1, 1):
            note("dilation", "{at}; the table has 1", f"{name} has a dilation of {settings[2]}")
        if given.get("groups", 1) != 1:
            note("grouped convolution", f"{name} has groups={given['groups']}: each output sees only some inputs")
    if given["bias"] is None and row == LAST:
        note("bias missing", f"{name} has no bias, and no batch norm's β stands in for it")


def pair(value):
    """Return a setting as it is kept for both axes."""
    return (value, value) if isinstance(value, int) else value if isinstance(value, str) else tuple(value)


def look_between(row, name, steps, cut, strange, note):
    """Note in what the steps behind a layer differ from the table's: batch norm, sigmoid, and for images a pooling.

    cut  whether they end with an error; strange  those that are not known
    """
    acts = [step for step in steps if step not in POOLS and step not in LAYOUTS and step != "batch norm"]
    pools = [step for step in steps if step in POOLS]
    norms = steps.count("batch norm")
    if row == LAST:
        for act in acts:
            note(
                f"{act} at the end",
                f"the output goes through {act}; the table ends with a linear layer, and the loss takes its numbers",
            )
        if norms:
            note(
                "batch norm after the last layer",
                "the last linear layer is followed by a batch norm; the table ends with the linear layer",
            )
        return
    whole = not cut and not strange
    if norms == 0 and not cut and all(len(words) == 1 for words in strange):
        note("batch norm missing", "no batch norm follows {at}; the table has one after each layer but the last", name)
    if acts not in ([], ["sigmoid"]) and len(acts) == 1:
        note(f"{acts[0]} instead of sigmoid", f"the table has Sigmoid; {acts[0]} stands after {{at}}", name)
    elif len(acts) > 1:
        note(
            "two activations in a row",
            "there are two activations, {at}; the table has one Sigmoid",
            f"{' and '.join(acts)} after {name}",
        )
    elif not acts and whole:
        note(
            "activation missing",
            "no activation follows {at}; without one, layers collapse into one linear map; the table has Sigmoid after each batch norm",
            name,
        )
    if norms:
        before = steps[: steps.index("batch norm")]
        early = [pool for pool in pools if pool in before]
        if early and len(early) < len(before):
            note(
                "batch norm after the pooling",
                "the batch norm comes after activation and pooling, behind {at}; the table has it right after the layer, before its activation",
                name,
            )
        elif early:
            note(
                "pooling before batch norm",
                "the pooling comes before the batch norm, behind {at}; the table has it after batch norm and Sigmoid",
                name,
            )
        elif before and before[0] not in LAYOUTS:
            note(
                "batch norm after the activation",
                "the batch norm stands after the activation, behind {at}; the table has it right after the layer, before its activation",
                name,
            )
    if norms > 1:
        row_of = any(a == b == "batch norm" for a, b in pairwise(steps))
        note(
            "two batch norms in a row" if row_of else "one batch norm too many",
            f"{{at}}; the table has one",
            f"{norms} batch norms follow {name}",
        )
    if row < 2:
        if not pools and whole:
            note("pooling missing", "no pooling follows {at}; the table has MaxPool 2", name)
        for pool in pools:
            if not pool.startswith("max"):
                note(
                    f"{pool.split(' (')[0]} instead of max pooling",
                    f"{pool} stands after {{at}}; the table has MaxPool 2",
                    name,
                )
            if "(" in pool:
                note("pooling of another size", "{at}; the table has MaxPool 2", f"{pool} stands after {name}")
    elif pools:
        note("one pooling too many", "there is a pooling after {at}; the table has none", name)
    if "channels last" in steps:
        note(
            "channels last when flattened",
            "the features are flattened with the channels last; nn.Flatten keeps (C, H, W)",
        )
    if "mixed images" in steps:
        note(
            "images mixed when flattened",
            "the features are cut into rows that are not one image each; keep the batch: `x.flatten(1)`",
        )


def look_at_norm(call, name, training, note):
    """Note in what a norm after the layer `name` differs from torch's batch norm as it is by default."""
    norm, given, x = call.layer, call.given, call.x.double()
    kind = given.get("by") or type(norm).__name__
    if isinstance(norm, OTHER_NORMS) or "by" in given:
        note("another normalization", "there is a {at}; the table has batch norm", f"{kind} after {name}")
        return
    if call.error:
        if "D input (got" in call.error:
            needs = "after a convolution, (B, C, H, W), comes BatchNorm2d, after a linear layer, (B, C), BatchNorm1d"
            note(
                "batch norm for another number of axes",
                f"the batch norm after {{at}} raises {call.error}: {needs}",
                name,
            )
        else:
            note(RAISES, f"the batch norm after {{at}} gets {tuple(x.shape)}: {call.error}", name)
        return
    weight, bias = (
        None if given[key] is None else given[key].detach().double().flatten() for key in ("weight", "bias")
    )
    if weight is None and bias is None:
        note(
            "batch norm without gamma and beta",
            "the batch norm after {at} has no γ and β; the table's have (affine=True, PyTorch's default)",
            name,
        )
    old, new = call.before, call.after
    if old[0] is None or old[1] is None:
        note(
            "batch norm without running statistics",
            "the batch norm after {at} keeps no running statistics; the table's do (track_running_stats=True)",
            name,
        )
    sizes = {part.numel() for part in (weight, bias, *old) if part is not None}
    if sizes - {x.shape[1]}:
        return
    eps = given.get("eps", getattr(norm, "eps", None))
    eps = eps if isinstance(eps, float) else 1e-5

    def normalised(statistics, eps=eps):
        return F.batch_norm(x, *(statistics or (None, None)), weight, bias, statistics is None, 0.0, eps)

    kept = None if old[0] is None or old[1] is None else old
    right = None if training else kept
    if not close(normalised(right), call.y.double()):
        if kept and training and close(normalised(kept), call.y.double()):
            note(
                "training uses running statistics",
                "in training, the batch norm after {at} normalises with its running statistics; there the batch's own do",
                name,
            )
        elif kept and not training and close(normalised(None), call.y.double()):
            note(
                "evaluation uses the batch's statistics",
                "eval() still normalises with the batch's own mean and variance, after {at}; it has to use the running ones",
                name,
            )
        else:
            fits = [value for value in (1e-3, 1e-2, 1e-1) if close(normalised(right, value), call.y.double())]
            eps = fits[0] if fits else eps
            if not fits:
                note(
                    "not a batch norm",
                    f"what {kind} gives after {{at}} is not what batch norm gives: try that layer in check('layer', …)",
                    name,
                )
    if abs(eps - 1e-5) > 1e-9:
        note(
            "epsilon of batch norm",
            f"the batch norm after {{at}} has ε = {eps:g}; the table's have 1e-5, PyTorch's default",
            name,
        )
    if kept:
        look_at_running(call, x.movedim(1, -1).flatten(0, -2), training, partial(note, at=name))


def look_at_running(call, rows, training, note):
    """Note how the running statistics of a norm move, given its input as rows of channels."""
    (old_mean, old_var), (mean, var) = call.before, call.after
    if not training:
        if not (close(mean, old_mean) and close(var, old_var)):
            note(
                "running statistics updated in eval",
                "eval() changes the running statistics of the batch norm after {at}",
            )
        return
    step, way = mean - old_mean, rows.mean(0) - old_mean
    share = (step @ way / (way @ way)).item()
    if not step.any() and torch.equal(var, old_var):
        note(
            "running statistics not updated",
            "a training batch does not move the running statistics of the batch norm after {at}",
        )
    elif not close(step, share * way):
        note(*NOT_KEPT)
    elif abs(share - 0.1) > 2e-3:
        note(
            "momentum of batch norm",
            f"{share:.3g} of a batch enters the running statistics of the batch norm after {{at}}; in the table 0.1 does, PyTorch's momentum by default",
        )
    else:
        off = [(var - old_var - share * (rows.var(0, correction=c) - old_var)).abs().max() for c in (1, 0)]
        scale = max(var.abs().max(), old_var.abs().max())
        if off[0] > 3e-6 * scale and off[1] < 3e-6 * scale:
            note(
                "biased running variance",
                "the running variance after {at} takes the biased variance (÷ n); PyTorch's takes the unbiased one (÷ n − 1)",
            )
        elif off[0] > 1e-3 * scale:
            note(*NOT_KEPT)


NOT_KEPT = (
    "running statistics of a batch norm",
    "after a training batch they are not what torch.nn's would be, after {at}: try that layer in check('layer', …)",
)


def line_of(call):
    """Return a call as a line in the words of the table."""
    words = type(call.layer).__name__ if isinstance(call.layer, nn.Module) else "batch_norm"
    if call.kind != "norm":
        words = f"{'Conv2d' if call.kind == 'convolution' else 'Linear'} {call.sizes[0]}→{call.sizes[1]}"
        words += f", k={call.given['weight'].shape[2]}" if call.kind == "convolution" else ""
    return line(words, call.y.shape)


def lines_of(y, way, target):
    """Return what leads from a call's output to the next as lines in the words of the table."""
    lines, shape = [], y.shape
    for step in way:
        if step in POOLS:
            side = math.isqrt(target.numel() // math.prod(shape[:2]))
            shape = (*shape[:2], side, side)
        lines.append(line(step[0].upper() + step[1:], shape))
    return lines + ([line("Flatten", target.shape)] if target is not None and target.dim() < len(shape) else [])


def line(words, shape):
    """Return a line of the table."""
    return f"{words:<20}({', '.join(['B', *map(str, shape[1:])])})"


class Lenet:
    """The exercise: `judge(attempt)` takes a function that returns an nn.Module."""

    name = "lenet_with_bn"
    lesson = 5
    section = "The network"
    signature = "lenet_with_bn() -> nn.Module for images (B, 1, 28, 28)"
    asks = "Return the network of the lesson's table, with a batch norm between each layer and its sigmoid."

    def judge(self, attempt):
        """Return the Verdict on a function that makes the network."""
        right = "Every layer of the table is there, in its place, and both modes give the table's output."
        return judged(self, attempt, right, callable(attempt) and not isinstance(attempt, nn.Module), self.name)

    def examine(self, guard, attempt):
        """Return (mistakes, evidence) of an attempt. Raises Unanswered."""
        findings = Findings()
        model = made(guard, attempt, findings.note)
        if model is None:
            return findings.mistakes(), {}
        images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        watches, lines = [], []
        roles = prepared(guard, model, images)
        for training, when in ((True, ""), (False, "in eval()"), (True, "in the second training batch")):
            watch = Watch(roles, training, when).run(guard, model, images)
            if watch.trouble and watch.trouble.kind == "unanswered":
                raise Unanswered
            watch.output = read_output(watch, findings.note)
            seen = look(watch, images, findings)
            lines = lines or seen
            if not watches and not watch.trouble:
                no_gradient(guard, watch, findings.note)
            watches.append(watch)
            if watch.trouble:
                stumbled(watch, findings)
                break
        unregistered(model, watches, findings.note)
        evidence = dict(
            example=(("x", "(4, 1, 28, 28)"),), expected=(TABLE,), received=("\n".join(lines),), shown="layers"
        )
        mistakes = findings.mistakes()
        return mistakes, evidence if mistakes else {}


def made(guard, attempt, note):
    """Return a copy of the network that an attempt makes, or None."""
    plain = patch.multiple(torch.jit, script=lambda thing, *_, **__: thing, trace=lambda thing, *_, **__: thing)
    with plain:
        model, trouble = guard.call(attempt)
        if isinstance(model, type) and issubclass(model, nn.Module):
            note(
                TYPE,
                f"lenet_with_bn() returns the class {model.__name__}; return one made of it: `return {model.__name__}()`",
            )
            model, trouble = guard.call(model)
    if holds_dots(model) or (trouble and trouble.kind == "unanswered"):
        raise Unanswered
    if trouble:
        hint = (
            "; write `super().__init__()` as the first line of `__init__`" if "Module.__init__" in trouble.text else ""
        )
        note(ENDLESS if trouble.kind == "stopped" else RAISES, located(trouble) + hint)
        return None
    if isinstance(model, (list, tuple)) and model and all(isinstance(part, nn.Module) for part in model):
        note(TYPE, f"lenet_with_bn() returns {describe(model)} layers; put them into a network: nn.Sequential(*layers)")
        model = nn.Sequential(*model)
    if model is None:
        note(NOTHING, "lenet_with_bn() ends without a value: return the network")
    elif not isinstance(model, nn.Module):
        note(TYPE, f"lenet_with_bn() returns {describe(model)}; expected an nn.Module")
    else:
        same, trouble = guard.call(copy.deepcopy, model)
        return model if trouble else same  # on a copy: it may be the reader's own
    return None


def prepared(guard, model, images):
    """Return {norm: {role: name of its tensor}}; give the parameters other values, which show what they are for."""
    if any(is_lazy(part) for part in (*model.parameters(), *model.buffers())):
        guard.call(model.train(), images)
    generator = torch.Generator().manual_seed(1)
    roles = {norm: {role_of(p): p.name for p in parts(norm).values()} for norm in norms_of(model)}
    with torch.no_grad():
        for part in model.parameters():
            if not is_lazy(part) and part.numel() > 1 and part.is_floating_point():
                scale = 2.0 if part.numel() == max(part.shape) else 0.3
                part.add_((torch.randn(part.shape, generator=generator) * scale).to(part.dtype))
    return roles


def read_output(watch, note):
    """Return the output of a network among what it returns."""
    y, trouble = watch.y, watch.trouble
    if trouble:
        return None
    if not isinstance(y, torch.Tensor):
        values = list(y.values()) if isinstance(y, dict) else list(y) if isinstance(y, (tuple, list)) else []
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        if y is None:
            note(NOTHING, "the network's forward ends without a value: end it with `return`")
        else:
            note(TYPE, f"the network returns {describe(y)}; expected (4, 10) for four images, and nothing else")
        y = next((value for value in tensors if value.shape == (4, 10)), None)
    elif y.shape != (4, 10):
        note(SHAPE, f"the network returns {describe(y)}; expected (4, 10) for four images")
    return None if y is None else y.detach()


def no_gradient(guard, watch, note):
    """Note the layers whose weights the output's gradient does not reach."""
    layers = [call for call in watch.calls if call.kind != "norm"]
    weights = [call.given["weight"] for call in layers]
    flows, y = [w for w in weights if w.requires_grad], watch.y
    reached = []
    if isinstance(y, torch.Tensor) and y.requires_grad and flows:
        slopes, trouble = guard.call(lambda: torch.autograd.grad(y.sum(), flows, allow_unused=True))
        if trouble:
            note(NO_GRADIENT, f"the backward pass raises {located(trouble)}")
            return
        reached = [id(w) for w, slope in zip(flows, slopes, strict=True) if slope is not None]
    elif not isinstance(y, torch.Tensor):
        return
    for row, call in zip(aligned(layers), layers, strict=True):
        if id(call.given["weight"]) not in reached and not call.error and row is not None:
            note(NO_GRADIENT, "no gradient reaches {at}: is something detached, or frozen?", NAMES[row])


def unregistered(model, watches, note):
    """Note layers whose weights are not among the network's parameters."""
    known = set(map(id, model.parameters()))
    strange = [
        call for call in watches[0].calls if isinstance(w := call.given["weight"], nn.Parameter) and id(w) not in known
    ]
    again = {id(call.given["weight"]) for watch in watches[1:] for call in watch.calls}
    for call in strange:
        if isinstance(call.layer, nn.Module):
            continue
        how = "kept where the network does not find it (in a list? take nn.ModuleList)"
        if id(call.given["weight"]) not in again and len(watches) > 1:
            how = "made anew in each call of forward; make it in __init__"
        note(
            "layer not registered",
            "{at}: its parameters are not among model.parameters(), so nothing trains them",
            f"{line_of(call).split('  ')[0]} is {how}",
        )


def stumbled(watch, findings):
    """Note the error that ended a watch."""
    trouble = watch.trouble
    layers = [call for call in watch.calls if call.kind != "norm"]
    mode = "train()" if watch.training else "eval()"
    last = f", after {line_of(watch.calls[-1]).split('  ')[0]}" if watch.calls else ", before the first layer"
    findings.note(ENDLESS if trouble.kind == "stopped" else RAISES, f"{located(trouble)}; in {mode}{last}")


LENET = Lenet()
