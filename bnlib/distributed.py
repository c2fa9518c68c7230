"""Batch normalization when a batch is split over processes: what each one sees, and how they can agree.

The gloo backend of torch.distributed needs neither a GPU nor a network: `run` starts real processes on this machine,
which find each other through a file. As a script, under torchrun, this module is the training of lesson 05 in several
processes:

    torchrun --nproc-per-node 2 -m bnlib.distributed --epochs 2
"""

import argparse
import contextlib
import os
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import spawn

from .data import load_images
from .functional import batch_norm, update_running
from .layers import BatchNorm
from .models import lenet
from .training import SCHEDULES, find_device, fit

ALONE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # torchrun's variables, and what they are without it


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; each process gets it, so each one's gradient flows back to all."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _SumOverProcesses.apply(gradient.contiguous())


def batch_norm_sync(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return `input`, this process's share of a batch, normalised in training with the whole batch's statistics.

    Arguments and shapes as in `batch_norm`, to which it falls back in evaluation and where there is but one process.
    All processes must call it together; their shares may differ in N. Gradients are those of the sum of all processes'
    losses. Two sums travel, first of x and then of (x - mean)²: the cross-GPU batch normalization of Peng et al. 2018
    (MegDet).
    """
    if not training or not dist.is_initialized() or dist.get_world_size() == 1:
        return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    dims = [d for d in range(x.dim()) if d != 1]
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    count = x.new_tensor([x.numel() // max(x.shape[1], 1)])
    sums = _SumOverProcesses.apply(torch.cat([x.sum(dims), count]))  # (C + 1,)
    n = sums[-1].item()
    mean = sums[:-1] / n  # (C,), of the whole batch
    centred = x - mean.view(per_channel)
    var = _SumOverProcesses.apply(centred.square().sum(dims)) / n  # (C,), biased
    update_running(running_mean, running_var, mean, var, n, momentum)
    y = centred / torch.sqrt(var + eps).view(per_channel)
    if weight is not None:
        y = y * weight.view(per_channel)
    if bias is not None:
        y = y + bias.view(per_channel)
    return y.to(input.dtype)


def shared(model: nn.Module) -> nn.Module:
    """Return `model`, made to work on this process's share of each batch, and to return what it returns for all of it.

    Every process then runs the same `fit` on the same images: it sees the same whole batches, outputs and losses as one
    process alone, and computes a part of them. Our batch normalization layers take the whole batch's statistics, and
    gradients are added up: each process has those of its share. torch's layers are left as they are (see
    `nn.SyncBatchNorm`). For one optimizer step after each backward pass; outputs are (B, classes).
    """
    whole = model.forward

    def forward(x):
        edges = [len(x) * rank // dist.get_world_size() for rank in (dist.get_rank(), dist.get_rank() + 1)]
        mine = slice(*edges)
        share = whole(x[mine])
        outputs = share.new_zeros(len(x), *share.shape[1:])
        outputs[mine] = share.detach()
        dist.all_reduce(outputs)
        outputs[mine] = share  # once more, for the way back
        return outputs

    model.forward = forward
    for layer in model.modules():
        if isinstance(layer, BatchNorm):
            layer.forward = partial(_normalise_together, layer)
    for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
        parameter.register_post_accumulate_grad_hook(lambda parameter: dist.all_reduce(parameter.grad))
    return model


def _normalise_together(layer, input):
    """Return what `layer` makes of its share of a batch; for a batch's statistics it takes those of the whole one."""
    if not layer.training and layer.running_mean is not None:
        return type(layer).forward(layer, input)
    layer._check_input_dim(input)
    momentum = layer.momentum
    if layer.track_running_stats:
        layer.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1 / float(layer.num_batches_tracked)
    return batch_norm_sync(
        input, layer.running_mean, layer.running_var, layer.weight, layer.bias, True, momentum or 0.0, layer.eps
    )


def running_means(rank: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return process `rank`'s running means, each (C,), after one training step of momentum 1 on its share of x.

    x is (N, C, *), shared out along N. The first mean is plain `batch_norm`'s, the second `batch_norm_sync`'s.
    """
    share = x.chunk(dist.get_world_size())[rank]
    means = []
    for norm in (batch_norm, batch_norm_sync):
        mean, var = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
        norm(share, mean, var, training=True, momentum=1.0)
        means.append(mean)
    return tuple(means)


def run(worker, *args, processes=2) -> list:
    """Return [worker(0, *args), worker(1, *args), ...], each computed by a process of its own, joined in a gloo group.

    `worker` must be importable (a function of a module, not of a notebook) and return tensors, or lists, tuples and
    dictionaries of them. An exception in a worker ends all processes and is raised here as torch's
    `ProcessRaisedException`, with the worker's traceback in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_join_and_work, (processes, folder, worker, args), nprocs=processes)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def _join_and_work(rank, processes, folder, worker, args):
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    dist.barrier()  # all are connected, or one that fails at once would fail the others while they connect
    torch.save(worker(rank, *args), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()  # after an error not: the others would fail of it, and perhaps be heard first


def main(arguments=None):
    """Train LeNet in this process and the others that torchrun has started; the first of them says how it goes."""
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m bnlib.distributed",
        description="Train LeNet with batch normalization on N processes: each takes its share of every batch, and the "
        "statistics are those of the whole batch, so N processes of batch B do what one of batch N times B does.",
        epilog="On GPUs (nccl) one process each; on CPUs (gloo) as many as you like. Without torchrun: one process.",
    )
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training images (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per process and step (%(default)s)")
    parser.add_argument("--lr", type=float, default=1.0, help="learning rate (%(default)s)")
    parser.add_argument("--schedule", choices=SCHEDULES, default="constant", help="of the learning rate (%(default)s)")
    parser.add_argument("--data", default="auto", help="what load_images takes: auto, fashion-mnist or digits")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    parser.add_argument("--checkpoint", help="file to continue from and to write to, seen by all processes")
    given = parser.parse_args(arguments)
    rank, processes, local = (int(os.environ.get(name, alone)) for name, alone in ALONE.items())
    cuda = given.device == "cuda" or (given.device == "auto" and torch.cuda.is_available())
    try:
        device = find_device(f"cuda:{local}" if cuda else "cpu")
        if processes > 1:
            if cuda:
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if cuda else "gloo")
        with contextlib.redirect_stdout(None) if rank else contextlib.nullcontext():
            if rank:
                dist.barrier()  # the first process downloads, the others find it done
            images = load_images(given.data)
            if processes > 1 and not rank:
                dist.barrier()
            model = lenet()
            fit(
                shared(model) if processes > 1 else model,
                images,
                epochs=given.epochs,
                batch_size=given.batch_size * processes,
                lr=given.lr,
                schedule=given.schedule,
                device=device,
                checkpoint=given.checkpoint,
                progress=not rank,
                on_epoch=print,
            )
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(2, f"{error}\n")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
