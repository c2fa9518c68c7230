"""The two pure functions: the lessons' worked examples, the errors, and what they leave alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from bnlib import batch_norm, batch_norm_loops

BOTH = pytest.mark.parametrize("norm", [batch_norm, batch_norm_loops])
GRADES = tensor([[85.0, 60, 70], [90, 80, 75], [95, 50, 80], [88, 70, 85]])


def close(actual, expected, atol=1e-4):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


@BOTH
def test_four_students_grades_are_standardised_subject_by_subject(norm):
    y = norm(GRADES, None, None, training=True)
    mean, var = tensor([89.5, 65, 77.5]), tensor([13.25, 125, 31.25])
    close(y, (GRADES - mean) / (var + 1e-5).sqrt(), atol=1e-6)
    close(y[0], [-1.2362, -0.4472, -1.3416])
    close(y.mean(0), [0, 0, 0], atol=1e-6)


@BOTH
def test_gamma_sigma_and_beta_mean_give_the_grades_back(norm):
    mean, sigma = GRADES.mean(0), (GRADES.var(0, correction=0) + 1e-5).sqrt()
    close(norm(GRADES, None, None, sigma, mean, training=True), GRADES)


@BOTH
def test_one_default_step_moves_the_running_statistics_by_a_tenth(norm):
    mean, var = torch.zeros(3), torch.ones(3)
    norm(GRADES, mean, var, training=True)
    close(mean, [8.95, 6.5, 7.75])
    close(var, [2.6667, 17.5667, 5.0667])  # 0.9 · 1 + 0.1 · unbiased variance
    y = norm(tensor([[87.0, 65, 78]]), mean, var)
    close(y[0], [47.8, 14.0, 31.2], atol=0.05)  # absurd: one step is not enough


@BOTH
def test_momentum_one_stores_this_batchs_mean_and_unbiased_variance(norm):
    mean, var = torch.zeros(3), torch.ones(3)
    norm(GRADES, mean, var, training=True, momentum=1.0)
    close(mean, [89.5, 65, 77.5])
    close(var, [53 / 3, 500 / 3, 125 / 3])


@BOTH
def test_columns_of_a_2d_input_share_a_mean(norm):
    y = norm(torch.arange(9.0).view(3, 3), None, None, training=True)
    close(y, tensor([[-1.2247], [0.0], [1.2247]]).expand(3, 3))


@BOTH
def test_sample_and_length_of_a_3d_input_share_a_mean(norm):
    x = torch.arange(12.0).view(2, 2, 3)
    y = norm(x, None, None, training=True)
    channel = tensor([0.0, 1, 2, 6, 7, 8])
    assert channel.mean() == 4
    close(channel.var(correction=0), 9.6667)
    close(y[0, 0, 0], -1.2865)
    as_table = norm(x.permute(0, 2, 1).reshape(-1, 2), None, None, training=True)  # (N·L, C)
    close(y.permute(0, 2, 1).reshape(-1, 2), as_table, atol=1e-6)


@BOTH
def test_a_pixel_is_a_sample(norm):
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1107))
    y = norm(x, None, None, training=True)
    close(y[0, 0, 0, 0], 0.6003)
    as_table = norm(x.permute(0, 2, 3, 1).reshape(-1, 3), None, None, training=True)
    close(y.permute(0, 2, 3, 1).reshape(-1, 3), as_table, atol=1e-6)


@BOTH
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.6])
def test_eps_stands_inside_the_root(norm, eps):
    x = tensor([[1.0], [3.0]], dtype=torch.float64)
    close(norm(x, None, None, training=True, eps=eps)[1, 0], 1 / (1 + eps) ** 0.5, atol=1e-12)


@BOTH
def test_evaluation_normalises_with_the_running_statistics_and_leaves_them(norm):
    mean, var = tensor([1.0, 2.0]), tensor([4.0, 9.0])
    y = norm(tensor([[3.0, 8.0]]), mean, var, weight=tensor([1.0, 10.0]), bias=tensor([0.0, 5.0]), eps=0.0)
    assert y.tolist() == [[1.0, 25.0]]
    assert (mean.tolist(), var.tolist()) == ([1, 2], [4, 9])


@BOTH
def test_without_running_statistics_training_still_works_and_inputs_stay_as_they_were(norm):
    arguments = [GRADES.clone(), None, None, torch.full((3,), 2.0), torch.ones(3)]
    before = [None if a is None else a.clone() for a in arguments]
    close(norm(*arguments, training=True)[0], [-1.4725, 0.1056, -1.6833])
    for a, b in zip(arguments, before, strict=True):
        assert a is b is None or torch.equal(a, b)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_float32(norm, dtype):
    x = torch.full((5000, 1), 200.0).index_fill(0, tensor([0]), 100.0).to(dtype)  # its sum is past float16's largest
    mean, var = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    y = norm(x, mean, var, training=True, momentum=1.0)
    assert y.dtype == mean.dtype == dtype
    expected = F.batch_norm(x.double(), None, None, training=True)
    torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert mean.item() == pytest.approx(199.98, rel=torch.finfo(dtype).eps)


@BOTH
@pytest.mark.parametrize("offset", [0, 1e3, 1e4])
def test_a_large_mean_does_not_drown_the_variance(norm, offset):
    x = torch.rand(8, 2, 4, generator=torch.Generator().manual_seed(0)) * 10 + offset
    truth = F.batch_norm(x.double(), None, None, training=True)
    ulp = torch.finfo(torch.float32).eps * offset  # the mean itself can be no better than this
    close(norm(x, None, None, training=True).double(), truth, atol=1e-5 + ulp)


ONE_VALUE = "Expected more than 1 value per channel when training, got input size"
REFUSED = {  # what: (arguments of batch_norm, torch's exception and sentence, our advice)
    "one value": (dict(input=torch.ones(1, 3), training=True), ValueError, ONE_VALUE, "call eval"),
    "one pixel": (dict(input=torch.ones(1, 3, 1, 1), training=True), ValueError, ONE_VALUE, "larger batch"),
    "integers": (dict(input=torch.ones(4, 3).long()), NotImplementedError, "not implemented for", "x.float()"),
    "no statistics": (
        dict(running_mean=None, running_var=None),
        RuntimeError,
        "running_mean must be defined in evaluation mode",
        "training=True",
    ),
    "no variance": (
        dict(running_var=None),
        RuntimeError,
        "running_var must be defined in evaluation mode",
        "training=True",
    ),
    "one statistic": (
        dict(running_var=None, training=True),
        ValueError,
        "running_mean and running_var must either both be None or neither be None",
        "",
    ),
    "channels": (dict(weight=torch.ones(4)), RuntimeError, "weight should contain 3 elements not 4", "axis 1"),
    "mean's channels": (
        dict(running_mean=torch.ones(2)),
        RuntimeError,
        "running_mean should contain 3 elements not 2",
        "one element for each",
    ),
    "mixed": (dict(weight=torch.ones(3).double()), RuntimeError, "mixed dtype", ".to(dtype)"),
    "half mixed": (
        dict(input=torch.ones(4, 3).half(), weight=torch.ones(3).bfloat16()),
        RuntimeError,
        "mixed dtype",
        "float16 goes with",
    ),
    "no channel axis": (
        dict(input=torch.ones(4), running_mean=None, running_var=None, training=True),
        IndexError,
        "Dimension out of range",
        "x[None]",
    ),
    "eps 0": (dict(training=True, eps=0.0), ValueError, "eps must be positive during training, but got 0.0", "1e-5"),
    "eps -1": (dict(eps=-1.0), ValueError, "eps must be non-negative, but got -1.0", "1e-5"),
    "momentum": (dict(momentum=None), TypeError, "'momentum' must be float, not None", "cumulative"),
}


@BOTH
@pytest.mark.parametrize(("changed", "error", "sentence", "advice"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_with_torchs_exception_and_with_advice(norm, changed, error, sentence, advice):
    arguments = dict(input=torch.ones(4, 3), running_mean=torch.zeros(3), running_var=torch.ones(3)) | changed
    with pytest.raises(error):
        F.batch_norm(**arguments)
    with pytest.raises(error) as caught:
        norm(**arguments)
    assert sentence in str(caught.value)
    assert advice in str(caught.value)


@BOTH
def test_what_torch_takes_is_taken(norm):
    """One image of many pixels; eps 0 in evaluation; float32 parameters beside a half-precision input; N = 0."""
    assert norm(torch.rand(1, 3, 2, 2), None, None, training=True).shape == (1, 3, 2, 2)
    assert norm(torch.ones(1, 1), torch.zeros(1), torch.ones(1), eps=0.0).item() == 1
    half = norm(torch.rand(4, 3).half(), torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3))
    assert half.dtype == torch.float16
    mean, var = torch.zeros(3), torch.ones(3)
    assert norm(torch.ones(0, 3, 2), mean, var, training=True).shape == (0, 3, 2)
    assert (mean.tolist(), var.tolist()) == ([0, 0, 0], [1, 1, 1])


@BOTH
def test_an_empty_batch_gives_the_parameters_a_zero_gradient(norm):
    weight, bias = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    norm(torch.ones(0, 3), None, None, weight, bias, training=True).sum().backward()
    assert (weight.grad.tolist(), bias.grad.tolist()) == ([0, 0, 0], [0, 0, 0])
