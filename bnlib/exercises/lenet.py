"""The exercise `lenet_with_bn`: a function that returns the network of lesson 05, checked layer by layer.

How the network is put together is free (Sequential, a class, functions between the layers): its layers with weights are
found as they are called, given known weights, and the output is compared with the table's; what lies between them is
known by what it does.
"""

from itertools import combinations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from .judge import Bend, Mistake
from .judge.answers import NOTHING, SHAPE, TYPE, describe
from .judge.diagnosis import ENDLESS, NO_GRADIENT, RAISES, UNKNOWN, Unanswered
from .judge.guard import holds_dots
from .judge.truth import together
from .judge.verdict import judged
from .layer.parts import parts, role_of
from .reading import Place

LAYERS = {
    "the first convolution": (1, 6),
    "the second convolution": (6, 16),
    "the first linear layer": (256, 120),
    "the second linear layer": (120, 84),
    "the last linear layer": (84, 10),
}
TABLE = (
    "Conv2d 1→6, k=5     (B, 6, 24, 24)\nBatchNorm           (B, 6, 24, 24)\nSigmoid             (B, 6, 24, 24)\n"
    "MaxPool 2           (B, 6, 12, 12)\nConv2d 6→16, k=5    (B, 16, 8, 8)\nBatchNorm           (B, 16, 8, 8)\n"
    "Sigmoid             (B, 16, 8, 8)\nMaxPool 2           (B, 16, 4, 4)\nFlatten             (B, 256)\n"
    "Linear 256→120      (B, 120)\nBatchNorm           (B, 120)\nSigmoid             (B, 120)\n"
    "Linear 120→84       (B, 84)\nBatchNorm           (B, 84)\nSigmoid             (B, 84)\nLinear 84→10        (B, 10)"
)
ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "nothing": lambda x: x,
    "ReLU": torch.relu,
    "tanh": torch.tanh,
    "LeakyReLU": F.leaky_relu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "ELU": F.elu,
    "hard sigmoid": F.hardsigmoid,
    "log sigmoid": F.logsigmoid,
    "softmax": lambda x: x.softmax(1),
}
ENDS = {
    "nothing": lambda x: x,
    "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: x.log_softmax(1),
    "sigmoid": torch.sigmoid,
    "ReLU": torch.relu,
    "tanh": torch.tanh,
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
}


def forward(
    x,
    layers,
    norms,
    training,
    *,
    between=("sigmoid",) * 4,
    pool=("max", "max"),
    place=("before",) * 4,
    flatten="C first",
    end="nothing",
):
    """Return the inputs of each layer and the output, bent by the knobs.

    layers   (weight, bias) of the five; norms: four dicts of γ, β and running statistics, or None
    between  the activation after each; place: where its batch norm stands
    """
    inputs = []
    for i, (weight, bias) in enumerate(layers):
        if i == 2:
            x = (x if flatten == "C first" else x.movedim(1, -1)).flatten(1)
        inputs.append(x)
        x = F.conv2d(x, weight, bias) if i < 2 else F.linear(x, weight, bias)
        if i == 4:
            break
        steps = {
            "norm": lambda x, norm=norms[i]: x if norm is None else F.batch_norm(x, training=training, **norm),
            "act": ACTIVATIONS[between[i]],
            "pool": (lambda x: x) if i > 1 else F.max_pool2d if pool[i] == "max" else F.avg_pool2d,
        }
        order = {
            "before": ("norm", "act", "pool"),
            "after the activation": ("act", "norm", "pool"),
            "after the pooling": ("act", "pool", "norm"),
            "behind the pooling": ("pool", "norm", "act"),
        }[place[i]]
        for step in order:
            x = steps[step](x, 2) if step == "pool" and i < 2 else steps[step](x)
    return inputs, ENDS[end](x)


def at(*places, other, usual, count=4):
    """Return `usual` for each layer, but `other` at some."""
    return tuple(other if i in places else usual for i in range(count))


