"""Batch normalization with a knob for each of its terms: without knobs it is right, and every mistake turns one."""

import math

import torch

from .judge import drawn

GRADES = torch.tensor([[85.0, 60, 70], [90, 80, 75], [95, 50, 80], [88, 70, 85]])  # lesson 01's
IMAGES = torch.tensor([[[[6.0, 8]], [[0, 5]]], [[[1, 9]], [[5, 2]]]])  # (2, 2, 1, 2), easy to follow by hand
EPSILONS = (1e-5, 1e-3, 0.1, 1.0)


def batch(shape, seed, *, scale=1.0, mean=0.0, dtype=torch.float32):
    """Return noise of shape (N, C, *) whose channels c have different means, mean + c · scale, and spreads."""
    channel = torch.arange(shape[1], dtype=torch.float64).view(1, -1, *[1] * (len(shape) - 2))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise * scale * (channel + 2) / 2 + mean + channel * scale).to(dtype)


def drawn_batches(build, *sizes, scales=(1.0, 0.01, 10.0, 100.0), means=(0.0, 1.0, -20.0, 300.0), more=(), least=0):
    """Return the strategy for build(x, one of each of `more`, seed), x of one of these sizes along each axis.

    least  how many values a channel has, for which there may have to be more samples
    """

    def case(*draws):
        n, *others = draws[: len(sizes)]
        scale, mean, *rest, dtype, seed = draws[len(sizes) :]
        shape = n if n * math.prod(others[1:]) >= least else least, *others
        return build(batch(shape, seed, scale=scale, mean=mean, dtype=dtype), *rest, seed)

    return drawn(case, *sizes, scales, means, *more, (torch.float32, torch.float64), range(8))


def average(values, dims, by="n"):
    """Return the sum over `dims`, axes kept, divided by n, or by what was mistaken for n."""
    n, images = math.prod(values.shape[d] for d in dims), len(values)
    pixels = n / images
    counts = {"n": n, "n - 1": n - 1, "N": images, "H·W": pixels, "n - N": n - images, "n - H·W": n - pixels, "1": 1}
    return values.sum(dims, keepdim=True) / float(counts[by])


def cut(x, how):
    """Return the rows (…, C) that are cut from x (N, C, *); "reshaped back" is said of what is done to them later."""
    c = x.shape[1]
    return {
        "reshape(-1, C)": lambda: x.reshape(-1, c),
        "reshape(C, -1)": lambda: x.reshape(c, -1).T,
        "rows, reshaped back": lambda: x.movedim(1, -1).reshape(-1, c),
        "(C, -1), reshaped back": lambda: x.transpose(0, 1).reshape(c, -1).T,
    }[how]()


def statistics(
    x,
    *,
    over=None,  # the axes of both averages
    mean_over=None,  # of the mean's
    var_over=None,  # of the variance's
    around="own mean",  # what the variance is measured around, in words or numbers
    mean_by="n",  # what the sum is divided by
    var_by="n",  # what the sum of squares is divided by
    parts="",  # of what the variance is put together: each image's own, the spread of the images' means
    sample="all",  # which images the statistics are taken from
    mean_sample="all",  # the mean alone
    spread="root",  # what stands for the standard deviation: a "range", an "absolute" deviation
    carried="",  # sums that are not set back to 0 for the next channel
    kept="all channels",  # whose statistics every channel gets
):
    """Return the axes of mean and variance of x (N, C, *), and both, axes kept, bent by the knobs."""
    every = tuple(d for d in range(x.dim()) if d != 1)
    mean_dims, var_dims = mean_over or over or every, var_over or over or every
    images = {"all": x, "first image": x[:1], "last image": x[-1:]}
    given = images[sample]

    def carry(statistic, name):
        if name in carried:
            statistic = statistic.cumsum(1)
        return {"all channels": statistic, "first": statistic[:, :1], "last": statistic[:, -1:]}[kept]

    mean = carry(average(given if mean_sample == "all" else images[mean_sample], mean_dims, mean_by), "mean")
    middles = {
        "own mean": lambda: mean if mean_dims == var_dims else average(given, var_dims),
        "true mean": lambda: average(given, var_dims),
        "the other mean": lambda: mean,
        "zero": lambda: 0.0,
        "image's mean": lambda: average(given, every[1:] or every),
        "pixel's mean": lambda: average(given, (0,)),
        "median": lambda: median(given, mean_dims),
    }
    deviation = given - (around if isinstance(around, torch.Tensor) else middles[around]())
    if parts:
        var = of_images(given, every[1:] or every, parts)
    elif spread == "absolute":
        var = average(deviation.abs(), var_dims, var_by) ** 2
    elif spread == "range":
        var = (given.amax(var_dims, keepdim=True) - given.amin(var_dims, keepdim=True)) ** 2
    else:
        var = average(deviation**2, var_dims, var_by)
    return mean_dims, var_dims, mean, carry(var, "var")


def of_images(x, dims, parts):
    """Return a variance of x (N, C, *) put together from each image's own mean and variance over `dims`."""
    mean, inner = average(x, dims), "n - 1" if "÷ (m − 1)" in parts else "n"
    within = average((x - mean) ** 2, dims, inner)
    between = average((mean - average(mean, (0,))) ** 2, (0,), "n - 1" if "÷ (N − 1)" in parts else "n")
    if parts.startswith("between"):
        return between
    return average(within.sqrt(), (0,)) ** 2 if parts.startswith("roots") else average(within, (0,)) + between


