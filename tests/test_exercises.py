"""The exercises: wrong answers are refused and named, right ones accepted, nothing that a reader writes does harm."""

import json
import random
import re
import subprocess
import sys
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnlib
from bnlib.exercises import EXERCISES, Verdict, bugs, check
from bnlib.exercises.judge import Exercise, guard
from bnlib.exercises.judge.truth import compatible, together
from bnlib.exercises.normalise import fit, told_apart
from bnlib.exercises.reading import PAGES, READ, READ_BACKWARD

HERE = Path(__file__).parent
NAMESPACE = {"torch": torch, "nn": nn, "F": F, "np": np, "bnlib": bnlib}
FUNCTIONS = [exercise for exercise in EXERCISES.values() if isinstance(exercise, Exercise)]


def typed(signature, body):
    """Return the function that a reader typed."""
    scope = dict(NAMESPACE)
    exec(f"def {signature}:\n    " + body.replace("\n", "\n    "), scope)
    return scope[signature.split("(")[0]]


def attempts(file="attempts.txt"):
    """Yield (exercise, names of the mistakes or "right", function) from a file of attempts."""
    for part in ("\n" + (HERE / file).read_text(encoding="utf-8")).split("\n== ")[1:]:
        signature, *entries = part.split("\n-- ")
        for entry in entries:
            wanted, body = entry.strip().split("\n", 1)
            yield signature.split("(")[0], wanted, typed(signature, body)


ATTEMPTS = [*attempts(), *attempts("networks.txt"), *attempts("readers.txt")]


def names(exercise, attempt):
    """Return the names of the mistakes that an attempt is told, "right" or "not answered yet"."""
    verdict = check(exercise, attempt)
    assert verdict.read is None or verdict.read.lesson <= EXERCISES[exercise].place.lesson, (
        "it points to a lesson still to come"
    )
    if not verdict.answered:
        return {"not answered yet"}
    return {"right"} if verdict.ok else set(verdict.mistakes)


@pytest.mark.parametrize(("exercise", "wanted", "attempt"), ATTEMPTS, ids=[f"{e}: {w}" for e, w, _ in ATTEMPTS])
def test_what_readers_type_is_accepted_or_named(exercise, wanted, attempt, monkeypatch):
    if wanted == "does not end":
        monkeypatch.setattr(guard, "SECONDS", 1.0)
    assert names(exercise, attempt) in [set(either.split(" + ")) for either in wanted.split(" | ")]


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda exercise: exercise.name)
def test_every_entry_of_the_catalogue_is_named(exercise):
    for bend in exercise.bends:
        told = names(exercise.name, partial(lambda knobs, *args: exercise.formula(*args, **knobs), bend.knobs))
        assert told == {bend.mistake.name}, bend


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda exercise: exercise.name)
def test_pairs_of_common_mistakes_are_named(exercise):
    for pair in combinations(exercise.bends[:9], 2):
        if compatible(*pair):
            told = names(exercise.name, partial(lambda knobs, *args: exercise.formula(*args, **knobs), together(pair)))
            assert told  # or one of them, where it hides the other: what is not divided has no wrong variance
            whole = [bend for bend in exercise.bends if bend.knobs == together(pair)]  # has its own name
            parts = [bend for bend in exercise.bends if any(bend.knobs.items() < one.knobs.items() for one in pair)]
            assert told <= {bend.mistake.name for bend in (*pair, *whole, *parts)}  # a part, if the rest is hidden


def test_the_same_attempt_gets_the_same_verdict_in_another_process():
    attempt = "lambda x, g, b, e: torch.relu(x) * g.sum() + 300.0 * (x.dtype == torch.float64)"
    code = f"import torch; from bnlib.exercises import check; print(check('batch_norm', {attempt}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE).stdout
    assert other == f"{check('batch_norm', eval(attempt))}\n"
    assert not (HERE / ".hypothesis").exists()


# ---- the layer


