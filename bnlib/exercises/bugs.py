"""The exercise `spot_the_bug`: short layers as they circulate, each with one bug to name.

Each is a layer that runs; that it has just the bug it should have is what `check("layer", ...)` says of it.
"""
# ruff: noqa: D101, D102 (lessons show these layers by inspection, as short as readers meet them)

import inspect
import re
from dataclasses import dataclass, replace
from html import escape

import torch
import torch.distributed as dist
from torch import nn

from .judge import Mistake, Verdict
from .judge.answers import describe
from .judge.verdict import refused, unanswered
from .layer.examination import LAYER
from .layer.mistakes import CAUSES
from .layer.modes import EVALUATES_BATCH, EVALUATION, RUNS, TRAINING, UPDATE
from .reading import Place

CHANNEL = (1, -1, 1, 1)


class Layer(nn.Module):
    def __init__(self, num_features, momentum=0.1, eps=1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def values_per_channel(self, x):
        n = x.numel() // x.shape[1]
        if self.training and n == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got {tuple(x.shape)}")
        return n


class LayerA(Layer):
    def forward(self, x):  # (N, C, H, W)
        self.values_per_channel(x)
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            with torch.no_grad():
                self.running_mean += self.momentum * (mean - self.running_mean)
                self.running_var += self.momentum * (var - self.running_var)
        y = (x - mean.view(CHANNEL)) / torch.sqrt(var.view(CHANNEL) + self.eps)
        return y * self.weight.view(CHANNEL) + self.bias.view(CHANNEL)


class LayerB(Layer):
    def forward(self, x):  # (N, C, H, W)
        n = self.values_per_channel(x)
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            m, unbiased = self.momentum, var * n / (n - 1)
            with torch.no_grad():
                self.running_mean.copy_(m * self.running_mean + (1 - m) * mean)
                self.running_var.copy_(m * self.running_var + (1 - m) * unbiased)
        y = (x - mean.view(CHANNEL)) / torch.sqrt(var.view(CHANNEL) + self.eps)
        return y * self.weight.view(CHANNEL) + self.bias.view(CHANNEL)


class LayerC(Layer):
    def forward(self, x):  # (N, C, H, W)
        n = self.values_per_channel(x)
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * n / (n - 1), self.momentum)
        y = (x - mean.view(CHANNEL)) / (torch.sqrt(var.view(CHANNEL)) + self.eps)
        return y * self.weight.view(CHANNEL) + self.bias.view(CHANNEL)


class LayerD(Layer):
    def forward(self, x):  # (N, C, H, W)
        n = self.values_per_channel(x)
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * n / (n - 1), self.momentum)
        y = (x - mean.view(CHANNEL)) / torch.sqrt(var.view(CHANNEL) + self.eps)
        y = y + self.bias.view(CHANNEL)
        return y * self.weight.view(CHANNEL)


class LayerE(Layer):
    def forward(self, x):  # (N, C, H, W)
        n = self.values_per_channel(x)
        mean, var = self.running_mean, self.running_var
        if self.training:
            with torch.no_grad():
                mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * n / (n - 1), self.momentum)
        y = (x - mean.view(CHANNEL)) / torch.sqrt(var.view(CHANNEL) + self.eps)
        return y * self.weight.view(CHANNEL) + self.bias.view(CHANNEL)


class LayerF(Layer):
    def forward(self, x):  # (N, C, H, W)
        n = self.values_per_channel(x)
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
        if not self.training:
            mean, var = self.running_mean, self.running_var
        y = (x - mean.view(CHANNEL)) / torch.sqrt(var.view(CHANNEL) + self.eps)
        return y * self.weight.view(CHANNEL) + self.bias.view(CHANNEL)


class Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):  # (N, C, H, W)
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        gain = 1 / torch.sqrt(var + eps)
        normal = (x - mean.view(CHANNEL)) * gain.view(CHANNEL)
        ctx.save_for_backward(normal, gain * weight)
        return normal * weight.view(CHANNEL) + bias.view(CHANNEL)

    @staticmethod
    def backward(ctx, dy):
        normal, gain = ctx.saved_tensors
        n = dy.numel() // dy.shape[1]
        dbias, dweight = dy.sum((0, 2, 3)), (dy * normal).sum((0, 2, 3))
        dx = dy - dbias.view(CHANNEL) / n - normal * dweight.view(CHANNEL) / n
        return dx * gain.view(CHANNEL), dweight, dbias, None