def moved_norm(name, cause, place, everywhere):
    """Return the entry of a batch norm in another place: behind every layer, the convolutions, the linear ones, one."""
    groups = [(0, 1), *([(2, 3), (2,), (3,)] if everywhere else []), (0,), (1,)]
    variants = [dict(place=at(*group, other=place, usual="before")) for group in groups]
    others = at(0, 1, other=place, usual="after the activation")
    return Mistake(name, cause, also=[dict(place=others), *variants])


MISTAKES = (
    *(
        Mistake(
            f"{name} instead of sigmoid",
            f"the table has Sigmoid, here {'stands' if name != 'softmax' else 'is'} {name}",
            also=[
                dict(between=at(*places, other=name, usual="sigmoid"))
                for places in ((0, 1, 2, 3), (0, 1), (2, 3), (0,), (1,), (2,), (3,))
            ],
        )
        for name in ACTIVATIONS
        if name not in ("sigmoid", "nothing")
    ),
    Mistake(
        "activation missing",
        "without Sigmoid between them, layers collapse into one linear map; it follows each batch norm",
        also=[
            dict(between=at(*places, other="nothing", usual="sigmoid"))
            for places in ((0, 1, 2, 3), (0, 1), (2, 3), (0,), (1,), (2,), (3,))
        ],
    ),
    Mistake(
        "average pooling instead of max pooling",
        "the pooling takes the average; the table has MaxPool",
        also=[dict(pool=pool) for pool in (("avg", "avg"), ("avg", "max"), ("max", "avg"))],
    ),
    moved_norm(
        "batch norm after the activation",
        "a batch norm stands after the sigmoid; the table has it before, right after its convolution or linear layer",
        "after the activation",
        True,
    ),
    moved_norm(
        "batch norm after the pooling",
        "a batch norm stands after the pooling; the table has it right after its convolution",
        "after the pooling",
        False,
    ),
    moved_norm(
        "pooling before batch norm",
        "a pooling comes before the batch norm; the table has it after batch norm and sigmoid",
        "behind the pooling",
        False,
    ),
    *(
        Mistake(
            f"{name} at the end",
            f"the output goes through {name}; the table ends with a linear layer, and the loss takes its numbers",
            end=name,
        )
        for name in ENDS
        if name != "nothing"
    ),
    Mistake(
        "channels last when flattened",
        "the features are flattened with the channels last; nn.Flatten keeps (C, H, W)",
        flatten="C last",
    ),
)
FORMS = {"padding", "stride", "wrong kernel size", "another normalization"} | {
    "dropout added",
    "batch norm after the last layer",
    "two batch norms in a row",
}  # with which the formula above cannot be compared


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
        model, trouble = guard.call(attempt)
        if holds_dots(model) or (trouble and trouble.kind == "unanswered"):
            raise Unanswered
        if trouble:
            return [Mistake(ENDLESS if trouble.kind == "stopped" else RAISES, trouble.located)], {}
        if not isinstance(model, nn.Module):
            cause = f"lenet_with_bn() returns {describe(model)}; expected an nn.Module"
            return [Mistake(NOTHING if model is None else TYPE, cause)], {}
        before = {name: buffer.clone() for name, buffer in model.named_buffers() if not is_lazy(buffer)}
        calls, y, trouble = traced(guard, model.train())
        evidence = dict(
            example=(("x", "(4, 1, 28, 28)"),), expected=(TABLE,), received=(listing(calls),), shown="layers"
        )
        unreached = [] if trouble else no_gradient(guard, calls, y)
        for name, start in before.items():  # what a tensor starts at may be all that says what it is for
            *owners, last = name.split(".")
            setattr(model.get_submodule(".".join(owners)), last, start)
        found = structure(calls)
        if trouble:
            if trouble.kind == "unanswered":
                raise Unanswered
            return [*found, stumbled(trouble, calls)], evidence
        if not isinstance(y, torch.Tensor) or y.shape != (4, 10):
            cause = f"the network returns {describe(y)}; expected (4, 10) for four images"
            return [*found, Mistake(SHAPE if isinstance(y, torch.Tensor) else TYPE, cause)], evidence
        layers, norms = sorted_out(calls)
        if len(layers) < len(LAYERS):
            cause = f"{len(layers)} nn.Conv2d and nn.Linear were called; the table has five"
            return [Mistake("wrong number of layers", cause), *found], evidence
        if unreached:
            cause = f"no gradient reaches {', '.join(unreached)}: is something detached, or frozen?"
            return [*found, Mistake(NO_GRADIENT, cause)], evidence
        sizes = [(m.weight.shape[1], m.weight.shape[0]) for m in layers]
        if sizes == list(LAYERS.values()) and not any(m.name in FORMS for m in found):
            derived = behaviour(guard, model, layers, norms)
            found += [mistake for mistake in derived if not (found and mistake.name in CONSEQUENCES)]
        return found, evidence if found else {}