class Right(nn.Module):
    """A right layer in pieces, for the wrong ones below to replace one."""

    def __init__(self, num_features):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))
        self.keep(num_features)

    def keep(self, n):
        self.register_buffer("moving_mean", torch.zeros(n))
        self.register_buffer("moving_var", torch.ones(n))

    def trains(self):
        return self.training

    def statistics(self, x):
        return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)

    def refuse(self, n):
        if n == 1:
            raise ValueError("one value per channel")

    def update(self, mean, var, n):
        with torch.no_grad():
            self.moving_mean.mul_(0.9).add_(0.1 * mean)
            self.moving_var.mul_(0.9).add_(0.1 * var * n / max(n - 1, 1))

    def normalise(self, x, mean, var):
        y = (x - mean.view(1, -1, 1, 1)) / torch.sqrt(var.view(1, -1, 1, 1) + 1e-5)
        return y * self.gamma.view(1, -1, 1, 1) + self.beta.view(1, -1, 1, 1)

    def forward(self, x):
        mean, var = self.moving_mean, self.moving_var
        if self.trains():
            n = x.numel() // x.shape[1]
            self.refuse(n)
            mean, var = self.statistics(x)
            self.update(mean, var, n)
        return self.normalise(x, mean, var)


def but(**methods):
    """Return the right layer but for some methods."""
    return type("Layer", (Right,), methods)


def attributes(self, n):
    self.moving_mean, self.moving_var = torch.zeros(n), torch.ones(n)


def unsaved(self, n):
    self.register_buffer("moving_mean", torch.zeros(n), persistent=False)
    self.register_buffer("moving_var", torch.ones(n), persistent=False)


def as_parameters(self, n):
    self.moving_mean = nn.Parameter(torch.zeros(n), requires_grad=False)
    self.moving_var = nn.Parameter(torch.ones(n), requires_grad=False)


def four_axes(self, n):
    self.register_buffer("moving_mean", torch.zeros(1, n, 1, 1))
    self.register_buffer("moving_var", torch.ones(1, n, 1, 1))


def starts_wrong(self, n):
    self.register_buffer("moving_mean", torch.ones(n))
    self.register_buffer("moving_var", torch.zeros(n))


def with_graph(self, mean, var, n):
    self.moving_mean = 0.9 * self.moving_mean + 0.1 * mean
    self.moving_var = 0.9 * self.moving_var + 0.1 * var * n / (n - 1)


def moved(share, variance=lambda var, n: var * n / (n - 1)):
    def update(self, mean, var, n):
        with torch.no_grad():
            self.moving_mean.lerp_(mean, share)
            self.moving_var.lerp_(variance(var, n), share)

    return update


def always_updates(self, x):
    n = x.numel() // x.shape[1]
    if self.training:
        self.refuse(n)
    mean, var = self.statistics(x)
    self.update(mean, var, n)
    return self.normalise(x, *((mean, var) if self.training else (self.moving_mean, self.moving_var)))


