"""The exercise `lenet_with_bn`: a function that returns the network of lesson 05, checked piece by piece.

However it is put together, a `Watch` records its convolutions, linear layers and norms as they are called. What lies
between two of them is known by what it makes of the first one's output, each piece by itself, so that any number of
mistakes can be told side by side. What a norm gives is judged by the formulas of the exercise `layer`. Where a layer
does not fit, one that does stands in.
"""

import copy
import math
import sys
from contextlib import ExitStack
from functools import partial
from itertools import combinations, pairwise, product, takewhile
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .judge import Case, Mistake
from .judge.answers import NOTHING, SHAPE, TYPE, Seen, describe
from .judge.diagnosis import ENDLESS, NO_GRADIENT, RAISES, UNKNOWN, Unanswered
from .judge.guard import holds_dots, what_was_raised
from .judge.verdict import judged
from .layer.examination import explained
from .layer.mistakes import CAUSES as OF_LAYERS
from .layer.mistakes import CUMULATIVE, MODE
from .layer.modes import EVALUATES_BATCH, EVALUATION, RUNS, TRAINING, UPDATE, UPDATED_IN_EVAL
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
AXES = "batch norm for another number of axes"
CAUSES = {  # {at} is where a mistake shows; of those that are not here, it says all
    "wrong number of layers": "{at}; the table has 2 convolutions and 3 linear layers",
    "wrong kernel size": "{at}; the table has 5×5",
    "padding": "{at}; the table has no padding, 28 → 24 → 12 → 8 → 4",
    "stride": "{at}; in the table it is 1, and the pooling halves the sides",
    "grouped convolution": "{at}: each output sees only some inputs",
    "bias missing": "{at} has no bias, and no batch norm's β stands in for it",
    NO_GRADIENT: "no gradient reaches {at}: is something detached, or frozen?",
    "layer not registered": "{at} is not among model.parameters(): keep it in an attribute or an nn.ModuleList",
    "result not used": "what {at} gives is not used, what went in goes on: assign it, as in `x = norm(x)`",
    "flatten missing": "{at}; flatten what the last pooling gives to (B, 256) first",
    "flattened to the wrong size": "{at}; keep the batch: `x.flatten(1)`",
    "images mixed when flattened": "{at}, a row is not one image: keep the batch, `x.flatten(1)`",
    "channels last when flattened": "{at}, the channels are flattened last; nn.Flatten keeps (C, H, W)",
    "activation missing": "{at}; without one, layers collapse into one linear map",
    "pooling of another size": "{at}; the table has MaxPool 2, which halves the sides",
    UNKNOWN: "what stands between {at} is not what the table has there",
    "batch norm on the images": "one stands before the first convolution; the table has one right after each layer",
    "batch norm after the last layer": "a batch norm follows the last linear layer; the table ends with that layer",
    "one batch norm used twice": "{at} are the same layer: they share γ, β and running statistics; make one for each",
    AXES: "{at}: after a convolution, (B, C, H, W), comes BatchNorm2d, after a linear layer, (B, C), BatchNorm1d",
    "not a batch norm": "{at} gives other numbers than batch norm: try that layer in check('layer', …)",
    "running statistics of a batch norm": "those of {at} do not move as torch.nn's: try it in check('layer', …)",
    "batch norm without gamma and beta": "{at} has none; the table's have (affine=True, PyTorch's default)",
    "batch norm without running statistics": "{at} keeps none; the table's do (track_running_stats=True)",
    "gamma and beta are no parameters": "those of {at} are no nn.Parameter, so nothing trains them",
    "plain attributes": "the running statistics of {at} are no buffers, so state_dict() leaves them out",
    MODE: "{at} obeys no_grad() and not eval(): ask `self.training`, not whether gradients are on",
}

# ---- what may lie between two layers

