"""The exercise `lenet_with_bn`: a function that returns the network of lesson 05, checked piece by piece.

How the network is put together is free (Sequential, a class, functions between the layers): a `Watch` records its
convolutions, linear layers and norms as they are called. What lies between two of them is known by what it makes of
the first one's output, each piece by itself, so that any number of mistakes can be told side by side. Where a layer
does not fit, one that does stands in, and what comes behind it is judged, too.
"""

import copy
import inspect
import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise, product
from os.path import commonprefix
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
TRAINING, EVALUATION = "training uses running statistics", "evaluation uses the batch's statistics"
UPDATED, MODE = "running statistics updated in eval", "mode taken from grad mode"
CAUSES = {  # {at} is where a mistake shows; of those that are not here, it says all
    "wrong number of layers": "{at}; the table has 2 convolutions and 3 linear layers",
    "wrong kernel size": "{at}; the table has 5×5",
    "padding": "{at}; the table has no padding, 28 → 24 → 12 → 8 → 4",
    "stride": "{at}; in the table it is 1, and the pooling halves the sides",
    "dilation": "{at}; in the table it is 1",
    "grouped convolution": "{at}: each output sees only some inputs",
    "bias missing": "{at} has no bias, and no batch norm's β stands in for it",
    "layer not registered": "{at}: its parameters are not among model.parameters(), so nothing trains them",
    NO_GRADIENT: "no gradient reaches {at}: is something detached, or frozen?",
    "result not used": "what {at} gives is not used; what went in goes on: assign the result, `x = norm(x)`",
    "flatten missing": "{at}; flatten what the last pooling gives to (B, 256) first",
    "flattened to the wrong size": "{at}; keep the batch: `x.flatten(1)`",
    "images mixed when flattened": "behind {at}, a row is not one image: keep the batch, `x.flatten(1)`",
    "channels last when flattened": "behind {at}, the channels are flattened last; nn.Flatten keeps (C, H, W)",
    "activation missing": "no activation follows {at}; without one, layers collapse into one linear map",
    "two activations in a row": "{at}; the table has one Sigmoid",
    "pooling missing": "no pooling follows {at}; the table has MaxPool 2 after the activation",
    "one pooling too many": "a pooling follows {at}; the table has none there",
    "pooling of another size": "{at}; the table has MaxPool 2, which halves the sides",
    "dropout added": "{at}; the table has none",
    "images changed": "before the first layer, the images are changed: {at}; the table takes them as they are",
    UNKNOWN: "{at}: this is not what the table has there",
    "batch norm missing": "no batch norm follows {at}; the table has one after each layer but the last",
    "batch norm before the first convolution": "a batch norm stands before the first convolution, on the images; the "
    "table has it right after each layer",
    "batch norm after the activation": "the batch norm stands after the activation, behind {at}; the table has it right "
    "after the layer, before its activation",
    "batch norm after the pooling": "the batch norm stands after activation and pooling, behind {at}; the table has it "
    "right after the layer, before its activation",
    "pooling before batch norm": "the pooling comes before the batch norm, behind {at}; the table has it at the end",
    "batch norm after the last layer": "a batch norm follows the last linear layer; the table ends with that layer",
    "two batch norms in a row": "{at}; the table has one",
    "one batch norm too many": "{at}; the table has one",
    "one batch norm used twice": "{at} are the same layer: they share γ, β and running statistics; make one for each",
    "batch norm for another number of axes": "{at}: after a convolution, (B, C, H, W), comes BatchNorm2d, after a linear "
    "layer, (B, C), BatchNorm1d",
    "another normalization": "there is {at}; the table has batch norm",
    "not a batch norm": "{at} gives other numbers than batch norm: try that layer in check('layer', …)",
    "batch norm without gamma and beta": "{at} has no γ and β; the table's have (affine=True, PyTorch's default)",
    "batch norm without running statistics": "{at} keeps none; the table's do (track_running_stats=True)",
    "gamma and beta are no parameters": "γ and β of {at} are no nn.Parameter, so nothing trains them",
    "plain attributes": "the running statistics of {at} are no buffers, so state_dict() leaves them out and .to(device) "
    "leaves them behind: use `register_buffer`",
    "epsilon of batch norm": "{at}; the table's have 1e-5, PyTorch's default",
    "momentum of batch norm": "{at}; in the table 0.1 of each does, PyTorch's default momentum",
    "biased running variance": "{at} takes in the biased variance (÷ n); PyTorch's takes the unbiased one (÷ n − 1)",
    "running statistics not updated": "a training batch leaves those of {at} as they were",
    "running statistics of a batch norm": "after a training batch, those of {at} are not what torch.nn's would be: try "
    "that layer in check('layer', …)",
    UPDATED: "eval() changes the running statistics of {at}",
    TRAINING: "in train(), {at} normalises with its running statistics; there the batch's own do",
    EVALUATION: "in eval(), {at} still normalises with the batch's own mean and variance; there the running ones do",
    MODE: "{at} obeys no_grad() and not eval(): ask `self.training`, not whether gradients are on",
}