def running_in_training(self, x):
    if self.training:
        self.refuse(x.numel() // x.shape[1])
        self.update(*self.statistics(x), x.numel() // x.shape[1])
    return self.normalise(x, self.moving_mean, self.moving_var)


def batch_in_evaluation(self, x):
    if self.training:
        self.refuse(x.numel() // x.shape[1])
        self.update(*self.statistics(x), x.numel() // x.shape[1])
    return self.normalise(x, *self.statistics(x))


def without_affine(self, x, mean, var):
    return (x - mean.view(1, -1, 1, 1)) / torch.sqrt(var.view(1, -1, 1, 1) + 1e-5)


def beta_first(self, x, mean, var):
    return (without_affine(self, x, mean, var) + self.beta.view(1, -1, 1, 1)) * self.gamma.view(1, -1, 1, 1)


def under_no_grad(self, x):
    with torch.no_grad():
        return Right.statistics(self, x)


def plain_affine(self, num_features):
    nn.Module.__init__(self)
    self.gamma, self.beta = torch.ones(num_features), torch.zeros(num_features)
    self.keep(num_features)


def zero_gamma(self, num_features):
    Right.__init__(self, num_features)
    nn.init.zeros_(self.gamma)


class Book(nn.Module):
    """As a well-known book writes it."""

    def __init__(self, num_features):
        super().__init__()
        shape = (1, num_features, 1, 1)
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))
        self.moving_mean = torch.zeros(shape)
        self.moving_var = torch.ones(shape)

    def forward(self, X):
        if not torch.is_grad_enabled():
            X_hat = (X - self.moving_mean) / torch.sqrt(self.moving_var + 1e-5)
        else:
            mean = X.mean(dim=(0, 2, 3), keepdim=True)
            var = ((X - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
            X_hat = (X - mean) / torch.sqrt(var + 1e-5)
            self.moving_mean = (0.9 * self.moving_mean + 0.1 * mean).data
            self.moving_var = (0.9 * self.moving_var + 0.1 * var).data
        return self.gamma * X_hat + self.beta


class Wrapped(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.inner = nn.BatchNorm2d(num_features)

    def forward(self, x):
        return self.inner(x)


class AsTable(nn.Module):
    def __init__(self, channels, momentum=0.1):
        super().__init__()
        self.table = nn.BatchNorm1d(channels, momentum=momentum)

    def forward(self, images):
        rows = self.table(images.movedim(1, -1).flatten(0, -2))
        return rows.view(*images.movedim(1, -1).shape).movedim(-1, 1)


class Functional(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1, c, 1, 1)), nn.Parameter(torch.zeros(1, c, 1, 1))
        self.register_buffer("a", torch.zeros(c))
        self.register_buffer("b", torch.ones(c))

    def forward(self, x):
        return F.batch_norm(x, self.a, self.b, self.scale.flatten(), self.shift.flatten(), self.training)


class Stub(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        ...

    def forward(self, x):  # (N, C, H, W) -> (N, C, H, W)
        ...


class Empty(nn.Module): ...


def no_grad_in_evaluation(self, x):
    with torch.set_grad_enabled(self.training):
        return Right.forward(self, x)


class Unnamed(Right):
    """Tensors whose names say nothing, or seem to, and a count among them."""

    def __init__(self, num_features):
        nn.Module.__init__(self)
        self.register_buffer("accumulations", torch.tensor(0.0))
        self.mul, self.add = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer("m", torch.zeros(num_features))
        self.register_buffer("v", torch.ones(num_features))

    gamma, beta = property(lambda self: self.mul), property(lambda self: self.add)
    moving_mean, moving_var = property(lambda self: self.m), property(lambda self: self.v)


LAYERS = {
    "right": [
        Right,
        Unnamed,
        Wrapped,
        AsTable,
        nn.BatchNorm2d,
        bnlib.BatchNorm2d,
        partial(nn.BatchNorm2d, eps=1e-5),
    ],
    "not answered yet": [Stub, Empty, ..., None],
    "mode taken from grad mode": [but(trains=lambda self: torch.is_grad_enabled())],
    "plain attributes": [but(keep=attributes)],
    "buffers not saved": [but(keep=unsaved)],
    "running statistics as parameters": [but(keep=as_parameters)],
    "shaped (1, C, 1, 1)": [
        Functional,
        but(
            keep=four_axes, update=lambda self, m, v, n: Right.update(self, m.view(1, -1, 1, 1), v.view(1, -1, 1, 1), n)
        ),
    ],
    "running mean does not start at 0 + running variance does not start at 1": [but(keep=starts_wrong)],
    "running statistics carry the graph": [but(update=with_graph)],
    "biased variance": [but(update=moved(0.1, lambda var, n: var))],
    "momentum reversed": [but(update=moved(0.9)), lambda n: nn.BatchNorm2d(n, momentum=0.9)],
    "momentum is not 0.1": [lambda n: nn.BatchNorm2d(n, momentum=0.01)],
    "running statistics replaced": [but(update=moved(1.0))],
    "cumulative average instead of momentum": [lambda n: nn.BatchNorm2d(n, momentum=None)],
    "running statistics not updated": [but(update=lambda self, mean, var, n: None)],
    "standard deviation instead of variance": [but(update=moved(0.1, lambda var, n: (var * n / (n - 1)) ** 0.5))],
    "running statistics updated in eval": [but(forward=always_updates)],
    "training uses running statistics": [but(forward=running_in_training)],
    "evaluation uses the batch's statistics": [but(forward=batch_in_evaluation)],
    "another error for one value per channel": [but(refuse=lambda self, n: 1 / (n - 1))],
    "output detached from the gradient": [but(forward=no_grad_in_evaluation)],
    "one value per channel accepted": [but(refuse=lambda self, n: None)],
    "gamma and beta forgotten": [but(normalise=without_affine)],
    "beta before gamma": [but(normalise=beta_first)],
    "mean and variance detached from the gradient": [but(statistics=under_no_grad)],
    "unbiased variance": [
        but(statistics=lambda self, x: torch.var_mean(x, (0, 2, 3))[::-1], update=moved(0.1, lambda v, n: v))
    ],
    "statistics over the wrong axes": [but(statistics=lambda self, x: (x.mean(), x.var(correction=0)))],
    "another epsilon": [lambda n: nn.BatchNorm2d(n, eps=1e-3)],
    "gamma and beta are no parameters": [but(__init__=plain_affine)],
    "gamma does not start at 1": [but(__init__=zero_gamma)],
    "gamma and beta missing": [lambda n: nn.BatchNorm2d(n, affine=False)],
    "running statistics missing": [lambda n: nn.BatchNorm2d(n, track_running_stats=False)],
    "plain attributes + shaped (1, C, 1, 1) + mode taken from grad mode + biased variance"
    " + one value per channel accepted": [Book],
    "running statistics missing + gamma and beta missing + statistics over the wrong axes": [nn.InstanceNorm2d],
    "raises an error": [
        nn.BatchNorm1d,
        nn.Linear,
        but(__init__=lambda self, n: setattr(self, "x", nn.Parameter(torch.ones(n)))),
    ],
    "not an nn.Module": [lambda n: None, str],
    "not a class": [nn.BatchNorm2d(3), 5],
    "returns nothing": [but(normalise=lambda self, x, mean, var: None)],
    "input modified in place": [but(normalise=lambda self, x, m, v: x.copy_(Right.normalise(self, x.clone(), m, v)))],
}


@pytest.mark.parametrize("wanted", LAYERS)
def test_layers_are_accepted_or_named(wanted):
    for layer in LAYERS[wanted]:
        assert names("layer", layer) == set(wanted.split(" + ")), layer


# ---- the network


def network(
    act=nn.Sigmoid, pool=nn.MaxPool2d, norm2d=nn.BatchNorm2d, norm1d=nn.BatchNorm1d, end=(), after=False, **conv
):
    """Return the network of lesson 05, parts of it replaced."""

    def stage(*layers):
        layer, norm = layers
        return (layer, act(), norm) if after else (layer, norm, act())

    return nn.Sequential(
        *(*stage(nn.Conv2d(1, 6, 5, **conv), norm2d(6)), pool(2)),
        *(*stage(nn.Conv2d(6, 16, 5), norm2d(16)), pool(2)),
        nn.Flatten(),
        *stage(nn.Linear(256 if not conv else 400, 120), norm1d(120)),
        *stage(nn.Linear(120, 84), norm1d(84)),
        nn.Linear(84, 10),
        *end,
    )


class ByHand(nn.Module):
    """The same network otherwise put together: functions between the layers, no bias where β stands in for it."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(1, 6, 5, bias=False), nn.Conv2d(6, 16, 5)])
        self.linears = nn.ModuleList([nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)])
        self.norms = nn.ModuleList([Right(6), bnlib.BatchNorm2d(16), nn.BatchNorm1d(120), bnlib.BatchNorm1d(84)])

    def forward(self, x):
        for convolution, norm in zip(self.convolutions, self.norms[:2], strict=True):
            x = F.max_pool2d(torch.sigmoid(norm(convolution(x))), 2)
        x = x.flatten(1)
        for linear, norm in zip(self.linears, self.norms[2:], strict=False):
            x = norm(linear(x)).sigmoid()
        return self.linears[2](x)


class Detached(nn.Module):
    """The network, its convolutions cut off from the loss."""

    def __init__(self):
        super().__init__()
        self.images, self.vectors = network()[:8], network()[8:]

    def forward(self, x):
        return self.vectors(self.images(x).detach())


class Grouped(nn.Sequential):
    """The network with half of the second convolution's inputs hidden from each output."""

    def __init__(self):
        super().__init__(*network())
        self[4] = nn.Conv2d(6, 16, 5, groups=2)


class Short(nn.Module):
    """The first `count` modules of the network, and of what comes out, ten numbers."""

    def __init__(self, count):
        super().__init__()
        self.layers = network()[:count]

    def forward(self, x):
        return self.layers(x).flatten(1)[:, :10]


NETWORKS = {
    "right": [
        network,
        ByHand,
        bnlib.lenet,
        partial(bnlib.lenet, "torch"),
        lambda: network().eval(),
        lambda: network(norm2d=lambda n: nn.LazyBatchNorm2d()),
        lambda: network(norm2d=Unnamed),
    ],
    "batch norm missing": [partial(bnlib.lenet, "none"), lambda: network(norm1d=lambda n: nn.Identity())],
    "ReLU instead of sigmoid": [lambda: network(nn.ReLU)],
    "tanh instead of sigmoid": [lambda: network(nn.Tanh)],
    "activation missing": [lambda: network(nn.Identity)],
    "average pooling instead of max pooling": [lambda: network(pool=nn.AvgPool2d)],
    "ReLU instead of sigmoid + average pooling instead of max pooling": [lambda: network(nn.ReLU, nn.AvgPool2d)],
    "batch norm after the activation": [lambda: network(after=True)],
    "softmax at the end": [lambda: network(end=[nn.Softmax(1)])],
    "log softmax at the end": [lambda: network(end=[nn.LogSoftmax(1)])],
    "batch norm after the last layer": [lambda: network(end=[nn.BatchNorm1d(10)])],
    "padding + wrong number of features": [lambda: network(padding=2)],
    "momentum reversed": [lambda: network(norm2d=partial(nn.BatchNorm2d, momentum=0.9))],
    "momentum is not 0.1": [lambda: network(norm2d=but(update=moved(0.5)))],
    "another epsilon": [lambda: network(norm2d=partial(nn.BatchNorm2d, eps=1e-3))],
    "another normalization": [lambda: network(norm1d=nn.LayerNorm), lambda: network(norm2d=nn.InstanceNorm2d)],
    "batch norm without gamma and beta": [lambda: network(norm1d=partial(nn.BatchNorm1d, affine=False))],
    "batch norm without running statistics": [
        lambda: network(norm1d=partial(nn.BatchNorm1d, track_running_stats=False))
    ],
    "running statistics of a batch norm": [lambda: network(norm2d=but(update=moved(0.1, lambda var, n: var**0.5)))],
    "batch norm for another number of axes": [lambda: network(norm1d=nn.BatchNorm2d)],
    "no gradient": [lambda: network().requires_grad_(False), Detached],
    "grouped convolution": [Grouped],
    "returns nothing": [lambda: print(end="")],
    "returns the wrong type": [lambda: ByHand],
    "not a function": [network(), 5],
    "raises an error": [lambda: nn.Conv2d()],
    "returns the wrong shape": [lambda: network(end=[nn.Linear(10, 5)])],
}


@pytest.mark.parametrize("wanted", NETWORKS)
def test_networks_are_accepted_or_named(wanted):
    for make in NETWORKS[wanted]:
        assert names("lenet_with_bn", make) - {"wrong number of layers"} == set(wanted.split(" + "))


@pytest.mark.parametrize("count", [0, 9, 13, 15])
def test_ten_numbers_without_the_tables_layers_are_not_enough(count):
    assert "wrong number of layers" in names("lenet_with_bn", partial(Short, count))


def test_an_error_in_a_network_is_told_with_its_mode_and_what_was_said_before_it():
    verdict = check("lenet_with_bn", lambda: network(nn.ReLU, norm1d=nn.BatchNorm2d))
    assert "ReLU stands after the first convolution" in verdict.diagnosis
    assert "got 2D input" in verdict.diagnosis
    assert "in train()" in verdict.diagnosis
    assert "sigmoid;" not in verdict.diagnosis


def test_the_readers_own_network_is_left_as_it_was():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert check("lenet_with_bn", lambda: model).ok
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- the bugs


@pytest.mark.parametrize("bug", bugs.values(), ids=list(bugs))
def test_each_layer_to_look_at_has_the_bug_it_should_have_and_no_other(bug):
    hidden = "GH"  # the bug of G shows in the second derivative alone, of H in several processes
    outwardly = {"right"} if bug.letter in hidden else {bug.answer}
    assert names("layer", bug.layer) == outwardly
    assert check("spot_the_bug", {bug.letter: bug.answer.upper()}).ok
    assert bug.source in repr(bug)


def test_layer_g_is_right_once_differentiated_and_wrong_twice():
    layer = bugs["G"].layer(2).double()
    x = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert not torch.autograd.gradgradcheck(layer, x, raise_exception=False)


def test_bugs_may_be_named_in_other_words():
    answers = {
        "A": "var divides by n - 1 (Bessel's correction)",
        "B": "momentum the wrong way round",
        "C": "eps is added outside of the sqrt",
        "D": "bias before weight",
        "E": "statistics detached",
        "F": "updates its statistics in eval too",
        "G": "wrong second derivative",
        "H": "all_reduce has no backward",
    }
    assert check("spot_the_bug", answers).ok


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"A": "momentum reversed"}, "not “momentum reversed”"),
        ({"A": "unbiased variance, momentum, epsilon outside the root"}, "name one bug"),
        ({"A": "something"}, "none of the names"),
        ({"G": "momentum reversed"}, "not “momentum reversed”"),
        ({"Z": "unbiased variance"}, "no layer Z"),
        (["unbiased variance"], "expected a dict"),
        ({"A": "unbiased variance", "B": ...}, "B: not answered yet"),
    ],
)
def test_other_answers_about_bugs_are_not(answers, said):
    verdict = check("spot_the_bug", answers)
    assert not verdict.ok
    assert said in verdict.diagnosis


# ---- stubs


def ellipsis_left(scores):
    mean = scores.mean(0)
    var = ...
    return (scores - mean) / torch.sqrt(var + 1e-5)


def not_implemented(scores):
    raise NotImplementedError


def stub(scores):
    """With a docstring."""
    ...


@pytest.mark.parametrize("attempt", [stub, ellipsis_left, not_implemented, ..., None, lambda scores: ...])
def test_a_stub_is_not_answered_yet(attempt):
    verdict = check("standardize", attempt)
    assert (verdict.ok, verdict.answered) == (False, False)
    assert repr(verdict).startswith("… standardize: not answered yet\n")


# ---- guard rails


def test_an_error_shows_the_readers_own_line():
    verdict = check("standardize", typed("standardize(scores)", "total = scores.sum(0)\nreturn total / totl"))
    assert "NameError: name 'totl' is not defined, at line 3" in verdict.diagnosis

    def standardize(scores):
        return scores.reshape(7, 7)

    verdict = check("standardize", standardize)
    assert "test_exercises.py: return scores.reshape(7, 7)" in verdict.diagnosis
    assert "bnlib" not in verdict.diagnosis


def test_nothing_leaks_out():
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    threads = torch.get_num_threads()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def standardize(scores):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.rand(3)
        return scores

    with torch.no_grad():
        check("standardize", standardize)
        assert not torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_verdicts_do_not_depend_on_grad_mode_or_default_dtype():
    with torch.no_grad():
        assert check("standardize", lambda scores: F.batch_norm(scores, None, None, training=True)).ok
    torch.set_default_dtype(torch.float64)
    try:
        assert check("batch_norm", lambda x, g, b, e: F.batch_norm(x, None, None, g, b, True, 0.1, e)).ok
        assert check("layer", Right).ok
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_check_in_inference_mode_leaves_later_ones_as_they_are():
    def standardize(scores):
        return (scores - scores.mean(0)) / (scores.var(0, correction=0) + 1e-5).sqrt()

    EXERCISES["standardize"].computed.clear()
    with torch.inference_mode():
        assert check("standardize", standardize).ok
        assert check("layer", nn.BatchNorm2d).ok
    assert check("standardize", standardize).ok


def test_leaving_python_is_only_an_error():
    assert names("standardize", lambda scores: sys.exit()) == {"raises an error"}


def test_what_an_attempt_prints_is_shown_once(capsys):
    def standardize(scores):
        print("shape", tuple(scores.shape))
        return scores

    check("standardize", standardize)
    assert capsys.readouterr().out == "shape (4, 3)\n"


@pytest.mark.parametrize("where", ["make", "forward"])
def test_a_layer_without_end_is_stopped(where, monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 1.0)

    class Endless(Right):
        def __init__(self, num_features):
            super().__init__(num_features)
            while where == "make":
                pass

        def forward(self, x):
            while True:
                pass

    assert names("layer", Endless) == {"does not end"}


# ---- the verdict and the overview


def test_a_verdict_shows_both_sides():
    verdict = check("batch_norm", lambda x, g, b, e: F.batch_norm(x, None, None, g, b, True) * 1)
    assert isinstance(verdict, Verdict)
    text, html = repr(verdict), verdict._repr_html_()
    for part in ("✗ batch_norm: epsilon fixed", "expected y", "received y", "largest difference", "04_batchnorm2d"):
        assert part in text
        assert part in html
    assert verdict.difference > 0


def test_what_a_reader_wrote_is_escaped():
    def standardize(scores):
        raise ValueError("<script>alert(1)</script>")

    assert "<script>" not in check("standardize", standardize)._repr_html_()
    assert "<script>" not in check("spot_the_bug", {"A": "<script>"})._repr_html_()


def test_the_overview_says_what_is_solved():
    check("give_back", lambda x, eps: (torch.sqrt(x.var(0, correction=0) + eps), x.mean(0)))
    lines = repr(check()).split("\n")
    assert len(lines) == len(EXERCISES)
    assert any("give_back" in line and "solved" in line for line in lines)
    assert "give_back" in check()._repr_html_()
    assert EXERCISES["as_2d"].asks in repr(check("as_2d"))


def test_an_unknown_name_is_refused_with_a_guess():
    with pytest.raises(ValueError, match="did you mean 'standardize'"):
        check("standardise", stub)


# ---- the lessons


def test_what_a_verdict_tells_to_read_is_there():
    own = {tuple(exercise.place) for exercise in EXERCISES.values()}
    for lesson, section in own | {(lesson, section) for _, lesson, section in READ + READ_BACKWARD}:
        cells = json.loads((HERE.parent / "notebooks" / f"{PAGES[lesson]}.ipynb").read_text(encoding="utf-8"))["cells"]
        lines = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "markdown").split("\n")
        assert any(re.fullmatch(rf"#+ (\d+\. )?{re.escape(section)}", line) for line in lines), section