def traced(guard, model):
    """Return the (module, input, output) of each innermost module called on four images, the output, and trouble."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda module, args, out: calls.append((module, args[0], out)))
        for module in model.modules()
        if not list(module.children())
    ]
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y, trouble = guard.call(lambda: model(x.clone()))
    for hook in hooks:
        hook.remove()
    return [(m, i.detach().clone(), o.detach()) for m, i, o in calls if isinstance(i, torch.Tensor)], y, trouble


def no_gradient(guard, calls, y):
    """Return the names of the layers whose weights the output's gradient does not reach."""
    if isinstance(y, torch.Tensor) and y.requires_grad:
        guard.call(lambda: y.sum().backward())
    return [name for name, layer in zip(LAYERS, sorted_out(calls)[0], strict=False) if layer.weight.grad is None]


def stumbled(trouble, calls):
    """Return the mistake of a network that does not get to its end."""
    if "D input (got" in trouble.text:
        needs = "after a convolution, (B, C, H, W), comes BatchNorm2d, after a linear layer, (B, C), BatchNorm1d"
        cause = f"{trouble.text.removeprefix('ValueError: ')}: {needs}"
        return Mistake("batch norm for another number of axes", cause)
    last = f"; the last layer reached is {calls[-1][0]}" if calls else ""
    return Mistake(ENDLESS if trouble.kind == "stopped" else RAISES, trouble.located + last)


def listing(calls):
    """Return the layers that were called as text, in the words of the table."""
    lines = []
    for module, _, out in calls:
        words = type(module).__name__
        if isinstance(module, nn.Conv2d):
            words += f" {module.in_channels}→{module.out_channels}, k={module.kernel_size[0]}"
        if isinstance(module, nn.Linear):
            words += f" {module.in_features}→{module.out_features}"
        lines.append(f"{words:<20}({', '.join(['B', *map(str, out.shape[1:])])})")
    return "\n".join(lines)


def is_norm(module):
    """Return whether a module normalises: torch's, this library's, or one of the reader's own."""
    roles = {role_of(part) for part in parts(module).values()}
    return "Norm" in type(module).__name__ or {"running mean", "running variance"} <= roles


def sorted_out(calls):
    """Return the convolutions and linear layers in order, and for each the norms that follow it."""
    layers, norms = [], []
    for module, _, _ in calls:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            layers.append(module)
            norms.append([])
        elif is_norm(module) and norms:
            norms[-1].append(module)
    return layers, norms