# ---- what may lie between two layers

ACTIVATIONS = {  # common ones first
    **{"sigmoid": torch.sigmoid, "ReLU": torch.relu, "tanh": torch.tanh},
    **{"softmax": lambda x: x.softmax(1), "log softmax": lambda x: x.log_softmax(1)},
    **{"softmax over the batch": lambda x: x.softmax(0), "log softmax over the batch": lambda x: x.log_softmax(0)},
    **{"softmax over the last axis": lambda x: x.softmax(-1), "LeakyReLU": F.leaky_relu},
    **{f"LeakyReLU of slope {slope}": partial(F.leaky_relu, negative_slope=slope) for slope in (0.1, 0.2, 0.3)},
    **{"PReLU": partial(F.leaky_relu, negative_slope=0.25), "GELU by tanh": partial(F.gelu, approximate="tanh")},
    **{"ReLU6": F.relu6, "GELU": F.gelu, "SiLU": F.silu, "ELU": F.elu, "SELU": F.selu, "Mish": F.mish},
    **{"softplus": F.softplus, "softsign": F.softsign, "log sigmoid": F.logsigmoid, "hard sigmoid": F.hardsigmoid},
    **{"hard tanh": F.hardtanh, "hard swish": F.hardswish, "scaled tanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x)},
    **{"square": torch.square, "absolute value": torch.abs},
}
POOLS = {"max pooling": F.adaptive_max_pool2d, "average pooling": F.adaptive_avg_pool2d}
for window in ((3, 2, 0), (3, 2, 1), (2, 1, 0)):  # what no adaptive pooling comes to
    how = "({}×{} windows, stride {}, padding {})".format(window[0], *window)
    POOLS[f"max pooling {how}"] = lambda x, side, window=window: F.max_pool2d(x, *window)
    POOLS[f"average pooling {how}"] = lambda x, side, window=window: F.avg_pool2d(x, *window)
POOLS["every second pixel"] = lambda x, side: x[..., ::2, ::2]
LAYOUTS = {
    "flatten": lambda x, y: x.flatten(1) if y.dim() == 2 else x,
    "channels last": lambda x, y: x.movedim(1, -1).flatten(1) if y.dim() == 2 else x,
    "mixed images": lambda x, y: x.reshape(y.shape) if x.numel() == y.numel() else x,
}
LAID = {"flatten", "view", "reshape", "permute", "transpose", "contiguous", "max_pool2d", "boolean_dispatch"}


def leading(x, y, usual=()):
    """Return the steps from x to y, (name, shape) each: the fewest, but those of names `usual` if they do it, too.

    Returns None if no known ones do.
    """
    ways = [(), *((name,) for name in ACTIVATIONS), *product(list(ACTIVATIONS)[:3], repeat=2)]
    if x.dim() == 4 and x.numel() > y.numel():
        ways = [way for acts in ways for pool in POOLS for way in dict.fromkeys([(*acts, pool), (pool, *acts)])]
    side = math.isqrt(y.numel() // max(1, math.prod(x.shape[:2]))) or 1
    for way in (usual, *ways):
        value, steps = x, []
        try:
            for name in way:
                value = POOLS[name](value, side) if name in POOLS else ACTIVATIONS.get(name, torch.clone)(value)
                steps += [] if name in LAYOUTS else [(name, value.shape)]
        except (RuntimeError, IndexError):  # of another rank, or too small for the windows
            continue
        for layout, laid in LAYOUTS.items():
            if (z := laid(value, y)).shape == y.shape and close(z, y):
                return steps + ([(layout, y.shape)] if z.shape != value.shape or layout != "flatten" else [])
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
    **{norm: ("other norm", "x") for norm in (F.layer_norm, F.group_norm, F.instance_norm, F.local_response_norm)},
}
OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm, nn.RMSNorm)
ROLES = dict(running_mean="running mean", running_var="running variance", weight="gamma", bias="beta")
RUNNING = list(ROLES)[:2]


