"""The exercise `lenet_with_bn`: a function that returns the network of lesson 05, checked piece by piece.

How the network is put together is free (Sequential, a class, functions between the layers): a `Watch` records its
convolutions, linear layers and norms as they are called. What lies between two of them is known by what it makes of
the first one's output, each piece by itself, so that any number of mistakes can be told side by side. Where a layer
does not fit, one that does stands in, and what comes behind it is judged, too.
"""

import copy
import inspect
import math
import sys
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

from .judge import Mistake
from .judge.answers import NOTHING, SHAPE, TYPE, describe
from .judge.diagnosis import ENDLESS, NO_GRADIENT, RAISES, UNKNOWN, Unanswered
from .judge.guard import holds_dots, what_was_raised
from .judge.verdict import judged
from .layer.parts import parts, role_of
from .reading import Place

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
AXES = "batch norm for another number of axes"
CAUSES = {  # {at} is where a mistake shows; of those that are not here, it says all
    "wrong number of layers": "{at}; the table has 2 convolutions and 3 linear layers",
    "wrong kernel size": "{at}; the table has 5×5",
    "padding": "{at}; the table has no padding, 28 → 24 → 12 → 8 → 4",
    "stride": "{at}; in the table it is 1, and the pooling halves the sides",
    "grouped convolution": "{at}: each output sees only some inputs",
    "bias missing": "{at} has no bias, and no batch norm's β stands in for it",
    NO_GRADIENT: "no gradient reaches {at}: is something detached, or frozen?",
    "result not used": "what {at} gives is not used, what went in goes on: assign it, as in `x = norm(x)`",
    "flatten missing": "{at}; flatten what the last pooling gives to (B, 256) first",
    "flattened to the wrong size": "{at}; keep the batch: `x.flatten(1)`",
    "images mixed when flattened": "behind {at}, a row is not one image: keep the batch, `x.flatten(1)`",
    "channels last when flattened": "behind {at}, the channels are flattened last; nn.Flatten keeps (C, H, W)",
    "activation missing": "no activation follows {at}; without one, layers collapse into one linear map",
    "two activations in a row": "they follow {at}; the table has one Sigmoid there",
    "pooling missing": "no pooling follows {at}; the table has MaxPool 2 after the activation",
    "one pooling too many": "behind {at}; the table has two, one after each convolution",
    "pooling of another size": "{at}; the table has MaxPool 2, which halves the sides",
    "dropout added": "{at}; the table has none",
    "images changed": "before the first layer, the images are changed {at}; the table takes them as they are",
    UNKNOWN: "what stands between {at} is not what the table has there",
    "batch norm missing": "no batch norm follows {at}; the table has one after each layer but the last",
    "batch norm on the images": "one stands before the first convolution; the table has one right after each layer",
    "batch norm after the activation": "behind {at}, it stands after the activation; its place is before it",
    "batch norm after the pooling": "behind {at}, it stands after activation and pooling; its place is before them",
    "pooling before batch norm": "behind {at}, the pooling comes before the batch norm; the table has it at the end",
    "batch norm after the last layer": "a batch norm follows the last linear layer; the table ends with that layer",
    "two batch norms in a row": "they follow {at}; the table has one there",
    "one batch norm too many": "more than one follows {at}; the table has one there",
    "one batch norm used twice": "{at} are the same layer: they share γ, β and running statistics; make one for each",
    AXES: "{at}: after a convolution, (B, C, H, W), comes BatchNorm2d, after a linear layer, (B, C), BatchNorm1d",
    "another normalization": "there is {at}; the table has batch norm",
    "not a batch norm": "{at} gives other numbers than batch norm: try that layer in check('layer', …)",
    "batch norm without gamma and beta": "{at} has none; the table's have (affine=True, PyTorch's default)",
    "batch norm without running statistics": "{at} keeps none; the table's do (track_running_stats=True)",
    "gamma and beta are no parameters": "those of {at} are no nn.Parameter, so nothing trains them",
    "plain attributes": "the running statistics of {at} are no buffers, so state_dict() leaves them out",
    "epsilon of batch norm": "{at}; the table's have 1e-5, PyTorch's default",
    "momentum of batch norm": "{at}; in the table 0.1 of each does, PyTorch's default momentum",
    "biased running variance": "{at} takes in the biased variance (÷ n); PyTorch's takes the unbiased one (÷ n − 1)",
    "running statistics not updated": "a training batch leaves those of {at} as they were",
    "running statistics of a batch norm": "those of {at} do not move as torch.nn's: try it in check('layer', …)",
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
POOLS = {  # functions of x and the side that it comes to
    "max pooling": lambda x, side: F.max_pool2d(x, 2),
    "average pooling": lambda x, side: F.avg_pool2d(x, 2),
    "max pooling of another size": F.adaptive_max_pool2d,
    "average pooling of another size": F.adaptive_avg_pool2d,
    **{f"max pooling of 3×3 (padding {p})": lambda x, side, p=p: F.max_pool2d(x, 3, 2, p) for p in (0, 1)},
    **{f"average pooling of 3×3 (padding {p})": lambda x, side, p=p: F.avg_pool2d(x, 3, 2, p) for p in (0, 1)},
    "every second pixel": lambda x, side: x[..., ::2, ::2],
}
LAYOUTS = {
    "flatten": lambda x, y: x.flatten(1) if y.dim() == 2 else x,
    "channels last": lambda x, y: x.movedim(1, -1).flatten(1) if y.dim() == 2 else x,
    "mixed images": lambda x, y: x.reshape(y.shape) if x.numel() == y.numel() else x,
}


def leading(x, y, usual=()):
    """Return the steps from x to y, (name, shape) each, the fewest or those named `usual`; None if no known ones do."""
    ways = [(), *((name,) for name in ACTIVATIONS), *product(list(ACTIVATIONS)[:3], repeat=2)]
    if x.dim() == 4 and x.numel() > y.numel():
        ways = [way for acts in ways for pool in POOLS for way in dict.fromkeys([(*acts, pool), (pool, *acts)])]
    side = math.isqrt(y.numel() // math.prod(x.shape[:2])) or 1
    for way in (usual, *ways):
        value, steps = x, []
        try:
            for name in way:
                value = POOLS[name](value, side) if name in POOLS else ACTIVATIONS[name](value)
                steps.append((name, value.shape))
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
RUNNING, WORDS = ("running_mean", "running_var"), ("running mean", "running variance")
ROLES = dict(running_mean="running mean", running_var="running variance", weight="gamma", bias="beta")


@dataclass
class Call:
    """A call of a layer: its kind, what was called, input and output, the tensors and settings that it works with.

    running  (mean, variance) before and after, None for each that there is not
    error    what was raised, where another layer stands in
    name     what it is in the network
    """

    kind: str
    layer: object
    x: torch.Tensor
    y: torch.Tensor
    given: dict
    running: tuple
    error: str
    name: str = ""

    def __post_init__(self):
        self.weight, self.sizes = self.given["weight"], None
        self.label = type(self.layer).__name__ if isinstance(self.layer, nn.Module) else self.layer
        if "norm" not in self.kind:
            after, before, *kernel = self.weight.shape
            self.sizes = before * self.given.get("groups", 1), after
            self.label = "{} {}→{}".format("Conv2d" if kernel else "Linear", *self.sizes)
            self.label += f", k={kernel[0]}" if kernel else ""


class Watch(TorchFunctionMode):
    """What came of a network on a batch: the `calls` of its layers and norms, its `output`, or the `trouble`.

    roles  {norm: {role: its Part}}
    last   what the last function gave
    odd    what was mended on the way: (name of the mistake, where)
    """

    def __init__(self, guard, model, roles, images, training, grad=True):
        super().__init__()
        self.roles, self.training, self.mode = roles, training, "train()" if training else "eval()"
        self.calls, self.odd, self.last, self.inside = [], [], None, False

        def call():
            with ExitStack() as stack:
                for norm in roles:
                    stack.enter_context(patch.object(norm, "forward", partial(self.norm, norm, norm.forward)))
                stack.enter_context(patch("bnlib.batch_norm", F.batch_norm))  # so that it is seen
                if "torch._dynamo" in sys.modules:  # not loaded for this: that takes a second
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                for context in (torch.set_grad_enabled(grad), self):
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
            x = given.pop("x" if "x" in given else "input")
            return self.record(kind, name, partial(func, *args, **kwargs), x, given)
        try:
            self.last = func(*args, **kwargs)
        except RuntimeError as error:
            if name not in ("view", "reshape") or args[0].dim() != 4:
                raise
            what = f"{name} raises an error for {tuple(args[0].shape)} in {self.mode}: {error}"
            self.odd.append(("flattened to the wrong size", what))
            self.last = args[0].flatten(1)
        return self.last

    def norm(self, norm, forward, x, *more):
        """Stand in for the forward of a norm."""
        return forward(x, *more) if self.inside else self.record("norm", norm, lambda: forward(x, *more), x, {})

    def record(self, kind, layer, call, x, given):
        """Record a call and return what it gives; what one that fits would give if it raises an error for its sizes."""

        def tensors():
            if not isinstance(layer, nn.Module):
                return dict(weight=None, bias=None) | given
            held, roles = parts(layer), self.roles[layer]
            return {key: held[roles[role].name].tensor if role in roles else None for key, role in ROLES.items()}

        def running():
            return [part if part is None else part.detach().double().flatten() for part in map(tensors().get, RUNNING)]

        error, start, before, given, self.inside = "", x.detach().clone(), running(), tensors(), True
        try:
            y = call()
            if "norm" in kind and y.shape != x.shape:
                raise ValueError(f"the result has shape {tuple(y.shape)}")
        except Exception as raised:
            trouble = what_was_raised(raised)
            y, error = fitting(kind, x, given, self.training), trouble.located
            if y is None or trouble.kind == "unanswered":
                raise
        finally:
            self.inside = False
        self.calls.append(Call(kind, layer, start, y.detach().clone(), given, (before, running()), error))
        self.last = y
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
    """Mistakes by name, each with its cause and the places where it shows; `ways`: the steps that were found before."""

    def __init__(self):
        self.causes, self.places, self.when, self.ways = {}, {}, "", {}

    def note(self, name, at="", cause=None):
        """Add a mistake, or one more place of it, or nothing if it is known."""
        cause, places = (
            self.causes.setdefault(name, cause or CAUSES.get(name, "{at}")),
            self.places.setdefault(name, {}),
        )
        if at.replace("eval()", "train()") not in places:
            places.setdefault(at, "" if "eval()" in cause + at else self.when)

    def mistakes(self):
        """Return them as a list of Mistake."""
        return [Mistake(name, cause.replace("{at}", listed(self.places[name]))) for name, cause in self.causes.items()]


def listed(places):
    """Return places in a sentence, and what they begin with only once."""
    words = [f"{at} {when}".split() for at, when in places.items()]
    same = 0
    while min(map(len, words)) > same + 1 and len({some[same] for some in words}) == 1:
        same += 1
    *most, last = [" ".join(some[same:]) for some in words]
    return " ".join([*words[0][:same], f"{', '.join(most)} and {last}" if most else last])


def look(watch, images, findings):
    """Note what is wrong in what a watch saw; return what it saw as text, in the words of the table."""
    note, calls, lines = findings.note, watch.calls, []
    at = [i for i, call in enumerate(calls) if call.sizes]
    rows = aligned([calls[i] for i in at])
    for name, place in watch.odd:
        note(name, place)
    for (i, j), row in zip(pairwise([*at, len(calls)]), rows, strict=True):
        calls[i].name = f"one more {calls[i].kind}, {calls[i].label}" if row is None else NAMES[row]
        for call in calls[i + 1 : j]:
            call.name = f"the batch norm after {calls[i].name}"
        if row is None and not watch.trouble:
            note("wrong number of layers", f"there is {calls[i].name}")
    for name in [name for row, name in enumerate(NAMES) if row not in rows and not watch.trouble]:
        note("wrong number of layers", f"{name} is missing")
    first = calls[0].x if calls else images
    if first.shape != images.shape or not close(first, images):
        note("images changed", f"from {tuple(images.shape)} to {tuple(first.shape)}")
    if at and at[0] > 0:
        note("batch norm on the images")
    for (i, j), row in zip(pairwise([*at, len(calls)]), rows, strict=True):
        steps, strange = between(calls[i:j], [*calls, None][j], row, watch, findings, lines)
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
        f"{words[0].upper() + words[1:]:<20}({', '.join(['B', *map(str, shape[1:])])})" for words, shape in lines
    )


def between(calls, following, row, watch, findings, lines):
    """Return the names of the steps behind a layer, among them its norms, and whether there are others, unknown.

    calls  of the layer and its norms; following: the next layer's, None at the end
    """
    steps, strange, so_far = [], False, []
    for i, (call, after) in enumerate(zip(calls, [*calls[1:], following], strict=True)):
        steps = steps + ["batch norm"] * (i > 0)
        so_far.append(steps)
        lines.append((call.label, call.y.shape))
        target = after.x if after else watch.last.detach() if watch.trouble else watch.output
        if target is None:
            return steps, True
        usual = findings.ways.get(call.name, ())
        ways = (leading(source.y, target, usual) for source in reversed(calls[: i + 1]))
        back, way = next(((k, way) for k, way in enumerate(ways) if way is not None), (0, None))
        if way is None:
            way, strange = [], True
            if after or (row == LAST and target.shape == (len(call.x), 10)):
                findings.note(UNKNOWN, f"{call.name} and {after.name if after else 'the output'}")
        elif back:  # what a norm gives was thrown away
            findings.note("result not used", call.name)
            steps = so_far[i - back]
        names = [name for name, _ in way]
        findings.ways.setdefault(call.name, tuple(name for name in names if name not in LAYOUTS))
        lines += way
        steps = steps + names
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
        cause = f"{{at}}; the table has {'Conv2d' if row < 2 else 'Linear'} {before}→{after} there"
        return note(f"{call.kind} instead of {kind}", f"{name} is {call.label}{raised}", cause)
    if call.sizes != (before, after):
        what = f"wrong number of {'channels' if row < 2 else 'features'}"
        note(what, f"{name} is {call.sizes[0]}→{call.sizes[1]}, the table has {before}→{after}{raised}")
    elif call.error and call.x[0].numel() != before:
        note("sizes do not fit", f"{name} is {before}→{after}{raised}")
    if row == LAST and given["bias"] is None:
        note("bias missing", name)
    if row > 1:
        return call.x.dim() == 2 or note("flatten missing", f"{name} gets {tuple(call.x.shape)}")
    for what, usual in (("stride", 1), ("padding", 0), ("groups", 1)):
        if (value := given.get(what, usual)) not in (usual, (usual, usual), [usual, usual], "valid"):
            note({"groups": "grouped convolution"}.get(what, what), f"{name} has {what}={value}")
    if call.weight.shape[2:] != (5, 5):
        note("wrong kernel size", f"{name} has a kernel of {tuple(call.weight.shape[2:])}")


def look_between(row, name, steps, strange, cut, note):
    """Note in what the steps behind a layer differ from the table's: batch norm, sigmoid, and for images a pooling.

    strange  whether some of them are not known; cut: whether they end with an error
    """
    norms, pools = steps.count("batch norm"), [step for step in steps if step in POOLS]
    acts, before = [step for step in steps if step in ACTIVATIONS], steps[: steps.index("batch norm")] if norms else []
    act, pool, whole = set(before) & set(acts), set(before) & set(pools), not (strange or cut)
    twice = any(a == b == "batch norm" for a, b in pairwise(steps))
    wrong = {
        "channels last when flattened": "channels last" in steps,
        "images mixed when flattened": "mixed images" in steps,
        "batch norm after the last layer": row == LAST and norms,
    }
    if row < LAST:
        wrong |= {
            "activation missing": not acts and whole,
            "batch norm missing": not norms and (whole or (acts and not cut)),
            "batch norm after the activation": act and not pool,
            "batch norm after the pooling": act and pool,
            "pooling before batch norm": pool and not act,
            "two batch norms in a row": twice,
            "one batch norm too many": norms > 1 and not twice,
            "two activations in a row": len(acts) > 1,
            "pooling missing": row < 2 and not pools and whole,
            "one pooling too many": len(pools) > (row < 2),
        }
    for mistake in [mistake for mistake, shows in wrong.items() if shows]:
        note(mistake, name)
    if row == LAST:
        cause = "the output goes through it; the table ends with a linear layer, and the loss takes its numbers"
        for act in acts:
            note(f"{act} at the end", cause=cause)
    elif len(acts) == 1 and acts != ["sigmoid"]:
        note(f"{acts[0]} instead of sigmoid", name, f"the table has Sigmoid; {acts[0]} stands after {{at}}")
    for pool in pools[:1] if row < 2 else []:
        kind = pool.split(" of ")[0]
        if kind != "max pooling":
            note(f"{kind} instead of max pooling", name, f"the table has MaxPool 2; {kind} stands after {{at}}")
        if kind != pool:
            note("pooling of another size", f"{pool} stands after {name}")


def look_at_norm(call, watch, note):
    """Note in what a norm differs from torch's batch norm as it is by default."""
    norm, given, x, name, running = call.layer, call.given, call.x.double(), call.name, call.running[0]
    if isinstance(norm, OTHER_NORMS) or call.kind == "other norm":
        return note("another normalization", f"{call.label} in place of {name}")
    affine = [None if part is None else part.detach().double().flatten() for part in (call.weight, given["bias"])]
    fits = all(part is None or len(part) == x.shape[1] for part in (*affine, *running))
    if call.error:
        what = AXES if "D input (got" in call.error else RAISES if fits else "batch norm of another size"
        gets = f"{name} gets {tuple(x.shape)} and raises {call.error} in {watch.mode}"
        return note(what, gets)
    kinds = {role: part.kind for role, part in watch.roles[norm].items()} if isinstance(norm, nn.Module) else {}
    kept = None if any(part is None for part in running) else running
    for mistake, shows in {
        "batch norm without gamma and beta": affine == [None, None],
        "batch norm without running statistics": kept is None,
        "gamma and beta are no parameters": {kinds.get(role, "parameter") for role in ("gamma", "beta")}
        != {"parameter"},
        "plain attributes": "attribute" in map(kinds.get, WORDS),
    }.items():
        if shows:
            note(mistake, name)
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
    return kept and look_at_running(call, x.movedim(1, -1).flatten(0, -2), watch.training, note)


def look_at_running(call, rows, training, note):
    """Note what is wrong with how the running statistics of a norm move, given its input as rows of channels."""
    ((old_mean, old_var), (mean, var)), name = call.running, call.name
    step, way, scale = mean - old_mean, rows.mean(0) - old_mean, max(var.abs().max(), old_var.abs().max())
    share = (step @ way / (way @ way)).item()
    off = [(var - old_var - share * (rows.var(0, correction=c) - old_var)).abs().max() for c in (1, 0)]
    if not step.any() and torch.equal(var, old_var):
        return training and note("running statistics not updated", name)
    if not training:
        return note(UPDATED, name)
    if not close(step, share * way) or min(off) > 1e-3 * scale:
        return note("running statistics of a batch norm", name)
    if off[0] > 3e-6 * scale > off[1]:
        note("biased running variance", name)
    if abs(share - 0.1) > 2e-3:
        note("momentum of batch norm", f"{share:.3g} of a batch enters {name}")


def look_at_all(watches, model, note):
    """Note what only several calls show: layers that are shared, or that the network does not know as its own."""
    known, calls = {id(part) for part in (*model.parameters(), *model.buffers())}, watches[0].calls
    again = {id(call.weight) for watch in watches[1:] for call in watch.calls}
    for call in calls:
        if "norm" in call.kind and sum(call.weight is other.weight is not None for other in calls) > 1:
            note("one batch norm used twice", call.name)
        if isinstance(call.weight, nn.Parameter) and id(call.weight) not in known:
            how = (
                "kept in a plain list or the like, no nn.ModuleList"
                if id(call.weight) in again or len(watches) == 1
                else "made in forward"
            )
            note(
                "layer not registered",
                call.name,
                f"{{at}} is {how}: it is not among model.parameters(), so nothing trains it",
            )
        elif not isinstance(call.layer, nn.Module):
            running = [part for part in map(call.given.get, RUNNING) if part is not None]
            if any(id(part) not in known for part in running):
                note("plain attributes", call.name)


# ---- the exercise


class Lenet:
    """The exercise: `judge(attempt)` takes a function that returns an nn.Module."""

    name = "lenet_with_bn"
    place = Place(5, "The network")
    signature = "lenet_with_bn() -> nn.Module for images (B, 1, 28, 28)"
    asks = "Return the network of the lesson's table, with a batch norm between each layer and its sigmoid."

    def judge(self, attempt):
        """Return the Verdict on a function that makes the network."""
        right = "Every layer of the table is there, in its place, and both modes give the table's output."
        return judged(self, attempt, right, callable(attempt) and not isinstance(attempt, nn.Module), self.name)

    def examine(self, guard, attempt):
        """Return (mistakes, evidence) of an attempt. Raises Unanswered."""
        findings, watches, seen = Findings(), [], []
        note, model = findings.note, made(guard, attempt, findings.note)
        if model is None:
            return findings.mistakes(), {}
        images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        roles = prepared(guard, model, images)
        for training, findings.when in ((True, ""), (False, "in eval()"), (True, "in the second training batch")):
            watch = Watch(guard, model, roles, images, training)
            watches.append(watch)
            if not watch.trouble:
                read_output(guard, watch, note)
            seen.append(look(watch, images, findings))
            if watch.trouble:
                if watch.trouble.kind == "unanswered":
                    raise Unanswered
                where = f"after {watch.calls[-1].name}" if watch.calls else "before the first layer"
                name = ENDLESS if watch.trouble.kind == "stopped" else RAISES
                note(name, f"{watch.trouble.located}; in {watch.mode}, {where}")
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
        example = dict(example=(("x", "(4, 1, 28, 28)"),), expected=(TABLE,), received=(seen[0],), shown="layers")
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
        hint = "; `super().__init__()` goes first in `__init__`" if "Module.__init__" in trouble.text else ""
        return note(ENDLESS if trouble.kind == "stopped" else RAISES, trouble.located + hint)
    if isinstance(model, (list, tuple)) and model and all(isinstance(part, nn.Module) for part in model):
        note(TYPE, f"lenet_with_bn() returns {describe(model)} layers; make a network of them: nn.Sequential(*layers)")
        model = nn.Sequential(*model)
    if model is None:
        return note(NOTHING, "lenet_with_bn() ends without a value: end it with `return` and the network")
    if not isinstance(model, nn.Module):
        return note(TYPE, f"lenet_with_bn() returns {describe(model)}; expected an nn.Module")
    if (
        type(model).forward is nn.Module.forward
        and type(model).__call__ is nn.Module.__call__
        and list(model.children())
    ):
        return note("forward missing", f"{type(model).__name__} has no method `forward`: is its name mistyped?")
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
    """Note an output of the wrong form, and the layers that its gradient does not reach; make it a tensor."""
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
        return note(NO_GRADIENT, "", f"the backward pass raises {trouble.located}")
    reached = {id(weight) for weight, slope in zip(weights, slopes, strict=True) if slope is not None}
    for row, call in zip(aligned(layers), layers, strict=True):
        if row is not None and id(call.given["weight"]) not in reached:
            note(NO_GRADIENT, NAMES[row])


LENET = Lenet()