class LayerG(Layer):
    def forward(self, x):  # (N, C, H, W)
        n = self.values_per_channel(x)
        if self.training:
            with torch.no_grad():
                mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * n / (n - 1), self.momentum)
            return Normalised.apply(x, self.weight, self.bias, self.eps)
        y = x - self.running_mean.view(CHANNEL)
        y = y / torch.sqrt(self.running_var.view(CHANNEL) + self.eps)
        return y * self.weight.view(CHANNEL) + self.bias.view(CHANNEL)


class LayerH(Layer):  # run in several processes, each with its share of the batch
    def forward(self, x):  # (N, C, H, W)
        mean, var = self.running_mean, self.running_var
        if self.training:
            count = x.new_full((1,), self.values_per_channel(x))
            n, sums = total(torch.cat([count, x.sum((0, 2, 3))])).tensor_split([1])
            mean = sums / n
            var = total((x - mean.view(CHANNEL)).square().sum((0, 2, 3))) / n
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * n / (n - 1), self.momentum)
        y = (x - mean.view(CHANNEL)) / torch.sqrt(var.view(CHANNEL) + self.eps)
        return y * self.weight.view(CHANNEL) + self.bias.view(CHANNEL)


def total(values):
    """Return the sum of `values` over all processes."""
    values = values.clone()
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


SAVED, ALONE = "intermediates saved for the backward pass", "gradient stays in its process"
PATTERNS = {  # the names to choose from, and how else readers put them
    "biased variance": r"\bbiased|divid\w* by n\b(?! ?[-−])",
    "unbiased variance": r"unbiased|bessel|n ?[-−] ?1|correction",
    "momentum reversed": r"momentum",
    "epsilon outside the root": r"(eps|ε).*(outside|after|out of|std|standard)|(sqrt|std).*(plus|\+) ?(eps|ε)",
    "epsilon missing": r"(eps|ε).*(missing|forgotten|absent)|no (eps|ε)",
    "divided by the variance": r"divi\w* by (the )?var|(root|sqrt).*(missing|forgotten)|no (root|sqrt)",
    "not centred": r"not? cent|mean.*not subtracted",
    "statistics over the wrong axes": r"\bax[ei]s|\bdims?\b",
    "beta before gamma": r"(beta|β|bias).*(before|first|order)|(gamma|γ|weight).*(after|order)",
    "gamma and beta swapped": r"swap",
    "mean and variance detached from the gradient": r"detach|no_grad.*(mean|var|stat)|^(?!.*(proces|reduc)).*gradient",
    "running statistics updated in eval": r"updat.*(eval|both modes|always)|(eval|always).*updat",
    "evaluation uses the batch's statistics": r"eval\w* (uses|with|normalises)",
    "training uses running statistics": r"train\w* (uses|with|normalises)",
    "mode taken from grad mode": r"is_grad_enabled|grad mode",
    "plain attributes": r"attribute|register_buffer|not (a )?buffers?\b",
    SAVED: r"interme|second deriv|twice|double back|sav.*(normal|x̂|xhat|gain)",
    ALONE: r"process|all.?reduce|machine|no backward|backward.*(missing|forgot)",
}
OF_ONE_LAYER = {  # why those are bugs that only the layer that has them is suspected of
    SAVED: "what the backward pass reads from `save_for_backward` is a constant to it, unless it is an input or an "
    "output; so the second derivative is wrong in silence: save the inputs, and compute the rest from them",
    ALONE: "`dist.all_reduce` works unseen by autograd: forth, the sum is that of all processes; back, only one "
    "process's own gradient goes through it. Its backward pass is an all-reduce, too: write an autograd.Function",
}
KNOWN = (*EVALUATION.mistakes, EVALUATES_BATCH, RUNS, *TRAINING.mistakes, *UPDATE.mistakes)
CAUSE = {mistake.name: mistake.cause for mistake in KNOWN} | CAUSES | OF_ONE_LAYER