@dataclass
class Call:
    """A call of a layer: its kind, what was called, input and output, the tensors and settings that it works with.

    before, after  the running mean and variance, None for each that there is not
    error    what was raised, where another layer stands in
    between  the names of the functions that were called since the call before
    name     in the words of the table, once it is known
    """

    kind: str
    layer: object
    x: torch.Tensor
    y: torch.Tensor
    given: dict
    before: list
    after: list
    error: str
    between: list
    name: str = ""

    @property
    def sizes(self):
        """The numbers of inputs and outputs that its weight is made for; None for a norm."""
        weight = self.given["weight"]
        return None if "norm" in self.kind else (weight.shape[1] * self.given.get("groups", 1), weight.shape[0])

    @property
    def label(self):
        """What it is, as in the table."""
        if self.sizes is None:
            return type(self.layer).__name__ if isinstance(self.layer, nn.Module) else self.layer
        words = "{} {}→{}".format("Linear" if self.kind == "linear layer" else "Conv2d", *self.sizes)
        return words if self.kind == "linear layer" else f"{words}, k={self.given['weight'].shape[2]}"


class Watch(TorchFunctionMode):
    """What came of a network on a batch: the `calls` of its layers and norms, its `output`, or the `trouble`.

    roles   {norm: {role: its Part}}; of those that raised an error before, None: others stand in for them
    """

    def __init__(self, guard, model, roles, images, training, grad=True):
        super().__init__()
        self.roles, self.training, self.mode = roles, training, "train()" if training else "eval()"
        self.calls, self.between, self.odd, self.last, self.inside = [], [], [], None, False

        def call():
            with ExitStack() as stack:
                for norm in roles:
                    stack.enter_context(patch.object(norm, "forward", partial(self.norm, norm, norm.forward)))
                for context in (torch.compiler.set_stance("force_eager"), torch.set_grad_enabled(grad), self):
                    stack.enter_context(context)
                return model(images.clone())

        model.train(training)
        self.output, self.trouble = guard.call(call)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Record the layers; let dropouts pass, and flatten what cannot be viewed as it should."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self.inside:
            return func(*args, **kwargs)
        if "dropout" in name:
            bound = inspect.signature(func).bind(*args, **kwargs)
            bound.apply_defaults()
            if bound.arguments["training"] and bound.arguments["p"]:
                self.odd.append(("dropout added", f"there is a dropout of {bound.arguments['p']:g}"))
            return args[0]
        if func in WATCHED:
            kind, names = WATCHED[func]
            given = dict(zip(names.split(), args, strict=False)) | kwargs
            x = given.pop("x") if "x" in given else given.pop("input")
            return self.record(kind, name, partial(func, *args, **kwargs), x, given)
        try:
            self.last = func(*args, **kwargs)
        except RuntimeError as error:
            if name not in ("view", "reshape") or args[0].dim() != 4:
                raise
            what = f"{name} raises an error for {tuple(args[0].shape)} in {self.mode}: {error}"
            self.odd.append(("flattened to the wrong size", what))
            self.last = args[0].flatten(1)
        if not name.startswith("__get") and name not in ("size", "dim"):
            self.between.append(name)
        return self.last

    def norm(self, norm, forward, x, *more):
        """Stand in for the forward of a norm."""
        return forward(x, *more) if self.inside else self.record("norm", norm, lambda: forward(x, *more), x, {})

    def record(self, kind, layer, call, x, given):
        """Record a call and return what it gives; what one that fits would give if it raises an error for its sizes."""

        def tensors():
            if not isinstance(layer, nn.Module):
                return given
            held, roles = parts(layer), self.roles[layer]
            return {key: held[roles[role].name].tensor for key, role in ROLES.items() if role in roles}

        def running():
            found = map(tensors().get, RUNNING)
            return [None if part is None else part.detach().double().flatten() for part in found]

        error, start, before, self.inside = "", x.detach().clone(), running(), True
        given = dict(weight=None, bias=None) | tensors()
        try:
            y = call()
            if "norm" in kind and y.shape != x.shape:
                raise ValueError(f"the result has shape {tuple(y.shape)}")
        except Exception as raised:
            trouble = what_was_raised(raised)
            y, error = fitting(kind, x, given, self.training), located(trouble)
            if y is None or trouble.kind == "unanswered":
                raise
        finally:
            self.inside = False
        self.calls.append(Call(kind, layer, start, y.detach().clone(), given, before, running(), error, self.between))
        self.between, self.last = [], y
        return y


