"""What the processes of lessons 04 and 08 do: each function runs in every process of a `distributed.run`.

A process that is started anew imports what it runs from a module; it cannot find the functions of a notebook.
"""

import os
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from .distributed import batch_norm_sync, synchronise
from .functional import batch_norm
from .layers import BatchNorm1d
from .models import lenet
from .processes import share
from .training import fit, normalising


def running_means(rank: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return process `rank`'s running means, each (C,), after one training step of momentum 1 on its share of x.

    x is (N, C, *), shared out along N. The first mean is plain `batch_norm`'s, the second `batch_norm_sync`'s.
    """
    means = []
    for norm in (batch_norm, batch_norm_sync):
        mean, var = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
        norm(x.chunk(dist.get_world_size())[rank], mean, var, training=True, momentum=1.0)
        means.append(mean)
    return tuple(means)


def first_step(rank: int, x: Tensor, y: Tensor, sizes: list[int], together: bool, loss="sum") -> dict[str, Tensor]:
    """Return what process `rank` has of LeNet's first training step on its share of images x (N, 1, 28, 28).

    sizes     how many images each process gets
    together  whether the statistics are those of all shares
    loss      "sum": its share's losses, added, times processes over N; "mean": their mean

    "outputs" (n, 10) of its share, "gradient" (P,) of all weights after the processes have averaged it, and
    "running_mean" of the third normalization, (120,). In float64.
    """
    model = synchronise(lenet().double()) if together else lenet().double()
    ddp = DistributedDataParallel(model, forward_sync_buffers=False)
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    outputs = ddp(x[mine].double())
    if loss == "mean":
        F.cross_entropy(outputs, y[mine]).backward()
    else:
        (F.cross_entropy(outputs, y[mine], reduction="sum") * len(sizes) / sum(sizes)).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return {"outputs": outputs.detach(), "gradient": gradient, "running_mean": model[10].running_mean}


def buffers(rank: int) -> dict[str, list[float]]:
    """Return a running mean, momentum 0.5, after each of 3 steps, then two evaluations, then one step more.

    Process 0 always sees the values 0 and 2, process 1 always 10 and 12. "sent": the first process's buffers go to all
    before each forward pass of DistributedDataParallel, its default; "kept": they do not.
    """
    x, seen = torch.tensor([[0.0], [2.0]]) + 10 * rank, {"sent": [], "kept": []}
    for name, means in seen.items():
        layer = BatchNorm1d(1, momentum=0.5)
        ddp = DistributedDataParallel(layer, forward_sync_buffers=name == "sent")
        for training in (True, True, True, False, False, True):
            ddp.train(training)(x)
            means.append(layer.running_mean.item())
    return seen


def messages(rank: int, x: Tensor, y: Tensor) -> list[list[int]]:
    """Return how many numbers each message of the statistics carries in a step of LeNet: on the way forth, and back."""
    model, sizes, send = synchronise(lenet()), [], dist.all_reduce

    def counted(tensor, *args, **kwargs):
        sizes.append(tensor.numel())
        return send(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        loss = F.cross_entropy(model(share(x)), share(y))
        half_way = len(sizes)
        loss.backward()
    finally:
        dist.all_reduce = send
    return [sizes[:half_way], sizes[half_way:]]


def in_groups(rank: int, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return a layer's output for this process's share of x (N, C), and its running mean, in groups of `size`."""
    groups = [dist.new_group(range(first, first + size)) for first in range(0, dist.get_world_size(), size)]
    layer = synchronise(BatchNorm1d(x.shape[1], dtype=x.dtype), groups[rank // size])
    return layer(share(x)).detach(), layer.running_mean


def accumulate(rank: int, x: Tensor, y: Tensor, parts: int) -> Tensor:
    """Return LeNet's gradient (P,) over x in `parts` parts, shared out; DDP sends gradients with the last alone."""
    model = synchronise(lenet().double())
    ddp = DistributedDataParallel(model, forward_sync_buffers=False)
    for k, (images, labels) in enumerate(zip(x.double().chunk(parts), y.chunk(parts), strict=True), 1):
        with nullcontext() if k == parts else ddp.no_sync():
            loss = F.cross_entropy(ddp(share(images)), share(labels), reduction="sum")
            (loss * dist.get_world_size() / len(x)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def one_too_many(rank: int) -> bool:
    """Have process 0 take a forward pass in train() by itself, before the step of all; return True."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what gloo writes as it aborts
    ddp = DistributedDataParallel(synchronise(lenet()))
    x = torch.zeros(4, 1, 28, 28)
    if rank == 0:
        ddp.module(x)
    ddp(x).sum().backward()
    return True


def training(rank: int, images, settings: dict) -> dict:
    """Return "loss", of the last epoch, and "speed", images a second, of a LeNet that all processes train."""
    model = synchronise(lenet())
    history = fit(model, images, progress=False, **settings)
    return {"loss": history.train_loss[-1], "speed": history.examples_per_second}


def split(model: nn.Module, machines: int) -> nn.Module:
    """Return `model`, changed to normalise each of `machines` equal parts of a batch by itself, in one process.

    What plain layers do on so many machines, "ghost batch normalization" (Hoffer, Hubara & Soudry 2017): the running
    statistics are those of the first part.
    """
    for layer in normalising(model).values():

        def forward(x, layer=layer):
            if not layer.training:
                return type(layer).forward(layer, x)
            parts = x.unflatten(0, (machines, -1))
            first, others = type(layer).forward(layer, parts[0]), parts[1:].movedim(1, 0)  # (n, machines - 1, C, *)
            affine = [part if part is None else part.repeat(machines - 1) for part in (layer.weight, layer.bias)]
            apart = batch_norm(others.flatten(1, 2), None, None, *affine, True, eps=layer.eps)  # as other channels
            return torch.cat([first[None], apart.view(others.shape).movedim(0, 1)]).flatten(0, 1)

        layer.forward = forward
    return model


def train_split(images, machines: int, batch: int, by_class: bool, *, epochs=8, lr=0.1, seed=0) -> nn.Module:
    """Return LeNet trained as on so many machines with plain layers, `batch` images on each; see `split`.

    by_class  sort each whole batch by class first, so that the machines' shares are not alike
    """
    model = split(lenet(seed=seed), machines)
    x, y = images.train_images, images.train_labels
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for indices in order[: len(x) // (machines * batch) * machines * batch].split(machines * batch):
            chosen = indices[y[indices].argsort(stable=True)] if by_class else indices
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return model
