"""Many models at once: what `torch.func` maps over torch's layer, it maps over ours, and what it refuses it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, stack_module_state, vmap

import bnlib

MODELS = 3
SHAPES = {1: (6, 4), 2: (3, 4, 2, 2)}
FLAGS = [
    {},
    {"affine": False},
    {"momentum": None},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
]
PLACES = {
    "alone": lambda norm, mix: [norm()],
    "first": lambda norm, mix: [norm(), mix()],
    "middle": lambda norm, mix: [mix(), norm(), nn.Tanh(), mix()],
    "last": lambda norm, mix: [mix(), norm()],
}


class Ensemble:
    """Models that differ in all numbers, as `torch.func` takes them: `p` and `b` stacked, `call` for one of them."""

    def __init__(self, package, dims, place, training, flags):
        norm = getattr(package, f"BatchNorm{dims}d")
        mix = (lambda: nn.Linear(4, 4)) if dims == 1 else (lambda: nn.Conv2d(4, 4, 1))
        self.models = [
            nn.Sequential(*PLACES[place](lambda: norm(4, **flags), mix)).double().train(training) for _ in range(MODELS)
        ]
        generator = torch.Generator().manual_seed(0)
        for model in self.models:
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    tensor.normal_(generator=generator)
                if name.endswith("var"):
                    tensor.square_().add_(0.5)
        self.p, self.b = stack_module_state(self.models)
        self.base = copy.deepcopy(self.models[0]).to("meta")

    def call(self, p, b, x):
        return functional_call(self.base, (p, b), (x,))

    def loss(self, p, b, x):
        return self.call(p, b, x).pow(3).sum()


def twice(tensors):
    """Return stacked tensors stacked once more, along axis 1, the second time with other numbers."""
    return {name: torch.stack([t, t + 1], 1) for name, t in tensors.items()}


def first(tensors):
    return {name: t[0].detach().clone() for name, t in tensors.items()}


# What is asked of an ensemble e on x, of which `dim` is the axis of the models, or None where they share it. Buffers
# that are moved in place are part of the answer.
QUESTIONS = {
    "outputs": lambda e, x, dim: (vmap(e.call, (0, 0, dim))(e.p, e.b, x), e.b),
    "outputs in chunks": lambda e, x, dim: (vmap(e.call, (0, 0, dim), chunk_size=2)(e.p, e.b, x), e.b),
    "gradients of the weights": lambda e, x, dim: (vmap(grad(e.loss), (0, 0, dim))(e.p, e.b, x), e.b),
    "gradients of the input": lambda e, x, dim: (vmap(grad(e.loss, argnums=2), (0, 0, dim))(e.p, e.b, x), e.b),
    "gradients by autograd": lambda e, x, dim: (
        torch.autograd.grad(vmap(e.call, (0, 0, dim))(e.p, e.b, x).pow(3).sum(), list(e.p.values())),
        e.b,
    ),
    "gradients a batch": lambda e, x, dim: vmap(grad(e.loss), (None, None, 0))(
        first(e.p), first(e.b), torch.stack([x, x + 1]) if dim is None else x
    ),
    "jacobians of the weights": lambda e, x, dim: (vmap(jacrev(e.call), (0, 0, dim))(e.p, e.b, x), e.b),
    "jacobians of the input": lambda e, x, dim: (vmap(jacrev(e.call, argnums=2), (0, 0, dim))(e.p, e.b, x), e.b),
    "jacobian of all": lambda e, x, dim: (jacrev(lambda p: vmap(e.call, (0, 0, dim))(p, e.b, x))(e.p), e.b),
    "forward jacobians": lambda e, x, dim: (vmap(jacfwd(e.call, argnums=2), (0, 0, dim))(e.p, e.b, x), e.b),
    "hessians": lambda e, x, dim: (vmap(jacfwd(grad(e.loss)), (0, 0, dim))(e.p, e.b, x), e.b),
    "inputs of models": lambda e, x, dim: (
        vmap(vmap(e.call, (None, None, 0)), (0, 0, dim))(e.p, e.b, torch.stack([x, x + 1], 0 if dim is None else 1)),
        e.b,
    ),
    "models of models": lambda e, x, dim: vmap(vmap(e.call, (0, 0, None)), (0, 0, dim))(twice(e.p), twice(e.b), x),
    "weights only": lambda e, x, dim: vmap(e.call, (0, None, dim))(e.p, first(e.b), x),
    "statistics only": lambda e, x, dim: (vmap(e.call, (None, 0, dim))(first(e.p), e.b, x), e.b),
}


def answer(question, ensemble, x, dim):
    """Return the tensors that come back, or the class of what is raised."""
    try:
        return torch.utils._pytree.tree_leaves(question(ensemble, x, dim))
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("input", ["shared", "stacked"])
def test_what_is_asked_of_many_models_is_answered_as_torchs_layer_answers(question, training, input):
    answered = 0
    for dims, shape in SHAPES.items():
        dim = 0 if input == "stacked" else None
        shape = (MODELS, *shape) if input == "stacked" else shape
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for place in PLACES:
            for flags in FLAGS if dims == 1 else FLAGS[:1]:
                ours, theirs = (
                    answer(QUESTIONS[question], Ensemble(package, dims, place, training, flags), x, dim)
                    for package in (bnlib, nn)
                )
                case = f"{dims}d, {place}, {flags}"
                if isinstance(theirs, type):
                    assert ours is theirs, case
                    continue
                answered += 1
                assert not isinstance(ours, type), f"{case}: {ours}"
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(
                        a, b, rtol=1e-8, atol=1e-8, msg=lambda text, case=case: f"{case}: {text}"
                    )
    assert answered


@pytest.mark.parametrize("place", PLACES)
def test_an_ensemble_that_learns_together_learns_what_each_model_learns_alone(place):
    x = torch.randn(5, *SHAPES[1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = Ensemble(bnlib, 1, place, True, {})
    alone = Ensemble(bnlib, 1, place, True, {}).models
    for batch in x:  # (N, C)
        gradients = vmap(grad(together.loss), (0, 0, None))(together.p, together.b, batch)
        with torch.no_grad():
            for name, gradient in gradients.items():
                together.p[name] -= 1e-3 * gradient
        for model in alone:
            steps = torch.autograd.grad(model(batch).pow(3).sum(), list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), steps, strict=True):
                    parameter -= 1e-3 * gradient
    for i, model in enumerate(alone):
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close((together.p | together.b)[name][i].detach(), tensor, rtol=1e-9, atol=1e-9)
