"""What the processes of lessons 04 and 08 do: each function runs in every process of a `distributed.run`.

A process that is started anew imports what it runs from a module; it cannot find the functions of a notebook.
"""

import torch.distributed as dist
from torch import Tensor

from .distributed import batch_norm_sync
from .functional import batch_norm


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
