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
one such tensor is written in each direction (two forward where there is no L, below), and the rest is done in it, in
place.
"""

import torch


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
    """The formulas above, differentiable twice, on (M, P) or (M, P, L): see `by_channel`."""

    @staticmethod
    def forward(ctx, input, weight, bias, eps, mean, var, remember):  # noqa: D102
        ctx.given, ctx.eps = mean is not None, eps
        ctx.innermost = not input.is_contiguous() and input.movedim(1, -1).is_contiguous()
        x = by_channel(input, ctx.innermost)
        channels = input.shape[1]
        n = input.numel() // channels
        if not ctx.given:
            mean = total(x, channels).div_(n)
        layout = torch.preserve_format if ctx.innermost else torch.contiguous_format
        output = torch.empty_like(input, dtype=x.dtype, memory_format=layout)  # no view: what follows may write into it
        y = torch.sub(x, spread(mean, x), out=by_channel(output, ctx.innermost))
        if ctx.given:
            var = var.to(x.dtype)
        else:  # by norms where they spare a tensor of squares
            squares = y.square() if y.dim() == 2 else torch.linalg.vector_norm(y, dim=2).square_()
            var = total(squares, channels).div_(n)
        if remember is not None:
            remember(mean, var)
        scale = torch.rsqrt(var + eps)  # 1 / σ
        y.mul_(spread(scale if weight is None else scale * weight, x))
        if bias is not None:
            y.add_(spread(bias, x))
        ctx.save_for_backward(input, weight, mean, scale)
        return output.to(input.dtype)

    @staticmethod
    def backward(ctx, dy):  # noqa: D102
        input, weight, mean, scale = ctx.saved_tensors
        x, dy = by_channel(input, ctx.innermost), by_channel(dy, ctx.innermost)
        channels = input.shape[1]
        n = input.numel() // channels
        twice = torch.is_grad_enabled()  # create_graph=True: what follows is differentiated, too
        plain = twice or mapped(dy)  # nothing in place then
        if twice and not ctx.given:  # then mean and scale are functions of x
            mean = total(x, channels) / n
            scale = torch.rsqrt(total((x - spread(mean, x)).square(), channels) / n + ctx.eps)
        gain = scale if weight is None else scale * weight  # γ / σ
        centre = spread(mean, x)
        dx = x - centre
        d_weight = total(dx * dy if plain else dx.mul_(dy), channels) * scale  # Σ dy · x̂
        d_bias = total(dy, channels)
        if ctx.given:
            dx = torch.mul(dy, spread(gain, x), out=None if plain else dx)
        else:
            share = gain / -n  # -γ / (nσ); dx = slope · (x - mean) + shift + γ / σ · dy, one path each
            slope, shift = spread(d_weight * scale * share, x), spread(d_bias * share, x)
            if plain:
                dx = dx * slope + shift + dy * spread(gain, x)
            else:
                torch.sub(x, centre, out=dx)  # again: the memory is there
                dx.mul_(slope).add_(shift).addcmul_(dy, spread(gain, x))
        d_weight = None if weight is None else d_weight
        d_bias = d_bias if ctx.needs_input_grad[2] else None
        return like(input, dx, ctx.innermost), d_weight, d_bias, None, None, None, None


def mapped(t):
    """Return whether vmap lets `t` stand for many, as `torch.autograd.functional.jacobian(vectorize=True)` does."""
    return torch._C._functorch.is_batchedtensor(t) or torch._C._functorch.is_legacy_batchedtensor(t)


def by_channel(t, innermost):
    """Return `t` (N, C, *) in float32 at least: as (M, P, L) with P = C, or as (M, P) where nothing follows C.

    With the channels `innermost` in memory (channels_last), P runs over a row of pixels and their channels, as memory
    does: a vector of so many numbers keeps the processor busy, one of C may be too short.
    """
    t = t.float() if t.dtype.itemsize == 2 else t
    if innermost:
        return t.movedim(1, -1).reshape(-1, t.shape[-1] * t.shape[1])
    return t.reshape(t.shape[0], t.shape[1], -1) if t.dim() > 2 else t  # flatten cannot be mapped


def like(input, t, innermost):
    """Return `t`, as `by_channel` gives it, in the shape and layout of `input`."""
    return t.view(input.movedim(1, -1).shape).movedim(-1, 1) if innermost else t.view(input.shape)


def total(t, channels):
    """Return the sum of `t` (M, P, L) or (M, P) over each channel, (C,)."""
    sums = t.sum(0)
    if t.dim() == 3:
        return sums.sum(1)  # in two steps it rounds less than in one
    return sums if sums.numel() == channels else sums.view(-1, channels).sum(0)


def spread(v, x):
    """Return `v` (C,) so that it stands beside x (M, P, L) or (M, P)."""
    if x.dim() == 3:
        return v.unsqueeze(1)
    return v if v.numel() == x.shape[1] else v.expand(x.shape[1] // len(v), -1).reshape(-1)  # faster than repeat
