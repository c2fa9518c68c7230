"""The exercises that normalise a batch (`standardize`, `batch_norm_loops`, `batch_norm`), and their mistakes.

One formula with a knob for each of its terms; every mistake turns one of them.
"""

from functools import cache
from itertools import combinations

import torch
from hypothesis import strategies as st

from .base import FunctionExercise
from .catalogue import Case, Mistake, batch, one_of


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

    over, mean_over, var_over  axes of the averages, of one of them; "groups" for two groups of channels an image
    around    what the variance is measured around
    sample    which images the statistics are taken from
    mean_by, var_by  what the sums are divided by
    carried   sums that are not set back to 0 for the next channel
    kept      whose statistics every channel gets
    centre, spread, place, fixed  what is subtracted, what it is divided by, where ε stands, the ε that is always used
    order, gamma_along, beta_along  what γ and β do, and the axis they lie along
    detached  which terms the gradient does not pass
    """
    if over == "groups":
        n, c = x.shape[:2]
        groups = x.reshape(n, -1, max(c // 2, 1), *x.shape[2:])
        y = normalise(groups, eps, over=tuple(range(2, groups.dim())), var_by=var_by, place=place, fixed=fixed)
        return scaled(y.reshape(x.shape), gamma, beta, order, gamma_along, beta_along, detached)
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


def median(values, dims):
    channel_first = values.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))
    return channel_first.median(-1).values.reshape([1 if d in dims else s for d, s in enumerate(values.shape)])


def divided(y, var, eps, spread, place):
    root = var.sqrt()
    if spread == "nothing":
        return y
    if spread == "double root":
        return y / (root + eps).sqrt()
    if spread == "variance":
        return y / {"missing": var, "clamped": var.clamp_min(eps)}.get(place, var + eps)
    below = {
        "inside": (var + eps).sqrt(),
        "outside": root + eps,
        "both": (var + eps).sqrt() + eps,
        "missing": root,
        "numerator": root,
        "after": root,
        "clamped": var.clamp_min(eps).sqrt(),
        "root clamped": root.clamp_min(eps),
        "squared": (var + eps**2).sqrt(),
        "subtracted": (var - eps).sqrt(),
    }[place]
    return y * below if spread == "multiplied" else y / below


def scaled(y, gamma, beta, order, gamma_along, beta_along, detached):
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


# ---- the catalogue

AFTER = "epsilon after the division"  # too small to see where ε is 1e-5
SPREAD = (
    Mistake(
        "unbiased variance",
        "the variance is divided by n − 1; the one that normalises is the biased one, ÷ n: `var(..., correction=0)` (or `unbiased=False`); torch's default is ÷ (n − 1)",
        3,
        var_by="n - 1",
    ),
    Mistake(
        "epsilon outside the root",
        "ε is added to the standard deviation, √var + ε; it belongs inside the root, √(var + ε)",
        4,
        place="outside",
    ),
    Mistake(
        "epsilon missing",
        "there is no ε: a channel whose values are all the same divides by zero; write √(var + ε)",
        4,
        place="missing",
    ),
    Mistake(
        "divided by the variance",
        "x − mean is divided by the variance (plus ε), not by its root, the standard deviation: a `sqrt` is missing",
        1,
        spread="variance",
    ),
    Mistake(
        "root taken twice",
        "the root is taken of the standard deviation, not of the variance: `std` already is the root of `var`",
        1,
        spread="double root",
    ),
    Mistake(
        "multiplied by the standard deviation",
        "x − mean is multiplied by √(var + ε); divide by it",
        1,
        spread="multiplied",
    ),
    Mistake("not divided", "only the mean is taken off: the division by √(var + ε) is missing", 1, spread="nothing"),
    Mistake(
        "mean absolute deviation",
        "the spread is the mean of |x − mean|; the standard deviation is the root of the mean of the squares",
        1,
        spread="absolute",
        also=[dict(spread="absolute", place=place) for place in ("outside", "missing")],
    ),
    Mistake(
        "divided by the range",
        "x is divided by largest − smallest (min–max scaling); BN divides by the standard deviation",
        1,
        spread="range",
        also=[dict(spread="range", place=place) for place in ("outside", "missing")],
    ),
    Mistake(
        "sum instead of mean in the variance",
        "the squares are summed and never divided by n: the variance is their mean",
        1,
        var_by="1",
    ),
    Mistake(
        "epsilon inside and outside the root",
        "ε is added twice, in the root and after it; once is enough, inside",
        4,
        place="both",
    ),
    Mistake(
        "epsilon as a lower bound",
        "the variance is clamped at ε; BN adds ε to every variance, √(var + ε)",
        4,
        place="clamped",
    ),
    Mistake(
        "epsilon as a lower bound of the standard deviation",
        "the standard deviation is clamped at ε; BN adds ε to the variance, √(var + ε)",
        4,
        place="root clamped",
    ),
    Mistake("epsilon squared", "ε² is added to the variance; it is ε itself, √(var + ε)", 4, place="squared"),
    Mistake(
        "epsilon in the numerator",
        "ε is added to x − mean; it belongs to the variance, √(var + ε)",
        4,
        place="numerator",
    ),
    Mistake(
        AFTER,
        "ε is added to the quotient; it belongs to the variance, √(var + ε)",
        4,
        place="after",
    ),
    Mistake("epsilon subtracted", "ε is taken off the variance; it is added, √(var + ε)", 4, place="subtracted"),
)
CENTRE = (
    Mistake("not centred", "the mean is not subtracted: the numerator is x, expected x − mean", 1, centre="none"),
    Mistake(
        "variance not centred",
        "the variance is the mean of x²; expected the mean of (x − mean)²: subtract the mean before squaring",
        1,
        around="zero",
    ),
    Mistake(
        "not centred anywhere",
        "the mean is subtracted neither before squaring nor in the numerator: x / √(mean(x²) + ε)",
        1,
        centre="none",
        around="zero",
    ),
    Mistake("mean added", "the mean is added to x; subtract it", 1, centre="plus mean"),
    Mistake("sign turned", "mean − x instead of x − mean", 1, centre="mean minus x"),
    Mistake(
        "mean subtracted after the division",
        "x is divided first and the mean of the undivided x subtracted then: (x − mean) needs its parentheses",
        1,
        centre="mean after division",
    ),
    Mistake("median instead of mean", "the median is subtracted; BN subtracts the mean", 1, centre="minus median"),
    Mistake(
        "median instead of mean",
        "the median takes the mean's place, in the numerator and in the variance",
        1,
        centre="minus median",
        around="median",
    ),
    Mistake(
        "smallest value instead of mean",
        "the smallest value is subtracted (min–max scaling); BN subtracts the mean",
        1,
        centre="minus smallest",
    ),
    Mistake(
        "min–max scaling",
        "(x − smallest) / (largest − smallest) is another normalization: BN takes (x − mean) / √(var + ε)",
        1,
        centre="minus smallest",
        spread="range",
        also=[dict(centre="minus smallest", spread="range", place=place) for place in ("outside", "missing")],
    ),
    Mistake(
        "sum instead of mean",
        "the mean's sum is never divided by n",
        1,
        mean_by="1",
        also=[dict(mean_by="1", around="true mean")],
    ),
    Mistake(
        "mean divided by n − 1",
        "the mean is the sum ÷ n; n − 1 belongs to the unbiased variance only",
        3,
        mean_by="n - 1",
        also=[dict(mean_by="n - 1", around="true mean")],
    ),
)
DETACHED = (
    Mistake(
        "mean detached from the gradient",
        "the values are right, but the gradient does not pass through the mean (`detach`, `no_grad`, `.item()`, `float`): the mean depends on x as well",
        4,
        detached=("mean",),
    ),
    Mistake(
        "variance detached from the gradient",
        "the values are right, but the gradient does not pass through the variance (`detach`, `no_grad`, `.item()`, `float`): the variance depends on x as well",
        4,
        detached=("var",),
    ),
    Mistake(
        "mean and variance detached from the gradient",
        "the values are right, but mean and variance are treated as constants in the backward pass (`detach`, `no_grad`, `.item()`, `float`): both depend on x",
        4,
        detached=("mean", "var"),
    ),
    Mistake(
        "input detached from the gradient",
        "the values are right, but no gradient reaches x (`detach`, `no_grad`, `.data`, NumPy, or a new tensor made of numbers)",
        4,
        detached=("x",),
    ),
)
SQUARES = Mistake(
    "mean of squares minus squared mean",
    "the variance is computed as mean(x²) − mean(x)²: equal on paper, but with a large mean both terms are huge and their difference is lost in rounding (it can even turn negative); take the mean of (x − mean)²",
    3,
)

NAMES_2D = {
    (1,): "per student: each row",
    (0, 1): "the whole table",
}
NAMES_4D = {
    (0,): "the batch only: each pixel for itself",
    (1,): "the channels of one pixel",
    (2,): "the rows of an image",
    (3,): "the last axis only",
    (2, 3): "each image and channel for itself, as instance norm does",
    (1, 2, 3): "each image as a whole, as layer norm does",
    (0, 1, 2, 3): "the whole tensor: one mean for all channels",
    (0, 1): "batch and channels: each pixel for itself",
    (0, 1, 2): "all but the last axis, as if the channels came last",
    (0, 2): "without W",
    (0, 3): "without H",
}


def axes_mistakes(letters, names):
    """Return an entry for each wrong set of axes: of both statistics, of the mean alone, of the variance alone."""
    rank = len(letters)
    right = tuple(d for d in range(rank) if d != 1)
    subsets = [dims for size in range(1, rank + 1) for dims in combinations(range(rank), size) if dims != right]
    subsets.sort(key=lambda dims: dims not in names)
    lesson = 1 if rank == 2 else 4

    def words(dims):
        listed = ", ".join(letters[d] for d in dims)
        return f"over {'axis' if len(dims) == 1 else 'axes'} {listed} (dim={dims if len(dims) > 1 else dims[0]})" + (
            f": {names[dims]}" if dims in names else ""
        )

    good = " and ".join(letters[d] for d in right) if len(right) < 3 else "N, H and W"
    wanted = f"all values of one channel share a mean and a variance: average over {good}, dim={right if len(right) > 1 else 0}"
    if rank == 2:
        wanted = f"all students of one subject share a mean and a variance: average over N, dim=0"
    both = [
        Mistake(
            "statistics over the wrong axes", f"mean and variance are taken {words(dims)}; {wanted}", lesson, over=dims
        )
        for dims in subsets
    ]
    if rank == 4:
        both.append(
            Mistake(
                "statistics over the wrong axes",
                f"mean and variance are taken over groups of channels in each image, as group norm does; {wanted}",
                lesson,
                over="groups",
            )
        )
    alone = [
        Mistake(
            f"{statistic} over the wrong axes",
            f"the {statistic} is taken {words(dims)}; {wanted}",
            lesson,
            paired=False,
            **{knob: dims},
            **extra,
        )
        for statistic, knob, extra in (
            ("mean", "mean_over", {}),
            ("mean", "mean_over", {"around": "the other mean"}),
            ("variance", "var_over", {}),
            ("variance", "var_over", {"around": "the other mean"}),
        )
        for dims in subsets
    ]
    return (*both, *alone)


def fixed_eps(used, cause):
    return tuple(Mistake(name, cause.format(f"{value:g}"), 4, fixed=value) for name, value in used)


AFFINE = (
    Mistake(
        "gamma and beta swapped", "γ is added and β multiplied: y = x̂ · γ + β, γ scales, β shifts", 1, order="swapped"
    ),
    Mistake("gamma forgotten", "γ is never used: y = x̂ · γ + β", 1, order="no γ"),
    Mistake("beta forgotten", "β is never used: y = x̂ · γ + β", 1, order="no β"),
    Mistake("gamma and beta forgotten", "neither γ nor β is used: y = x̂ · γ + β", 1, order="neither"),
    Mistake(
        "beta before gamma",
        "β is added before γ multiplies, (x̂ + β) · γ, so that γ scales β too: y = x̂ · γ + β",
        1,
        order="β then γ",
    ),
    Mistake("beta subtracted", "β is subtracted; add it", 1, order="minus β"),
    Mistake("divided by gamma", "x̂ is divided by γ; multiply", 1, order="divided by γ"),
    Mistake("one plus gamma", "x̂ is multiplied by 1 + γ; γ itself is the factor, it starts at 1", 1, order="1 + γ"),
    Mistake("gamma added", "γ is added; it multiplies: y = x̂ · γ + β", 1, order="γ added"),
    Mistake("gamma twice", "γ multiplies twice", 1, order="γ squared"),
    Mistake(
        "one gamma for all channels",
        "every channel is scaled by the first channel's γ; γ has one number a channel",
        4,
        order="one γ",
    ),
    Mistake(
        "one beta for all channels",
        "every channel is shifted by the first channel's β; β has one number a channel",
        4,
        order="one β",
    ),
    Mistake(
        "one gamma and beta for all channels",
        "every channel gets the first channel's γ and β; they have one number a channel",
        4,
        order="one γ, one β",
    ),
    *(
        Mistake(
            f"{what} along the wrong axis",
            f"{what} of shape (C,) {'meets' if ' ' not in what else 'meet'} axis {letter} instead of the channels: broadcasting lines up the last axes; use `.view(1, -1, 1, 1)`",
            4,
            **{knob: axis for knob in knobs},
        )
        for axis, letter in ((3, "W"), (2, "H"), (0, "N"))
        for what, knobs in (
            ("gamma and beta", ("gamma_along", "beta_along")),
            ("gamma", ("gamma_along",)),
            ("beta", ("beta_along",)),
        )
    ),
    Mistake(
        "gamma detached from the gradient",
        "no gradient reaches γ (`detach`, `.data`, `no_grad`): it could not be learned",
        4,
        detached=("gamma",),
    ),
    Mistake(
        "beta detached from the gradient",
        "no gradient reaches β (`detach`, `.data`, `no_grad`): it could not be learned",
        4,
        detached=("beta",),
    ),
    Mistake(
        "output detached from the gradient",
        "the values are right, but no gradient flows back from y at all (`detach`, `no_grad`, `.data`, NumPy)",
        4,
        detached=("x", "gamma", "beta"),
    ),
)
LOOPS = (
    Mistake(
        "sums not reset for each channel",
        "the running sums of mean and variance go on from channel to channel: set them to 0 inside the loop over channels",
        3,
        carried=("mean", "var"),
    ),
    Mistake(
        "sum not reset for each channel",
        "the mean's sum goes on from channel to channel: set it to 0 inside the loop over channels",
        3,
        carried=("mean",),
        also=[dict(carried=("mean",), around="true mean")],
    ),
    Mistake(
        "sum of squares not reset for each channel",
        "the variance's sum goes on from channel to channel: set it to 0 inside the loop over channels",
        3,
        carried=("var",),
    ),
    Mistake(
        "last channel's statistics for all",
        "every channel is normalised with the last channel's mean and variance: the update belongs inside the loop over channels",
        3,
        kept="last",
    ),
    Mistake(
        "first channel's statistics for all",
        "every channel is normalised with the first channel's mean and variance",
        3,
        kept="first",
    ),
    Mistake(
        "statistics of the first image only",
        "mean and variance come from the first image alone; all N·H·W values share them",
        3,
        sample="first image",
    ),
    Mistake(
        "statistics of the last image only",
        "mean and variance come from the last image alone; all N·H·W values share them",
        3,
        sample="last image",
    ),
    Mistake(
        "divided by N",
        "the sums are divided by N, the number of images; N·H·W numbers were added",
        3,
        mean_by="N",
        var_by="N",
    ),
    Mistake("divided by H·W", "the sums are divided by H·W; N·H·W numbers were added", 3, mean_by="H·W", var_by="H·W"),
    Mistake(
        "mean divided by N",
        "the mean's sum is divided by N; N·H·W numbers were added",
        3,
        mean_by="N",
        also=[dict(mean_by="N", around="true mean")],
    ),
    Mistake(
        "mean divided by H·W",
        "the mean's sum is divided by H·W; N·H·W numbers were added",
        3,
        mean_by="H·W",
        also=[dict(mean_by="H·W", around="true mean")],
    ),
    Mistake("variance divided by N", "the sum of squares is divided by N; N·H·W numbers were added", 3, var_by="N"),
    Mistake(
        "variance divided by H·W", "the sum of squares is divided by H·W; N·H·W numbers were added", 3, var_by="H·W"
    ),
)
IMAGES = Mistake(
    "average of the images' variances",
    "each image's own variance is taken and then averaged: what the images' means differ by is lost; take the variance of all N·H·W values at once",
    3,
    around="image's mean",
)
EPS_FIXED = fixed_eps(
    [("epsilon fixed", value) for value in (1e-5, 1e-3, 1e-8, 1e-6, 1e-12)],
    "ε is always {}, whatever is passed: use the argument `eps`",
)
EPS_OTHER = fixed_eps(
    [("another epsilon", value) for value in (1e-8, 1e-3, 1e-6, 1e-12, 1e-4, 1e-7, 1e-2, 1e-1, 1.0)],
    "ε is {}; the exercise asks for 1e-5",
)


# ---- inputs


def with_affine(case_arguments, channels, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed + 100)
    gamma = (torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5) * (
        1 - 2 * (torch.arange(channels) % 3 == 2)
    )
    beta = torch.randn(channels, generator=generator, dtype=torch.float64) * 2
    return {**case_arguments, "gamma": gamma.to(dtype), "beta": beta.to(dtype)}


def image_cases(affine):
    """Return the fixed cases for (N, C, H, W): each makes some mistake visible."""
    double, single = torch.float64, torch.float32

    def case(trait="", *, shape, eps, dtype=single, seed=1, x=None, **flags):
        scale, mean = flags.pop("scale", 1.0), flags.pop("mean", 1.0)
        arguments = {"x": batch(shape, seed, scale=scale, mean=mean, dtype=dtype) if x is None else x}
        if affine:
            arguments = with_affine(arguments, shape[1], dtype, seed)
        return Case(arguments | {"eps": eps}, trait, **flags)

    constant = batch((2, 3, 2, 2), 9)
    constant[:, 1] = 0.75  # its mean is exact in float32
    first = {"x": torch.tensor([[[[6.0, 8]], [[0, 5]]], [[[1, 9]], [[5, 2]]]])}  # (2, 2, 1, 2), easy to follow by hand
    if affine:
        first |= {"gamma": torch.tensor([2.0, 0.5]), "beta": torch.tensor([1.0, -3.0])}
    return (
        Case(first | {"eps": 0.1}),
        case(shape=(3, 4, 2, 5), eps=1e-3),
        case(shape=(2, 3, 4, 3), eps=1.0, dtype=double, seed=2),
        case(shape=(2, 4, 4, 3), eps=0.1, seed=3),
        case(shape=(3, 3, 1, 2), eps=1e-5, seed=4),
        case("N is 1", shape=(1, 3, 4, 2), eps=0.01, seed=5),
        case("an image is one pixel", shape=(4, 3, 1, 1), eps=0.01, seed=6),
        case("C is 1", shape=(3, 1, 2, 2), eps=0.01, seed=7),
        case("a variance is tiny", shape=(2, 3, 2, 3), eps=1e-5, scale=2e-3, mean=0.01, seed=8),
        case("a variance is 0", shape=(2, 3, 2, 2), eps=1e-5, x=constant, smooth=False),
        case("the mean is large", shape=(4, 2, 2, 2), eps=1e-5, mean=4000.0, seed=10, ill=True),
    )


def drawn_images(affine):
    """Return the strategy for further cases: sizes, scales, means, ε, dtype and numbers."""

    @cache  # the same draws each time: what is right for them is computed once
    def build(n, c, h, w, scale, mean, eps, dtype, seed):
        n = n if n * h * w > 2 else 3  # of two values BN keeps the order alone: no gradient to compare
        arguments = {"x": batch((n, c, h, w), seed, scale=scale, mean=mean, dtype=dtype)}
        if affine:
            arguments = with_affine(arguments, c, dtype, seed)
        return Case(arguments | {"eps": eps})

    size = one_of(1, 2, 3, 4)
    return st.builds(
        build,
        size,
        size,
        size,
        size,
        one_of(1.0, 0.01, 5.0, 100.0),
        one_of(0.0, 1.0, -20.0, 300.0),
        one_of(1e-5, 1e-3, 0.1, 1.0),
        one_of(torch.float32, torch.float64),
        one_of(*range(8)),
    )


def grade_cases():
    """Return the fixed cases for (N, C)."""
    same = batch((4, 3), 5)
    same[:, 1] = 70.0
    return (
        Case({"scores": torch.tensor([[85.0, 60, 70], [90, 80, 75], [95, 50, 80], [88, 70, 85]])}),
        Case({"scores": batch((5, 2), 1, scale=5.0, mean=60.0)}),
        Case({"scores": batch((4, 4), 2, dtype=torch.float64)}),
        Case({"scores": batch((3, 4), 3, scale=0.3)}),
        Case({"scores": batch((6, 1), 4, scale=2.0, mean=10.0)}, "C is 1"),
        Case({"scores": same}, "a subject in which all have the same grade", smooth=False),
        Case({"scores": batch((4, 3), 6, scale=3e-3)}, "a variance is tiny"),
        Case({"scores": batch((5, 3), 8, scale=1e-4, dtype=torch.float64)}, "a variance is tiny"),
        Case({"scores": batch((8, 3), 7, mean=4000.0)}, "the mean is large", ill=True),
    )


def drawn_grades():
    """Return the strategy for further cases."""

    @cache  # the same draws each time: what is right for them is computed once
    def build(n, c, scale, mean, dtype, seed):
        return Case({"scores": batch((n, c), seed, scale=scale, mean=mean, dtype=dtype)})

    return st.builds(
        build,
        one_of(3, 4, 5, 8),
        one_of(1, 2, 3, 4),
        one_of(1.0, 0.01, 10.0, 100.0),
        one_of(0.0, 60.0, -20.0, 300.0),
        one_of(torch.float32, torch.float64),
        one_of(*range(8)),
    )


# ---- what can be said of a result that no mistake explains


def as_a_line(x, expected, received):
    """Say whether y still is, channel by channel, a straight line in x, and then which of its two numbers is off."""
    letters = "NCHW"[: x.dim()]
    for size in range(1, x.dim()):
        for group in combinations(range(x.dim()), size):
            if 1 not in group:
                continue
            line = fit(x, received, group)
            if line is None:
                continue
            if group != (1,):
                others = " and ".join(letters[d] for d in group if d != 1)
                return f"Values of one channel are not treated alike: what is subtracted or divided by changes along axis {others}."
            (slope, shift), (wanted_slope, wanted_shift) = line, fit(x, expected, group)
            c = int(((slope - wanted_slope).abs() + (shift - wanted_shift).abs()).nan_to_num().argmax())
            return (
                f"In each channel y is a straight line in x, as it should be, y = a · x + b; "
                f"in channel {c} a is {slope[c]:.4g}, expected {wanted_slope[c]:.4g}, and b is {shift[c]:.4g}, expected {wanted_shift[c]:.4g}."
            )
    return "Within one channel y is not a straight line in x: each x should only be shifted and scaled."


def fit(x, y, group):
    """Return slope and shift of y as a line in x for each index of the `group` axes, or None if y is no such line."""
    dims = tuple(d for d in range(x.dim()) if d not in group)
    if x[0].numel() * len(x) == torch.tensor([x.shape[d] for d in group]).prod():
        return None
    cx, cy = x - x.mean(dims, keepdim=True), y - y.mean(dims, keepdim=True)
    slope = (cx * cy).sum(dims, keepdim=True) / (cx * cx).sum(dims, keepdim=True).clamp_min(1e-30)
    if not ((cy - slope * cx).abs() <= 1e-4 * (1e-3 + y.abs().max())).all():
        return None
    shift = y.mean(dims, keepdim=True) - slope * x.mean(dims, keepdim=True)
    return slope.flatten(), shift.flatten()


STANDARDIZE = FunctionExercise(
    name="standardize",
    lesson=1,
    signature="standardize(scores (N, C)) -> (N, C)",
    asks="From each subject's grades subtract their mean, and divide by the root of their biased variance plus ε = 1e-5.",
    formula=lambda scores, **knobs: normalise(scores, **knobs),
    mistakes=(*(m for m in SPREAD if m.name != AFTER), *axes_mistakes("NC", NAMES_2D), *CENTRE, *EPS_OTHER, *DETACHED, SQUARES),
    cases=grade_cases(),
    drawn=drawn_grades(),
    tracked=("scores",),
    explain=as_a_line,
)
BATCH_NORM_LOOPS = FunctionExercise(
    name="batch_norm_loops",
    lesson=3,
    signature="batch_norm_loops(x (N, C, H, W), eps) -> y (N, C, H, W)",
    asks="Normalise each channel with the mean and the biased variance of its N·H·W numbers, ε inside the root; loops or not.",
    formula=normalise,
    mistakes=(*SPREAD, *axes_mistakes("NCHW", NAMES_4D), *CENTRE, *EPS_FIXED, *DETACHED, *LOOPS, IMAGES, SQUARES),
    cases=image_cases(affine=False),
    drawn=drawn_images(affine=False),
    tracked=("x",),
    explain=as_a_line,
)
BATCH_NORM = FunctionExercise(
    name="batch_norm",
    lesson=4,
    signature="batch_norm(x (N, C, H, W), gamma (C,), beta (C,), eps) -> y (N, C, H, W)",
    asks="Normalise each channel with its mean and biased variance, ε inside the root; then multiply by γ and add β.",
    formula=lambda x, gamma, beta, eps, **knobs: normalise(x, eps, gamma, beta, **knobs),
    mistakes=(
        *SPREAD,
        *axes_mistakes("NCHW", NAMES_4D),
        *CENTRE,
        *AFFINE,
        *EPS_FIXED,
        *DETACHED,
        *LOOPS,
        IMAGES,
        SQUARES,
    ),
    cases=image_cases(affine=True),
    drawn=drawn_images(affine=True),
    tracked=("x", "gamma", "beta"),
    explain=as_a_line,
)
