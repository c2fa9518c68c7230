"""Batch normalization when a batch is split over processes: what each one sees, and how they can agree.

The gloo backend of torch.distributed needs neither a GPU nor a network: `run` starts real processes on this machine,
which find each other through a file.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import spawn

from .functional import batch_norm, update_running


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
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(processes)]


def _join_and_work(rank, processes, folder, worker, args):
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    try:
        torch.save(worker(rank, *args), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