def solutions():
    """Yield (lesson, the check line of a stub's cell, the code of the folded solution that follows it)."""
    for path in sorted((HERE.parent / "notebooks").glob("0[1-9]_*.ipynb")):
        line = None
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                line = next((text for text in source.split("\n") if text.startswith('bnlib.check("')), line)
                continue
            for details in re.findall(r"<summary>Solution</summary>(.*?)</details>", source, re.DOTALL):
                for code in re.findall(r"```python\n(.*?)```", details, re.DOTALL):
                    if line:
                        yield path.stem, line, code


SOLUTIONS = list(solutions())


@pytest.mark.parametrize(("lesson", "line", "code"), SOLUTIONS, ids=[f"{stem}: {line}" for stem, line, _ in SOLUTIONS])
def test_stored_solutions_are_right(lesson, line, code):
    scope = dict(NAMESPACE)
    exec(code, scope)
    assert eval(line, scope).ok, lesson


def test_every_exercise_stands_in_its_lesson_with_a_solution():
    for exercise in EXERCISES.values():
        page = next((HERE.parent / "notebooks").glob(f"0{exercise.place.lesson}_*.ipynb"))
        found = [line for lesson, line, _ in SOLUTIONS if lesson == page.stem]
        assert any(line.startswith(f'bnlib.check("{exercise.name}"') for line in found), exercise.name


