"""Batch normalization when a batch is split over processes: what each one sees, and how they can agree.

`run` starts real processes on this machine, which need neither GPU nor network (torch.distributed's gloo). As a script,
under torchrun, this module is the training of lesson 05 in several processes, on DistributedDataParallel:

    torchrun --nproc-per-node 2 -m bnlib.distributed --epochs 2
"""

import argparse
import contextlib
import logging
import math
import os
import pickle
import sys
import tempfile
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from .data import load_images
from .functional import batch_norm, update_running
from .models import lenet
from .processes import join
from .training import SCHEDULES, find_device, fit, normalising


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; each process gets it, so each one's gradient flows back to all."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group, total = group, x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _SumOverProcesses.apply(gradient.contiguous(), ctx.group), None


def batch_norm_sync(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, group=None
) -> Tensor:
    """Return `input`, this process's share of a batch, normalised in training with the whole batch's statistics.

    Arguments, shapes and errors as in `batch_norm`, to which it falls back in evaluation and for one process alone. All
    processes, or those of a `dist.ProcessGroup`, call it together; shares may differ in N, which may be 0. Gradients
    are those of the sum of their losses. Two sums travel, of x and then of (x - mean)²: the cross-GPU batch
    normalization of Peng et al. 2018 (MegDet). Nothing waits for a GPU.
    """
    processes = dist.get_world_size(group) if dist.is_initialized() else 1
    if processes < 0:  # torch's way to say so
        raise ValueError(
            f"process {dist.get_rank()} is not in `group`: of dist.new_group's, keep the one that holds it"
        )
    if processes == 1 or not training:
        return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    dims = [d for d in range(x.dim()) if d != 1]
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    count = x.new_full((1,), x.numel() // max(x.shape[1], 1))
    sums = _SumOverProcesses.apply(torch.cat([x.sum(dims), count]), group)  # (C + 1,)
    n = sums[-1].detach()
    if n.device.type == "cpu" and n < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got {n:.0f} of {processes} processes")
    mean = sums[:-1] / n  # (C,), of the whole batch
    centred = x - mean.view(per_channel)
    var = _SumOverProcesses.apply(centred.square().sum(dims), group) / n  # (C,), biased
    update_running(running_mean, running_var, mean, var, n, momentum)
    y = centred / torch.sqrt(var + eps).view(per_channel)
    y = y if weight is None else y * weight.view(per_channel)
    y = y if bias is None else y + bias.view(per_channel)
    return y.to(input.dtype)


def synchronise(model: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Return `model`, its batch normalization layers, ours and torch's, changed to take a whole batch's statistics.

    The batch is what all processes have, or those of `group`: see `batch_norm_sync`. `nn.SyncBatchNorm` stays as it is.
    """
    for layer in normalising(model).values():
        layer.forward = partial(_normalise_together, layer, group)
    return model


def _normalise_together(layer, group, input):
    """Return what `layer` makes of its share of a batch; for a batch's statistics it takes those of the whole one."""
    running = layer.running_mean, layer.running_var
    alone = not dist.is_initialized() or dist.get_world_size(group) == 1
    if alone or not (layer.training or running == (None, None)):
        return type(layer).forward(layer, input)
    layer._check_input_dim(input)
    momentum, before = layer.momentum, ()
    if not (layer.training and layer.track_running_stats):
        running = None, None
    elif layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if momentum is None:
            momentum, before = 1.0, [each.clone() for each in running]
    y = batch_norm_sync(input, *running, layer.weight, layer.bias, True, momentum or 0.0, layer.eps, group)
    for mean, earlier in zip(running, before, strict=False):  # 1/n stays a tensor: a number would have to be waited for
        mean.copy_(earlier.lerp(mean, 1 / layer.num_batches_tracked.to(mean.dtype)))
    return y


def run(worker, *args, processes=2, timeout=60) -> list:
    """Return [worker(0, *args), worker(1, *args), ...], each computed by a process of its own, joined in a gloo group.

    `worker` must be importable (a function of a module, not of a notebook) and return tensors, or lists, tuples and
    dictionaries of them. An exception in a worker ends all processes and is raised here as torch's
    `ProcessRaisedException`, with the worker's traceback in it; if one is killed or aborts, `ProcessExitedException`
    names the signal. Where others fail of that, the first is raised. A process waits for the others `timeout` seconds
    at most. On Linux all come from one that the first `run` starts: what enters `os.environ` later they do not see.
    """
    logging.getLogger("torch.multiprocessing").setLevel(logging.ERROR)  # that the others are ended, the exception says
    method = "forkserver" if sys.platform == "linux" else "spawn"  # a fork need not import torch again
    multiprocessing.set_forkserver_preload([__name__, "torch._dynamo"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = processes, folder, worker, args, timedelta(seconds=timeout)
        context = multiprocessing.start_processes(_join_and_work, arguments, processes, False, start_method=method)
        failures = []
        while context.sentinels:  # of the processes not yet heard
            try:
                context.join()
            except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
                failures.append(error)
            except (EOFError, pickle.UnpicklingError):
                pass  # of one that failed of another, and was ended while it wrote its traceback
        if failures:
            raise min(failures, key=partial(_when_it_failed, context.error_files))
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def _when_it_failed(files, error):
    """Return when a process failed (ns): one that died before all that raised, those ended by `join` after them."""
    if isinstance(error, multiprocessing.ProcessRaisedException):
        return os.stat(files[error.error_index]).st_mtime_ns  # where it wrote its traceback, before it let go of others
    return math.inf if error.signal_name == "SIGTERM" else 0


def _join_and_work(rank, processes, folder, worker, args, timeout):
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=timeout)
    dist.barrier()  # all are connected, or one that fails at once would fail the others while they connect
    torch.save(worker(rank, *args), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()  # after an error not: the others would fail of it, and perhaps be heard first


def main(arguments=None):
    """Train LeNet in this process and the others that torchrun has started; the first of them says how it goes."""
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m bnlib.distributed",
        description="Train LeNet on N processes, each with its share of a batch and the whole batch's statistics: N of "
        "batch B do what one of batch N times B does. On GPUs (nccl) one process each, on CPUs (gloo) any number.",
    )
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training images (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per process and step (%(default)s)")
    parser.add_argument("--lr", type=float, default=1.0, help="learning rate (%(default)s)")
    parser.add_argument("--schedule", choices=SCHEDULES, default="constant", help="of the learning rate (%(default)s)")
    parser.add_argument("--data", default="auto", help="what load_images takes: auto, fashion-mnist or digits")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    parser.add_argument("--checkpoint", help="the first process's file, to write each epoch and to continue from")
    parser.add_argument("--timeout", type=float, default=300, help="seconds to wait for other processes (%(default)s)")
    given = parser.parse_args(arguments)
    rank, processes, local = (
        int(os.environ.get(*each)) for each in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    cuda = given.device == "cuda" or (given.device == "auto" and torch.cuda.is_available())
    try:
        device = find_device(f"cuda:{local}" if cuda else "cpu")
        if processes > 1:
            if cuda:
                torch.cuda.set_device(device)
            join("nccl" if cuda else "gloo", given.timeout)
        with contextlib.redirect_stdout(None) if rank else contextlib.nullcontext():
            if local:
                dist.barrier()  # each machine's first process downloads, the others find it done
            images = load_images(given.data)
            if processes > 1 and not local:
                dist.barrier()
            options = {name: getattr(given, name) for name in ("epochs", "lr", "schedule", "checkpoint")}
            options |= {"batch_size": given.batch_size * processes, "device": device, "on_epoch": print}
            fit(synchronise(lenet()), images, **options)
    except (ValueError, OSError, FloatingPointError) as error:
        hint = f" ({processes} processes of {given.batch_size})" * ("batch_size" in str(error))
        parser.exit(2, f"{error}{hint}\n")
    if processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