def normalise(
    x,
    eps=1e-5,
    gamma=None,
    beta=None,
    *,
    over=None,  # as for `statistics`, or a way of rearranging x first, or of dividing the batch
    laid="keepdim",  # "last" for statistics without their averaged axes, which broadcasting lays along the last ones
    centre="minus mean",  # what becomes of x before the division
    spread="root",  # what it is divided by
    place="inside",  # where ε stands
    fixed=None,  # the ε that is always used
    order="γ then β",  # what γ and β do: "before" the rest, "neither", "γ on x", "β divided", or a function of y, γ, β
    gamma_along=1,  # the axis that γ lies along, "none" for the first channel's γ alone
    beta_along=1,  # the same for β
    detached="",  # which terms the gradient does not pass
    looped="C",  # "N" for a loop over the images' count that should be over the channels'
    given=(),  # what stands in for the `statistics` of x
    **knobs,
):
    """Return BN of x (N, C, *), its terms bent by the knobs: these, and those of `statistics`."""
    affine = dict(order=order, gamma_along=gamma_along, beta_along=beta_along, detached=detached)
    if order == "before":
        x, affine["order"] = scaled(x, gamma, beta, **affine | {"order": "γ then β"}), "neither"
    terms = dict(laid=laid, centre=centre, spread=spread, place=place, fixed=fixed)
    if isinstance(over, str):
        return rearranged(x, eps, gamma, beta, over, knobs | terms, affine)
    if looped != "C":
        if len(x) > x.shape[1]:
            raise IndexError("no such channel")
        y = normalise(x, eps, gamma, beta, **knobs, **terms)
        return torch.cat([y[:, : len(x)], torch.zeros_like(y[:, len(x) :])], 1)
    eps = eps if fixed is None else fixed
    x = x.detach() if "x" in detached else x
    mean_dims, var_dims, mean, var = given or statistics(x, over=over, spread=spread, **knobs)
    if laid != "keepdim":
        mean, var = mean.squeeze(mean_dims), var.squeeze(var_dims)
    mean = mean.detach() if "mean" in detached else mean
    var = var.detach() if "var" in detached else var
    if order in ("γ on x", "β divided"):
        g, b = (part.view(1, -1, *[1] * (x.dim() - 2)) for part in (gamma, beta))
        y = x * g - mean if order == "γ on x" else (x - mean) * g + b
        return divided(y, var, eps, spread, place) + (b if order == "γ on x" else 0.0)
    y = {
        "minus mean": lambda: x - mean,
        "minus median": lambda: x - median(x, mean_dims),
        "minus smallest": lambda: x - x.amin(mean_dims, keepdim=True),
        "plus mean": lambda: x + mean,
        "mean minus x": lambda: mean - x,
        "absolute": lambda: (x - mean).abs(),
        "mean after division": lambda: x,
        "none": lambda: x,
    }[centre]()
    y = divided(y + eps if place == "numerator" else y, var, eps, spread, place)
    y = y - mean if centre == "mean after division" else y
    return scaled(y + eps if place == "after" else y, gamma, beta, **affine)


def rearranged(x, eps, gamma, beta, how, knobs, affine):
    """Return BN of x in another layout, or of a divided batch: what `how` says."""
    n, c = x.shape[:2]
    if how == "halves":
        parts = x.chunk(2) if n % 2 == 0 else (x,)
        return torch.cat([normalise(part, eps, gamma, beta, **knobs, **affine) for part in parts])
    if how == "groups":
        groups = x.reshape(n, -1, max(c // 2, 1), *x.shape[2:])
        y = normalise(groups, eps, over=tuple(range(2, groups.dim())), **knobs)
        return scaled(y.reshape(x.shape), gamma, beta, **affine)
    affine |= {name: 1 for name in ("gamma_along", "beta_along") if affine[name] != "none"}
    y = normalise(cut(x, how), eps, gamma, beta, **knobs, **affine)
    return (y.T if "C, -1" in how else y).reshape(x.shape)


def median(values, dims):
    """Return the median over `dims`, axes kept."""
    channel_first = values.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))
    return channel_first.median(-1).values.reshape([1 if d in dims else s for d, s in enumerate(values.shape)])


def divided(y, var, eps, spread, place):
    """Return y divided by √(var + ε), bent by the knobs `spread` and `place`."""
    if spread == "nothing":
        return y
    if spread in ("variance", "squared variance"):
        var = {"missing": var, "clamped": var.clamp_min(eps)}.get(place, var + eps)
        return y / (var if spread == "variance" else var**2)
    var = var.sqrt() if spread == "double root" else var
    below = {
        "inside": lambda: (var + eps).sqrt(),
        "outside": lambda: var.sqrt() + eps,
        "both": lambda: (var + eps).sqrt() + eps,
        **dict.fromkeys(("missing", "numerator", "after"), var.sqrt),
        "clamped": lambda: var.clamp_min(eps).sqrt(),
        "root clamped": lambda: var.sqrt().clamp_min(eps),
        "squared": lambda: (var + eps**2).sqrt(),
        "subtracted": lambda: (var - eps).sqrt(),
        "subtracted outside": lambda: var.sqrt() - eps,
    }[place]()
    return y * below if spread == "multiplied" else y / below


def scaled(y, gamma, beta, order, gamma_along, beta_along, detached):
    """Return y · γ + β, or order(y, γ, β) if that is a function; y itself if there is no γ, or neither is used."""
    if gamma is None or order == "neither":
        return y

    def along(name, vector, axis):
        vector = vector.detach() if name in detached else vector
        return vector[0] if axis == "none" else vector.view([-1 if d == axis % y.dim() else 1 for d in range(y.dim())])

    gamma, beta = along("gamma", gamma, gamma_along), along("beta", beta, beta_along)
    return order(y, gamma, beta) if callable(order) else y * gamma + beta