OTHERS = "ReLU6, GELU, SiLU, ELU, SELU, Mish, softplus, softsign, log sigmoid, hard sigmoid, hard tanh, hard swish"
ACTIVATIONS = {"sigmoid": torch.sigmoid, "ReLU": torch.relu, "tanh": torch.tanh}  # common ones first
for soft, over in product(("softmax", "log softmax"), ("", " over the batch")):
    ACTIVATIONS[soft + over] = partial(getattr(F, soft.replace(" ", "_")), dim=0 if over else 1)
SLOPES = {"LeakyReLU": 0.01, "PReLU": 0.25, "LeakyReLU of slope 0.1": 0.1, "LeakyReLU of slope 0.2": 0.2}
ACTIVATIONS |= {name: partial(F.leaky_relu, negative_slope=slope) for name, slope in SLOPES.items()}
ACTIVATIONS |= {name: getattr(F, name.lower().replace(" ", "")) for name in OTHERS.split(", ")}
KINDS = {"max pooling": (F.max_pool2d, F.adaptive_max_pool2d), "average pooling": (F.avg_pool2d, F.adaptive_avg_pool2d)}
POOLS = {kind: lambda x, side, pool=pool: pool(x, 2) for kind, (pool, _) in KINDS.items()}  # side: what x comes to
POOLS |= {f"{kind} of another size": pool for kind, (_, pool) in KINDS.items()}
POOLS |= {
    f"{kind} of 3×3": lambda x, side, pool=pool: pool(x, 3, 2, 2 * side // x.shape[-1])
    for kind, (pool, _) in KINDS.items()
}


def leading(x, y, usual):
    """Return the steps from x to y, (name, shape) each: the `usual` ones, or the fewest; None if no known ones do."""
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
            laid = {"": value, "flatten": value.flatten(1), "channels last": value.movedim(1, -1).flatten(1)}
            laid["mixed images"] = value.reshape(y.shape)
        except (RuntimeError, IndexError):  # of another rank, or too small for the windows
            continue
        if fits := [name for name, z in laid.items() if close(z, y)]:
            return steps + [(name, y.shape) for name in fits[:1] if name]
    return None


def close(a, b):
    """Return whether two tensors are equal but for rounding."""
    return a.shape == b.shape and torch.allclose(a.to(b.dtype), b, 1e-3, 1e-4, equal_nan=True)


# ---- following a network

WATCHED = {  # function -> (kind, its arguments)
    F.conv2d: ("convolution", "input weight bias stride padding dilation groups"),
    F.linear: ("linear layer", "input weight bias"),
    F.batch_norm: ("norm", "input running_mean running_var weight bias training momentum eps"),
    torch.batch_norm: ("norm", "input weight bias running_mean running_var training momentum eps"),
    **{norm: ("other norm", "input") for norm in (F.layer_norm, F.group_norm, F.instance_norm, F.local_response_norm)},
}
OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm, nn.RMSNorm)
RUNNING, AFFINE = ("running_mean", "running_var"), ("weight", "bias")
KEYS = dict(zip(("running mean", "running variance", "gamma", "beta"), (*RUNNING, *AFFINE), strict=True))


class Call:
    """A call of a layer: its `kind`, the `layer` or its function's name, input x and output y, `name` in the network.

    given    {key: value} of the tensors and settings that it works with
    running  (mean, variance) before and after, None for each that there is not
    sizes    numbers of inputs and outputs, None of a norm; label: the layer in the words of the table
    error    what was raised, where another layer stands in
    """

    def __init__(self, kind, layer, x, given):
        self.kind, self.layer, self.x, self.given, self.weight = kind, layer, x, given, given.get("weight")
        self.label = type(layer).__name__ if isinstance(layer, nn.Module) else layer
        self.sizes, self.name, self.error = None, "", ""
        if "norm" not in kind:
            out, size, *kernel = self.weight.shape
            self.sizes = size * given.get("groups", 1), out
            self.label = f"{'Conv2d' if kernel else 'Linear'} {self.sizes[0]}→{out}"
            self.label += f", k={kernel[0]}" if kernel else ""