def fitting(kind, x, given, training):
    """Return what a layer of the right size would give for x, None if its size is not why it raised an error."""
    weight, generator = given["weight"], torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5

    if kind == "norm":
        values = [part if part is None else part.flatten() for part in map(given.get, ROLES)]
        values = [part if part is not None and len(part) == x.shape[1] else None for part in values]
        batch = training or any(part is None for part in values[:2])
        return F.batch_norm(x, *([None, None] if batch else values[:2]), *values[2:], training=batch)
    if kind == "linear layer" and x.dim() > 1 and (x.dim() > 2 or x.shape[1] != weight.shape[1]):
        return F.linear(x.flatten(1), drawn(len(weight), x[0].numel()))
    if kind == "convolution" and x.dim() == 4 and x.shape[1] != weight.shape[1] * given.get("groups", 1):
        kernel = drawn(len(weight), x.shape[1], *weight.shape[2:])
        return F.conv2d(x, kernel, None, given.get("stride", 1), given.get("padding", 0))
    return None


def norms_of(model):
    """Return the modules that normalise: torch's, this library's, or of the reader's own; of nested ones the inner."""

    def normalises(module):
        own = {role_of(part) for part in parts(module).values() if "." not in part.name}
        word = type(module).__name__.lower()
        return "norm" in word or word in ("bn", "bn1d", "bn2d") or {"running mean", "running variance"} <= own

    found = [module for module in model.modules() if module is not model and normalises(module)]
    stops = (nn.Conv2d, nn.Linear, *map(type, found))
    return [norm for norm in found if not any(isinstance(m, stops) for m in norm.modules() if m is not norm)]


# ---- what is found


class Findings:
    """Mistakes by name, each with its cause and the places where it shows."""

    def __init__(self):
        self.causes, self.places, self.when, self.ways = {}, {}, "", {}

    def note(self, name, at="", cause=None):
        """Add a mistake, or one more place of it, or nothing if it is known."""
        cause = self.causes.setdefault(name, cause or CAUSES.get(name, "{at}"))
        self.places.setdefault(name, {}).setdefault(at, "" if "eval()" in cause + at else self.when)

    def mistakes(self):
        """Return them as a list of Mistake."""
        return [Mistake(name, cause.replace("{at}", listed(self.places[name]))) for name, cause in self.causes.items()]


def listed(places):
    """Return places in a sentence, what they begin and end with said once."""
    words = [f"{at} {when}".split() for at, when in places.items()]
    start = commonprefix(words)[: min(map(len, words)) - 1]
    rest = [some[len(start) :] for some in words]
    end = commonprefix([some[::-1] for some in rest])[: min(map(len, rest)) - 1][::-1]
    *most, last = [" ".join(some[: len(some) - len(end)]) for some in rest]
    return " ".join([*start, f"{', '.join(most)} and {last}" if most else last, *end]).strip()


