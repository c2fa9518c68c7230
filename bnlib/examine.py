"""What is wrong with a network's batch normalization: any `nn.Module`, judged by what it does.

A copy of the model is run in both modes, on the reader's data, while two things watch: a function mode, which sees each
call of `torch.nn.functional.batch_norm` with its arguments, from whatever module it comes; and hooks, which try the
model's own modules for batch normalization's behaviour (in training a channel may be stretched and shifted without
effect, and a sample's output hangs on its companions). From then on both kinds are a `Site`: they can be watched, or be
given other statistics. No name, class or buffer of the model is relied upon.
"""

import contextlib
import copy
from collections import Counter
from dataclasses import dataclass, field
from html import escape

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

HALF = torch.float16, torch.bfloat16
MOST = 512  # examples looked at
FEW = 16  # of them, where only the order of things is looked at, in float64 and with gradients
SEVERITIES = "wrong", "doubtful", "note"
PAGES = {
    2: "02_batchnorm1d",
    3: "03_batchnorm2d_loops",
    4: "04_batchnorm2d_vectorized",
    5: "05_lenet_gpu",
    9: "09_in_production",
}
CODES = {  # code -> (what it is, what to do, lesson, its heading)
    "BN101": (
        "an answer changes with its companions in eval()",
        "take the running statistics in evaluation: `training=self.training`, tracking on, `eval()` on every layer",
        5,
        "8. The evaluation that cheats",
    ),
    "BN102": (
        "something changes during eval()",
        "update running statistics in training only: `if self.training`",
        4,
        "Bug 1: the mode is read off the gradients",
    ),
    "BN103": (
        "eval() uses more than state_dict() holds",
        "keep the running statistics with `register_buffer`, not as plain attributes",
        4,
        "Bug 2: the moving statistics are plain attributes",
    ),
    "BN104": (
        "running statistics lag behind the weights",
        "`bnlib.reestimate_statistics(model, images)`, or let the learning rate fall at the end",
        5,
        "7. The riddle of the jumping test curve",
    ),
    "BN105": (
        "the target's statistics are elsewhere",
        "another domain and another mix of classes look alike without labels. Score both on a few labelled target "
        "images; re-estimate on the target only where that helps and the mix of classes is the same",
        9,
        "4. Other data at test time",
    ),
    "BN106": (
        "frozen, yet moving",
        "`requires_grad=False` stops γ and β only: call `eval()` on these layers, after each `model.train()`",
        9,
        "3. Freezing for fine-tuning",
    ),
    "BN107": (
        "updated more than once in a training step",
        "checkpointing runs the forward pass again: leave BN out of the checkpointed part, or use "
        "momentum 1 - √(1 - m)",
        9,
        "6. Checkpointing",
    ),
    "BN108": (
        "one layer at several places",
        "a set of running statistics for each place, if what reaches them differs: a layer each",
        9,
        "9. What is wrong with this network?",
    ),
    "BN109": (
        "modes are mixed",
        "call `model.train()` or `model.eval()` on the whole; to freeze some layers on purpose, override `train`",
        9,
        "3. Freezing for fine-tuning",
    ),
    "BN110": (
        "running statistics never updated",
        "load them (`strict=True` says what is missing), copy buffers as well as parameters, or re-estimate them",
        9,
        "8. Loading errors, line by line",
    ),
    "BN111": (
        "running statistics that cannot be",
        "find the batch that did it, `reset_running_stats()`, and re-estimate: an average never forgets NaN",
        9,
        "7. Mixed precision, and NaN for ever",
    ),
    "BN112": (
        "running statistics in half precision",
        "keep BN layers in float32: small updates round away in 16 bits",
        9,
        "7. Mixed precision, and NaN for ever",
    ),
    "BN113": (
        "too few values share a mean",
        "larger batches, frozen statistics, or a norm that does not look at the batch; drop a last batch of one",
        4,
        "8. Small batches, and norms that do not mind",
    ),
    "BN114": (
        "train() and eval() are apart on the same batch",
        "compare the layer with torch's in both modes; where it is right, raise the batch size or re-estimate",
        4,
        "6. Two modes, and three ways not to freeze",
    ),
    "BN115": (
        "running statistics hold a gradient graph",
        "update them under `torch.no_grad()`, from detached statistics",
        2,
        "7. The gradient goes through the mean and the variance",
    ),
    "BN116": (
        "outputs are not finite",
        "look for the first layer with NaN or inf in its weights or statistics",
        9,
        "7. Mixed precision, and NaN for ever",
    ),
    "BN201": (
        "a bias without effect",
        "`bias=False`: the BN behind it subtracts it again",
        9,
        "9. What is wrong with this network?",
    ),
    "BN202": ("two normalizations in a row", "leave one out", 9, "9. What is wrong with this network?"),
    "BN203": (
        "batch normalization at the very end",
        "leave it out, unless outputs are to have a given mean and spread",
        9,
        "9. What is wrong with this network?",
    ),
    "BN204": (
        "dropout before batch normalization",
        "put dropout behind the last BN: in evaluation the variance is another",
        9,
        "9. What is wrong with this network?",
    ),
    "BN205": (
        "dead channels",
        "a constant input or γ = 0: nothing passes. Look at what comes before, or prune",
        9,
        "9. What is wrong with this network?",
    ),
    "BN206": (
        "ε outweighs the variance",
        "a smaller ε, or larger inputs: √(var + ε) is then mostly ε",
        4,
        "ε inside the root",
    ),
    "BN207": (
        "momentum of another framework's convention",
        "in PyTorch it is the share of the new batch: 0.1 here is 0.9 elsewhere",
        3,
        "5. Momentum",
    ),
    "BN208": (
        "weight decay on γ and β",
        "a parameter group of their own with weight_decay=0, if they are to be left alone",
        9,
        "5. Weight decay on γ and β",
    ),
    "BN209": (
        "no batch normalization at all",
        "nothing to do: only the model as a whole was examined",
        2,
        "1. Build it, then call it",
    ),
    "BN210": (
        "the biased variance is stored",
        "store n / (n - 1) times the batch's variance",
        4,
        "Bug 3: the moving variance is biased",
    ),
    "BN301": (
        "the model does not run on the data",
        "give data that model(x) takes: a batch, (x, labels), or what `load_images` returns",
        9,
        "9. What is wrong with this network?",
    ),
    "BN302": (
        "a part of the examination was not possible",
        "the findings are those of the other parts",
        9,
        "9. What is wrong with this network?",
    ),
}