class Watch(TorchFunctionMode):
    """What came of a network on a batch: the `calls` of its layers and norms, its `output`, or the `trouble`.

    last  what the last function gave
    """

    def __init__(self, guard, model, norms, images, training, grad, note):
        super().__init__()
        self.model, self.norms, self.training, self.grad = model.train(training), norms, training, grad
        self.mode = "train()" if training else "eval()"
        self.note, self.calls, self.last, self.inside = note, [], None, False

        def call():
            stand_ins = [patch.object(n, "forward", partial(self.record, "norm", n, n.forward, {})) for n in norms]
            stand_ins += [patch("bnlib.batch_norm", F.batch_norm), torch.set_grad_enabled(grad)]
            if "torch._dynamo" in sys.modules:  # not loaded for this: that takes a second
                stand_ins.append(torch.compiler.set_stance("force_eager"))
            with ExitStack() as stack:
                for context in (*stand_ins, self):
                    stack.enter_context(context)
                return model(images.clone())

        self.output, self.trouble = guard.call(call)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Record the layers; let dropouts pass, and flatten what cannot be viewed as it should."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self.inside:
            return func(*args, **kwargs)
        if "dropout" in name:
            if not torch.equal(func(args[0].clone(), *args[1:], **kwargs), args[0]):
                self.note("dropout added", f"there is {name}")
            return args[0]
        if func in WATCHED:
            kind, names = WATCHED[func]
            given = dict(zip(names.split(), args, strict=False)) | kwargs
            return self.record(kind, name, lambda _: func(*args, **kwargs), given, given.pop("input"))
        try:
            self.last = func(*args, **kwargs)
        except RuntimeError as error:
            if name not in ("view", "reshape") or args[0].dim() != 4:
                raise
            raised = f"{name} raises an error for {tuple(args[0].shape)} in {self.mode}: {error}"
            self.note("flattened to the wrong size", raised)
            self.last = args[0].flatten(1)
        return self.last

    def record(self, kind, layer, forward, given, x, *more):
        """Record a call and return what it gives; what one that fits would give if it raises an error for its sizes."""
        if self.inside:
            return forward(x, *more)

        def held():
            own = parts(layer) if layer in self.norms else {}
            return given | {key: own[name].tensor for key, name in self.norms.get(layer, {}).items() if name in own}

        call = Call(kind, layer, x.detach().clone(), held())
        before, self.inside = copies(call.given, RUNNING), True
        try:
            y = forward(x, *more)
            if "norm" in kind and y.shape != x.shape:
                raise ValueError(f"the result has shape {tuple(y.shape)}")
        except Exception as raised:
            trouble, y = what_was_raised(raised), fitting(call, x)
            if y is None or trouble.kind == "unanswered":
                raise
            call.error = trouble.located
        finally:
            self.inside = False
        call.y, call.running, self.last = y.detach().clone(), (before, copies(held(), RUNNING)), y
        self.calls.append(call)
        return y


def copies(given, keys):
    """Return flat copies in float64 of the tensors under these keys, None for each that there is not."""
    return [part if part is None else part.detach().double().flatten() for part in map(given.get, keys)]


def fitting(call, x):
    """Return what a layer of the right size gives for x, None if its size is not why it raised an error."""
    if call.kind == "norm":
        return F.batch_norm(x, None, None, training=True)
    if call.kind == "linear layer" and x.dim() > 1 and (x.dim() > 2 or x.shape[1] != call.sizes[0]):
        return nn.Linear(x[0].numel(), call.sizes[1])(x.flatten(1))
    if call.kind == "convolution" and x.dim() == 4 and x.shape[1] != call.sizes[0]:
        settings = [call.given.get(name, usual) for name, usual in (("stride", 1), ("padding", 0))]
        return nn.Conv2d(x.shape[1], call.sizes[1], call.weight.shape[2:], *settings)(x)
    return None