def look(watch, images, findings):
    """Note what is wrong in what a watch saw; return what it saw as text, in the words of the table."""
    note, calls = findings.note, watch.calls
    at = [i for i, call in enumerate(calls) if call.sizes]
    rows = aligned([calls[i] for i in at])
    for name, place in watch.odd:
        note(name, place)
    for i, row in zip(at, rows, strict=True):
        calls[i].name = f"one more {calls[i].kind}, {calls[i].label}" if row is None else NAMES[row]
    if not watch.trouble:
        for name in [name for row, name in enumerate(NAMES) if row not in rows]:
            note("wrong number of layers", f"{name} is missing")
        for i in [i for i, row in zip(at, rows, strict=True) if row is None]:
            note("wrong number of layers", f"there is {calls[i].name}")
    first = calls[0].x if calls else images
    if first.shape != images.shape or not close(first, images):
        same = first.shape == images.shape
        note("images changed", "to other numbers" if same else f"from {tuple(images.shape)} to {tuple(first.shape)}")
    if at and at[0] > 0:
        note("batch norm before the first convolution")
    lines = []
    for (i, j), row in zip(pairwise([*at, len(calls)]), rows, strict=True):
        steps, strange = between(calls[i:j], calls[j] if j < len(calls) else None, row, watch, findings, lines)
        for call in calls[i + 1 : j]:
            look_at_norm(call, watch, note)
        if row is not None:
            look_at_layer(calls[i], row, watch.mode, note)
            look_between(row, calls[i].name, steps, strange, j == len(calls) and watch.trouble, note)
    for name, y in [*((call.name, call.y) for call in calls), ("the network", watch.output)]:
        if isinstance(y, torch.Tensor) and not y.isfinite().all():
            what = "nan (not a number)" if y.isnan().any() else "inf (a number too large, or a division by 0)"
            note("not finite", f"{name} gives {what} in {watch.mode}")
            break
    return "\n".join(
        f"{words[0].upper() + words[1:]:<20}({', '.join(['B', *map(str, shape)])})" for words, shape in lines
    )


def between(calls, following, row, watch, findings, lines):
    """Return the names of the steps behind a layer, among them its norms, and whether there are others, unknown.

    calls      of the layer and its norms; following: the next layer's, None at the end
    """
    steps, strange, so_far = [], False, {}
    for call, after in zip(calls, [*calls[1:], following], strict=True):
        if call is not calls[0]:
            call.name = f"the batch norm after {calls[0].name}"
            steps = [*steps, "batch norm"]
        so_far[call.name] = steps
        lines.append((call.label, call.y.shape[1:]))
        target = after.x if after else watch.last.detach() if watch.trouble else watch.output
        if target is None:
            return steps, True
        for source in reversed(calls[: calls.index(call) + 1] if calls[0].x is call.x else [calls[0], call]):
            way = leading(source.y, target, findings.ways.get(call.name, ()))
            if way is not None:
                break
        if way is None:
            called = dict.fromkeys(name for name in (after or watch).between if name not in LAID)
            known = {name.replace(" ", "").lower() for name in ACTIVATIONS}
            strange = True
            if len(called) == 1 and not known & set(called):
                way = [(*called, target.shape)]
            elif after or (row == LAST and target.shape == (len(call.x), 10)):
                words = f" (called there: {', '.join(called)})" if called else ""
                findings.note(UNKNOWN, f"between {call.name} and {after.kind if after else 'the output'}{words}")
        elif source is not call:
            findings.note("result not used", call.name)
            steps = so_far[source.name]
        way = way or []
        findings.ways.setdefault(call.name, tuple(name for name, _ in way))
        lines += [(name, shape[1:]) for name, shape in way]
        steps = [*steps, *(name for name, _ in way)]
    return steps, strange


def aligned(calls):
    """Return the row of the table that each call of a layer stands for, None for one too many."""
    count, table = min(len(calls), len(LAYERS)), list(LAYERS.values())

    def fit(pairs):
        marks = [(calls[i].kind, *calls[i].sizes, *table[row]) for i, row in pairs]
        return sum(4 * (kind == k) + 2 * (after == a) + (before == b) for kind, before, after, k, b, a in marks)

    choices = product(combinations(range(min(len(calls), 12)), count), combinations(range(len(LAYERS)), count))
    rows = dict(max((tuple(zip(*choice, strict=True)) for choice in choices), key=fit))
    return [rows.get(i) for i in range(len(calls))]