@dataclass
class Finding:
    """One thing found: its `code`, a key of `CODES`; severity; the names of the layers; in words what was measured."""

    code: str
    severity: str  # "wrong": answers are or will be; "doubtful": look at it; "note": good to know
    layers: list[str]
    measured: str

    @property
    def title(self) -> str:
        """What the code stands for."""
        return CODES[self.code][0]

    @property
    def advice(self) -> str:
        """What to do."""
        return CODES[self.code][1]

    @property
    def read(self) -> tuple[int, str]:
        """The lesson and the heading that explain it."""
        return CODES[self.code][2:]

    def __str__(self):
        lesson, heading = self.read
        return (
            f"{self.code} {self.severity}: {self.title}\n    {self._where()}: {self.measured}\n"
            f"    do: {self.advice}\n    read: lesson {lesson:02d}, “{heading}”"
        )

    def _where(self):
        return ", ".join(self.layers[:3]) + (f" and {len(self.layers) - 3} more" if len(self.layers) > 3 else "")


@dataclass
class Examination:
    """What `examine` found, the worst first. `lags` holds each layer's (mean's lag in σ, variance's factor)."""

    findings: list[Finding]
    layers: list[str]
    lags: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; doubts and notes there may be."""
        return all(finding.severity != "wrong" for finding in self.findings)

    @property
    def codes(self) -> set[str]:
        """The codes of all findings."""
        return {finding.code for finding in self.findings}

    def picture(self):
        """Return a picture of each layer's lag: how far its running statistics are from the data's."""
        from .plots import lag_bars  # pictures load slowly

        return lag_bars(self.lags)

    def _headline(self):
        counts = Counter(finding.severity for finding in self.findings)
        said = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity])
        return f"{len(self.layers)} batch normalizations examined: {said or 'nothing to report'}"

    def __repr__(self):
        return "\n".join([self._headline(), *map(str, self.findings)])

    def _repr_html_(self):
        heads = "".join(
            f'<th scope="col" style="text-align: left">{head}</th>'
            for head in ("code", "severity", "what", "where", "measured", "what to do", "read")
        )
        rows = ""
        for finding in self.findings:
            lesson, heading = finding.read
            anchor = heading.replace(" ", "-")
            link = f'<a href="{PAGES[lesson]}.ipynb#{escape(anchor)}">lesson {lesson:02d}, {escape(heading)}</a>'
            words = finding.title, finding._where(), finding.measured, finding.advice
            cells = [finding.code, f"<b>{finding.severity}</b>", *map(escape, words), link]
            rows += "<tr>" + "".join(f'<td style="text-align: left">{cell}</td>' for cell in cells) + "</tr>"
        table = f"<table><tr>{heads}</tr>{rows}</table>" if rows else ""
        return f'<div style="overflow-x: auto"><p><strong>{escape(self._headline())}</strong></p>{table}</div>'


def examine(model: nn.Module, data, *, target=None, optimizer=None, batch_size=None) -> Examination:
    """Return what is wrong, doubtful or worth a note in the batch normalization of `model`, which is left as it is.

    model       maps a batch to a tensor, or to a tuple, list or dict of them
    data        training data, of which 512 examples are looked at: what `load_images` returns; a DataLoader; a batch x
                (N, ...); (x, labels). Several inputs as a tuple or dict of tensors
    target      data that the model is to work on, in the same forms, to see whether its statistics are elsewhere
    optimizer   to see whether it decays γ and β
    batch_size  of the training; 64 if not given

    Raises TypeError if `model` is no module or `data` of another kind, ValueError if there is not one example.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be a whole number, 1 or more, got {batch_size!r}")
    x, y = _examples(data)
    others = _examples(target, test=True) if target is not None else (None, None)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        return _Examiner(model, x, y, *others, optimizer, batch_size).run()


# ---- data


def _examples(data, test=False):
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
        batches, seen = [], 0
        for batch in data:
            batches.append(_examples(batch))
            seen += _size(batches[-1][0])
            if seen >= MOST:
                break
        if not batches:
            raise ValueError("the data hold not one batch")
        x = tree_map(lambda *parts: torch.cat(parts), *[part for part, _ in batches])
        y = torch.cat([labels for _, labels in batches]) if batches[0][1] is not None else None
    else:
        raise TypeError(f"expected a tensor, (x, labels), a DataLoader or images, got {type(data).__name__}")
    n = _size(x)
    if n == 0:
        raise ValueError("the data hold not one example")
    chosen = torch.linspace(0, n - 1, min(n, MOST)).long()
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
    return _take(x, chosen), None if y is None else y[chosen]


def _labels(x, y):
    return (
        not y.is_floating_point()
        and len(x) == len(y)
        and y.dim() <= x.dim()
        and (y.dim() == 1 or x.is_floating_point())
    )


def _size(x):
    return len(next(leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)))


def _take(x, indices):
    return tree_map(lambda part: part[indices] if isinstance(part, Tensor) else part, x)


# ---- copies


def _held(model):
    """Return (module name, its dict of attributes, key, tensor) of tensors that hang in a gradient graph."""
    return [
        (name, store, key, value)
        for name, part in model.named_modules()
        for store in (part._buffers, part.__dict__)
        for key, value in list(store.items())
        if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf
    ]


def _clone(model):
    """Return a deep copy, tensors that hang in a graph detached, which `deepcopy` would refuse."""
    held = _held(model)
    try:
        for _, store, key, value in held:
            store[key] = value.detach()
        lazy = (*model.parameters(), *model.buffers())  # what has no shape yet, which `deepcopy` may refuse, too
        memo = {
            id(t): type(t)(device=t.device, dtype=t.dtype)
            for t in lazy
            if isinstance(t, nn.parameter.UninitializedTensorMixin)
        }
        return copy.deepcopy(model, memo)
    finally:
        for _, store, key, value in held:
            store[key] = value


def _mode(module, training):
    """Put every part into a mode, past `train` methods of their own."""
    for part in module.modules():
        part.training = training
    return module


def _state(model):
    """Return every tensor that hangs on a module, by name: parameters, buffers, plain attributes, in lists, too."""
    found = {}
    for name, part in model.named_modules():
        stores = {**part.__dict__, **part._parameters, **part._buffers}
        for key, value in stores.items():
            if key not in ("_parameters", "_buffers", "_modules"):
                for i, leaf in enumerate(tree_leaves(value)):
                    if isinstance(leaf, Tensor):
                        found[f"{name}.{key}[{i}]" if i else f"{name}.{key}"] = leaf.detach().clone()
    return found


