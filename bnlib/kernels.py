"""Batch normalization for speed: the numbers of `functional.batch_norm`, forward and backward in closed form.

Per channel, over the n values that share it, with σ = √(var + eps) and x̂ = (x - mean) / σ:

    forward     y  = x̂ · γ + β
    backward    dβ = Σ dy          dγ = Σ dy · x̂
                dx = γ / σ · (dy - dβ / n - x̂ · dγ / n)

dβ and dγ are read off the forward line. For dx, write g = γ · dy for the gradient that reaches x̂. A value x_i acts on
the loss in three ways:

    directly: dx̂_i / dx_i = 1 / σ                                                             g_i / σ
    through the mean: dmean / dx_i = 1 / n and dx̂_j / dmean = -1 / σ                          -Σ_j g_j / (nσ)
    through the variance: dvar / dx_i = 2 (x_i - mean) / n and dx̂_j / dvar = -x̂_j / (2σ²)     -x̂_i Σ_j g_j x̂_j / (nσ)

and dx_i is their sum (Ioffe & Szegedy 2015, section 3, with the terms collected). Running statistics are constants:
with them only the direct way is left, dx = γ / σ · dy.

Why it is faster than autograd on the plain form: that keeps and writes several tensors as large as x. Here x is kept,
one such tensor is written in each direction, and the rest of the work is done in it, in place.
"""

import torch
from torch import Tensor


def normalise(input, weight, bias, eps, mean=None, var=None, remember=None):
    """Return `input` normalised per channel. The arguments are taken to fit: the layers check them.

    input         (N, C, *), not empty; float16 and bfloat16 are computed in float32
    weight, bias  (C,) or None: γ and β
    eps           added to the variance, inside the root
    mean, var     (C,): given statistics, or None for the batch's own
    remember      called with the batch's mean and biased variance, (C,) each
    """
    return Normalise.apply(input, weight, bias, eps, mean, var, remember)


class Normalise(torch.autograd.Function):
    """The formulas above, on (N, C, L), differentiable twice."""

    @staticmethod
    def forward(ctx, input, weight, bias, eps, mean, var, remember):  # noqa: D102
        ctx.given, ctx.eps = mean is not None, eps
        x = by_channel(input)
        mean = mean[:, None] if ctx.given else x.mean(0).mean(1)[:, None]  # in two steps it rounds less than in one
        y = x - mean
        if ctx.given:
            var = var.to(x.dtype)
        else:  # by norms, because they write no tensor of squares
            var = torch.linalg.vector_norm(y, dim=2).square_().sum(0).div_(x.shape[0] * x.shape[2])
        if remember is not None:
            remember(mean.flatten(), var)
        scale = torch.rsqrt(var + eps)[:, None]  # 1 / σ
        y.mul_(scale if weight is None else scale * weight[:, None])
        if bias is not None:
            y.add_(bias[:, None])
        ctx.save_for_backward(input, weight, mean, scale)
        return y.view(input.shape).to(input.dtype)

    @staticmethod
    def backward(ctx, dy):  # noqa: D102
        input, weight, mean, scale = ctx.saved_tensors
        x, dy = by_channel(input), by_channel(dy)
        twice = torch.is_grad_enabled()  # create_graph=True: what follows is differentiated, too
        if twice and not ctx.given:  # then mean and scale are functions of x
            mean = x.mean((0, 2), keepdim=True)
            scale = torch.rsqrt((x - mean).square().mean((0, 2), keepdim=True) + ctx.eps)
        gain = scale if weight is None else scale * weight[:, None]  # γ / σ
        dx = x - mean
        d_weight = dx.mul_(dy).sum((0, 2), keepdim=True) * scale
        d_bias = dy.sum((0, 2), keepdim=True)
        if ctx.given:
            dx.copy_(dy).mul_(gain)
        else:
            share = gain / -(x.shape[0] * x.shape[2])
            dx = torch.sub(x, mean, out=None if twice else dx)  # again: the memory is there, and autograd takes no out
            dx.mul_(d_weight * scale * share).add_(d_bias * share).addcmul_(dy, gain)
        d_weight = None if weight is None else d_weight.flatten()
        d_bias = d_bias.flatten() if ctx.needs_input_grad[2] else None
        return dx.view(input.shape), d_weight, d_bias, None, None, None, None


def by_channel(t: Tensor) -> Tensor:
    """Return `t` (N, C, *) as (N, C, L), in float32 at least."""
    t = t.float() if t.dtype.itemsize == 2 else t
    return t.reshape(t.shape[0], t.shape[1], -1)
