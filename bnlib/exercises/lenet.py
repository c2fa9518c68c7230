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
CAUSES = {  # {at} is where a mistake shows
    # the layers
    "wrong number of layers": "{at}; the table has 2 convolutions and 3 linear layers",
    "wrong number of channels": "{at}",
    "wrong number of features": "{at}",
    "sizes do not fit": "{at}",
    "wrong kernel size": "{at}; the table has 5×5",
    "padding": "{at}; the table has no padding, 28 → 24 → 12 → 8 → 4",
    "stride": "{at}; in the table it is 1, and the pooling halves the sides",
    "dilation": "{at}; in the table it is 1",
    "grouped convolution": "{at}: each output sees only some inputs",
    "bias missing": "{at} has no bias, and no batch norm's β stands in for it",
    "layer not registered": "{at}: its parameters are not among model.parameters(), so nothing trains them",
    NO_GRADIENT: "no gradient reaches {at}: is something detached, or frozen?",
    RAISES: "{at}",
    # between them
    "flatten missing": "{at}; flatten what the last pooling gives to (B, 256) first",
    "flattened to the wrong size": "{at}; keep the batch: `x.flatten(1)`",
    "images mixed when flattened": "behind {at}, the features are cut into rows that are not one image each: keep the "
    "batch, `x.flatten(1)`",
    "channels last when flattened": "behind {at}, the features are flattened with the channels last; nn.Flatten keeps "
    "(C, H, W)",
    "activation missing": "no activation follows {at}; without one, layers collapse into one linear map; the table has "
    "Sigmoid after each batch norm",
    "two activations in a row": "{at}; the table has one Sigmoid",
    "pooling missing": "no pooling follows {at}; the table has MaxPool 2 after the activation",
    "one pooling too many": "a pooling follows {at}; the table has none there",
    "pooling of another size": "{at}; the table has MaxPool 2, which halves the sides",
    "dropout added": "{at}; the table has none",
    "images changed": "before the first layer the images are changed: {at}; the table takes them as they are",
    UNKNOWN: "what stands {at} is not what the table has there",
    "not finite": "{at}, a number that is not finite",
    # the batch norms
    "batch norm missing": "no batch norm follows {at}; the table has one after each layer but the last",
    "batch norm before the first convolution": "a batch norm stands before the first convolution, on the images; the "
    "table has it after each layer",
    "batch norm after the activation": "the batch norm stands after the activation, behind {at}; the table has it right "
    "after the layer, before its activation",
    "batch norm after the pooling": "the batch norm stands after activation and pooling, behind {at}; the table has it "
    "right after the layer, before its activation",
    "pooling before batch norm": "the pooling comes before the batch norm, behind {at}; the table has it after batch norm "
    "and Sigmoid",
    "batch norm after the last layer": "a batch norm follows the last linear layer; the table ends with that layer",
    "two batch norms in a row": "{at}; the table has one",
    "one batch norm too many": "{at}; the table has one",
    "one batch norm used twice": "{at} are the same layer, so they share γ, β and running statistics; make one for each",
    "batch norm for another number of axes": "{at}: after a convolution, (B, C, H, W), comes BatchNorm2d, after a linear "
    "layer, (B, C), BatchNorm1d",
    "batch norm of another size": "{at}",
    "another normalization": "there is {at}; the table has batch norm",
    "not a batch norm": "{at} gives other numbers than batch norm: try that layer in check('layer', …)",
    "batch norm without gamma and beta": "{at} has no γ and β; the table's have (affine=True, PyTorch's default)",
    "batch norm without running statistics": "{at} keeps no running statistics; the table's do "
    "(track_running_stats=True)",
    "gamma and beta are no parameters": "γ and β of {at} are no nn.Parameter, so nothing trains them",
    "plain attributes": "the running statistics of {at} are no buffers, so state_dict() leaves them out and .to(device) "
    "leaves them behind: use `register_buffer`",
    "epsilon of batch norm": "{at}; the table's have 1e-5, PyTorch's default",
    "momentum of batch norm": "{at}; in the table 0.1 of each batch does, PyTorch's default",
    "biased running variance": "the running variance of {at} takes in the biased variance (÷ n); in PyTorch it is the "
    "unbiased one (÷ n − 1)",
    "running statistics not updated": "a training batch leaves the running statistics of {at} as they were",
    "running statistics of a batch norm": "after a training batch, those of {at} are not what torch.nn's would be: try "
    "that layer in check('layer', …)",
    "running statistics updated in eval": "eval() changes the running statistics of {at}",
    "training uses running statistics": "in train(), {at} normalises with its running statistics; there the batch's own do",
    "evaluation uses the batch's statistics": "in eval(), {at} still normalises with the batch's own mean and variance; "
    "there the running ones do",
    "mode taken from grad mode": "under no_grad() {at} normalises with its running statistics, in eval() alone it does not: "
    "ask `self.training`, not whether gradients are on",
}