def _changed(before, after):
    def same(a, b):
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())

    return [key for key in after if key in before and not same(before[key], after[key])]


# ---- batch normalizations, wherever they are


def _wide(v, x):  # (C,) seen as (1, C, 1, ...)
    return v.view(1, -1, *[1] * (x.dim() - 2))


def _moments(x):
    """Return mean (C,), unbiased variance (C,) and the count of values that share them."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    dims, n = [d for d in range(x.dim()) if d != 1], x.numel() // max(x.shape[1], 1)
    return x.mean(dims), x.var(dims, correction=0) * (n / max(n - 1, 1)), n


@dataclass
class Call:
    """A batch normalization seen at work."""

    name: str
    x: Tensor
    y: Tensor
    came: tuple  # the input's storage and version
    went: tuple
    mean: Tensor | None  # running; None if it keeps none
    var: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    training: bool
    momentum: float
    eps: float


def _mark(t):
    return t.untyped_storage().data_ptr(), t._version


class _Watch(TorchFunctionMode):
    """Sees each call of torch's batch_norm; may give it other statistics, `put`, or the batch's own."""

    def __init__(self, model, norms=(), put=None, own=False, vital=None, keep=True):
        super().__init__()
        self.calls, self.stack, self.put, self.own, self.keep, self.handles = [], [], put, own, keep, []
        self.seen = {}  # module -> the normalizations called in it, by their tensors

        def leave(*_):
            self.stack.pop()

        self.entered = Counter()  # how often each module began its forward pass: in a recomputation no mode watches

        def enter(name):
            self.stack.append(name)
            self.entered[name] += 1

        for name, part in model.named_modules():
            before = part.register_forward_pre_hook(lambda m, args, name=name: enter(name))
            self.handles += [before, part.register_forward_hook(leave, always_call=True)]
        for name in norms:
            part = model.get_submodule(name)
            self.handles.append(
                part.register_forward_hook(lambda m, a, out, name=name: self._module(m, a, out, name, vital[name]))
            )

    def _note(self, call):
        if not self.keep:
            call.x, call.y = call.x.detach(), call.y.detach()
        self.calls.append(call)

    def _module(self, m, args, out, name, v):
        x = args[0]
        if self.own or (self.put and name in self.put):
            mean, var, n = _moments(x) if self.own else (*self.put[name], 2)
            if self.own:
                var = var * (n - 1) / n
            y = (x.float() - _wide(mean, x)) * _wide(v["gamma"] / (var + v["eps"]).sqrt(), x) + _wide(v["beta"], x)
            for child in m.children():
                y = child(y)
            out = y.to(out.dtype)
        self._note(
            Call(
                name,
                x,
                out,
                _mark(x),
                _mark(out),
                v["mean"],
                v["var"],
                v["gamma"],
                v["beta"],
                m.training,
                v["momentum"],
                v["eps"],
            )
        )
        return out

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.batch_norm:
            names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
            given = (
                dict(weight=None, bias=None, training=False, momentum=0.1, eps=1e-5)
                | dict(zip(names, args, strict=False))
                | kwargs
            )
        elif func is torch.batch_norm:
            names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
            given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k != "cudnn_enabled"}
        else:
            return func(*args, **kwargs)
        name = self.stack[-1] if self.stack else ""
        key = name, id(given["running_mean"]), id(given["weight"])
        order = self.seen.setdefault(name, [])
        if key not in order:
            order.append(key)
        if order.index(key):  # a second functional call in one module
            name = f"{name}[{order.index(key)}]"
        x, put = given["input"], dict(given)
        came, kept, var = _mark(x), given["running_mean"], given["running_var"]
        kept, var = (None if t is None else t.detach().clone() for t in (kept, var))
        if kept is not None and self.own and x.numel() > x.shape[1]:
            put |= dict(running_mean=None, running_var=None, training=True)
        elif self.put and name in self.put:
            mean, spread = (t.to(x.dtype if kept is None else kept.dtype) for t in self.put[name])
            put |= dict(running_mean=mean, running_var=spread, training=False)
        out = torch.nn.functional.batch_norm(**put)
        gamma, beta = given["weight"], given["bias"]
        self._note(
            Call(
                name,
                x,
                out,
                came,
                _mark(out),
                kept,
                var,
                gamma,
                beta,
                bool(given["training"]),
                given["momentum"],
                given["eps"],
            )
        )
        return out

    def __exit__(self, *args):
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*args)


def _fresh(m, fill=None):
    """Return a float32 copy, helpers in it (an activation) out of the way, its parameters all `fill` if given."""
    m = _clone(m).float()
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
    z, other, a, b = (
        100 * torch.randn(s, generator=g) for s in (shape, shape, shape[1:2], shape[1:2])
    )  # ε is small there
    try:
        y, stretched, elsewhere = (
            _mode(_fresh(m, 1.0), True)(x).detach()
            for x in (z, z * _wide(a.abs() / 100 + 0.5, z) + _wide(b, z), torch.cat([z[:1], other[1:]]))
        )
        return bool(y.shape == z.shape and (y - stretched).abs().max() < 2e-2 < (y - elsewhere)[:1].abs().max())
    except Exception:  # a module that takes no such input is no batch normalization
        return False


def _vitals(m, shape):
    """Return γ, β, statistics, ε, momentum, which variance is stored: read off the outputs of any class."""
    z = torch.randn(8, shape[1], *(min(s, 2) for s in shape[2:]), generator=torch.Generator().manual_seed(1))
    mean, var, n = _moments(z)
    z = (z - _wide(mean, z)) / _wide((var * (n - 1) / n).sqrt(), z)  # mean 0, variance 1
    k, own, dims = _fresh(m, 1.0), _mode(_fresh(m), False), [d for d in range(z.dim()) if d != 1]

    def line(y, x=z):  # y = slope · x + level, per channel
        return (y * z).mean(dims) / (x * z).mean(dims), y.mean(dims)

    def training(m, x=z):
        return line(_mode(m, True)(x).detach(), x)

    def evaluation():
        with torch.no_grad():
            e, level = line(_mode(k, False)(z))
        return (beta - level) / e, (unit / e).square() - eps  # running mean, running variance

    with torch.no_grad():
        leaks = (own(z)[:1] - own(torch.cat([z[:1], 3 * z[1:] + 1]))[:1]).nan_to_num().abs().max().item() > 1e-3
    (slope, beta), (small, _), (g, b) = (
        training(_fresh(m, 1.0)),
        training(_fresh(m, 1.0), 3e-3 * z),
        training(_fresh(m)),
    )
    q = (slope / small).square()  # (9e-6 + ε) / (1 + ε)
    eps = max(((q - 9e-6) / (1 - q)).nan_to_num().median().item(), 0.0)
    unit = slope * (1 + eps) ** 0.5
    rm, rv = evaluation()
    for _ in range(3):  # the third update tells a constant momentum from a cumulative average
        m1, v1 = evaluation()
        training(k, z + _wide((m1 + 10).nan_to_num(), z))
    m2, v2 = evaluation()
    momentum = ((m2 - m1) / 10).nan_to_num().median().item()
    stored = ((v2 - (1 - momentum) * v1) / momentum).median().item() if abs(momentum) > 1e-4 else n / (n - 1)
    apart = 0.0
    if momentum > 0.02 and n > 8:  # settled on one batch, both modes should say the same
        for _ in range(150):
            training(k, 3 * z + 1)
        with torch.no_grad():
            trained, evaluated = (_mode(k, training)(3 * z + 1) for training in (True, False))
        apart = ((trained - evaluated).square().mean().sqrt() / trained.std()).nan_to_num().item()
    return {
        "gamma": g * (1 + eps) ** 0.5,
        "beta": b,
        "mean": rm,
        "var": rv,
        "eps": eps,
        "momentum": momentum,
        "leaks": leaks,
        "apart": apart,
        "biased": abs(stored - 1) < abs(stored - n / (n - 1)),
    }


# ---- the examination


class _Examiner:
    def __init__(self, model, x, y, target, target_y, optimizer, batch_size):
        self.given, self.optimizer, self.y, self.target_y = model, optimizer, y, target_y
        model = getattr(model, "_orig_mod", model)  # compiled
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        self.original = model
        tensors = [
            t
            for t in (*model.parameters(), *model.buffers())
            if not isinstance(t, nn.parameter.UninitializedTensorMixin)
        ]
        self.device = next((t.device for t in tensors), torch.device("cpu"))
        self.x, self.target = self._here(x), None if target is None else self._here(target)
        self.n = _size(self.x)
        self.batch = min(batch_size or 64, self.n)
        self.table, self.lags, self.names = {}, {}, []

    def _here(self, x):
        return tree_map(lambda t: t.to(self.device) if isinstance(t, Tensor) else t, x)

    def say(self, code, severity, where, measured):
        """Note a finding; layers with the same words up to a semicolon share one."""
        key = code, severity, measured.split(";")[0]
        finding = self.table.setdefault(key, Finding(code, severity, [], measured))
        if where not in finding.layers:
            finding.layers.append(where)

    def call(self, model, x):
        """Return all that the model gives for x, its chance set to the same place each time."""
        torch.manual_seed(0)
        if isinstance(x, dict):
            return model(**x)
        return model(*x) if isinstance(x, tuple | list) else model(x)

    def out(self, model, x):
        """Return the model's main output (N, ...) as float32."""
        n = _size(x)
        leaves = [t for t in tree_leaves(self._plain(self.call(model, x))) if isinstance(t, Tensor)]
        fits = [t for t in leaves if t.is_floating_point() and t.dim() and t.shape[0] == n]
        if not (fits or leaves):
            raise TypeError("the model returns no tensor")
        return (fits or leaves)[0].float()

    @staticmethod
    def _plain(out):
        if hasattr(out, "__dict__") and not isinstance(out, Tensor | dict | tuple | list):
            return list(vars(out).values())  # an output object, such as a dataclass
        return dict(out) if isinstance(out, dict) else out

    def run(self):
        if not self._start():
            return self._done()
        checks = (
            self._graph, self._find, self._modes, self._company, self._saved, self._hidden, self._training,
            self._statistics,
            self._lag, self._decay,
        )  # fmt: skip
        for check in checks:
            try:
                check()
            except Exception as error:  # what a reader's own model may raise, in a mode it was not made for
                self.say(
                    "BN302",
                    "note",
                    check.__name__.strip("_"),
                    f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
                )
        return self._done()

    def _done(self):
        order = {severity: i for i, severity in enumerate(SEVERITIES)}
        findings = sorted(self.table.values(), key=lambda f: (order[f.severity], f.code))
        return Examination(findings, self.names, self.lags)

    def _start(self):
        """Make the copy from which all others come, lazy layers made, and see that it runs."""
        self.model, failures = _clone(self.original), []
        for attempt in (None, torch.float64, torch.float16, torch.bfloat16, torch.float32):
            cast = (
                (lambda t, d=attempt: t.to(d) if isinstance(t, Tensor) and t.is_floating_point() else t)
                if attempt
                else lambda t: t
            )
            try:
                trial = _clone(self.model)
                with contextlib.suppress(NotImplementedError), torch.no_grad():
                    trial.eval()
                few = tree_map(cast, _take(self.x, slice(0, 8)))
                with torch.no_grad():
                    result = self.out(trial, few)
                break
            except Exception as error:
                failures.append(error)  # the first is of the data as they came
        else:
            self.say(
                "BN301",
                "wrong",
                "model",
                f"in eval(), {type(failures[0]).__name__}: {str(failures[0]).partition(chr(10))[0]}",
            )
            return False
        self.x, self.few = tree_map(cast, self.x), few
        self.target = None if self.target is None else tree_map(cast, self.target)
        if any(
            isinstance(t, nn.parameter.UninitializedTensorMixin)
            for t in (*self.model.parameters(), *self.model.buffers())
        ):
            with torch.no_grad():  # lazy layers take their shapes, in a mode that remembers nothing of the batch
                modes = {part: part.training for part in self.model.modules()}
                self.out(_mode(self.model, False), few)
                for part, mode in modes.items():
                    part.training = mode
        if not result.isfinite().all():
            self.say("BN116", "wrong", "model", "its outputs in eval() hold NaN or inf")
        return True

    def evaluated(self):
        """Return a copy in evaluation: as it was given, if it was given so."""
        k = _clone(self.model)
        return k.eval() if self.original.training else k

    def trained(self):
        """Return a copy in training: as it was given, if it was given so."""
        k = _clone(self.model)
        return k if self.original.training else k.train()

    def watched(self, k, x, grad=False, **how):
        """Return (output, calls) of the copy `k`."""
        with torch.set_grad_enabled(grad), _Watch(k, self.own, vital=self.vital, **how) as watch:
            out = self.out(k, x)
        return out, watch.calls

    def _graph(self):
        held = _held(self.original)
        if not held:
            k = _mode(_clone(self.model), True)
            self.out(k, self.few)
            held = _held(k)
        if not held:
            return
        k, lengths = _mode(_clone(self.model), True), []
        for _ in range(3):
            self.out(k, self.few)
            lengths.append(sum(_nodes(value.grad_fn) for *_, value in _held(k)))
        for name, _, key, _ in held:
            grows = lengths[2] > lengths[1]
            words = "not detached: `deepcopy` refuses it" + (
                f"; its graph grows with every batch, {lengths}" if grows else ""
            )
            self.say("BN115", "wrong" if grows else "note", f"{name}.{key}", words)

    def _find(self):
        """Find the batch normalizations: calls of torch's, and modules of the model's own that behave like one."""
        self.own, self.vital = [], {}
        shapes, k = {}, _mode(_clone(self.model), False)
        for name, part in k.named_modules():

            def note(m, args, out, name=name):
                x = args[0] if args else None
                if isinstance(x, Tensor) and isinstance(out, Tensor) and x.shape == out.shape and x.is_floating_point():
                    shapes.setdefault(name, tuple(x.shape))

            part.register_forward_hook(note)
        _, calls = self.watched(k, self.few)
        torchs = {call.name.split("[")[0] for call in calls}
        like = [
            name
            for name, shape in shapes.items()
            if name
            and not type(self.model.get_submodule(name)).__module__.startswith("torch.nn.")
            and not any(t == name or t.startswith(name + ".") for t in torchs)
            and _normalises(self.model.get_submodule(name), shape)
        ]
        self.own = [n for n in like if not any(o != n and o.startswith(n + ".") for o in like)]
        self.vital = {n: _vitals(self.model.get_submodule(n), shapes[n]) for n in self.own}
        _, self.calls = self.watched(self.evaluated(), self.few)
        weights = {
            id(c.x) for c in self.calls if c.mean is None and c.x.shape[0] != _size(self.few)
        }  # of a weight standardisation
        self.calls = [c for c in self.calls if id(c.x) not in weights]
        self.names = list(dict.fromkeys(c.name for c in self.calls))
        self.first = {c.name: c for c in reversed(self.calls)}
        if not self.names:
            self.say("BN209", "note", "model", "nothing in it normalises over the batch as a step of its own")
        for n in self.own:
            if self.vital[n]["biased"] and self.vital[n]["momentum"] > 1e-4:
                self.say("BN210", "note", n, "the running variance is too small by 1/n")
            if self.vital[n]["apart"] > 0.1 and not self.vital[n]["leaks"]:
                apart = self.vital[n]["apart"]
                self.say(
                    "BN114",
                    "wrong",
                    n,
                    f"settled on one batch, its eval() output is {apart:.0%} of the spread from train()'s",
                )

    def _modes(self):
        if not self.names:
            return
        part = {n: self.model.get_submodule(n.split("[")[0]) for n in self.names}
        on = [n for n in self.names if part[n].training]
        if not self.original.training:
            for n in on:
                self.say("BN109", "wrong", n, f"in train() inside a model in eval(); {len(on)} of {len(self.names)}")
            return
        still = {n for n in self.names if not _clone(self.model).train().get_submodule(n.split("[")[0]).training}
        off = [n for n in self.names if n not in on and n not in still]
        for n in off:
            everywhere = len(off) + len(still) == len(self.names)
            self.say(
                "BN109",
                "note" if everywhere else "doubtful",
                n,
                f"in eval() inside a model in train(): frozen on purpose? model.train() undoes it; {len(off)} of them",
            )

    def _company(self):
        """In evaluation: does an answer hang on its companions, does anything move?"""
        if self.n < 3:
            return
        few = _take(self.x, torch.arange(min(8, self.n)))
        size = _size(few)
        later = _take(self.x, torch.cat([torch.zeros(1).long(), torch.arange(self.n - size + 1, self.n)]))
        for grad in (False, True):
            k = self.evaluated()
            with torch.set_grad_enabled(grad):
                self.out(k, few)
                before = _state(k)
                self.out(k, few)
                moved = _changed(before, _state(k))
                again_first = self.out(self.evaluated(), few).detach()
                company, calls = self.watched(self.evaluated(), later, grad=grad)
                for _ in range(3):
                    self.out(k, later)
                again = self.out(k, few).detach()
            scale = again_first.std().nan_to_num().item() + 1e-12
            tail = "; only where gradients are on" if grad else ""
            bound = 1e-3 if self._precise() else 0.05
            gap = (
                ((again_first[:1] - company.detach()[:1]).abs().nan_to_num().max().item() / scale)
                if again_first[:1].shape == company[:1].shape
                else 0.0
            )
            if gap > bound and not any(code == "BN101" for code, *_ in self.table):
                self._blame(gap, tail, few, later, calls, grad)
            drift = (again - again_first).abs().nan_to_num().max().item() / scale
            statistics = [name for name in moved if self._is_statistic(k, name)]
            if (statistics or (moved and drift > bound)) and not any(code == "BN102" for code, *_ in self.table):
                where = sorted({name.rpartition(".")[0] or "model" for name in statistics or moved})
                for name in where:
                    words = f"{len(moved)} tensors change in eval(), and answers by {drift:.2g} of their spread"
                    self.say("BN102", "wrong", name, words + tail)

    def _precise(self):
        leaf = [t for t in tree_leaves(self.x) if isinstance(t, Tensor)]
        half = any(t.dtype in HALF for t in leaf) or any(p.dtype in HALF for p in self.model.parameters())
        return not half

    def _is_statistic(self, k, name):
        """Return whether a tensor that moved is a normalization's own, or a buffer of theirs, one number a channel."""
        owner, _, key = name.rpartition(".")
        key = key.partition("[")[0]
        if owner in self.own:
            return True
        try:
            part = k.get_submodule(owner)
        except AttributeError:
            return False
        channels = {c.x.shape[1] for c in self.calls if c.x.dim() > 1}
        value = part._buffers.get(key)
        return (
            owner in {n.split("[")[0] for n in self.names}
            and value is not None
            and value.is_floating_point()
            and value.numel() in channels
        )

    def _blame(self, gap, tail, few, later, calls, grad):
        """Say which normalization lets an answer hang on its companions, or that another layer does."""
        words = f"one example's answer moves by {gap:.2g} of the outputs' spread when its companions change{tail}"
        own = [c for c in calls if c.training or (c.name in self.vital and self.vital[c.name]["leaks"])]
        if grad and not own:
            own = [c for c in calls if c.name in self.own]
        for call in own:
            kept = call.mean is not None or call.name in self.own
            tracked = call.name in self.own or call.mean is not None
            note = "" if kept else " (no running statistics: track_running_stats=False)"
            self.say("BN101", "wrong" if tracked else "doubtful", call.name, words + note)
        if own:
            return
        name, part, args = self._culprit(few, later)
        severity = "doubtful"
        if part is not None:
            with contextlib.suppress(Exception), torch.no_grad():
                once, twice = (part(args * s).float() for s in (1, 2))
                if (once - twice).abs().max() < 0.02 * once.std():  # it normalises, somewhere inside
                    severity = "wrong"
        self.say("BN101", severity, name, words)

    def _culprit(self, few, later):
        """Return name, module and input of the first whose input agrees on example 0, and whose output does not."""
        runs = []
        for x in (few, later):
            k, seen = self.evaluated(), []
            for name, part in k.named_modules():

                def note(m, args, out, name=name, seen=seen):
                    if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                        seen.append((name, m, args[0].detach(), out.detach()))

                part.register_forward_hook(note)
            self.out(k, x)
            runs.append(seen)
        for (name, m, x, y), (_, _, x2, y2) in zip(*runs, strict=False):
            fits = x.shape == x2.shape and y.shape == y2.shape and x.dim() and y.dim() and x.is_floating_point()
            if fits and torch.equal(x[:1], x2[:1]) and (y[:1] - y2[:1]).abs().max() > 1e-3 * (y.float().std() + 1e-12):
                return name or "model", m, x
        return "model", None, None

    def _saved(self):
        """Does what evaluation uses travel with state_dict()?"""
        k = _mode(_clone(self.model), True)
        if self.n < 3:
            return

        def far(t):
            return t * 3 + 1 if isinstance(t, Tensor) and t.is_floating_point() else t

        x = _take(self.x, torch.arange(self.n - self.batch, self.n))
        with torch.no_grad():
            self.out(k, tree_map(far, x))
            self.out(k, tree_map(far, x))
        k.load_state_dict(self.model.state_dict(), strict=False)
        with torch.no_grad():
            a, b = (self.out(_mode(m, False), self.few) for m in (_clone(self.model), k))
        moved = (a - b).abs().nan_to_num().max().item() / (a.std().nan_to_num().item() + 1e-12)
        if moved > (1e-3 if self._precise() else 0.05) and a.isfinite().all():
            before, after = _state(self.model), _state(k)
            saved = set(self.model.state_dict())
            lost = [name for name in _changed(before, after) if name.lstrip(".") not in saved]
            for name in lost or ["model"]:
                self.say(
                    "BN103",
                    "wrong",
                    name.lstrip("."),
                    f"saved and loaded, the answers move by {moved:.2g} of their spread",
                )

    def _hidden(self):
        """Look at modules that normalise inside of more (a convolution with BN written out): by their buffers."""
        known = {n.split("[")[0] for n in self.names}
        for name, part in self.model.named_modules():
            rows = [t for t in part._buffers.values() if t is not None and t.is_floating_point() and t.dim() == 1]
            if (
                name in known
                or type(part).__module__.startswith("torch.nn.")
                or len(rows) < 2
                or len({len(t) for t in rows}) > 1
            ):
                continue
            if any(t.isnan().any() for t in rows):
                self.say("BN111", "wrong", name or "model", "NaN in its buffers")
            elif any((t == 0).all() for t in rows) and any((t == 1).all() for t in rows):
                severity = "note" if self.original.training else "doubtful"
                self.say(
                    "BN110",
                    severity,
                    name or "model",
                    "buffers of 0 and of 1: no training batch has passed, or nothing moves them",
                )
            elif self.n >= 2 * self.batch:
                k = _mode(_clone(self.model), False)
                _mode(k.get_submodule(name), True)
                with torch.no_grad():
                    for i in range(60):
                        start = i * self.batch % (self.n - self.batch)
                        self.out(k, _take(self.x, slice(start, start + self.batch)))
                    now, then = (self.out(_mode(m, False), self.x) for m in (_clone(self.model), k))
                change = ((now - then).square().mean().sqrt() / (then.std() + 1e-12)).nan_to_num().item()
                if change > 0.3:
                    self.say(
                        "BN104",
                        "doubtful",
                        name or "model",
                        f"after 60 batches with weights as they are, outputs move by {change:.2g} of their spread",
                    )

    def _training(self):
        """In training: what moves, what runs twice, what gets no gradient, what stands where."""
        if self.n < 2:
            self.say(
                "BN302", "note", "training", "one example has no batch statistics: what needs train() was left out"
            )
            return
        if not self.names:
            return
        part = _take(self.x, slice(0, self.batch))
        if self._moving(part):
            self._structure(_take(part, slice(0, FEW)))

    def _moving(self, part):
        """See what moves in training; return whether it can be trained at all."""
        real = self.trained()
        before = _state(real)
        try:
            _, calls = self.watched(real, part, grad=True)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            self.say("BN113", "wrong", "model", f"at batch size {self.batch} a mean has one value, and train() raises")
            return False
        moving = {name.rpartition(".")[0] for name in _changed(before, _state(real))}
        trains = any(p.requires_grad for p in self.original.parameters())
        for c in {c.name: c for c in calls}.values():
            owner = c.name.split("[")[0]
            affine = [
                p
                for p in (self.original.get_submodule(owner).parameters() if c.name in self.own else (c.gamma, c.beta))
                if p is not None
            ]
            moves = owner in moving or (c.training and c.mean is not None and c.momentum > 0)
            if affine and not any(p.requires_grad for p in affine) and moves and c.training and trains:
                severity = "wrong" if self.original.training else "doubtful"
                self.say(
                    "BN106",
                    severity,
                    c.name,
                    "γ and β have requires_grad=False, but in train() the running statistics move",
                )
        return True

    def _structure(self, part):
        once = Counter(c.name for c in self.calls)
        for double in (True, False):
            k = _clone(self.model)
            k = _mode(k.double() if double else k.float(), True)
            for p in k.parameters():
                p.requires_grad_(True)
            x = tree_map(
                lambda t, d=double: (
                    (t.double() if d else t.float()) if isinstance(t, Tensor) and t.is_floating_point() else t
                ),
                part,
            )
            try:
                forward, last, runs = self._backward(k, x)
                break
            except Exception:
                if not double:
                    raise
        made = {}
        for c in forward:
            if c.came in made and c.came[0]:
                self.say("BN202", "note", c.name, f"normalises what {made[c.came]} has just normalised")
            made[c.went] = c.name
        if last in made:
            self.say("BN203", "note", made[last], "the model's output is its output: mean β and spread γ in each batch")
        for n in self.names:
            passed, all_in_all = (count[n.split("[")[0]] for count in runs)
            if once[n] > 1:
                self.say(
                    "BN108",
                    "note",
                    n,
                    f"runs {once[n]} times in a forward pass, and keeps one set of running statistics",
                )
            if all_in_all > passed:
                words = f"runs {all_in_all} times in a training step, {passed} of them in the forward pass"
                self.say("BN107", "doubtful", n, f"{words}; its momentum acts each time")
        other = _mode(_clone(self.model), False)
        other = other.double() if double else other.float()
        for p in other.parameters():
            p.requires_grad_(True)
        put = {c.name: _moments(c.x)[:2] for c in forward if c.name in self.names}
        gradients = self._gradients(k)
        k = forward = c = None  # a copy in float64, with its gradients, is as large as four of the model
        with contextlib.suppress(Exception):  # where there is no gradient, nothing is said of it
            self._backward(other, x, put)
        for name, (of_bias, of_weight) in gradients.items():
            fixed = other.get_submodule(name).bias.grad
            small = (1e-7 if double else 1e-4) * of_weight  # rounding errors, where BN uses the batch's statistics
            if of_bias < small and fixed is not None and fixed.norm() > 1e3 * of_bias:
                self.say(
                    "BN201",
                    "note",
                    name,
                    "in training it gets no gradient, and the batch normalization behind it takes it off again",
                )

    def _gradients(self, k):
        """Return the size of the bias's gradient, and of the weight's for each of its rows, by layer that has both."""
        found = {}
        for name, m in k.named_modules():
            own = {key: p.grad for key, p in m.named_parameters(recurse=False)}
            w, b = own.get("weight"), own.get("bias")
            if name not in self.names and w is not None and b is not None:
                found[name] = b.norm(), w.norm() * (len(b) / w.numel()) ** 0.5
        return found

    def _backward(self, k, x, put=None):
        """Return the calls of a forward pass, the output's mark, and how often modules ran by its end, and in all."""
        with torch.enable_grad(), _Watch(k, self.own, put, vital=self.vital) as watch:
            torch.manual_seed(0)
            leaves = [
                t for t in tree_leaves(self._plain(self.call(k, x))) if isinstance(t, Tensor) and t.is_floating_point()
            ]
            main = next((t for t in leaves if t.dim() and t.shape[0] == _size(x)), leaves[0])
            mark = _mark(main)
            calls, passed = list(watch.calls), Counter(watch.entered)
            g = torch.Generator().manual_seed(2)
            loss = sum((t * torch.randn(t.shape, generator=g).to(t)).sum() for t in leaves if t.requires_grad)
            loss.backward()
        return calls, mark, (passed, watch.entered)

    def measured(self, x, batch, stochastic=False):
        """Return {name: (mean, variance, values that share one)} of what reaches each, over batches (precise BN)."""
        rows, n = {}, _size(x)
        k = _mode(_clone(self.model), stochastic)
        starts = range(0, max(n - batch, 0) + 1, batch)
        for start in starts:
            _, calls = self.watched(k, _take(x, slice(start, start + batch)), own=True, keep=False)
            for c in calls:
                if c.mean is not None or c.name in self.own:
                    rows.setdefault(c.name, []).append(_moments(c.x))
        return {
            name: (*(torch.stack([row[i] for row in found]).mean(0) for i in (0, 1)), found[0][2])
            for name, found in rows.items()
        }

    def _statistics(self):
        """Layer by layer: the running statistics beside the data's."""
        self.well, self.new, self.data = bool(self.names), [], {}
        for call in self.first.values():
            n, mean, var = call.name, call.mean, call.var
            if mean is None:
                continue
            if any(t.dtype in HALF for t in self._buffers(n)):
                self.say(
                    "BN112",
                    "doubtful",
                    n,
                    f"kept in {str(next(t.dtype for t in self._buffers(n) if t.dtype in HALF))[6:]}",
                )
            mean, var = mean.float(), var.float()
            leaks = n in self.vital and self.vital[n]["leaks"]
            bad = not (mean.isfinite() & var.isfinite()).all()
            negative = bool((var < -max(call.eps / 2, 1e-9 if n not in self.own else call.eps / 2)).any())
            if not leaks and (bad or negative or mean.abs().max() > 1e8 or var.max() > 1e16):
                what = "NaN or infinite" if bad else "negative variances" if negative else "huge"
                self.say(
                    "BN111",
                    "wrong",
                    n,
                    f"{what}: mean {mean.min():.3g} to {mean.max():.3g}, variance {var.min():.3g} to {var.max():.3g}",
                )
                self.well = False
            elif leaks:
                self.well = False
            elif mean.abs().max() < 1e-5 and (var - 1).abs().max() < 1e-4:
                self.new.append(n)
            if call.momentum is not None and call.momentum > 0.5 and self._constant_momentum(n):
                self.say("BN207", "doubtful", n, f"momentum {call.momentum:.2f}: the newest batch gets that share")
        if self.n >= 2 and self.names:
            self.data = self.measured(self.x, self.batch)
            few = _take(self.x, slice(0, 4 * self.batch))
            noisy, quiet = (self.measured(few, self.batch, stochastic) for stochastic in (True, False))
        for n, (_mean, var, count) in self.data.items():
            call = self.first[n]
            if count < 16:
                self.say(
                    "BN113",
                    "doubtful" if count < 4 else "note",
                    n,
                    f"{count} values share a mean at batch size {self.batch}",
                )
            gamma = torch.ones_like(var) if call.gamma is None else call.gamma.detach().float()
            constant = (var < 1e-10) | (var < 1e-6 * var.median())
            for what, mask in (
                ("a constant input", constant),
                ("γ is 0", gamma.abs() < 1e-3 * gamma.abs().max().clamp(min=1e-3)),
            ):
                if mask.any():
                    self.say("BN205", "note", n, f"{what}; {mask.sum()} of {len(mask)} channels")
            if call.eps > 0.5 * var.median():
                self.say("BN206", "doubtful", n, f"ε is {call.eps:.1g}, the median variance {var.median():.1g}")
            stored = call.var.float()
            if call.name not in self.new and ((stored.abs() < 1e-12) & (var > 1e-4)).any():
                zeros = int(((stored.abs() < 1e-12) & (var > 1e-4)).sum())
                self.say("BN111", "wrong", n, f"a running variance of 0 where the data's is not; {zeros} channels")
            ratio = (noisy[n][1] / quiet[n][1].clamp(min=1e-20)).median().item() if n in noisy and n in quiet else 1.0
            if not 0.9 < ratio < 1.1:
                self.say(
                    "BN204",
                    "doubtful",
                    n,
                    f"the variance of its input in training is {ratio:.2f} times that in evaluation",
                )

    def _buffers(self, name):
        owner = self.model.get_submodule(name.split("[")[0])
        own = [t for t in owner._buffers.values() if t is not None and t.is_floating_point()]
        return own or [t for t in (self.first[name].mean,) if t is not None]

    def _constant_momentum(self, name):
        """Return whether the share of a batch stays what it is: a cumulative average starts at 1, too."""
        if name in self.own:
            return True
        return getattr(self.original.get_submodule(name.split("[")[0]), "momentum", 0.0) is not None

    def _answers(self, x, put=None):
        n, outs = _size(x), []
        k = _mode(_clone(self.model), False)
        for start in range(0, n, 128):
            out, _ = self.watched(k, _take(x, slice(start, start + 128)), put=put, keep=False)
            outs.append(out)
        return torch.cat(outs) if outs[0].dim() else torch.stack(outs)

    def _lag(self):
        if not self.data or not self.well:
            return
        for code, x, y in (("BN104", self.x, self.y), ("BN105", self.target, self.target_y)):
            if x is None or _size(x) < 2:
                continue
            stats = self.data if code == "BN104" else self.measured(x, min(self.batch, _size(x)))
            put = {n: s[:2] for n, s in stats.items()}
            now, then = self._answers(x), self._answers(x, put)
            off, wide = {}, {}
            for n, (mean, var, _) in stats.items():
                call = self.first[n]
                off[n] = ((call.mean.float() - mean).abs() / (var + call.eps).sqrt()).median().item()
                wide[n] = (
                    ((call.var.float() + call.eps) / (var + call.eps))
                    .clamp(min=1e-12)
                    .log()
                    .abs()
                    .median()
                    .exp()
                    .item()
                )
            if code == "BN104":
                self.lags = {n: (off[n], wide[n]) for n in off}
            self._judge(code, now, then, y, off, wide)
        apart = self._same_batch()
        if apart is not None:
            self.say("BN114", "doubtful", "model", apart)

    def _judge(self, code, now, then, y, off, wide):
        worst = max(off, key=lambda n: max(off[n], abs(wide[n] - 1)))
        far = max(off.values()) > 0.1 or max(wide.values()) > 1.5
        classes = now.dim() >= 2 and 1 < now.shape[1] <= 1000
        change = (now.argmax(1) != then.argmax(1)).float().mean().item() if classes else 0.0
        size = ((now - then).square().mean().sqrt() / (then.std() + 1e-12)).nan_to_num().item()
        fits = classes and y is not None and tuple(y.shape) == (now.shape[0], *now.shape[2:])
        words = f"running mean off by {off[worst]:.2f} σ, variance by a factor of {wide[worst]:.2f} (median channels)"
        severity = None
        if fits:
            was, could = ((out.argmax(1) == y.to(out.device)).float().mean().item() for out in (now, then))
            words += (
                f"; with the data's own, {change:.1%} of the answers change, accuracy {was:.3f} becomes {could:.3f}"
            )
            chance = 1 / max(int(y.max()) + 1, 2)
            sound = could > chance + 0.25 * (1 - chance)
            if could - was > 0.02 and (could - was) > 2 * (0.25 / y.numel()) ** 0.5 * 1.0:
                severity = "wrong" if could - was > 0.1 and sound and far else "doubtful"
            elif change > 0.2 and far and code == "BN105":
                severity = "doubtful"
        elif far and (change > 0.05 if classes and now.dim() == 2 else size > 0.2):
            severity = "doubtful"
            moved = f"{change:.1%} of the answers change" if classes else f"outputs move by {size:.2g} of their spread"
            words += f"; with the data's own, {moved}"
        if code == "BN105":
            if severity:
                self.say(code, "doubtful", worst, words)
            return
        if self.new:
            every = len(self.new) == len(off)
            for n in self.new:
                loud = (
                    "wrong"
                    if severity == "wrong"
                    else "note"
                    if every and not (severity and not self.original.training)
                    else "doubtful"
                )
                self.say(
                    "BN110",
                    loud,
                    n,
                    "running mean 0 and variance 1: no training batch has passed, or they were not loaded; " + words,
                )
            if len(self.new) == len(off):
                return
        if severity:
            self.say(code, severity, worst, words)

    def _same_batch(self):
        """Return words if a batch gets other answers with its own statistics than with the running ones."""
        x = _take(self.x, slice(0, self.batch))
        if self.new:
            return None
        k = _mode(_clone(self.model), False)
        own, _ = self.watched(k, x, own=True, keep=False)
        now = self._answers(x)
        if now.dim() != 2 or own.shape != now.shape or now.shape[1] < 2:
            return None
        change = (now.argmax(1) != own.argmax(1)).float().mean().item()
        if change <= 0.1 or change * len(now) < 3:
            return None
        return (
            f"{change:.1%} of a batch of {len(now)} answer otherwise with its own statistics than with the running ones"
        )

    def _decay(self):
        if self.optimizer is None or not self.names:
            return
        ours = {}
        for n in self.names:
            owner = self.original.get_submodule(n.split("[")[0])
            channels = self.first[n].x.shape[1]
            for p in owner.parameters(recurse=False):
                if p.numel() == channels and p.dim() == 1 and (n in self.own or self.first[n].gamma is not None):
                    ours[id(p)] = n
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if id(p) in ours and group.get("weight_decay", 0):
                    self.say(
                        "BN208", "note", ours[id(p)], f"weight_decay {group['weight_decay']:g} pulls γ and β towards 0"
                    )


def _nodes(fn):
    """Return how many nodes a gradient graph has."""
    seen, todo = set(), [fn]
    while todo:
        f = todo.pop()
        if f is not None and f not in seen:
            seen.add(f)
            todo += [g for g, _ in f.next_functions]
    return len(seen)