def look_at_layer(call, row, mode, note):
    """Note in what a convolution or linear layer differs from the table's."""
    (kind, before, after), given, name = list(LAYERS.values())[row], call.given, call.name
    raised = f"; in {mode} it gets {tuple(call.x.shape)} and raises an error" if call.error else ""
    if call.kind != kind:
        cause = f"{{at}}; the table has {'Conv2d' if kind == 'convolution' else 'Linear'} {before}→{after} there"
        return note(f"{call.kind} instead of {kind}", f"{name} is {call.label}{raised}", cause)
    if call.sizes != (before, after):
        what = "wrong number of " + ("channels" if kind == "convolution" else "features")
        note(what, f"{name} is {call.sizes[0]}→{call.sizes[1]}, the table has {before}→{after}{raised}")
    elif call.error and call.x[0].numel() != before:
        note("sizes do not fit", f"{name} is {before}→{after}{raised}")
    if given["bias"] is None and row == LAST:
        note("bias missing", name)
    if kind == "linear layer":
        return note("flatten missing", f"{name} gets {tuple(call.x.shape)}") if call.x.dim() != 2 else None
    for what, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = given.get(what, usual)
        if value not in (usual, (usual, usual), [usual, usual], "valid"):
            note(what, f"{name} has {what}={value}")
    if given["weight"].shape[2:] != (5, 5):
        note("wrong kernel size", f"{name} has a kernel of {tuple(given['weight'].shape[2:])}")
    if given.get("groups", 1) != 1:
        note("grouped convolution", f"{name} has groups={given['groups']}")
    return None


def look_between(row, name, steps, strange, cut, note):
    """Note in what the steps behind a layer differ from the table's: batch norm, sigmoid, and for images a pooling.

    strange  whether some of them are not known; cut: whether they end with an error
    """
    norms, pools = steps.count("batch norm"), [step for step in steps if step in POOLS]
    acts = [step for step in steps if step not in POOLS and step not in LAYOUTS and step != "batch norm"]
    whole, before = not (strange or cut), steps[: steps.index("batch norm")] if norms else []
    if "channels last" in steps:
        note("channels last when flattened", name)
    if "mixed images" in steps:
        note("images mixed when flattened", name)
    if row == LAST:
        for act in acts:
            cause = f"the output goes through {act}; the table ends with a linear layer, and the loss takes its numbers"
            note(f"{act} at the end", cause=cause)
        return note("batch norm after the last layer") if norms else None
    if len(acts) > 1:
        note("two activations in a row", f"{' and '.join(acts)} follow {name}")
    elif acts and acts != ["sigmoid"]:
        note(f"{acts[0]} instead of sigmoid", name, f"the table has Sigmoid; {acts[0]} stands after {{at}}")
    elif not acts and whole:
        note("activation missing", name)
    if not norms and (whole or (acts and not cut)):
        note("batch norm missing", name)
    if any(step in acts for step in before):
        note(f"batch norm after the {'pooling' if any(step in POOLS for step in before) else 'activation'}", name)
    elif any(step in POOLS for step in before):
        note("pooling before batch norm", name)
    if norms > 1:
        row_of_them = any(a == b == "batch norm" for a, b in pairwise(steps))
        note(
            "two batch norms in a row" if row_of_them else "one batch norm too many",
            f"{norms} batch norms follow {name}",
        )
    if row < 2 and not pools and whole:
        note("pooling missing", name)
    for pool in pools:
        kind = pool.split(" (")[0]
        if row > 1:
            note("one pooling too many", name)
        elif kind != "max pooling":
            note(f"{kind} instead of max pooling", name, f"the table has MaxPool 2; {kind} stands after {{at}}")
        if kind != pool:
            note("pooling of another size", f"{pool} stands after {name}")
    return None


