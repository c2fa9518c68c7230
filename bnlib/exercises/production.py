"""The exercises of lesson 09: `fold`, `freeze` and `what_is_wrong`."""

import copy

import torch
from torch import nn

from .judge import Case, Exercise, Mistake, Verdict, drawn, rarely
from .judge.answers import TYPE, describe
from .judge.diagnosis import RAISES, Unanswered
from .judge.guard import holds_dots
from .judge.verdict import judged, refused, unanswered
from .reading import Place

# ---- fold


def folded(
    weight, bias, running_mean, running_var, gamma, beta, eps, *,
    root="inside", axis=0, scaled="bias", shift="beta", centred="minus mean", spread="root", affine="gamma", fixed=None,
):  # fmt: skip
    """Return weight (out, in, kH, kW) and bias (out,) with BN in them, bent by the knobs.

    root     where ε stands; fixed: its value; spread: what the scale divides by; affine: whether γ takes part
    axis     of the weight, along which the scale lies
    scaled   what of the bias is scaled; centred: what becomes of the mean; shift: what is added at the end
    """
    var, eps = running_var, eps if fixed is None else fixed
    divisor = {
        "inside": lambda: (var + eps).sqrt(),
        "missing": lambda: var.sqrt(),
        "outside": lambda: var.sqrt() + eps,
        "squared": lambda: (var + eps**2).sqrt(),
        "after": lambda: var.sqrt(),
    }[root]()
    if spread == "variance":
        divisor = divisor**2
    scale = divisor.reciprocal() if spread != "multiplied" else divisor
    factor = {"gamma": gamma, "none": 1, "divided": 1 / gamma, "beta": beta, "positive": gamma.abs()}[affine]
    scale = scale * factor + (eps if root == "after" else 0)
    shaped = scale.view([-1 if d == axis else 1 for d in range(weight.dim())])
    new = weight if scaled == "bias alone" else weight * shaped
    centre = {"minus mean": -running_mean, "none": 0 * running_mean, "plus mean": running_mean}[centred]
    moved = {
        "bias": (bias + centre) * scale,
        "mean alone": bias + centre * scale,
        "bias before the mean": bias * scale + centre,
        "bias lost": centre * scale,
        "bias alone": (bias + centre) * scale,
        "nothing": bias + centre,
    }[scaled]
    last = {"beta": beta, "bias": bias, "none": 0, "minus": -beta, "scaled": beta * scale, "gamma": gamma}[shift]
    return new, moved + last


RULE = "weight' = s · weight and bias' = (bias − running_mean) · s + β, with s = γ / √(running_var + ε)"
OF_FOLDING = (
    Mistake("epsilon missing", f"ε does not take part; {RULE}", root="missing"),
    Mistake("epsilon outside the root", f"ε belongs inside the root; {RULE}", root="outside"),
    Mistake(
        "another epsilon", "ε is {fixed:g}; asked for is eps", also=[dict(fixed=1e-5), dict(fixed=1e-3)], free="fixed"
    ),
    Mistake("gamma and beta swapped", f"β scales and γ is added; {RULE}", affine="beta", shift="gamma"),
    Mistake("bias not scaled", f"the layer's own bias goes through BN as well; {RULE}", scaled="mean alone"),
    Mistake("bias dropped", f"the layer's own bias is lost; {RULE}", scaled="bias lost"),
    Mistake("beta forgotten", f"β is never added; {RULE}", shift="none"),
    Mistake(
        "scale along the wrong axis",
        "s lies along the input channels, axis 1, as a transposed convolution has its outputs; a convolution "
        "has them on axis 0: s.view(-1, 1, 1, 1)",
        axis=1,
    ),
    Mistake(
        "scale along the wrong axis",
        "s of shape (out,) lies along the kernel's columns: broadcasting lines up the last axes; s.view(-1, 1, 1, 1)",
        axis=3,
    ),
    Mistake("mean not subtracted", f"the running mean does not take part; {RULE}", centred="none"),
    Mistake("gamma forgotten", f"γ does not take part; {RULE}", affine="none"),
    Mistake("divided by the variance", f"a root is missing; {RULE}", spread="variance"),
    Mistake("bias instead of beta", f"at the end the layer's bias is added, not β; {RULE}", shift="bias"),
    *rarely(
        Mistake("epsilon squared", f"ε is squared; {RULE}", root="squared"),
        Mistake("epsilon outside the root", f"ε is added to the quotient: a bracket is missing; {RULE}", root="after"),
        Mistake("sign of gamma lost", f"|γ| scales, but γ may be negative; {RULE}", affine="positive"),
        Mistake("mean added", f"the running mean is added; subtract it; {RULE}", centred="plus mean"),
        Mistake("mean not scaled", f"the mean is subtracted after scaling; {RULE}", scaled="bias before the mean"),
        Mistake("weight not scaled", f"only the bias is scaled; {RULE}", scaled="bias alone"),
        Mistake("divided by gamma", f"γ divides; {RULE}", affine="divided"),
        Mistake("multiplied by the standard deviation", f"the root divides; {RULE}", spread="multiplied"),
        Mistake("beta subtracted", f"β is subtracted; {RULE}", shift="minus"),
        Mistake("beta scaled", f"β is added last, unscaled; {RULE}", shift="scaled"),
    ),
)