def norms_of(model):
    """Return {norm: {key: name of its part}} of the modules that normalise, of nested ones the inner."""

    def normalises(module):
        own = {role_of(part) for part in parts(module).values() if "." not in part.name}
        word = type(module).__name__.lower()
        return "norm" in word or word in ("bn", "bn1d", "bn2d") or {"running mean", "running variance"} <= own

    found = [module for module in model.modules() if module is not model and normalises(module)]
    stops = (nn.Conv2d, nn.Linear, *map(type, found))
    inner = [norm for norm in found if not any(isinstance(m, stops) for m in norm.modules() if m is not norm)]
    return {norm: {KEYS[r]: part.name for part in parts(norm).values() if (r := role_of(part))} for norm in inner}


# ---- what is found


class Findings(dict):
    """Mistakes by name, each with its cause and the places where it shows."""

    def note(self, name, at="", cause=None):
        """Add a mistake, or one more place of it, or nothing if it is known."""
        _, places = self.setdefault(name, (cause or CAUSES.get(name, "{at}"), []))
        if at.replace("eval()", "train()") not in places and at not in places:
            places.append(at)

    def mistakes(self):
        """Return them as a list of Mistake."""
        return [Mistake(name, cause.replace("{at}", listed(places))) for name, (cause, places) in self.items()]


def listed(places):
    """Return places in a sentence, and what they begin with only once."""
    words = [at.split(" ") for at in places]
    same = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))]
    *most, last = [" ".join(some[len(same) :]) for some in words]
    return " ".join([*same, f"{', '.join(most)} and {last}" if most else last]).strip()


def look(watch, images, findings, ways, told):
    """Note what is wrong in what a watch saw; return what it saw as text, in the words of the table."""
    note, calls, lines = findings.note, watch.calls, []
    known = {id(parameter) for parameter in watch.model.parameters()}
    at = [i for i, call in enumerate(calls) if call.sizes]
    rows = aligned([calls[i] for i in at])
    ends = pairwise([*at, len(calls)])
    pieces = [(row, calls[i:j], [*calls, None][j]) for (i, j), row in zip(ends, rows, strict=True)]
    for row, (layer, *norms), _ in pieces:
        layer.name = f"one more {layer.kind}, {layer.label}" if row is None else NAMES[row]
        for norm in norms:
            norm.name = f"the batch norm after {layer.name}"
    if not watch.trouble:
        wrong = [f"there is {layer.name}" for row, (layer, *_), _ in pieces if row is None]
        for what in wrong + [f"{name} is missing" for row, name in enumerate(NAMES) if row not in rows]:
            note("wrong number of layers", what)
    first = calls[0].x if calls else images
    if not close(first, images):
        note("images changed", f"before the first layer, from {tuple(images.shape)} to {tuple(first.shape)}")
    if at and at[0] > 0:
        note("batch norm on the images")
    for row, piece, following in pieces:
        steps, strange = between(row, piece, following, watch, ways, note, lines)
        for norm in piece[1:]:
            look_at_norm(norm, watch, note, told)
            if sum(norm.weight is other.weight is not None for other in calls) > 1:
                note("one batch norm used twice", norm.name)
        for call in piece:
            if isinstance(call.weight, nn.Parameter) and id(call.weight) not in known:
                note("layer not registered", call.name)
        if row is not None:
            look_at_layer(piece[0], row, watch.mode, note)
            look_between(row, piece[0].name, steps, strange, not following and watch.trouble, note)
    return "\n".join(
        f"{words[0].upper() + words[1:]:<20}({', '.join(['B', *map(str, shape[1:])])})" for words, shape in lines
    )