def look_at_norm(call, watch, note):
    """Note in what a norm differs from torch's batch norm as it is by default."""
    norm, given, x, name = call.layer, call.given, call.x.double(), call.name
    if isinstance(norm, OTHER_NORMS) or call.kind == "other norm":
        return note("another normalization", f"{call.label} in place of {name}")
    affine = [None if part is None else part.detach().double().flatten() for part in (given["weight"], given["bias"])]
    kept = None if any(part is None for part in call.before) else call.before
    fits = all(part is None or len(part) == x.shape[1] for part in (*affine, *call.before))
    if call.error:
        axes = "batch norm for another number of axes" if "D input (got" in call.error else RAISES
        gets = f"{name} gets {tuple(x.shape)} and raises {call.error} in {watch.mode}"
        return note(axes if fits or axes != RAISES else "batch norm of another size", gets)
    if affine == [None, None]:
        note("batch norm without gamma and beta", name)
    if kept is None:
        note("batch norm without running statistics", name)
    own = watch.roles[norm] if isinstance(norm, nn.Module) else {}
    if any(role in own and own[role].kind != "parameter" for role in ("gamma", "beta")):
        note("gamma and beta are no parameters", name)
    if any(role in own and own[role].kind == "attribute" for role in ("running mean", "running variance")):
        note("plain attributes", name)
    if not fits:
        return None
    eps = given.get("eps", getattr(norm, "eps", None))
    eps = eps if isinstance(eps, float) else 1e-5

    def gives(statistics, eps):
        y = F.batch_norm(x, *(statistics or (None, None)), *affine, statistics is None, 0.0, eps)
        return close(y, call.y.double())

    right, other, mistake = (None, kept, TRAINING) if watch.training else (kept, None, EVALUATION)
    if not gives(right, eps):
        eps = next((value for value in (1e-3, 1e-2, 1e-1) if gives(right, value)), eps)
        if not gives(right, eps):
            note(mistake if kept and gives(other, eps) else "not a batch norm", name)
    if abs(eps - 1e-5) > 1e-9:
        note("epsilon of batch norm", f"{name} has ε = {eps:g}")
    if kept:
        look_at_running(call, x.movedim(1, -1).flatten(0, -2), watch.training, note)
    return None


def look_at_running(call, rows, training, note):
    """Note how the running statistics of a norm move that should not, or not so; given its input as rows of channels."""
    (old_mean, old_var), (mean, var), name = call.before, call.after, call.name
    step, way, scale = mean - old_mean, rows.mean(0) - old_mean, max(var.abs().max(), old_var.abs().max())
    share = (step @ way / (way @ way)).item()
    off = [(var - old_var - share * (rows.var(0, correction=c) - old_var)).abs().max() for c in (1, 0)]
    if not step.any() and torch.equal(var, old_var):
        return note("running statistics not updated", name) if training else None
    if not training:
        return note(UPDATED, name)
    if not close(step, share * way) or min(off) > 1e-3 * scale:
        return note("running statistics of a batch norm", name)
    if off[0] > 3e-6 * scale > off[1]:
        note("biased running variance", name)
    return note("momentum of batch norm", f"{share:.3g} of a batch enters {name}") if abs(share - 0.1) > 2e-3 else None


def look_at_all(watches, model, note):
    """Note what only several calls show: layers that are shared, or that the network does not know as its own."""
    known = {id(part) for part in (*model.parameters(), *model.buffers())}
    again = {id(call.given["weight"]) for watch in watches[1:] for call in watch.calls}
    norms = [id(call.layer) for call in watches[0].calls if isinstance(call.layer, nn.Module)]
    norms += [id(call.given["weight"]) for call in watches[0].calls if call.given["weight"] is not None]
    for call in watches[0].calls:
        weight = call.given["weight"]
        if call.kind == "norm" and weight is not None and norms.count(id(weight)) > 1:
            note("one batch norm used twice", call.name)
        if isinstance(call.layer, nn.Module) or weight is None:
            continue
        if isinstance(weight, nn.Parameter) and id(weight) not in known:
            kept = len(watches) == 1 or id(weight) in again
            how = (
                "kept in a plain list or the like (take nn.ModuleList)" if kept else "made anew in each call of forward"
            )
            note("layer not registered", f"{call.name} is {how}")
        elif any(part is not None and id(part) not in known for part in map(call.given.get, RUNNING)):
            note("plain attributes", call.name)


# ---- the exercise


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
        findings, watches, seen = Findings(), [], ""
        note = findings.note
        model = made(guard, attempt, note)
        if model is None:
            return findings.mistakes(), {}
        images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        roles = prepared(guard, model, images)
        for training, when in ((True, ""), (False, "in eval()"), (True, "in the second training batch")):
            watch = Watch(guard, model, roles, images, training)
            watches.append(watch)
            findings.when = when
            if watch.trouble and watch.trouble.kind == "unanswered":
                raise Unanswered
            if not watch.trouble:
                read_output(guard, watch, note)
            lines = look(watch, images, findings)
            seen = seen or lines
            if watch.trouble:
                where = f"after {watch.calls[-1].name}" if watch.calls else "before the first layer"
                cause = f"{located(watch.trouble)}; in {watch.mode}, {where}"
                note(ENDLESS if watch.trouble.kind == "stopped" else RAISES, cause)
                break
        findings.when = ""
        look_at_all(watches, model, note)
        if EVALUATION in findings.causes:
            look(Watch(guard, model, roles, images, False, grad=False), images, other := Findings())
            if EVALUATION not in other.causes:
                for place in findings.places[EVALUATION]:
                    note(MODE, place)
                findings.causes = {key: c for key, c in findings.causes.items() if key not in (EVALUATION, UPDATED)}
        mistakes = findings.mistakes()
        example = dict(example=(("x", "(4, 1, 28, 28)"),), expected=(TABLE,), received=(seen,), shown="layers")
        return mistakes, example if mistakes else {}