def fold_case(shape, eps, seed, dtype=torch.float32, spread=1.0, trait=""):
    """Return a case: weight of `shape`, and the rest per output channel."""
    g = torch.Generator().manual_seed(seed)
    c = shape[0]

    def draw(*size):
        return torch.randn(size, generator=g, dtype=torch.float64)

    given = {
        "weight": draw(*shape),
        "bias": draw(c) + 0.5,
        "running_mean": draw(c) * 2,
        "running_var": (torch.rand(c, generator=g, dtype=torch.float64) + 0.3) * spread,
        "gamma": (torch.rand(c, generator=g, dtype=torch.float64) + 0.5) * torch.tensor([1, 1, -1, 1])[:c],
        "beta": draw(c),
    }
    return Case({name: value.to(dtype) for name, value in given.items()} | {"eps": eps}, trait)


def drawn_folds():
    """Return the strategy for further cases."""

    def build(out, into, k, eps, seed):
        return fold_case((out, into, k, k), eps, seed)

    return drawn(build, (1, 2, 3, 4), (1, 2, 3, 4), (1, 3), (1e-5, 0.1), range(8))


FOLD = Exercise(
    name="fold",
    place=Place(9, "Folding"),
    signature="fold(weight (out, in, kH, kW), bias (out,), running_mean, running_var, gamma, beta, eps) "
    "-> (weight, bias)",
    asks="Return the weight and the bias of one convolution that does what a convolution "
    "and the BN behind it do in eval().",
    formula=folded,
    mistakes=OF_FOLDING,
    cases=(
        fold_case((2, 2, 1, 1), 0.1, 1),
        fold_case((3, 2, 3, 5), 0.5, 2),
        fold_case((4, 4, 3, 3), 0.1, 3, torch.float64),
        fold_case((3, 3, 3, 3), 1e-5, 4),
        fold_case((2, 3, 3, 3), 1e-3, 5, spread=1e-3, trait="a variance is tiny"),
        fold_case((1, 3, 2, 2), 0.2, 6, trait="one output channel"),
    ),
    drawn=drawn_folds(),
    results=("weight", "bias"),
)

# ---- freeze