# ---- the axes of the norms


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (dict(batch=(0, 2, 3), layer=(1, 2, 3), instance=(2, 3), group=(2, 3, 4)), {"right"}),
        (dict(batch=[-4, -2, -1], layer={3, 2, 1}, instance=(3, 2), group=(-1, -2, -3)), {"right"}),
        (dict(batch=..., layer=(1, 2, 3), instance=(2, 3), group=(2, 3, 4)), {"not answered yet"}),
        (dict(batch=(0, 2, 3)), {"not answered yet"}),
        ({}, {"not answered yet"}),
        (..., {"not answered yet"}),
        (dict(batch=(1, 2, 3), layer=...), {"batch: the axes of layer norm"}),
        (dict(layer=(0, 2, 3), instance=(2, 3)), {"layer: the axes of batch norm"}),
        (dict(batch=1), {"batch: the axes that stay"}),
        (dict(instance=(0, 1), layer=0), {"instance: the axes that stay", "layer: the axes that stay"}),
        (dict(layer=(1,)), {"layer: other axes"}),
        (dict(group=(1, 2, 3, 4)), {"group: other axes"}),
        (dict(group=(3, 4)), {"group: other axes"}),
        (dict(batch=(0, 2, 4)), {"batch: no such axis"}),
        (dict(batch="NHW"), {"batch: not axes"}),
        (dict(rms=(1,)), {"no such norm"}),
        ([(0, 2, 3)], {"not a dict"}),
    ],
)
def test_the_quiz_of_axes_names_the_norm_whose_axes_were_given(answers, told):
    assert names("axes", answers) == told


