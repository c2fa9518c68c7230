"""The closed form: equal to the plain form, forward and backward, once and twice."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import bnlib
from bnlib.kernels import normalise

SHAPES = [(5, 3), (4, 3, 5), (1, 3, 2, 4), (3, 3, 2, 2, 2)]


def draw(*shape, offset=0.0, dtype=torch.float64, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + offset).requires_grad_()


def outputs_and_gradients(function, x, weight, bias):
    """Return function's output, its gradients, and theirs: of a sum that no symmetry of the problem cancels."""
    y = function(x)
    leaves = [t for t in (x, weight, bias) if t is not None]
    w = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    first = torch.autograd.grad((y.square() * w).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum((g.square() * (i + 1)).sum() for i, g in enumerate(first)), leaves)
    return y, *first, *second


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", ["γ and β", "γ", "neither"])
@pytest.mark.parametrize("given", [False, True], ids=["batch", "given"])
def test_the_closed_form_equals_the_plain_one_derived_twice(shape, affine, given):
    x = draw(*shape, offset=3)
    weight = draw(3, seed=1) if "γ" in affine else None
    bias = draw(3, seed=2) if "β" in affine else None
    mean, var = (torch.tensor([1.0, 2, 3]).double(), torch.tensor([1.0, 2, 4]).double()) if given else (None, None)
    plain = partial(bnlib.batch_norm, running_mean=mean, running_var=var, weight=weight, bias=bias, training=not given)
    closed = partial(normalise, weight=weight, bias=bias, eps=1e-5, mean=mean, var=var)
    pairs = zip(
        outputs_and_gradients(closed, x, weight, bias), outputs_and_gradients(plain, x, weight, bias), strict=True
    )
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["batch", "given"])
def test_finite_differences_agree_with_the_derivation(shape, given):
    mean, var = (torch.tensor([1.0, 2, 3]).double(), torch.tensor([1.0, 2, 4]).double()) if given else (None, None)

    def closed(x, weight, bias):
        return normalise(x, weight, bias, 1e-5, mean, var)

    arguments = draw(*shape), draw(3, seed=1), draw(3, seed=2)
    assert gradcheck(closed, arguments)
    assert gradgradcheck(closed, arguments)