def _network():
    """Return a network with a past: neither its γ and β nor its statistics are those of a new one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.0), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),
    )
    with torch.no_grad():
        for name in _norms(model):
            layer = model.get_submodule(name)
            layer.weight.uniform_(0.5, 2)
            layer.bias.normal_()
        for _ in range(3):
            model(_images() * 0.5)
    return model


def _images():
    return torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 + 2


def _norms(model):
    """Return {name: class} of the BN layers."""
    return {name: type(m) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}


class Freeze:
    """The exercise: `freeze(model)` is judged by what the network then does in both modes and in a training step."""

    name = "freeze"
    place = Place(9, "Freezing for fine-tuning")
    signature = "freeze(model) -> model"
    asks = (
        "Freeze the BN layers of a network: in training their running statistics stand still, and are what they "
        "normalise with, also after the next model.train(); all other layers still learn."
    )

    def judge(self, attempt):
        """Return the Verdict on a function."""
        right = "The statistics stand still, also after model.train(), and the rest learns."
        return judged(self, attempt, right, callable(attempt), self.name)

    def examine(self, guard, attempt):
        """Return (mistakes, no evidence)."""
        model = _network()
        layers, before = _norms(model), copy.deepcopy(model.state_dict())
        answers = model.eval()(_images()).detach()
        returned, trouble = guard.call(attempt, model.train())
        if (trouble and trouble.kind == "unanswered") or holds_dots(returned):
            raise Unanswered
        if trouble:
            return [Mistake(RAISES, trouble.located)], {}
        if not isinstance(returned, nn.Module | None):
            return [Mistake(TYPE, f"it returns {describe(returned)}; expected the model")], {}
        found, trouble = guard.call(_mistaken, model if returned is None else returned, layers, before, answers)
        if trouble:
            return [Mistake(RAISES, f"when the frozen network changes its mode or trains: {trouble.located}")], {}
        return found, {}


def _mistaken(model, layers, before, answers):
    """Return the mistakes in freezing `model`, by what it does.

    layers   {name: class} of its BN layers before freezing; before: its state_dict() then
    answers  what it gave for `_images()` in eval()
    """
    x, now = _images(), model.state_dict()
    altered = [key for key in before if key in now and not torch.equal(before[key], now[key])]
    if altered:
        reset = any("running" in key or "tracked" in key for key in altered)
        cause = f"{', '.join(altered)}: not what it was before freezing"
        return [Mistake("statistics reset" if reset else "parameters changed", cause)]
    for mode in ("as returned", "after model.train()"):
        if mode != "as returned":
            model.train()
        old = copy.deepcopy(model.state_dict())
        model(x)
        moved = [
            key for key, value in model.state_dict().items() if "running" in key and not torch.equal(old[key], value)
        ]
        model.load_state_dict(old)
        moving = list(dict.fromkeys(key.rpartition(".")[0] for key in moved))
        if still := [name for name in layers if moving and name not in moving]:
            return [Mistake("not all layers frozen", _overlooked(layers, still, moving))]
        if moving and mode == "as returned":
            weight = getattr(model.get_submodule(moving[0]), "weight", None)
            learns = weight is None or weight.requires_grad
            remedy = "put each BN layer of the model you return into eval()"
            cause = remedy if learns else "`requires_grad=False` stops γ and β only, eval() it is"
            return [Mistake("frozen, yet moving", f"{moved[0]} moves in the first step: {cause}")]
        if moving:
            cause = "model.train() puts BN back into training: give each BN layer a `train` of its own"
            return [Mistake("undone by model.train()", cause)]
        with torch.no_grad():
            if not torch.allclose(model(x)[:1], model(torch.cat([x[:1], 5 * x[1:]]))[:1], atol=1e-4):
                cause = "the statistics stand still, but BN normalises with each batch's own: only eval() changes that"
                return [Mistake("batch statistics still used", cause)]
    found = []
    if not model.training:
        found.append(
            Mistake("the whole model frozen", "the model itself stays in eval(): its dropout would be off, too")
        )
    idle = [f"{name} is in eval() after model.train()" for name in _in_mode(model, layers, False)[:1] if model.training]
    asleep, cut = _unlearned(model, x)
    idle += [f"the weights of {', '.join(asleep)} no longer learn"] * bool(asleep)
    if idle:
        found.append(Mistake("too much frozen", f"{', and '.join(idle)}: freeze BN layers only"))
    elif cut:
        cause = (
            f"no gradient reaches the weights of {', '.join(cut)}: statistics are constants, what BN is given is not"
        )
        found.append(Mistake("gradient cut", cause))
    model.eval()
    if awake := _in_mode(model, layers, True):
        cause = f"after model.eval() {awake[0]} is still in train(): a `train` of the model's own passes the mode on"
        found.append(Mistake("mode not passed on", cause))
    elif not torch.allclose(model(x), answers, rtol=1e-3, atol=1e-4):
        lost = sorted(before.keys() - now.keys())
        said = "in eval() the network no longer answers as it did before freezing"
        gone = f"; gone from it: {', '.join(lost)}" if lost else ""
        found.append(Mistake("layers lost" if lost else "outputs changed", said + gone))
    return found


def _overlooked(layers, still, moving):
    """Return in words which BN layers stand still, which move, and what they have in common."""
    kinds = {layers[name] for name in moving}
    if len(kinds) == 1 and kinds.isdisjoint(layers[name] for name in still):
        hint = f"{kinds.pop().__name__} keeps running statistics, too"
    elif all("." in name for name in moving):
        hint = "what lies inside another module is found by `modules()`, not by `children()`"
    else:
        hint = "does the loop end early?"
    stand, move = ("s" * (len(names) == 1) for names in (still, moving))
    return f"{', '.join(still)} stand{stand} still, {', '.join(moving)} still move{move}: {hint}"


def _in_mode(model, layers, training):
    """Return the modules in training, or the others, as names and classes: BN layers left out, dropout first."""
    found = [
        f"{name} ({type(module).__name__})" if name else "the model"
        for name, module in model.named_modules()
        if module.training is training and not any(f"{name}.".startswith(f"{layer}.") for layer in layers)
    ]
    return sorted(found, key=lambda name: "Dropout" not in name)


def _unlearned(model, x):
    """Return the convolutions and linear layers whose weights ask for no gradient, and those that ask and get none."""
    model.zero_grad()
    y = model(x)
    if y.requires_grad:
        y.square().sum().backward()
    weights = {
        name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    asleep = [name for name, weight in weights.items() if not weight.requires_grad]
    cut = [name for name, w in weights.items() if w.requires_grad and (w.grad is None or not w.grad.any())]
    return asleep, cut


# ---- what is wrong with this network?


class Late(nn.Module):
    """A convolution, BN and a linear layer, for the three networks of the exercise."""

    def __init__(self, **options):
        super().__init__()
        self.conv, self.bn, self.out = (
            nn.Conv2d(1, 6, 5, stride=2, bias=False),
            nn.BatchNorm2d(6, **options),
            nn.Linear(864, 10),
        )

    def forward(self, x):
        """Return (B, 10) for x (B, 1, 28, 28)."""
        return self.out(self.bn(self.conv(x)).relu().flatten(1))


def patients():
    """Return {letter: network}, each with one fault in its batch normalization."""
    torch.manual_seed(0)
    made = {"A": Late(momentum=0.9), "B": Late(), "C": Late(track_running_stats=False)}
    for model in made.values():
        for seed in range(60):
            model(torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(seed)))
    made["B"].bn.requires_grad_(False)
    return made


class WhatIsWrong:
    """The exercise: `judge(answers)` takes {letter: code} for the networks of `patients()`."""

    name = "what_is_wrong"
    place = Place(9, "What is wrong with this network?")
    signature = 'what_is_wrong = {"A": "BN...", "B": "BN...", "C": "BN..."}'
    asks = "Each of the networks A to C of `patients()` has one fault: give its code, as a dict from letter to code."
    answers = {"A": "BN207", "B": "BN106", "C": "BN101"}  # noqa: RUF012 (as constant as the class)
    shows = {  # noqa: RUF012
        "A": "look at how much of the newest batch is in the running mean after one step",
        "B": "compare requires_grad of γ and β with what the running mean does in a training step",
        "C": "in eval(), give one image in two different batches",
    }

    def judge(self, answers):
        """Return the Verdict on a dict of answers."""
        if answers is None or answers is ...:
            return unanswered(self)
        if not isinstance(answers, dict):
            return refused(self, [Mistake("not a dict", f'it is {describe(answers)}; expected {{"A": "BN..."}}')])
        given = {str(letter).strip().upper(): answer for letter, answer in answers.items()}
        if unknown := [letter for letter in given if letter not in self.answers]:
            return refused(
                self, [Mistake("no such network", f"there is no network {', '.join(unknown)}; there are A, B, C")]
            )
        open_ = [letter for letter in self.answers if given.get(letter) in (None, ...)]
        wrong = [letter for letter in self.answers if letter not in open_ and not self.right(letter, given[letter])]
        lines = [
            f"{letter}: "
            + (
                "not answered yet"
                if letter in open_
                else f"not {given[letter]}; {self.shows[letter]}"
                if letter in wrong
                else "right"
            )
            for letter in self.answers
        ]
        if wrong:
            read = self.place
            return Verdict(
                self.name, False, "\n".join(lines), tuple(f"another fault in network {w}" for w in wrong), read=read
            )
        return Verdict(self.name, not open_, "\n".join(lines), answered=not open_)

    def right(self, letter, answer):
        """Return whether an answer is the code: in any case, with a space, in a list of one, or its number alone."""
        only = next(iter(answer)) if isinstance(answer, list | tuple | set) and len(answer) == 1 else answer
        return str(only).upper().replace(" ", "").removeprefix("BN") == self.answers[letter].removeprefix("BN")


FREEZE, WHAT_IS_WRONG = Freeze(), WhatIsWrong()
