"""The other norms: one formula over other axes, as functions with the signatures of torch's own where it has them.

On images (N, C, H, W) these axes share a mean: batch (0, 2, 3), layer (1, 2, 3), instance (2, 3); group norm takes the
C / G channels of a group together, (2, 3, 4) of (N, G, C / G, H, W). weight is γ and bias is β, None for 1 and 0.
Half precision is computed in float32, as in torch. `norm_checks.py` refuses what torch refuses.
"""

import torch
from torch import Tensor

from . import norm_checks as check
from .functional import batch_norm, update_running


def normalise(x, dims, eps=1e-5) -> Tensor:
    """Return (x - mean) / √(var + eps), both taken over the axes `dims` together; var is biased, ÷ n.

    Raises IndexError for an axis that x has not.
    """
    check.axes(x, dims)
    centred = x - x.mean(dims, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(dims, keepdim=True) + eps)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5) -> Tensor:
    """Return `input` (*, *normalized_shape) normalised over those last axes. Ba, Kiros & Hinton 2016.

    weight, bias  of shape `normalized_shape`
    Raises RuntimeError for shapes or dtypes that do not fit, NotImplementedError for a dtype without fractions.
    """
    dims = check.last_axes("layer_norm", input, normalized_shape, weight=weight, bias=bias)
    check.dtypes("LayerNormKernelImpl", input, weight, bias)
    return affine(normalise(widened(input), dims, eps), weight, bias, input.dtype)


def rms_norm(input, normalized_shape, weight=None, eps=None) -> Tensor:
    """Return `input` (*, *normalized_shape) / √(mean square over those axes + eps). Zhang & Sennrich 2019.

    weight  of shape `normalized_shape`. There is no β, and no mean is subtracted; `input` may be complex
    eps     None: the machine epsilon of the dtype that is computed in, 1.2e-7 for all but double precision
    Raises as `layer_norm`, and ValueError for too few axes; γ may be of another dtype.
    """
    dims = check.last_axes("rms_norm", input, normalized_shape, weight=weight)
    check.dtypes("rms_norm", input)
    x = widened(input)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return affine(x / torch.sqrt(x.square().mean(dims, keepdim=True) + eps), weight, None, input.dtype)


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5) -> Tensor:
    """Return `input` (N, C, *), the C / num_groups neighbouring channels of a group normalised together. Wu & He 2018.

    weight, bias  (C,): one for each channel, not for each group
    Raises RuntimeError for groups that do not divide C, shapes and dtypes; ZeroDivisionError for no group; ValueError
    for N = 1 and one value in each group; NotImplementedError for a dtype without fractions.
    """
    check.groups(input, num_groups, weight=weight, bias=bias)
    check.dtypes("GroupNormKernelImpl", input, weight, bias)
    x = widened(input).unflatten(1, (num_groups, input.shape[1] // num_groups))  # (N, G, C / G, *)
    y = normalise(x, tuple(range(2, x.dim())), eps).flatten(1, 2)
    return affine(y, *per_channel(input, weight, bias), input.dtype)


def instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
) -> Tensor:
    """Return `input` (N, C, *), each channel of each sample normalised alone. Ulyanov, Vedaldi & Lempitsky 2016.

    running_mean, running_var  (C,) or None; moved in place towards the samples' averages when `use_input_stats`, else
                               `input` is normalised with them
    weight, bias  (C,)
    Raises ValueError for one value per channel or one running statistic alone, and as `batch_norm` otherwise.
    """
    check.instances(
        input, use_input_stats, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias
    )
    check.dtypes("batch_norm", input, running_mean, running_var, weight, bias)
    x, dims = widened(input), tuple(range(2, input.dim()))
    if use_input_stats:
        y = normalise(x, dims, eps)
        if input.numel():
            mean, var = x.mean(dims).mean(0), x.var(dims, correction=0).mean(0)  # (C,)
            update_running(running_mean, running_var, mean, var, x[0, 0].numel(), momentum)
    else:
        mean, var = per_channel(input, running_mean, running_var)
        y = (x - mean) / torch.sqrt(var.to(x.dtype) + eps)
    return affine(y, *per_channel(input, weight, bias), input.dtype)


def masked_batch_norm(
    input, mask, weight=None, bias=None, eps=1e-5, *, running_mean=None, running_var=None, momentum=0.1
) -> Tensor:
    """Return `input` (N, C, *) batch-normalised as if only the positions under `mask` were there; the others become 0.

    mask  (N, *) of bools, True where a position is real and False where it is padding
    The rest, and what is raised, as in `batch_norm(..., training=True)`; IndexError for a mask that does not fit.
    """
    check.mask(input, mask)
    real = input.movedim(1, -1)[mask]  # (positions, C)
    y = batch_norm(real, running_mean, running_var, weight, bias, True, momentum, eps)
    return torch.zeros_like(input).movedim(1, -1).index_put((mask,), y).movedim(-1, 1)


def widened(x):
    """Return x in the dtype that it is computed in: half precisions in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def per_channel(input, *parameters):
    """Return each of the parameters (C,), or None, in a shape that broadcasts along the channels of `input`."""
    return [None if p is None else p.view(-1, *[1] * (input.dim() - 2)) for p in parameters]


def affine(y, weight, bias, dtype):
    """Return y · weight + bias, without those that are None, as `dtype`."""
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(dtype)