def made(guard, attempt, note):
    """Return a copy of the network that an attempt makes, or None. Raises Unanswered."""

    def unchanged(thing=None, *_, **__):
        return thing

    with patch.multiple(torch.jit, script=unchanged, trace=unchanged):
        model, trouble = guard.call(attempt)
        if isinstance(model, type) and issubclass(model, nn.Module):
            note(TYPE, f"lenet_with_bn() returns the class {model.__name__}; make a network of it: {model.__name__}()")
            model, trouble = guard.call(model)
    if holds_dots(model) or (trouble and trouble.kind == "unanswered"):
        raise Unanswered
    if trouble:
        hint = (
            "; write `super().__init__()` as the first line of `__init__`" if "Module.__init__" in trouble.text else ""
        )
        return note(ENDLESS if trouble.kind == "stopped" else RAISES, located(trouble) + hint)
    if isinstance(model, (list, tuple)) and model and all(isinstance(part, nn.Module) for part in model):
        note(TYPE, f"lenet_with_bn() returns {describe(model)} layers; make a network of them: nn.Sequential(*layers)")
        model = nn.Sequential(*model)
    if model is None:
        return note(NOTHING, "lenet_with_bn() ends without a value: end it with `return` and the network")
    if not isinstance(model, nn.Module):
        return note(TYPE, f"lenet_with_bn() returns {describe(model)}; expected an nn.Module")
    twin, trouble = guard.call(copy.deepcopy, model)  # it may be the reader's own, of use later
    return model if trouble else twin


def prepared(guard, model, images):
    """Return {norm: {role: its Part}}; give the parameters other values, for at 1 and 0 a mistake can hide."""
    if any(is_lazy(part) for part in (*model.parameters(), *model.buffers())):
        guard.call(model.train(), images)
    roles = {norm: {role_of(part): part for part in parts(norm).values()} for norm in norms_of(model)}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in model.parameters():
            if not is_lazy(part) and part.numel() > 1:
                scale = 2.0 if part.numel() == max(part.shape) else 0.3
                part.add_((torch.randn(part.shape, generator=generator) * scale).to(part.dtype))
    return roles


def read_output(guard, watch, note):
    """Note what is wrong with the form of the output, and which layers its gradient does not reach; make it a tensor."""
    y = watch.output
    if y is None:
        note(NOTHING, "the network's forward ends without a value: end it with `return`")
    elif not isinstance(y, torch.Tensor):
        note(TYPE, f"the network returns {describe(y)}; expected the output (4, 10) for four images alone")
        values = y.values() if isinstance(y, dict) else y if isinstance(y, (tuple, list)) else ()
        y = next((value for value in values if isinstance(value, torch.Tensor) and value.shape == (4, 10)), None)
    elif y.shape != (4, 10):
        note(SHAPE, f"the network returns {describe(y)}; expected (4, 10) for four images")
    watch.output = None if y is None else y.detach()
    if y is None or not watch.training:
        return
    layers = [call for call in watch.calls if call.sizes and not call.error]
    weights = [call.given["weight"] for call in layers if call.given["weight"].requires_grad]
    slopes, trouble = [None] * len(weights), None
    if y.requires_grad and weights:
        slopes, trouble = guard.call(lambda: torch.autograd.grad(y.sum(), weights, allow_unused=True))
    if trouble:
        return note(NO_GRADIENT, "", f"the backward pass raises {located(trouble)}")
    reached = {id(weight) for weight, slope in zip(weights, slopes, strict=True) if slope is not None}
    for row, call in zip(aligned(layers), layers, strict=True):
        if row is not None and id(call.given["weight"]) not in reached:
            note(NO_GRADIENT, NAMES[row])


LENET = Lenet()
