"""The other norms: torch's numbers, gradients and errors on torch's own samples, and the lesson's worked examples."""

import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from torch import tensor
from torch.testing._internal.common_methods_invocations import op_db

import bnlib
from bnlib.compare import BOUNDS

torch.backends.m.__allow_nonbracketed_mutation_flag = True  # importing torch's samples forbids the flags that fit sets

OURS = {
    f"nn.functional.{norm.__name__}": norm
    for norm in (bnlib.layer_norm, bnlib.group_norm, bnlib.instance_norm, bnlib.rms_norm)
}
SAMPLED = [
    pytest.param(op, dtype, id=f"{op.name.split('.')[-1]}, {dtype}")
    for op in op_db
    if op.name in OURS
    for dtype in sorted(op.dtypes, key=str)
]


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


@pytest.mark.parametrize("name", OURS)
def test_the_signatures_are_torchs(name):
    theirs = getattr(F, name.rpartition(".")[2])
    ours, wanted = (
        [(each.name, each.default) for each in inspect.signature(norm).parameters.values()]
        for norm in (OURS[name], theirs)
    )
    assert ours == wanted


def leaves(sample):
    """Return the tensors of a sample that gradients can go to; running statistics are not among them."""
    given = [sample.input, *sample.args, *(v for k, v in sample.kwargs.items() if not k.startswith("running"))]
    return [each for each in given if isinstance(each, torch.Tensor)]


def answered(function, sample):
    """Return output, gradients and running statistics of a function on a copy of the sample."""
    sample = sample.transform(
        lambda value: value.detach().clone().requires_grad_() if isinstance(value, torch.Tensor) else value
    )
    running = [sample.kwargs.get(name) for name in ("running_mean", "running_var")]
    for statistic in running:
        if statistic is not None:
            statistic.requires_grad_(False)
    y = function(sample.input, *sample.args, **sample.kwargs)
    w = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).to(y.dtype).view(y.shape)
    gradients = torch.autograd.grad((y * w).sum().real, leaves(sample), allow_unused=True)
    return y, gradients, [statistic for statistic in running if statistic is not None]