def test_remember_gets_the_batchs_mean_and_biased_variance():
    seen = []
    x = draw(4, 3, 5, offset=2)
    normalise(x, None, None, 1e-5, remember=lambda mean, var: seen.extend((mean, var)))
    torch.testing.assert_close(seen[0], x.detach().mean((0, 2)))
    torch.testing.assert_close(seen[1], x.detach().var((0, 2), correction=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_comes_back_as_it_went_in(dtype):
    x = draw(64, 3, 5, offset=2, dtype=torch.float32).detach().to(dtype).requires_grad_()
    weight, bias = torch.ones(3, dtype=dtype, requires_grad=True), torch.zeros(3, dtype=dtype, requires_grad=True)
    y = normalise(x, weight, bias, 1e-5)
    w = torch.linspace(-1, 2, y.numel()).view(y.shape)
    gradients = torch.autograd.grad((y * w).sum(), [x, weight, bias])
    assert {t.dtype for t in (y, *gradients)} == {dtype}
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    z = bnlib.batch_norm(exact[0], None, None, *exact[1:], training=True)
    expected = torch.autograd.grad((z * w).sum(), exact)
    bound = max(1e-5, 2 * torch.finfo(dtype).eps)
    for ours, truth in zip((y, *gradients), (z, *expected), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=bound, atol=bound * truth.abs().max().item())


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_outputs_and_gradients_survive_a_large_mean(offset):
    x = draw(64, 2, 8, offset=offset, dtype=torch.float32)
    exact = x.detach().double().requires_grad_()
    y, z = normalise(x, None, None, 1e-5), bnlib.batch_norm(exact, None, None, training=True)
    w = torch.linspace(-1, 2, y.numel()).view(y.shape)
    ours, truth = torch.autograd.grad((y * w).sum(), x)[0], torch.autograd.grad((z * w).sum(), exact)[0]
    bound = 1e-5 + 2 * torch.finfo(torch.float32).eps * offset  # what float32 knows of a mean that large
    torch.testing.assert_close(y.double(), z, rtol=0, atol=bound)
    torch.testing.assert_close(ours.double(), truth, rtol=0, atol=2 * bound)


def test_one_tensor_as_large_as_the_input_is_kept_for_the_backward_pass():
    x = draw(64, 3, 8, 8, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        bnlib.BatchNorm2d(3)(x)
    assert sum(numel >= x.numel() for numel in kept) == 1


@pytest.mark.parametrize("training", [True, False])
def test_functional_transforms_see_what_they_see_in_torchs_layer(training):
    x, stack = draw(6, 3).detach(), draw(2, 6, 3).detach()
    results = []
    for make in (bnlib.BatchNorm1d, nn.BatchNorm1d):
        layer = make(3, dtype=torch.float64).train(training)
        state = {name: tensor.detach() for name, tensor in layer.state_dict().items()}

        def call(x, weight, layer=layer, state=state):
            mine = {name: tensor.clone() for name, tensor in state.items()} | {"weight": weight}
            return torch.func.functional_call(layer, mine, (x,))

        def loss(x, weight, call=call):
            return call(x, weight).pow(3).sum()

        weight = torch.tensor([1.0, 2.0, 3.0]).double()
        results.append(
            (
                *torch.func.grad(loss, argnums=(0, 1))(x, weight),
                torch.func.jacrev(call)(x, weight),
                torch.func.jvp(call, (x, weight), (x, weight))[1],
                torch.func.hessian(loss)(x, weight),
                None if training else torch.func.vmap(call, in_dims=(0, None))(stack, weight),
            )
        )
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_derivatives_forward_and_of_many_outputs_at_once_are_torchs(shape, training):
    x = draw(*shape)
    rank = {2: "1d", 4: "2d"}[len(shape)]
    results = []
    for package in (bnlib, nn):
        layer = getattr(package, f"BatchNorm{rank}")(3, dtype=torch.float64).train(training)
        many = torch.linspace(-1, 1, 2 * x.numel()).double().view(2, *shape)
        y = layer(x)
        with torch.autograd.forward_ad.dual_level():
            tangent = torch.autograd.forward_ad.unpack_dual(layer(torch.autograd.forward_ad.make_dual(x, x.cos())))[1]
        results.append(
            (
                tangent,
                torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)[0],
                torch.func.vmap(lambda dy, y=y: torch.autograd.grad(y, x, dy, retain_graph=True)[0])(many),
                torch.autograd.functional.hessian(lambda x, layer=layer: layer(x).pow(3).sum(), x, vectorize=True),
            )
        )
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_vmap_over_batches_that_share_running_statistics_is_refused():
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(bnlib.BatchNorm1d(3))(torch.randn(2, 6, 3))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:Converting a tensor:torch.jit.TracerWarning")
@pytest.mark.parametrize("training", [True, False])
def test_export_and_trace_follow_the_layer(training):
    x = draw(6, 3, dtype=torch.float32).detach()
    layer, expected = bnlib.BatchNorm1d(3).train(training), nn.BatchNorm1d(3).train(training)
    y = expected(x)
    exported = torch.export.export(bnlib.BatchNorm1d(3).train(training), (x,)).module()
    torch.testing.assert_close(exported(x), y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(exported.running_mean, expected.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.jit.trace(layer, (x,))(x), y, rtol=1e-5, atol=1e-6)


def test_a_compiled_layer_trains_as_the_eager_one():
    x = draw(6, 3, dtype=torch.float32)
    layer, expected = bnlib.BatchNorm1d(3), nn.BatchNorm1d(3)
    w = torch.linspace(-1, 2, 18).view(6, 3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)  # needs no C++ compiler
    for module in (compiled, expected):
        y = module(x)
        module.gradient = torch.autograd.grad((y * w).sum(), x)[0]
    torch.testing.assert_close(compiled.gradient, expected.gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_var, expected.running_var, rtol=1e-5, atol=1e-6)