def between(row, calls, following, watch, ways, note, lines):
    """Return the names of the steps behind a layer, among them its norms, and whether there are others, unknown.

    calls  of the layer and its norms; ways: {name of a call: the steps that were found behind it before}
    """
    steps, so_far, strange = [], [], False
    for call, after in pairwise([*calls, following]):
        steps = [*steps, "batch norm"] if so_far else steps
        so_far.insert(0, (call.y, steps))
        lines.append((call.label, call.y.shape))
        target = after.x if after else watch.last if watch.trouble else watch.output
        if target is None:
            return steps, True
        found = ((before, leading(y, target, ways.get(call.name, ()))) for y, before in so_far)
        before, way = next((pair for pair in found if pair[1] is not None), (steps, None))
        if way is None and (after or (row == LAST and target.shape == (len(call.x), 10))):
            note(UNKNOWN, f"{call.name} and {after.name if after else 'the output'}")
        if before is not steps:
            note("result not used", call.name)
        strange, way = strange or way is None, way or []
        ways.setdefault(call.name, [name for name, _ in way if name in POOLS or name in ACTIVATIONS])
        lines += way
        steps = before + [name for name, _ in way]
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
    (kind, before, after), name = list(LAYERS.values())[row], call.name
    raised = f"; in {mode} it gets {tuple(call.x.shape)} and raises an error" if call.error else ""
    if call.kind != kind:
        cause = f"{{at}}; the table has {'Conv2d' if row < 2 else 'Linear'} {before}→{after} there"
        return note(f"{call.kind} instead of {kind}", f"{name} is {call.label}{raised}", cause)
    if call.sizes != (before, after):
        what = f"wrong number of {'channels' if row < 2 else 'features'}"
        note(what, f"{name} is {call.sizes[0]}→{call.sizes[1]}, the table has {before}→{after}{raised}")
    elif call.error and call.x[0].numel() != before:
        note("sizes do not fit", f"{name} is {before}→{after}{raised}")
    if row == LAST and call.given.get("bias") is None:
        note("bias missing", name)
    if row > 1 and call.x.dim() != 2:
        note("flatten missing", f"{name} gets {tuple(call.x.shape)}")
    for what, usual in (("stride", 1), ("padding", 0), ("groups", 1)):
        if (value := call.given.get(what, usual)) not in (usual, (usual, usual), [usual, usual], "valid"):
            note("grouped convolution" if what == "groups" else what, f"{name} has {what}={value}")
    if row < 2 and call.weight.shape[2:] != (5, 5):
        note("wrong kernel size", f"{name} has a kernel of {tuple(call.weight.shape[2:])}")


def look_between(row, name, steps, strange, cut, note):
    """Note in what the steps behind a layer differ from the table's: batch norm, sigmoid, and for images a pooling.

    strange  whether some of them are not known; cut: whether they end with an error
    """
    norms, whole = steps.count("batch norm"), not (strange or cut)
    acts, pools = ([step for step in steps if step in known] for known in (ACTIVATIONS, POOLS))
    if row == LAST:
        cause = "the output goes through it; the table ends with a linear layer, and the loss takes its numbers"
        for mistake in ["batch norm after the last layer"] * (norms > 0) + [f"{act} at the end" for act in acts]:
            note(mistake, cause=CAUSES.get(mistake, cause))
        return
    before = steps[: steps.index("batch norm")] if norms else []
    act, pool = (any(step in before for step in found) for found in (acts, pools))
    for mistake, shows in {
        "channels last when flattened": "channels last" in steps,
        "images mixed when flattened": "mixed images" in steps,
        "activation missing": not acts and whole,
        "batch norm missing": not norms and (whole or (acts and not cut)),
        "batch norm after the activation": act and not pool,
        "batch norm after the pooling": act and pool,
        "pooling before batch norm": pool and not act,
        "one batch norm too many": norms > 1,
        "two activations in a row": len(acts) > 1,
        "pooling missing": row < 2 and not pools and whole,
        "one pooling too many": len(pools) > (row < 2),
    }.items():
        if shows:
            note(mistake, f"behind {name}")
    for step in (*acts[: len(acts) == 1], *pools[: row < 2]):
        kind, usual = step.split(" of ")[0], "max pooling" if step in POOLS else "sigmoid"
        if kind != usual:
            note(f"{kind} instead of {usual}", name, f"{kind} stands after {{at}}; the table has {usual} there")
        if step in POOLS and kind != step:
            note("pooling of another size", f"{step} stands after {name}")