def structure(calls):
    """Return the mistakes that the layers themselves show: which are there, of which size, how set."""
    layers, norms = sorted_out(calls)
    found = []

    def note(name, cause):
        if name not in {mistake.name for mistake in found}:
            found.append(Mistake(name, cause))

    kinds = [isinstance(layer, nn.Conv2d) for layer in layers]
    if kinds != [True, True, False, False, False][: len(kinds)] or len(kinds) > 5:
        note(
            "wrong number of layers",
            f"{sum(kinds)} convolutions and {len(kinds) - sum(kinds)} linear layers; the table has 2 and 3, in this "
            "order",
        )
        return found
    used = [norm for some in norms for norm in some]
    if len(set(map(id, used))) < len(used):
        note(
            "one batch norm used twice",
            "the same batch norm layer is called in two places, so two layers share γ, β and running statistics; make "
            "one for each",
        )
    for name, (before, after), layer, follow in zip(LAYERS, LAYERS.values(), layers, norms, strict=False):
        if isinstance(layer, nn.Conv2d):
            if layer.kernel_size != (5, 5):
                note("wrong kernel size", f"{name} has a kernel of {layer.kernel_size}; the table has 5×5")
            if layer.padding not in ((0, 0), "valid", 0):
                note("padding", f"{name} pads with {layer.padding}; the table has no padding, 28 → 24 → 12 → 8 → 4")
            if layer.groups != 1:
                note("grouped convolution", f"{name} has groups={layer.groups}: each output sees only some inputs")
            if layer.stride != (1, 1):
                note("stride", f"{name} has a stride of {layer.stride}; the table has 1")
            if (layer.in_channels, layer.out_channels) != (before, after):
                note(
                    "wrong number of channels",
                    f"{name} is {layer.in_channels}→{layer.out_channels}; the table has {before}→{after}",
                )
        elif (layer.in_features, layer.out_features) != (before, after):
            note(
                "wrong number of features",
                f"{name} is {layer.in_features}→{layer.out_features}; the table has {before}→{after}",
            )
        last = name == "the last linear layer"
        if layer.bias is None and (last or not follow):
            note("bias missing", f"{name} has no bias, and no batch norm's β stands in for it")
        if last and follow:
            note(
                "batch norm after the last layer",
                "the last linear layer is followed by a batch norm; the table ends with the linear layer",
            )
        elif len(follow) > 1:
            note("two batch norms in a row", f"{name} is followed by {len(follow)} batch norms; the table has one")
    reached = (
        list(zip(LAYERS, norms, strict=False))[:4] if len(norms) == 5 else list(zip(LAYERS, norms, strict=False))[:-1]
    )
    bare = [name for name, follow in reached if not follow]
    if bare:
        note(
            "batch norm missing", f"no batch norm follows {', '.join(bare)}; the table has one after each but the last"
        )
    for norm in used:
        settings_of(norm, note)
    for module, _, _ in calls:
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p:
            note("dropout added", f"there is a dropout of {module.p:g}; the table has none")
    return found


def settings_of(norm, note):
    """Note in what a batch norm differs from PyTorch's defaults."""
    if isinstance(norm, (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm)):
        note("another normalization", f"there is a {type(norm).__name__}; the table has batch norm")
        return
    if getattr(norm, "momentum", 0.1) != 0.1:
        note(
            "momentum of batch norm",
            f"a batch norm has momentum {norm.momentum}; the table's have 0.1, PyTorch's default",
        )
    if isinstance(getattr(norm, "eps", None), float) and norm.eps != 1e-5:
        note("epsilon of batch norm", f"a batch norm has ε = {norm.eps:g}; the table's have 1e-5, PyTorch's default")
    roles = {role_of(part) for part in parts(norm).values()}
    if not {"gamma", "beta"} & roles:
        note(
            "batch norm without gamma and beta",
            "a batch norm has no γ and β; the table's have (affine=True, PyTorch's default)",
        )
    if not {"running mean", "running variance"} & roles:
        note(
            "batch norm without running statistics",
            "a batch norm keeps no running statistics; the table's do (track_running_stats=True)",
        )


