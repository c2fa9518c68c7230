"""Batch normalization as two pure functions: one vectorised, one in loops, both with the signature of torch's own.

Ioffe & Szegedy 2015, Algorithm 1. For each channel c, over all n values that share it:

    mean_c = sum(x) / n          var_c = sum((x - mean_c)²) / n          y = (x - mean_c) / √(var_c + eps) · γ_c + β_c

`weight` is γ and `bias` is β. The biased variance (÷ n) normalises; the unbiased one (÷ n - 1) enters `running_var`.
"""

import math

import torch
from torch import Tensor


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return `input` normalised per channel, as `torch.nn.functional.batch_norm` does.

    input         (N, C, *), a floating dtype; float16 and bfloat16 are averaged in float32
    running_mean, running_var    (C,) or None; read when not `training`, updated in place when `training`
    weight, bias  (C,) or None: γ and β
    training      True: normalise with this batch's statistics. False: with the running ones
    momentum      how much of the new statistics enters the running ones: new = (1 - momentum) · old + momentum · batch
    eps           added to the variance, inside the root

    Returns (N, C, *) in the dtype and memory format of `input`.
    Raises what torch raises: ValueError (one value per channel in training, eps out of range, one running statistic
    without the other), RuntimeError (sizes or dtypes that do not fit, no running statistics in evaluation),
    NotImplementedError (not a floating dtype).
    """
    check_arguments(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if input.numel() == 0:  # nothing to average; the sums give the parameters their gradient, zero
        return sum((parameter.sum() for parameter in (weight, bias) if parameter is not None), input.clone())
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    dims = [d for d in range(x.dim()) if d != 1]  # every axis but the channels
    per_channel = (1, -1) + (1,) * (x.dim() - 2)  # (C,) seen as (1, C, 1, ...)
    if training:
        mean = x.mean(dims)  # (C,)
        centred = x - mean.view(per_channel)
        var = centred.square().mean(dims)  # (C,), biased
        update_running(running_mean, running_var, mean, var, x.numel() // mean.numel(), momentum)
    else:
        centred = x - running_mean.view(per_channel)
        var = running_var.to(x.dtype)
    y = centred / torch.sqrt(var + eps).view(per_channel)
    if weight is not None:
        y = y * weight.view(per_channel)
    if bias is not None:
        y = y + bias.view(per_channel)
    return y.to(input.dtype)


def batch_norm_loops(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what `batch_norm` returns, one channel and one number at a time: the specification, and slow.

    Arguments, shapes and errors as in `batch_norm`.
    """
    check_arguments(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if input.numel() == 0:  # no value to visit
        return batch_norm(input, None, None, weight, bias)
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    y, means, variances = torch.empty_like(x), [], []
    for c in range(x.shape[1]):
        values = x[:, c].flatten()  # (n,): all that share channel c
        if training:
            mean = sum(values) / len(values)
            var = sum((value - mean) ** 2 for value in values) / len(values)
            means.append(mean)
            variances.append(var)
        else:
            mean, var = running_mean[c], running_var[c].to(x.dtype)
        gamma = 1.0 if weight is None else weight[c]
        beta = 0.0 if bias is None else bias[c]
        column = [(value - mean) / torch.sqrt(var + eps) * gamma + beta for value in values]
        y[:, c] = torch.stack(column).view(x[:, c].shape)
    if training:
        update_running(running_mean, running_var, torch.stack(means), torch.stack(variances), len(values), momentum)
    return y.to(input.dtype)


def update_running(running_mean, running_var, mean, var, n, momentum):
    """Move the running statistics, both (C,) or both None, in place towards a batch's `mean` and biased `var`.

    n is how many values each channel has; what is stored is the unbiased variance, n / (n - 1) · var. Nothing else is
    written into: under `torch.func.vmap` they may stand for those of many models while the batch is one.
    """
    if running_mean is None:
        return
    for running, batch in ((running_mean, mean), (running_var, var * (n / (n - 1)))):
        running.copy_((momentum * batch.detach()).add(running, alpha=1 - momentum))


def check_arguments(input, running_mean, running_var, weight, bias, training, momentum, eps):
    """Raise torch's exception, its sentence first and what to do about it second, if the arguments do not fit."""
    shape = tuple(input.shape)
    if training and math.prod(shape[:1] + shape[2:]) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.shape}. "
            "One value has no spread: use a larger batch, drop the last short one, or call eval() to predict."
        )
    if eps < 0 or (training and eps == 0):
        range_ = "positive during training" if training else "non-negative"
        raise ValueError(f"batch_norm eps must be {range_}, but got {eps}; 1e-5 is usual")
    if not isinstance(momentum, (int, float, Tensor)):
        raise TypeError(
            f"batch_norm(): argument 'momentum' must be float, not {type(momentum).__name__}; "
            "a cumulative average (momentum=None) is kept by the layers, which count the batches"
        )
    if input.numel() == 0:
        return
    if not input.is_floating_point():
        raise NotImplementedError(
            f'"batch_norm" not implemented for {input.dtype}: averages are fractions; convert first, as in x.float()'
        )
    if not training:
        for name, running in (("running_mean", running_mean), ("running_var", running_var)):
            if running is None:
                raise RuntimeError(
                    f"{name} must be defined in evaluation mode; pass both, or training=True for the batch's own"
                )
    elif (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    channels = shape[1] if input.dim() > 1 else 0
    named = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    for name, tensor in given.items():
        if tensor.numel() != channels:
            raise RuntimeError(
                f"{name} should contain {channels} elements not {tensor.numel()}: "
                f"the input {shape} has its channels on axis 1, one element for each"
                + use_one_of(
                    (len(shape) < 4 and shape[0] == tensor.numel(), "x[None] if it is one sample"),
                    (tensor.numel() == 1, "x[:, None] if it has no axis for its one channel"),
                    *((n == tensor.numel(), f"x.movedim({i}, 1) if they are on axis {i}") for i, n in enumerate(shape)),
                )
            )
    if channels == 0:
        raise IndexError(
            f"Dimension out of range: batch norm needs a channel axis, got {shape}; expected (N, C, *), such as x[None]"
        )
    allowed = {input.dtype, torch.float32} if input.dtype.itemsize == 2 else {input.dtype}
    if not {tensor.dtype for tensor in given.values()} <= allowed:
        got = ", ".join(f"{name} {tensor.dtype}" for name, tensor in given.items())
        raise RuntimeError(
            f"mixed dtype: an input of {input.dtype} goes with {' or '.join(map(str, allowed))}, got {got}; "
            "convert one of them with .to(dtype)"
        )


def use_one_of(*readings):
    """Return the end of a message: the advice of those (whether the sizes fit, advice) whose sizes fit."""
    fitting = [advice for fits, advice in readings if fits]
    return f"; use {', or '.join(fitting)}" if fitting else ""