def look_at_norm(call, watch, note, told):
    """Note in what a norm differs from torch's batch norm as it is by default; `told`: (name, mode) where it does."""
    norm, given, x, name = call.layer, call.given, call.x, call.name
    if isinstance(norm, OTHER_NORMS) or call.kind == "other norm":
        return note("another normalization", f"{call.label} in place of {name}")
    affine, statistics = copies(given, AFFINE), [part for pair in call.running for part in pair]
    fits = all(part is None or len(part) == x.shape[1] for part in (*affine, *statistics))
    mean, var, new_mean, new_var = statistics
    if call.error:
        what = AXES if "D input (got" in call.error else RAISES if fits else "batch norm of another size"
        return note(what, f"{name} gets {tuple(x.shape)} and raises {call.error} in {watch.mode}")
    kept, own = all(part is not None for part in statistics), parts(norm) if norm in watch.norms else {}
    kinds = {key: own[part].kind for key, part in watch.norms.get(norm, {}).items() if part in own}
    for mistake, shows in {
        "batch norm without gamma and beta": affine == [None, None],
        "gamma and beta are no parameters": {kinds.get(key, "parameter") for key in AFFINE} != {"parameter"},
        "plain attributes": "attribute" in map(kinds.get, RUNNING),
        "batch norm without running statistics": not kept,
    }.items():
        if shows:
            note(mistake, name)
    if not fits or (name, watch.mode) in told:
        return None
    sizes, batch = (*x.shape[:2], -1, 1), watch.training or not kept
    gamma, beta = (x.new_full(sizes[1:2], k) if part is None else part for part, k in zip(affine, (1, 0), strict=True))
    given, running = dict(x=x.reshape(sizes), gamma=gamma, beta=beta), dict(running_mean=mean, running_var=var)

    def tell(mistakes, unknown):
        if mistakes is None:
            note(unknown, name)
        for mistake in mistakes or ():
            note(mistake.name, name, f"{{at}}: {mistake.cause}")
        if mistakes != []:
            told.add((name, watch.mode))

    for exercise, arguments in [(TRAINING, given), *[(EVALUATION, given | running)] * kept][:: 1 if batch else -1]:
        found = explained(exercise, {Case(arguments): Seen((call.y.reshape(sizes),))}, 1)
        if found is not None:
            break
    if found is not None and (exercise is TRAINING) != batch:
        if not watch.training and watch.grad:
            return note(MODE, name)  # it was right under no_grad()
        found = [RUNS if watch.training else EVALUATES_BATCH]
    tell(found, "not a batch norm")
    if kept and getattr(norm, "momentum", 0.1) is None:
        tell([Mistake(CUMULATIVE, OF_LAYERS[CUMULATIVE])], "")
    elif kept and watch.training:
        seen = {Case(dict(x=given["x"]) | running): Seen((new_mean, new_var))}
        tell(explained(UPDATE, seen, 1), "running statistics of a batch norm")
    elif kept and not (torch.equal(mean, new_mean) and torch.equal(var, new_var)):
        tell([UPDATED_IN_EVAL], "")