def behaviour(guard, model, layers, norms):
    """Return the mistakes in what lies between the layers, after giving them known weights."""
    generator = torch.Generator().manual_seed(1)

    def noise(tensor, scale, shift=0.0):
        return torch.randn(tensor.shape, generator=generator) * scale + shift

    held, kinds = [], []
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(noise(layer.weight, 2.0 / layer.weight[0].numel() ** 0.5))
            if layer.bias is not None:
                layer.bias.copy_(noise(layer.bias, 0.3))
        for follow in norms[:4]:
            values, names = None, {}
            for norm in follow:
                kept_in = parts(norm)
                names = {role_of(part): part.name for part in kept_in.values()}  # by name, or as it starts
                values = dict(weight=None, bias=None, running_mean=None, running_var=None)
                for key, role, scale, shift in (
                    ("weight", "gamma", 0.8, 0.5),
                    ("bias", "beta", 0.5, 0.0),
                    ("running_mean", "running mean", 0.3, 0.0),
                    ("running_var", "running variance", 0.1, 1.0),
                ):
                    if role in names:
                        tensor = kept_in[names[role]].tensor
                        tensor.copy_(noise(tensor, scale, shift))
                        values[key] = tensor.detach().clone().flatten()
            held.append(values)
            kinds.append(names)
    weights = [(layer.weight.detach(), None if layer.bias is None else layer.bias.detach()) for layer in layers]
    seen = {}
    for training in (False, True):  # training last: it moves the running statistics
        calls, y, trouble = traced(guard, model.train(training))
        if trouble:
            return [Mistake(RAISES, trouble.located + ("" if training else ", in eval()"))]
        seen[training] = calls, y.detach()

    def run(training, **knobs):
        copies = [
            values and {key: value if value is None else value.clone() for key, value in values.items()}
            for values in held
        ]
        always = not training and any(values and values["running_mean"] is None for values in held)
        return copies, *forward(seen[training][0][0][1], weights, copies, training or always, **knobs)

    def gives(training, **knobs):
        with torch.no_grad():
            return torch.allclose(run(training, **knobs)[2], seen[training][1], 1e-3, 1e-4)

    singles = [Bend(mistake, knobs) for mistake in MISTAKES for knobs in mistake.variants]
    for bends in ((), *((bend,) for bend in singles), *combinations(singles, 2)):
        mistakes, knobs = [bend.mistake for bend in bends], together(bends)
        clash = len(bends) == 2 and bends[0].knobs.keys() & bends[1].knobs.keys()
        if not clash and gives(True, **knobs):
            if gives(False, **knobs):
                return [*mistakes, *([] if kept(norms, kinds, run(True, **knobs)[0]) else [NOT_KEPT])]
            return [*mistakes, EVALUATION]
    with torch.no_grad():
        _, inputs, _ = run(True)
    received = [i for m, i, _ in seen[True][0] if isinstance(m, (nn.Conv2d, nn.Linear))]
    agree = [a.shape == b.shape and torch.allclose(a, b, 1e-3, 1e-4) for a, b in zip(inputs, received, strict=True)]
    place = (
        "between the last linear layer and the output"
        if all(agree)
        else f"what enters {list(LAYERS)[agree.index(False)]} is not what the table's layers give"
    )
    return [
        Mistake(
            UNKNOWN,
            f"the layers with weights are right; {place}: look at the batch norm, activation and pooling before it",
        )
    ]


EVALUATION = Mistake(
    "wrong in evaluation",
    "train() gives the right output, eval() does not: does a batch norm use its running statistics there?",
)
NOT_KEPT = Mistake(
    "running statistics of a batch norm",
    "after a training batch they are not what torch.nn's would be: try that layer in check('layer', ...)",
)
CONSEQUENCES = {UNKNOWN, EVALUATION.name, NOT_KEPT.name}  # not worth a word beside what they come from


def kept(norms, kinds, expected):
    """Return whether the running statistics of each norm, called as `kinds` say, have moved to the expected values."""
    for follow, names, values in zip(norms[:4], kinds, expected, strict=True):
        for key, role in (("running_mean", "running mean"), ("running_var", "running variance")):
            if role in names:
                moved = parts(follow[-1])[names[role]].tensor
                if not torch.allclose(moved.flatten(), values[key], 1e-3, 1e-4):
                    return False
    return True


LENET = Lenet()
