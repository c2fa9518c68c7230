"""What the processes of one training tell each other; without a process group, one process that talks to nobody.

Sums and messages go through `torch.distributed`. What is said here is said by all processes, or the others wait.
"""

import contextlib
import os
import signal
import threading
import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist
from torch import Tensor


def join(backend, timeout):
    """Join the processes that the environment names, as torchrun sets it; wait for them `timeout` seconds at most.

    Raises ConnectionError, with what to look at, if they do not meet.
    """
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
        store = dist.PrefixStore(_this_start(store, rank, size, timeout), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        rank, size, *place = (os.environ.get(key) for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
        raise ConnectionError(
            f"process {rank} of {size} did not meet the others at {':'.join(map(str, place))} ({timeout:g} seconds is "
            f"the most it waits): {error}\nDoes the first process run there, is its port free, do all the others run?"
        ) from None


def _this_start(store, rank, size, timeout):
    """Return a name that all processes started now agree on.

    After a restart torchrun hands out the store that it had before, with the addresses of the dead in it; their own
    count of restarts, which would tell, differs between machines (PyTorch's issue 135712).
    """
    mine = uuid4().hex
    if rank == 0:
        for other in range(1, size):
            store.delete_key(f"hello {other}")  # may be of the dead; the living say it again
        for other in range(1, size):
            store.set(f"welcome {store.get(f'hello {other}').decode()}", mine)
        return mine
    end = time.monotonic() + timeout
    while time.monotonic() < end and not store.check([f"welcome {mine}"]):
        store.set(f"hello {rank}", mine)
        with contextlib.suppress(dist.DistStoreError):
            store.wait([f"welcome {mine}"], timedelta(seconds=0.2))
    return store.get(f"welcome {mine}").decode()


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
