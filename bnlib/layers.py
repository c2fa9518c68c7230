"""Batch normalization layers: what the pure functions need to remember, and when they use it.

Drop-in for `torch.nn.BatchNorm1d/2d/3d`: same constructor, buffers, `state_dict` keys, errors and numbers. They do not
inherit from torch's. So what reads a layer's attributes knows them, and what looks for torch's class does not; for that
one `bnlib.to_torch(model)` returns the model with torch's layers.

    torch's tools                                         our layers
    nn.utils.fusion (fuse_conv_bn_eval, ..._linear_...)   fused
    AveragedModel, DistributedDataParallel                buffers averaged, and sent to all processes
    torch.compile, torch.jit.trace, torch.func            followed
    torch.export                                          followed as plain arithmetic: no node `batch_norm`
    swa_utils.update_bn                                   passed by; take `reestimate_statistics`
    SyncBatchNorm.convert_sync_batchnorm                  passed by; take `bnlib.distributed.synchronise`
    func.replace_all_batch_norm_modules_                  passed by, as by all that asks for the class `_BatchNorm`
    ao.quantization (fuse_modules, prepare_fx)            refused with an error
    torch.fx.symbolic_trace, torch.jit.script             refused with an error
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from .functional import batch_norm, check_arguments, update_running, use_one_of
from .kernels import normalise


class BatchNorm(nn.Module):
    """The book-keeping that `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` share.

    num_features  C, the size of axis 1
    eps           added to the variance, inside the root
    momentum      how much of a batch's statistics enters the running ones; None: their cumulative average
    affine        learn γ (`weight`, from 1) and β (`bias`, from 0), each (C,); bias=False leaves β out
    track_running_stats  keep `running_mean` (C,), `running_var` (C,) and `num_batches_tracked` () as buffers, so that
                  they travel with `state_dict()` and `.to(device)`; without, every mode uses the batch's statistics

    Ioffe & Szegedy 2015, Algorithms 1 (training) and 2 (inference).
    """

    _version = 2  # of the state_dict: since version 2 it holds num_batches_tracked
    ranks: ClassVar[dict[int, str]]  # the ranks taken, each with its shape

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device=None,
        dtype=None,
        *,
        bias: bool = True,
    ):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats

        def per_channel():
            return torch.empty(num_features, device=device, dtype=dtype)

        self.register_parameter("weight", nn.Parameter(per_channel()) if affine else None)
        self.register_parameter("bias", nn.Parameter(per_channel()) if affine and bias else None)
        self.register_buffer("running_mean", per_channel() if track_running_stats else None)
        self.register_buffer("running_var", per_channel() if track_running_stats else None)
        count = torch.zeros((), dtype=torch.long, device=device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_running_stats(self):
        """Set the running mean to 0, the running variance to 1 and the count of batches to 0."""
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self):
        """Set γ to 1 and β to 0, and reset the running statistics."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` normalised: with its own statistics in training mode, with the running ones in evaluation."""
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        updates = self.training and self.track_running_stats
        if updates and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the k-th batch weighs 1/k: a cumulative average
                momentum = 1.0 / float(self.num_batches_tracked)
        running = self.running_mean, self.running_var
        training = self.training or running == (None, None)  # normalise with the batch's own statistics
        if training and not updates:
            running = None, None  # and remember nothing of it
        affine = self.weight, self.bias
        arguments = (input, *running, *affine, training, momentum, self.eps)
        if traced() or input.numel() == 0:
            return batch_norm(*arguments)
        check_arguments(*arguments)
        if not training:
            return normalise(input, *affine, self.eps, *running)

        def remember(mean, var):
            update_running(*running, mean, var, input.numel() // mean.numel(), momentum)

        return normalise(input, *affine, self.eps, remember=remember)

    def _check_input_dim(self, input):
        if input.dim() not in self.ranks:
            wanted = " or ".join(f"{rank}D" for rank in self.ranks)
            shapes = " or ".join(self.ranks.values())
            raise ValueError(
                f"expected {wanted} input (got {input.dim()}D input): {type(self).__name__} takes {shapes}, "
                f"this is {tuple(input.shape)}{what_it_may_be(tuple(input.shape), self.num_features, self.ranks)}"
            )

    def extra_repr(self):
        """Return the constructor's arguments as text, for `repr`."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        version = local_metadata.get("version")
        if self.track_running_stats and (version is None or version < 2):
            state_dict.setdefault(prefix + "num_batches_tracked", self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class BatchNorm1d(BatchNorm):
    """Batch normalization of (N, C) or (N, C, L): statistics over N, or over N and L. See `BatchNorm`."""

    ranks: ClassVar = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(BatchNorm):
    """Batch normalization of (N, C, H, W): statistics over N, H and W. See `BatchNorm`."""

    ranks: ClassVar = {4: "(N, C, H, W)"}


class BatchNorm3d(BatchNorm):
    """Batch normalization of (N, C, D, H, W): statistics over N, D, H and W. See `BatchNorm`."""

    ranks: ClassVar = {5: "(N, C, D, H, W)"}


def what_it_may_be(shape, channels, ranks) -> str:
    """Return what an input of none of the `ranks` may be, as far as its sizes tell, and what to do then."""
    rank = len(shape)
    one_short, two_short, one_over = (ranks.get(rank + axes) for axes in (1, 2, -1))
    flat = 2 in ranks and rank > 3 and math.prod(shape[1:]) == channels
    unknown = not flat and channels not in (1, *shape)
    readings = [(flat, "x.flatten(1) if all but N are features")]
    if one_short:
        last = rank > 1 and shape[-1] == channels
        readings += [
            (unknown or shape[0] == channels, f"x[None] if it is one {without('N', one_short)}"),
            (shape[0] != channels == 1, f"x[:, None] if it is {without('C', one_short)}"),
            (last, f"x.movedim(-1, 0)[None] if it is one {without('NC', one_short, 'C')}"),
        ]
    if two_short and rank:
        readings += [(channels == 1, f"x[None, None] if it is one {without('NC', two_short)}")]
    if one_over:
        readings += [(shape[2] == channels, f"x.flatten(0, 1) if it is {one_over.replace('N', 'N, T')}")]
    for layer in (BatchNorm1d, BatchNorm2d, BatchNorm3d):
        if rank in layer.ranks:
            readings += [(unknown or shape[1] == channels, f"{layer.__name__} if it is {layer.ranks[rank]}")]
    return use_one_of(*readings) + (f"; no axis has {channels}, the layer's channels" if unknown else "")


def without(axes, shape, *more):
    """Return a shape in letters, as "(N, C, L)", without some of its axes and with others at its end."""
    kept = [axis for axis in shape[1:-1].split(", ") if axis not in axes] + [*more]
    return f"({', '.join(kept)}{',' * (len(kept) == 1)})"


def traced() -> bool:
    """Return whether a compiler, a tracer, `torch.func` or forward mode follows the operations: in the plain form."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )
