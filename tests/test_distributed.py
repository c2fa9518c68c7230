"""Two real gloo processes against one process with the whole batch."""

import pytest
import torch

from bnlib import batch_norm
from bnlib.distributed import batch_norm_sync, run, running_means

N_FIRST = 5  # of eight: the shares differ in size


def step(norm, x, weights):
    """Return output, gradients of x, γ and β, and running statistics after one step of `norm` on x (N, C, H, W)."""
    x = x.clone().requires_grad_()
    gamma = torch.tensor([2.0, -1.0, 0.5], dtype=x.dtype, requires_grad=True)
    beta = torch.tensor([0.1, 0.2, 0.3], dtype=x.dtype, requires_grad=True)
    mean, var = torch.zeros(3, dtype=x.dtype), torch.ones(3, dtype=x.dtype)
    y = norm(x, mean, var, gamma, beta, training=True, momentum=0.3)
    (y.sin() * weights).sum().backward()
    return {"y": y.detach(), "x": x.grad, "gamma": gamma.grad, "beta": beta.grad, "mean": mean, "var": var}


def step_on_a_share(rank, x, weights):
    here = slice(0, N_FIRST) if rank == 0 else slice(N_FIRST, None)
    return step(batch_norm_sync, x[here], weights[here])


def second_fails(rank):
    if rank == 1:
        raise ArithmeticError("only the second process")
    return torch.zeros(1)


def test_two_processes_with_shared_statistics_compute_what_one_computes_on_the_whole_batch():
    x, weights = torch.randn(2, 8, 3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = step(batch_norm, x * 3 + 7, weights)
    first, second = run(step_on_a_share, x * 3 + 7, weights)
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), whole[name], rtol=1e-9, atol=1e-9)
    for name in ("gamma", "beta"):
        torch.testing.assert_close(first[name] + second[name], whole[name], rtol=1e-9, atol=1e-9)
    for name in ("mean", "var"):
        torch.testing.assert_close(first[name], whole[name], rtol=1e-9, atol=1e-9)
        assert torch.equal(first[name], second[name]), f"the processes disagree about the running {name}"


def test_plain_statistics_are_each_process_its_own_and_synchronised_ones_are_the_batchs():
    x = torch.arange(24.0).view(4, 2, 3)
    shares = run(running_means, x)
    for half, (plain, synchronised) in zip(x.chunk(2), shares, strict=True):
        torch.testing.assert_close(plain, half.mean([0, 2]))
        torch.testing.assert_close(synchronised, x.mean([0, 2]))


def test_without_other_processes_it_is_batch_norm():
    x, weights = torch.randn(2, 8, 3, 4, 2, dtype=torch.float64)
    for name, value in step(batch_norm_sync, x, weights).items():
        assert torch.equal(value, step(batch_norm, x, weights)[name]), name


def test_an_error_in_one_process_is_raised_with_its_own_words():
    with pytest.raises(Exception, match="only the second process"):
        run(second_fails)