@dataclass(frozen=True)
class Bug:
    """A layer with a bug, and what else its code is made of: shown with that code and the names to choose from."""

    letter: str
    layer: type
    answer: str
    helper: object = None

    @property
    def choices(self):
        """The names to choose from."""
        return [name for name in PATTERNS if name not in OF_ONE_LAYER or name == self.answer]

    @property
    def source(self):
        """The code, by inspection, after that of the class it builds on."""
        parts = filter(None, (Layer, self.helper, self.layer))
        return "\n\n".join([f"CHANNEL = {CHANNEL}\n", *map(inspect.getsource, parts)])

    def __repr__(self):
        return f"{self.source}\nWhich bug? One of: {'; '.join(self.choices)}."

    def _repr_html_(self):
        names = "".join(f"<li>{escape(name)}</li>" for name in self.choices)
        code = f'<pre style="white-space: pre; overflow-x: auto">{escape(self.source)}</pre>'  # it scrolls, unbroken
        return f"{code}<p>Layer {self.letter} has one bug. Which?</p><ul>{names}</ul>"


BUGS = {
    bug.letter: bug
    for bug in (
        Bug("A", LayerA, "unbiased variance"),
        Bug("B", LayerB, "momentum reversed"),
        Bug("C", LayerC, "epsilon outside the root"),
        Bug("D", LayerD, "beta before gamma"),
        Bug("E", LayerE, "mean and variance detached from the gradient"),
        Bug("F", LayerF, "running statistics updated in eval"),
        Bug("G", LayerG, SAVED, Normalised),
        Bug("H", LayerH, ALONE, total),
    )
}


class SpotTheBug:
    """The exercise: `judge(answers)` takes {letter: name of the bug} for some or all of the layers."""

    name = "spot_the_bug"
    place = Place(3, "Spot the bug")
    signature = 'spot_the_bug = {"A": "name of the bug", ...}'
    asks = (
        "Each of the layers A to H has one bug: give its name, as a dict from letter to name; "
        'bnlib.exercises.bugs["A"] shows the first.'
    )

    def judge(self, answers):
        """Return the Verdict on a dict of answers."""
        if answers is None or answers is ...:
            return unanswered(self)
        if not isinstance(answers, dict):
            cause = f'it is {describe(answers)}; expected a dict such as {{"A": "momentum reversed"}}'
            return refused(self, [Mistake("not a dict", cause)])
        given = {str(letter).strip().upper(): answer for letter, answer in answers.items()}
        unknown = [letter for letter in given if letter not in BUGS]
        if unknown:
            cause = f"there is no layer {', '.join(unknown)}; there are {', '.join(BUGS)}"
            return refused(self, [Mistake("no such layer", cause)])
        looks = {letter: self.look(BUGS[letter], answer) for letter, answer in given.items()}
        lines = "\n".join(f"{letter}: {words}" for letter, (_, words) in looks.items())
        wrong = [letter for letter, (right, _) in looks.items() if not right]
        if not looks or any(right is None for right, _ in looks.values()):
            return Verdict(self.name, False, lines or self.asks, answered=False)
        if not wrong:
            return Verdict(self.name, True, lines)
        shown, names = LAYER.judge(BUGS[wrong[0]].layer), (f"another bug in layer {wrong[0]}",)
        return replace(shown, exercise=self.name, ok=False, diagnosis=lines, mistakes=names)

    def look(self, bug, answer):
        """Return (True, False or None for no answer, what to say) of one answer."""
        if answer is None or answer is ... or not str(answer).strip():
            return None, "not answered yet"
        words = " ".join(str(answer).lower().split())  # a name means itself alone, other words what they may mean
        names = {words} & PATTERNS.keys() or {name for name, pattern in PATTERNS.items() if re.search(pattern, words)}
        if names == {bug.answer}:
            return True, f"right, {bug.answer}: {CAUSE[bug.answer]}"
        if len(names) > 1:
            return False, f"name one bug, not {' and '.join(sorted(names))}"
        if not names:
            return False, f"{str(answer)!r} is none of the names: {'; '.join(bug.choices)}"
        (name,) = names
        return False, f"not “{name}”. That would be: {CAUSE[name]}. It is not so here"


SPOT_THE_BUG = SpotTheBug()
