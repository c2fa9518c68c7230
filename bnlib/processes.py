"""What the processes of one training tell each other; without a process group, one process that talks to nobody.

Sums and messages go through `torch.distributed`. What is said here is said by all processes, or the others wait.
"""

import contextlib
import signal
import threading

import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Return this process's rank and how many processes there are: 0 and 1 where there is no process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(batch: Tensor) -> Tensor:
    """Return this process's share of `batch` (B, *): shares differ in length by one at most, and may be empty."""
    rank, processes = world()
    return batch.tensor_split(processes)[rank]


def total(values: Tensor) -> Tensor:
    """Return `values`, summed in place over all processes, without a gradient."""
    if world()[1] > 1:
        dist.all_reduce(values)
    return values


def from_first(work, device):
    """Return in every process what `work()` returns in the first, or raise what it raises there.

    device  the process's own: with nccl the message travels through it
    """
    rank, processes = world()
    if processes == 1:
        return work()
    outcome = [None, None]
    if rank == 0:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, device=device)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def send_buffers(model):
    """Give all processes the first one's buffers: where a layer's statistics are each share's own, they differ."""
    if world()[1] > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


@contextlib.contextmanager
def interrupts_held():
    """Yield a list that grows with each interrupt, so that the processes can stop together; one alone just stops."""
    held = []
    if world()[1] == 1 or threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = signal.signal(signal.SIGINT, lambda *_: held.append(True))
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, before)