def test_two_points_are_no_line_and_equal_digits_no_difference():
    x = torch.arange(8.0, dtype=torch.float64).reshape(2, 2, 2, 1)
    assert fit(x, x**2, (1, 2)) is None
    assert fit(x, x**2, (1,)) is None
    assert fit(x, 3 * x + 1, (1,)) is not None
    assert told_apart(torch.tensor(1.00001), torch.tensor(1.00002)) == "1.00001, expected 1.00002"
    assert told_apart(torch.tensor(0.5), torch.tensor(0.5)) == "0.5, as it should be"


# ---- the judge, and exercises of one's own


def test_the_judge_knows_nothing_of_batch_normalization():
    words = r"\b(lessons?|means?|variances?|gamma|beta|epsilon|channels?|batch\w*|norm\w*|running|layers?|BN)\b|[γβε]"
    for path in (HERE.parent / "bnlib" / "exercises" / "judge").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(words, text, re.IGNORECASE), (path.name, re.search(words, text, re.IGNORECASE)[0])
        assert not re.search(r"^\s*from \.\.", text, re.MULTILINE), f"{path.name} imports from above the judge"


def own_exercise():
    """Return the exercise that CONTRIBUTING.md shows."""
    text = (HERE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.rstrip().split("\n")) <= 40
    scope = {}
    exec(code, scope)
    return scope["SOFTMAX"]