# ---- what may lie between two layers

ACTIVATIONS = {  # common ones first
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
    **{"ReLU6": F.relu6, "GELU": F.gelu, "GELU by tanh": partial(F.gelu, approximate="tanh"), "SiLU": F.silu},
    **{"ELU": F.elu, "SELU": F.selu, "Mish": F.mish, "softplus": F.softplus, "softsign": F.softsign},
    **{"log sigmoid": F.logsigmoid, "hard sigmoid": F.hardsigmoid, "hard tanh": F.hardtanh, "hard swish": F.hardswish},
    **{"scaled tanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x), "square": torch.square, "absolute value": torch.abs},
}
POOLS = {"max pooling": F.adaptive_max_pool2d, "average pooling": F.adaptive_avg_pool2d}
for window in ((3, 2, 0), (3, 2, 1), (2, 1, 0)):  # what no adaptive pooling comes to
    how = "({}×{} windows, stride {}, padding {})".format(window[0], *window)
    POOLS[f"max pooling {how}"] = lambda x, side, window=window: F.max_pool2d(x, *window)
    POOLS[f"average pooling {how}"] = lambda x, side, window=window: F.avg_pool2d(x, *window)
POOLS["every second pixel"] = lambda x, side: x[..., ::2, ::2]
LAYOUTS = {
    "": lambda x, y: x.flatten(1) if y.dim() == 2 else x,
    "channels last": lambda x, y: x.movedim(1, -1).flatten(1) if y.dim() == 2 else x,
    "mixed images": lambda x, y: x.reshape(y.shape) if x.numel() == y.numel() else x,
}
LAID = "flatten view reshape permute transpose squeeze unsqueeze contiguous max_pool2d boolean_dispatch".split()


def leading(x, y, usual=()):
    """Return the names of what leads from x to y, () if they are equal; the shortest way, but `usual` if that is one.

    Returns None if nothing known does.
    """
    ways = [(), *((name,) for name in ACTIVATIONS), *product(list(ACTIVATIONS)[:3], repeat=2)]
    if x.dim() == 4 and x.numel() > y.numel():
        ways = [way for acts in ways for pool in POOLS for way in dict.fromkeys([(*acts, pool), (pool, *acts)])]
    side = math.isqrt(y.numel() // max(1, math.prod(x.shape[:2]))) or 1
    for way in (tuple(name for name in usual if name not in LAYOUTS), *ways):
        try:
            value = x
            for name in way:
                value = ACTIVATIONS[name](value) if name in ACTIVATIONS else POOLS[name](value, side)
        except (RuntimeError, IndexError, KeyError):  # of another rank, or too small; a name that is only a function's
            continue
        for layout, laid in LAYOUTS.items():
            if (z := laid(value, y)).shape == y.shape and close(z, y):
                return (*way, layout) if layout else way
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
RUNNING = ("running_mean", "running_var")
ROLES = dict(weight="gamma", bias="beta", running_mean="running mean", running_var="running variance")


@dataclass
class Call:
    """A call of a layer: its kind, what was called, input and output, the tensors and settings that it works with.

    before, after  the running statistics, None for each that there is not
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
        """The numbers of inputs and outputs that its weight is made for."""
        weight = self.given["weight"]
        return weight.shape[1] * self.given.get("groups", 1), weight.shape[0]


class Watch(TorchFunctionMode):
    """What came of a network on a batch: the `calls` of its layers and norms, its `output`, or the `trouble`.

    roles  {norm: {role: its Part}}
    when   in which mode, or after what
    """

    def __init__(self, guard, model, roles, images, training=True, when="", grad=True):
        super().__init__()
        self.roles, self.training, self.when = roles, training, when
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
            cause = f"{name} raises an error for {tuple(args[0].shape)}: {error}"
            self.odd.append(("flattened to the wrong size", cause))
            self.last = args[0].flatten(1)
        if not name.startswith("__get") and name not in ("size", "dim"):
            self.between.append(name)
        return self.last

    def norm(self, norm, forward, x, *more):
        """Stand in for the forward of a norm."""
        return forward(x, *more) if self.inside else self.record("norm", norm, lambda: forward(x, *more), x, {})

    def tensors(self, norm):
        """Return the tensors of a norm by what they are for."""
        held = parts(norm)
        names = {key: self.roles[norm][role].name for key, role in ROLES.items() if role in self.roles[norm]}
        return {key: held[name].tensor for key, name in names.items() if name in held}

    def record(self, kind, layer, call, x, given):
        """Record a call and return what it gives; what one that fits would give if it raises an error for its sizes."""
        is_module, error, start = isinstance(layer, nn.Module), "", x.detach().clone()
        given = dict(weight=None, bias=None) | (self.tensors(layer) if is_module else given)
        before, self.inside = running(given), True
        try:
            y = call()
        except Exception as raised:
            trouble = what_was_raised(raised)
            y, error = fitting(kind, x, given, self.training), located(trouble)
            if y is None or trouble.kind == "unanswered":
                raise
        finally:
            self.inside = False
        after = running(self.tensors(layer) if is_module else given)
        self.calls.append(Call(kind, layer, start, y.detach().clone(), given, before, after, error, self.between))
        self.between, self.last = [], y
        return y


def running(tensors):
    """Return copies of a norm's running mean and variance, None for each that it has not."""
    return [None if (part := tensors.get(key)) is None else part.detach().double().flatten() for key in RUNNING]


def fitting(kind, x, given, training):
    """Return what a layer of the right size would give for x, None if its size is not why it raised an error."""
    weight, generator = given["weight"], torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5

    if kind == "norm":
        values = [given.get(key) for key in ROLES]
        values = [v.flatten() if v is not None and v.numel() == x.shape[1] else None for v in values]
        batch = training or any(value is None for value in values[2:])
        return F.batch_norm(x, *([None, None] if batch else values[2:]), *values[:2], training=batch)
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
    layers = (nn.Conv2d, nn.Linear)
    return [
        norm for norm in found if not any(isinstance(m, layers) or m in found for m in norm.modules() if m is not norm)
    ]


# ---- what is found


class Findings:
    """Mistakes by name, each with its cause and the places where it shows."""

    def __init__(self):
        self.causes, self.places, self.when, self.ways = {}, {}, "", {}

    def note(self, name, at="", cause=None):
        """Add a mistake, or one more place of it, or nothing if it is known."""
        cause = self.causes.setdefault(name, cause or CAUSES[name])
        self.places.setdefault(name, {}).setdefault(at, "" if "eval()" in cause else self.when)

    def rename(self, name, to, consequence):
        """Give a mistake the name of what is behind it, and forget what comes of it."""
        self.causes = {
            to if key == name else key: CAUSES.get(to) if key == name else cause
            for key, cause in self.causes.items()
            if key != consequence
        }
        self.places[to] = self.places.pop(name)

    def mistakes(self):
        """Return them as a list of Mistake."""
        return [Mistake(name, cause.replace("{at}", listed(self.places[name]))) for name, cause in self.causes.items()]


def listed(places):
    """Return places as words, each with when a mistake shows there, if not from the start."""
    *most, last = [f"{at} {when}".strip() for at, when in places.items()]
    return f"{', '.join(most)} and {last}" if most else last


def look(watch, images, findings):
    """Note what is wrong in what a watch saw; return what it saw as text, in the words of the table."""
    note, calls, findings.when = findings.note, watch.calls, watch.when
    at = [i for i, call in enumerate(calls) if call.kind in ("convolution", "linear layer")]
    rows = aligned([calls[i] for i in at])
    for name, place in watch.odd:
        note(name, place)
    for i, row in zip(at, rows, strict=True):
        calls[i].name = (
            NAMES[row] if row is not None else f"one more {calls[i].kind}, {calls[i].sizes[0]}→{calls[i].sizes[1]}"
        )
    if not watch.trouble:
        for row, name in enumerate(NAMES):
            if row not in rows:
                note("wrong number of layers", f"{name} is missing")
        for i, row in zip(at, rows, strict=True):
            if row is None:
                note("wrong number of layers", f"there is {calls[i].name}")
    first = calls[0].x if calls else images
    if first.shape != images.shape:
        note("images changed", f"{tuple(first.shape)} in place of {tuple(images.shape)}")
    elif not close(first, images):
        note("images changed", "other numbers than came in enter it")
    lines = [line_of(call) for call in calls[: at[0] if at else None]]
    if lines and at:
        note("batch norm before the first convolution")
    for (i, j), row in zip(pairwise([*at, len(calls)]), rows, strict=True):
        steps, strange = [], False
        for k in range(i, j):
            call, following = calls[k], calls[k + 1] if k + 1 < len(calls) else None
            if k > i:
                call.name = f"the batch norm after {calls[i].name}"
                steps.append("batch norm")
                look_at_norm(call, watch, note)
            target = following.x if following else watch.last.detach() if watch.trouble else watch.output
            way = None if target is None else leading(call.y, target, findings.ways.get(k, ()))
            if way is None:
                called = [name for name in (following or watch).between if name not in LAID]
                strange = True
                if len(set(called)) == 1:
                    way = (called[0],)
                elif row is not None and (
                    following or (row == LAST and target is not None and target.shape == (4, 10))
                ):
                    words = f"; called there: {', '.join(dict.fromkeys(called))}" if called else ""
                    note(
                        UNKNOWN,
                        f"between {call.name} and {following.kind if following else 'the output'}",
                        CAUSES[UNKNOWN] + words,
                    )
            findings.ways.setdefault(k, way or ())
            lines += [line_of(call), *lines_of(call.y, way or (), target)]
            steps += way or ()
        if row is not None:
            look_at_layer(calls[i], row, note)
            look_between(row, calls[i].name, steps, strange, j == len(calls) and watch.trouble, note)
        if not all(call.y.isfinite().all() for call in calls[i:j]):
            bad = next(call for call in calls[i:j] if not call.y.isfinite().all())
            note("not finite", f"{bad.name} gives {'nan' if bad.y.isnan().any() else 'inf'}")
    return "\n".join(lines)


def aligned(calls):
    """Return the row of the table that each call of a layer stands for, None for one too many."""
    count, table = min(len(calls), len(LAYERS)), list(LAYERS.values())

    def fit(pairs):
        found = [(calls[i], table[row]) for i, row in pairs]
        return sum(
            4 * (call.kind == kind) + 2 * (call.sizes[1] == after) + (call.sizes[0] == before)
            for call, (kind, before, after) in found
        )

    choices = product(combinations(range(min(len(calls), 12)), count), combinations(range(len(LAYERS)), count))
    rows = dict(max((tuple(zip(*choice, strict=True)) for choice in choices), key=fit))
    return [rows.get(i) for i in range(len(calls))]


def look_at_layer(call, row, note):
    """Note in what a convolution or linear layer differs from the table's."""
    (kind, before, after), given, name = list(LAYERS.values())[row], call.given, call.name
    sizes, wanted = "{}→{}".format(*call.sizes), f"{before}→{after}"
    raised = f"; it gets {tuple(call.x.shape)} and raises an error" if call.error else ""
    if call.kind != kind:
        cause = f"{{at}}; the table has {'Conv2d' if kind == 'convolution' else 'Linear'} {wanted} there"
        note(f"{call.kind} instead of {kind}", f"{name} is a {call.kind} {sizes}{raised}", cause)
        return
    if call.sizes != (before, after):
        what = "channels" if kind == "convolution" else "features"
        note(f"wrong number of {what}", f"{name} is {sizes}, the table has {wanted}{raised}")
    elif call.error and call.x[0].numel() != before:
        note("sizes do not fit", f"{name} is {sizes}{raised}")
    if kind == "linear layer" and call.x.dim() != 2:
        note("flatten missing", f"{name} gets {tuple(call.x.shape)}")
    if given["bias"] is None and row == LAST:
        note("bias missing", name)
    if kind == "linear layer":
        return
    for what, usual in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1))):
        value = given.get(what, usual)
        if ((value, value) if isinstance(value, int) else value) not in (usual, list(usual), "valid"):
            note(what, f"{name} has {what}={value}")
    if tuple(given["weight"].shape[2:]) != (5, 5):
        note("wrong kernel size", f"{name} has a kernel of {tuple(given['weight'].shape[2:])}")
    if given.get("groups", 1) != 1:
        note("grouped convolution", f"{name} has groups={given['groups']}")


