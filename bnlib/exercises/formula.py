"""Batch normalization with a knob for each of its terms: without knobs it is right, and every mistake turns one."""

import torch


def average(values, dims, by="n"):
    """Return the sum over `dims`, axes kept, divided by n, or by what was mistaken for n."""
    n = values.numel() / max(values.sum(dims).numel(), 1)
    divisor = {
        "n": n,
        "n - 1": n - 1,
        "N": values.shape[0],
        "H·W": n / values.shape[0],
        "n - N": n - values.shape[0],
        "1": 1,
    }[by]
    return values.sum(dims, keepdim=True) / divisor


def normalise(
    x,
    eps=1e-5,
    gamma=None,
    beta=None,
    *,
    over=None,
    mean_over=None,
    var_over=None,
    around="own mean",
    laid="keepdim",
    sample="all",
    mean_by="n",
    var_by="n",
    carried="",
    kept="all channels",
    centre="minus mean",
    spread="root",
    place="inside",
    fixed=None,
    order="γ then β",
    gamma_along=1,
    beta_along=1,
    detached="",
):
    """Return BN of x (N, C, *), its terms bent by the knobs.

    over, mean_over, var_over  axes of the averages, of one of them; or a way of rearranging x first
    around    what the variance is measured around
    laid      "last" for statistics without their averaged axes, which broadcasting lays along the last ones
    sample    which images the statistics are taken from
    mean_by, var_by  what the sums are divided by
    carried   sums that are not set back to 0 for the next channel
    kept      whose statistics every channel gets
    centre, spread, place, fixed  what is subtracted, what it is divided by, where ε stands, the ε that is always used
    order, gamma_along, beta_along  what γ and β do, and the axis they lie along
    detached  which terms the gradient does not pass
    """
    if isinstance(over, str):
        return rearranged(
            x, eps, gamma, beta, over, order=order, var_by=var_by, place=place, fixed=fixed, detached=detached
        )
    every = tuple(d for d in range(x.dim()) if d != 1)
    mean_dims, var_dims = mean_over or over or every, var_over or over or every
    eps = eps if fixed is None else fixed
    if "x" in detached:
        x = x.detach()
    given = {"all": x, "first image": x[:1], "last image": x[-1:]}[sample]

    def carry(statistic, name):
        if name in carried:
            statistic = statistic.cumsum(1)
        return {"all channels": statistic, "first": statistic[:, :1], "last": statistic[:, -1:]}[kept]

    mean = carry(average(given, mean_dims, mean_by), "mean")
    own = mean if mean_dims == var_dims else average(given, var_dims)
    middle = {
        "own mean": own,
        "true mean": average(given, var_dims),
        "the other mean": mean,
        "zero": torch.zeros_like(mean),
        "image's mean": average(given, every[1:] or every),
        "median": median(given, mean_dims) if around == "median" else None,
    }[around]
    deviation = given - middle
    if spread == "absolute":
        var = average(deviation.abs(), var_dims, var_by) ** 2
    elif spread == "range":
        var = (given.amax(var_dims, keepdim=True) - given.amin(var_dims, keepdim=True)) ** 2
    else:
        var = carry(average(deviation**2, var_dims, var_by), "var")
    if laid != "keepdim":
        mean, var = mean.squeeze(mean_dims), var.squeeze(var_dims)
    if "mean" in detached:
        mean = mean.detach()
    if "var" in detached:
        var = var.detach()
    if centre == "minus mean":
        y = x - mean
    elif centre == "minus median":
        y = x - median(given, mean_dims)
    elif centre == "minus smallest":
        y = x - given.amin(mean_dims, keepdim=True)
    elif centre == "plus mean":
        y = x + mean
    elif centre == "mean minus x":
        y = mean - x
    else:
        y = x
    if place == "numerator":
        y, eps = y + eps, 0.0
    y = divided(y, var, eps, spread, place)
    if centre == "mean after division":
        y = y - mean
    if place == "after":
        y = y + eps
    return scaled(y, gamma, beta, order, gamma_along, beta_along, detached)


def rearranged(x, eps, gamma, beta, how, **knobs):
    """Return BN of x in another layout: two groups of channels an image, or rows that `reshape` cuts."""
    n, c = x.shape[:2]
    if how == "groups":
        groups = x.reshape(n, -1, max(c // 2, 1), *x.shape[2:])
        affine = {name: knobs.pop(name) for name in ("order", "detached")}
        y = normalise(groups, eps, over=tuple(range(2, groups.dim())), **knobs).reshape(x.shape)
        return scaled(y, gamma, beta, gamma_along=1, beta_along=1, **affine)
    if how == "reshape(-1, C)":
        return normalise(x.reshape(-1, c), eps, gamma, beta, **knobs).reshape(x.shape)
    return normalise(x.reshape(c, -1).T, eps, gamma, beta, **knobs).T.reshape(x.shape)


def median(values, dims):
    """Return the median over `dims`, axes kept."""
    channel_first = values.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))
    return channel_first.median(-1).values.reshape([1 if d in dims else s for d, s in enumerate(values.shape)])


def divided(y, var, eps, spread, place):
    """Return y divided by √(var + ε), bent by the knobs `spread` and `place`."""
    if spread == "nothing":
        return y
    if spread == "variance":
        return y / {"missing": var, "clamped": var.clamp_min(eps)}.get(place, var + eps)
    var = var.sqrt() if spread == "double root" else var
    below = {
        "inside": (var + eps).sqrt(),
        "outside": var.sqrt() + eps,
        "both": (var + eps).sqrt() + eps,
        "missing": var.sqrt(),
        "numerator": var.sqrt(),
        "after": var.sqrt(),
        "clamped": var.clamp_min(eps).sqrt(),
        "root clamped": var.sqrt().clamp_min(eps),
        "squared": (var + eps**2).sqrt(),
        "subtracted": (var - eps).sqrt(),
    }[place]
    return y * below if spread == "multiplied" else y / below


def scaled(y, gamma, beta, order, gamma_along, beta_along, detached):
    """Return y · γ + β, bent by the knobs; y itself if there is no γ."""
    if gamma is None:
        return y

    def along(vector, axis):
        return vector.view([-1 if d == axis % y.dim() else 1 for d in range(y.dim())])

    gamma, beta = along(gamma, gamma_along), along(beta, beta_along)
    if "gamma" in detached:
        gamma = gamma.detach()
    if "beta" in detached:
        beta = beta.detach()
    return {
        "γ then β": lambda: y * gamma + beta,
        "β then γ": lambda: (y + beta) * gamma,
        "swapped": lambda: y * beta + gamma,
        "no γ": lambda: y + beta,
        "no β": lambda: y * gamma,
        "neither": lambda: y,
        "minus β": lambda: y * gamma - beta,
        "divided by γ": lambda: y / gamma + beta,
        "1 + γ": lambda: y * (1 + gamma) + beta,
        "γ added": lambda: y + gamma + beta,
        "γ squared": lambda: y * gamma**2 + beta,
        "one γ": lambda: y * gamma.flatten()[0] + beta,
        "one β": lambda: y * gamma + beta.flatten()[0],
        "one γ, one β": lambda: y * gamma.flatten()[0] + beta.flatten()[0],
    }[order]()