@pytest.mark.parametrize(("op", "dtype"), SAMPLED)
def test_on_torchs_own_samples_numbers_and_gradients_are_torchs(op, dtype):
    relative, absolute = BOUNDS[dtype.to_real()]
    samples = list(op.reference_inputs("cpu", dtype))
    assert len(samples) >= 6
    for sample in samples:
        (y, gradients, running), (expected, slopes, kept) = (
            answered(function, sample) for function in (OURS[op.name], op.op)
        )
        for ours, theirs in zip((y, *running), (expected, *kept), strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            torch.testing.assert_close(ours, theirs, rtol=relative, atol=10 * absolute, equal_nan=True)
        if dtype in (torch.float64, torch.complex128):  # where a difference is a mistake and not rounding
            for ours, theirs in zip(gradients, slopes, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7, equal_nan=True)


def o(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


X3, X4 = o(2, 3), o(2, 6, 3, 3)
HALF, LONG = torch.float16, torch.int64
REFUSED = {  # what: (function, arguments, our advice)
    "last sizes": ("layer_norm", (X3, (4,)), "move what is to be normalised there"),
    "no axis": ("layer_norm", (X3, ()), "pass (3,)"),
    "an int": ("layer_norm", (X3, 3), "write (C,)"),
    "too few axes": ("layer_norm", (o(3), (2, 3)), "sizes of the last axes"),
    "weight": ("layer_norm", (X3, (3,), o(4)), "an element of its own"),
    "bias": ("layer_norm", (X3, (3,), None, o(1, 3)), "an element of its own"),
    "dtype": ("layer_norm", (X3, (3,), o(3, dtype=torch.float64)), "convert them"),
    "half, mixed": ("layer_norm", (X3.half(), (3,), o(3), o(3, dtype=HALF)), "or all of torch.float32"),
    "whole numbers": ("layer_norm", (o(2, 3, dtype=LONG), (3,)), "x.float()"),
    "rms: sizes": ("rms_norm", (X3, (4,)), "move what is to be normalised there"),
    "rms: no axis": ("rms_norm", (X3, ()), "pass (3,)"),
    "rms: an int": ("rms_norm", (X3, 3), "write (C,)"),
    "rms: too few axes": ("rms_norm", (o(3), (2, 3)), "names the last of them"),
    "rms: weight": ("rms_norm", (X3, (3,), o(4)), "an element of its own"),
    "rms: whole numbers": ("rms_norm", (o(2, 3, dtype=LONG), (3,)), "x.float()"),
    "one axis": ("group_norm", (o(3), 1), "x[None]"),
    "groups do not divide": ("group_norm", (X4, 4), "6 channels can be in 1, 2, 3, 6 groups"),
    "no group": ("group_norm", (X4, 0), "1 takes all channels"),
    "less than none": ("group_norm", (X4, -2), "1 takes all channels"),
    "half a group": ("group_norm", (X4, 2.0), "with //"),
    "one value": ("group_norm", (o(1, 2, 1, 1), 2), "fewer groups"),
    "gamma a group": ("group_norm", (X4, 2, o(2)), "not one a group"),
    "beta a group": ("group_norm", (X4, 2, None, o(2)), "not one a group"),
    "groups: dtype": ("group_norm", (X4, 2, o(6, dtype=torch.float64)), "convert them"),
    "groups: complex": ("group_norm", (o(2, 6, dtype=torch.complex64), 2), "x.float()"),
    "one pixel": ("instance_norm", (o(2, 3, 1, 1),), "before the pooling"),
    "a table": ("instance_norm", (X3,), "layer norm"),
    "one statistic": ("instance_norm", (o(2, 3, 4), o(3)), "pass both"),
    "no statistics": ("instance_norm", (o(2, 3, 4), None, None, None, None, False), "pass both"),
    "statistics of others": ("instance_norm", (o(2, 3, 4), o(4), o(4)), "shape (3,)"),
    "gamma of others": ("instance_norm", (o(2, 3, 4), None, None, o(4)), "shape (3,)"),
    "beta of others": ("instance_norm", (o(2, 3, 4), o(3), o(3), None, o(4), False), "shape (3,)"),
    "no channel axis": ("instance_norm", (o(3), o(3), o(3), None, None, False), "(N, C, *)"),
    "instances: dtype": ("instance_norm", (o(2, 3, 4), None, None, o(3, dtype=HALF)), "convert them"),
    "instances: whole": ("instance_norm", (o(2, 3, 4, dtype=LONG),), "x.float()"),
}


@pytest.mark.parametrize(("name", "arguments", "advice"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_with_torchs_exception_and_sentence_and_with_advice(name, arguments, advice):
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError)) as theirs:
        getattr(F, name)(*arguments)
    with pytest.raises(theirs.type) as caught:
        getattr(bnlib, name)(*arguments)
    said = str(caught.value)
    wanted = re.split(r" \(CPU\)| not implemented| \(expected|, but got bias", str(theirs.value))[
        0
    ]  # kernels' own words
    assert said.startswith(wanted), f"{said!r}, and torch {str(theirs.value)!r}"
    assert advice in said


def test_an_axis_out_of_range_is_refused_with_torchs_exception_and_sentence():
    for dims in (4, (2, 5), (-5,)):
        with pytest.raises(IndexError) as theirs:
            X4.mean(dims)
        with pytest.raises(IndexError) as ours:
            bnlib.normalise(X4, dims)
        assert str(ours.value).startswith(str(theirs.value))
        assert "has 4 axes, counted from 0" in str(ours.value)


def test_a_mask_that_does_not_fit_is_refused_with_torchs_exception_and_sentence():
    x = torch.rand(2, 4, 3)  # (N, C, L)
    for mask in (torch.ones(2, 4).bool(), torch.ones(2).bool()[:, None], torch.ones(2, 3), torch.ones(3, 3).bool()):
        with pytest.raises(IndexError) as theirs:
            x.movedim(1, -1)[mask]
        with pytest.raises(IndexError) as ours:
            bnlib.masked_batch_norm(x, mask)
        assert str(ours.value).startswith(str(theirs.value)), f"{ours.value}\n{theirs.value}"
    for real, advice in ((0, "turned around"), (1, "call eval")):
        mask = torch.arange(6).view(2, 3) < real
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training") as caught:
            bnlib.masked_batch_norm(x, mask)
        assert advice in str(caught.value)


def test_every_norm_is_normalise_over_its_own_axes():
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    over = {
        F.batch_norm(x, None, None, training=True): bnlib.normalise(x, (0, 2, 3)),
        F.layer_norm(x, (6, 5, 5)): bnlib.normalise(x, (1, 2, 3)),
        F.instance_norm(x): bnlib.normalise(x, (2, 3)),
        F.group_norm(x, 3): bnlib.normalise(x.unflatten(1, (3, 2)), (2, 3, 4)).flatten(1, 2),
    }
    for theirs, ours in over.items():
        close(ours, theirs, atol=1e-9)


def test_padding_changes_neither_the_real_positions_nor_the_running_statistics():
    x = tensor([[[5.0, 7, 5, 7]], [[5, 7, 0, 0]]], dtype=torch.float64)
    mask = tensor([[True] * 4, [True, True, False, False]])
    mean, var = torch.zeros(1).double(), torch.ones(1).double()
    y = bnlib.masked_batch_norm(x, mask, running_mean=mean, running_var=var)
    close(y, [[[-1, 1, -1, 1]], [[-1, 1, 0, 0]]], atol=1e-5)
    close(torch.cat([mean, var]), [0.6, 1.02])
    assert torch.equal(y, bnlib.masked_batch_norm(x.masked_fill(~mask[:, None], float("nan")), mask))


@pytest.mark.parametrize("shape", [(4, 3, 5), (2, 3, 4, 2)])
def test_masked_batch_norm_is_batch_norm_of_the_real_positions(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
    mask = torch.rand(shape[:1] + shape[2:], generator=generator) < 0.6
    weight, bias = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    y = bnlib.masked_batch_norm(x, mask, weight, bias, eps=0.1)
    real = x.movedim(1, -1)[mask]
    expected = F.batch_norm(real, None, None, weight, bias, True, 0.1, 0.1)
    close(y.movedim(1, -1)[mask], expected, atol=1e-9)
    assert (y.movedim(1, -1)[~mask] == 0).all()
    w = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view(expected.shape)
    ours, theirs = (torch.autograd.grad((out * w).sum(), x)[0] for out in (y.movedim(1, -1)[mask], expected))
    close(ours, theirs, atol=1e-9)


def test_a_mask_without_padding_changes_nothing():
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    close(bnlib.masked_batch_norm(x, o(4, 5).bool()), F.batch_norm(x, None, None, training=True), atol=1e-9)


def test_group_norm_with_a_bias_alone_has_a_gradient():
    """Torch's own has none (2.13: "tensor does not have a device"), so it is held against γ = 1."""
    x, bias = torch.randn(2, 6, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad((bnlib.group_norm(x, 2, None, bias) * x).sum(), bias)
    (theirs,) = torch.autograd.grad((F.group_norm(x, 2, torch.ones_like(bias), bias) * x).sum(), bias)
    close(ours, theirs, atol=1e-12)
