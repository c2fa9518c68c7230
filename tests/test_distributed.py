"""Two real gloo processes against one process with the whole batch."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest
import torch

import bnlib
from bnlib import batch_norm
from bnlib.distributed import batch_norm_sync, main, run, running_means, shared

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


def trained(model, images):
    """Return weights, buffers and history of a training whose last batch is shorter than the others."""
    history = bnlib.fit(model, images, epochs=2, batch_size=127, lr=0.5, progress=False)
    epochs = torch.tensor([history.train_loss, history.train_accuracy, history.test_accuracy])
    return model.state_dict() | {"epochs": epochs, "points": torch.tensor(history.points)}


def train_on_a_share(rank, images):
    return trained(shared(bnlib.lenet().double()), images)


def test_two_processes_train_as_one_does_on_the_whole_batches(images):
    images = dataclasses.replace(
        images, train_images=images.train_images.double(), test_images=images.test_images.double()
    )
    whole = trained(bnlib.lenet().double(), images)
    for found in run(train_on_a_share, images):
        torch.testing.assert_close(found, dict(whole), rtol=1e-6, atol=1e-9)


def test_torchrun_starts_the_same_training_and_one_process_speaks():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*command, "-m", "bnlib.distributed", "--data=digits", "--epochs=1", "--batch-size=64"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    alone = bnlib.fit(bnlib.lenet(), bnlib.load_images("digits"), epochs=1, batch_size=128, progress=False)
    assert result.stdout.count("Data: ") == result.stdout.count("epoch 1") == 1
    loss = re.search(r"epoch 1: train loss ([\d.]+),", result.stdout)[1]
    assert float(loss) == pytest.approx(alone.train_loss[0], abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs=0"], "epochs must be a whole number, 1 or more, got 0"),
        (["--batch-size=many"], "argument --batch-size: invalid int value: 'many'"),
        (["--data=cifar"], "unknown data set 'cifar'"),
        (["--checkpoint=nowhere/run.pt"], "make the folder nowhere first"),
    ],
)
def test_the_script_says_what_is_wrong_in_a_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--device=cpu", "--data=digits", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