def look_at_gradients(guard, watch, note):
    """Note the layers that the gradient of the output does not reach."""
    _, trouble = guard.call(lambda: watch.output.sum().backward())
    if trouble and watch.output.requires_grad:
        return note(NO_GRADIENT, cause=f"the backward pass raises {trouble.located}")
    for call in watch.calls:
        if call.name in NAMES and not call.error and call.weight.is_leaf and call.weight.grad is None:
            note(NO_GRADIENT, call.name)


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
        findings, ways, told, seen = Findings(), {}, set(), []
        note, model = findings.note, made(guard, attempt, findings.note)
        if model is None:
            return findings.mistakes(), {}
        images = 4 * torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))  # both variances' gap shows
        norms = prepared(guard, model, images)
        for training, grad in ((True, True), (False, False), (False, True), (True, True)):
            watch = Watch(guard, model, norms, images, training, grad, note)
            if not watch.trouble:
                watch.output = read(watch.output, note)
            seen.append(look(watch, images, findings, ways, told))
            if watch.trouble:
                if watch.trouble.kind == "unanswered":
                    raise Unanswered
                where = f"after {watch.calls[-1].name}" if watch.calls else "before the first layer"
                name = ENDLESS if watch.trouble.kind == "stopped" else RAISES
                note(name, f"{watch.trouble.located}; in {watch.mode}, {where}")
                break
            if training and watch.output is not None:
                look_at_gradients(guard, watch, note)
        mistakes = findings.mistakes()
        example = dict(example=(("x", "(4, 1, 28, 28)"),), expected=(TABLE,), received=(seen[0],), shown="layers")
        return mistakes, example if mistakes else {}


def made(guard, attempt, note):
    """Return a copy of the network that an attempt makes, or None. Raises Unanswered."""
    as_it_is = dict.fromkeys(("script", "trace"), lambda thing=None, *_, **__: thing)
    with patch.multiple(torch.jit, **as_it_is):
        model, trouble = guard.call(attempt)
        if isinstance(model, (type, list, tuple)) and not holds_dots(model):
            note(TYPE, f"lenet_with_bn() returns {describe(model)}; expected a network: Net(), nn.Sequential(*layers)")
            model, trouble = guard.call(model) if isinstance(model, type) else guard.call(nn.Sequential, *model)
    if holds_dots(model) or (trouble and trouble.kind == "unanswered"):
        raise Unanswered
    if trouble:
        hint = "; `super().__init__()` goes first in `__init__`" if "Module.__init__" in trouble.text else ""
        return note(ENDLESS if trouble.kind == "stopped" else RAISES, trouble.located + hint)
    if model is None:
        return note(NOTHING, "lenet_with_bn() ends without a value: end it with `return` and the network")
    if not isinstance(model, nn.Module):
        return note(TYPE, f"lenet_with_bn() returns {describe(model)}; expected an nn.Module")
    if getattr(model.forward, "__func__", None) is nn.Module.forward and list(model.children()):
        return note("forward missing", f"{type(model).__name__} has no method `forward`: is its name mistyped?")
    twin, trouble = guard.call(copy.deepcopy, model)  # it may be the reader's own, of use later
    return model if trouble else twin


def prepared(guard, model, images):
    """Return the norms of a network; give its parameters other values, for at 1 and 0 a mistake can hide."""
    if any(nn.parameter.is_lazy(part) for part in (*model.parameters(), *model.buffers())):
        guard.call(model.train(), images)
    norms, generator = norms_of(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in model.parameters():
            if not nn.parameter.is_lazy(part) and part.numel() > 1:
                scale = 2.0 if part.numel() == max(part.shape) else 0.3
                part.add_((torch.randn(part.shape, generator=generator) * scale).to(part.dtype))
        for part in model.buffers():
            if part.is_floating_point() and part.numel() > 1:
                part.add_(torch.rand(part.shape, generator=generator).to(part.dtype))
    return norms


def read(output, note):
    """Return the output of a network as a tensor, or None; note a wrong form."""
    if output is None:
        return note(NOTHING, "the network's forward ends without a value: end it with `return`")
    if isinstance(output, torch.Tensor):
        if output.shape != (4, 10):
            note(SHAPE, f"the network returns {describe(output)}; expected (4, 10) for four images")
        return output
    note(TYPE, f"the network returns {describe(output)}; expected the output (4, 10) for four images alone")
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return next((value for value in values if isinstance(value, torch.Tensor) and value.shape == (4, 10)), None)


LENET = Lenet()