def look_between(row, name, steps, strange, cut, note):
    """Note in what the steps behind a layer differ from the table's: batch norm, sigmoid, and for images a pooling.

    strange  whether some of them are not known; cut  whether they end with an error
    """
    norms, pools = steps.count("batch norm"), [step for step in steps if step in POOLS]
    acts = [step for step in steps if step not in POOLS and step not in LAYOUTS and step != "batch norm"]
    for step, mistake in (
        ("channels last", "channels last when flattened"),
        ("mixed images", "images mixed when flattened"),
    ):
        if step in steps:
            note(mistake, name)
    if row == LAST:
        for act in acts:
            cause = f"the output goes through {act}; the table ends with a linear layer, and the loss takes its numbers"
            note(f"{act} at the end", cause=cause)
        if norms:
            note("batch norm after the last layer")
        return
    if len(acts) > 1:
        note("two activations in a row", f"{' and '.join(acts)} follow {name}")
    elif acts and acts != ["sigmoid"]:
        note(f"{acts[0]} instead of sigmoid", name, f"the table has Sigmoid; {acts[0]} stands after {{at}}")
    whole = not (strange or cut)
    if not acts and whole:
        note("activation missing", name)
    if not norms and (whole or (acts and not cut)):
        note("batch norm missing", name)
    if norms:
        before = steps[: steps.index("batch norm")]
        pooled = any(step in POOLS for step in before)
        if any(step in acts for step in before):
            note(f"batch norm after the {'pooling' if pooled else 'activation'}", name)
        elif pooled:
            note("pooling before batch norm", name)
    if norms > 1:
        together = any(a == b == "batch norm" for a, b in pairwise(steps))
        note(
            "two batch norms in a row" if together else "one batch norm too many", f"{norms} batch norms follow {name}"
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


def look_at_norm(call, watch, note):
    """Note in what a norm differs from torch's batch norm as it is by default."""
    norm, given, x, name = call.layer, call.given, call.x.double(), call.name
    kind = type(norm).__name__ if isinstance(norm, nn.Module) else norm
    if isinstance(norm, OTHER_NORMS) or call.kind == "other norm":
        note("another normalization", f"{kind} in place of {name}")
        return
    affine = [None if part is None else part.detach().double().flatten() for part in (given["weight"], given["bias"])]
    kept = None if any(part is None for part in call.before) else call.before
    sizes = {part.numel() for part in (*affine, *call.before) if part is not None}
    if call.error:
        gets = f"{name} gets {tuple(x.shape)} and raises {call.error}"
        axes, size = "batch norm for another number of axes", "batch norm of another size"
        note(axes if "D input (got" in call.error else size if sizes - {x.shape[1]} else RAISES, gets)
        return
    if affine == [None, None]:
        note("batch norm without gamma and beta", name)
    if kept is None:
        note("batch norm without running statistics", name)
    own = watch.roles.get(norm, {}) if isinstance(norm, nn.Module) else {}
    if any(role in own and own[role].kind != "parameter" for role in ("gamma", "beta")):
        note("gamma and beta are no parameters", name)
    if any(role in own and own[role].kind == "attribute" for role in ("running mean", "running variance")):
        note("plain attributes", name)
    if sizes - {x.shape[1]}:
        return
    eps = given.get("eps", getattr(norm, "eps", None))
    eps = eps if isinstance(eps, float) else 1e-5

    def gives(statistics, eps=eps):
        running = statistics or (None, None)
        return close(F.batch_norm(x, *running, *affine, statistics is None, 0.0, eps), call.y.double())

    right, other = (None, kept) if watch.training else (kept, None)
    if not gives(right):
        eps = next((value for value in (1e-3, 1e-2, 1e-1) if gives(right, value)), eps)
        if not gives(right, eps):
            if kept and gives(other):
                modes = ("training uses running statistics", "evaluation uses the batch's statistics")
                note(modes[0] if watch.training else modes[1], name)
            else:
                note("not a batch norm", name)
    if abs(eps - 1e-5) > 1e-9:
        note("epsilon of batch norm", f"{name} has ε = {eps:g}")
    if kept:
        mistake, place = moved(call, x.movedim(1, -1).flatten(0, -2), watch.training)
        if mistake:
            note(mistake, place)


def moved(call, rows, training):
    """Return what is wrong, and where, with how the running statistics of a norm move; its input as rows of channels."""
    (old_mean, old_var), (mean, var), name = call.before, call.after, call.name
    step, way, scale = mean - old_mean, rows.mean(0) - old_mean, max(var.abs().max(), old_var.abs().max())
    if not training:
        return (None if not step.any() and torch.equal(var, old_var) else "running statistics updated in eval"), name
    share = (step @ way / (way @ way)).item()
    off = [(var - old_var - share * (rows.var(0, correction=c) - old_var)).abs().max() for c in (1, 0)]
    if not step.any() and torch.equal(var, old_var):
        return "running statistics not updated", name
    if close(step, share * way) and off[0] > 3e-6 * scale and off[1] < 3e-6 * scale:
        return "biased running variance", name
    if not close(step, share * way) or off[0] > 1e-3 * scale:
        return "running statistics of a batch norm", name
    right = abs(share - 0.1) < 2e-3
    return (
        (None, "") if right else ("momentum of batch norm", f"{share:.3g} of a batch enters the statistics of {name}")
    )


def look_at_all(watches, model, note):
    """Note what only several calls show: layers that are shared, or that the network does not know as its own."""
    known, calls = {id(part) for part in (*model.parameters(), *model.buffers())}, watches[0].calls
    again = {id(call.given["weight"]) for watch in watches[1:] for call in watch.calls}
    keys = [id(call.layer if isinstance(call.layer, nn.Module) else call.given["weight"]) for call in calls]
    for call, key in zip(calls, keys, strict=True):
        if call.kind == "norm" and keys.count(key) > 1 and call.given["weight"] is not None:
            note("one batch norm used twice", call.name)
        if isinstance(call.layer, nn.Module) or call.given["weight"] is None:
            continue
        if isinstance(call.given["weight"], nn.Parameter) and key not in known:
            anew = "is made anew in each call of forward (make it in __init__)"
            listed = "is kept where the network does not look for it (in a list? take nn.ModuleList)"
            note("layer not registered", f"{call.name} {listed if key in again or len(watches) == 1 else anew}")
        elif any(part is not None and id(part) not in known for part in map(call.given.get, RUNNING)):
            note("plain attributes", call.name)


# ---- what was seen, in the words of the table


def line_of(call):
    """Return the line of a call."""
    words = type(call.layer).__name__ if isinstance(call.layer, nn.Module) else call.layer
    if call.kind in ("convolution", "linear layer"):
        words = f"{'Conv2d' if call.kind == 'convolution' else 'Linear'} {call.sizes[0]}→{call.sizes[1]}"
        words += f", k={call.given['weight'].shape[2]}" if call.kind == "convolution" else ""
    return line(words, call.y.shape)


def lines_of(y, way, target):
    """Return the lines of what leads from the output of a call to the next."""
    lines, shape = [], y.shape
    for step in way:
        if step in POOLS:
            side = math.isqrt(target.numel() // math.prod(shape[:2]))
            shape = (*shape[:2], side, side)
        lines += [line(step[0].upper() + step[1:], shape)] if step not in LAYOUTS else []
    return lines + ([line("Flatten", target.shape)] if target is not None and target.dim() < len(shape) else [])


def line(words, shape):
    """Return one line."""
    return f"{words:<20}({', '.join(['B', *map(str, shape[1:])])})"


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
        model = made(guard, attempt, findings.note)
        if model is None:
            return findings.mistakes(), {}
        images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        roles = prepared(guard, model, images)
        for training, when in ((True, ""), (False, "in eval()"), (True, "in the second training batch")):
            watch = Watch(guard, model, roles, images, training, when)
            if watch.trouble and watch.trouble.kind == "unanswered":
                raise Unanswered
            if not watches and not watch.trouble:
                no_gradient(guard, watch, findings.note)
            read_output(watch, findings.note)
            lines = look(watch, images, findings)
            seen = seen or lines
            watches.append(watch)
            if watch.trouble:
                where = f"after {watch.calls[-1].name}" if watch.calls else "before the first layer"
                cause = f"{located(watch.trouble)}; in {'train' if training else 'eval'}(), {where}"
                findings.note(ENDLESS if watch.trouble.kind == "stopped" else RAISES, cause=cause)
                break
        wrong = "evaluation uses the batch's statistics"
        if wrong in findings.causes:
            other = Findings()
            look(Watch(guard, model, roles, images, False, grad=False), images, other)
            if wrong not in other.causes:
                findings.rename(wrong, "mode taken from grad mode", "running statistics updated in eval")
        look_at_all(watches, model, findings.note)
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
            name = model.__name__
            note(TYPE, cause=f"lenet_with_bn() returns the class {name}; make a network of it: `return {name}()`")
            model, trouble = guard.call(model)
    if holds_dots(model) or (trouble and trouble.kind == "unanswered"):
        raise Unanswered
    if trouble:
        hint = (
            "; write `super().__init__()` as the first line of `__init__`" if "Module.__init__" in trouble.text else ""
        )
        note(ENDLESS if trouble.kind == "stopped" else RAISES, cause=located(trouble) + hint)
        return None
    if isinstance(model, (list, tuple)) and model and all(isinstance(part, nn.Module) for part in model):
        note(
            TYPE,
            cause=f"lenet_with_bn() returns {describe(model)} layers; make a network of them: nn.Sequential(*layers)",
        )
        model = nn.Sequential(*model)
    if not isinstance(model, nn.Module):
        if model is None:
            note(NOTHING, cause="lenet_with_bn() ends without a value: end it with `return` and the network")
        else:
            note(TYPE, cause=f"lenet_with_bn() returns {describe(model)}; expected an nn.Module")
        return None
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


def read_output(watch, note):
    """Make the network's output, among what it returns, a tensor of the watch; None if there is none."""
    y = watch.output
    if watch.trouble:
        return
    if y is None:
        note(NOTHING, cause="the network's forward ends without a value: end it with `return`")
    elif not isinstance(y, torch.Tensor):
        note(TYPE, cause=f"the network returns {describe(y)}; expected the output (4, 10) for four images alone")
        values = y.values() if isinstance(y, dict) else y if isinstance(y, (tuple, list)) else ()
        y = next((value for value in values if isinstance(value, torch.Tensor) and value.shape == (4, 10)), None)
    elif y.shape != (4, 10):
        note(SHAPE, cause=f"the network returns {describe(y)}; expected (4, 10) for four images")
    watch.output = None if y is None else y.detach()


def no_gradient(guard, watch, note):
    """Note the layers whose weights the gradient of the output does not reach."""
    layers, y = [call for call in watch.calls if call.kind in ("convolution", "linear layer")], watch.output
    weights = [call.given["weight"] for call in layers if call.given["weight"].requires_grad]
    slopes, trouble = [None] * len(weights), None
    if not isinstance(y, torch.Tensor):
        return
    if y.requires_grad and weights:
        slopes, trouble = guard.call(lambda: torch.autograd.grad(y.sum(), weights, allow_unused=True))
    if trouble:
        note(NO_GRADIENT, cause=f"the backward pass raises {located(trouble)}")
        return
    reached = {id(weight) for weight, slope in zip(weights, slopes, strict=True) if slope is not None}
    for row, call in zip(aligned(layers), layers, strict=True):
        if row is not None and not call.error and id(call.given["weight"]) not in reached:
            note(NO_GRADIENT, NAMES[row])


LENET = Lenet()