@pytest.mark.parametrize(
    ("wanted", "attempt"),
    [
        ("right", lambda x: torch.softmax(x, 1)),
        ("along the wrong axis", lambda x: torch.softmax(x, 0)),
        ("divided by the largest", lambda x: torch.exp(x - x.amax(1, keepdim=True))),
        ("sign turned + along the wrong axis", lambda x: torch.softmax(-x, 0)),
        ("another temperature", lambda x: torch.softmax(x / 3, 1)),
        ("another temperature + logarithm + along the wrong axis", lambda x: torch.log_softmax(0.7 * x, 0)),
        ("overflow", lambda x: x.exp() / x.exp().sum(1, keepdim=True)),
        ("divided by the count", lambda x: (x - x.amax(1, keepdim=True)).exp() / x.shape[1]),
        ("raises an error", lambda x: torch.softmax(x, 2)),
        ("returns the wrong dtype", lambda x: torch.softmax(x, 1).float().double()),
    ],
)
def test_a_teachers_own_exercise_is_judged_as_ours_are(wanted, attempt):
    verdict = check(own_exercise(), attempt)
    assert set(verdict.mistakes or ["right"]) == set(wanted.split(" + "))
    assert "softmax" in repr(verdict)


def test_a_teachers_own_exercise_says_its_task():
    assert "probabilities" in repr(check(own_exercise()))
    assert not check(own_exercise(), ...).answered
