"""The exercises on statistics and layout (`give_back`, `as_2d`, `channel_stats`, `running_stats`), and their mistakes."""

from functools import cache

import torch
from hypothesis import strategies as st

from .base import FunctionExercise
from .catalogue import Case, Mistake, batch, one_of
from .formula import average
from .mistakes import SQUARES

# ---- statistics of a channel, for channel_stats and running_stats


def channel_statistics(
    x, *, over=None, mean_over=None, var_over=None, around="mean", mean_by="n", var_by="n", middle="mean"
):
    """Return mean and variance (C,) of x (N, C, *), bent by the knobs (those of `normalise`)."""
    every = tuple(d for d in range(x.dim()) if d != 1)
    mean_dims, var_dims = mean_over or over or every, var_over or over or every
    mean = average(x, mean_dims, mean_by)
    own = average(x, var_dims, mean_by if mean_dims == var_dims else "n")
    reference = {
        "mean": own,
        "true mean": average(x, var_dims),
        "zero": torch.zeros_like(own),
        "image's mean": average(x, every[1:]),
    }[around]
    var = average((x - reference) ** 2, var_dims, var_by)
    if middle == "median":
        mean = x.movedim(1, 0).flatten(1).median(1).values
    return mean.squeeze(mean_dims) if mean.dim() > 1 else mean, var.squeeze(var_dims)


def channel_stats(x, *, order="mean, var", root=False, kept=False, **knobs):
    mean, var = channel_statistics(x, **knobs)
    var = var.sqrt() if root else var
    return (var, mean) if order == "var, mean" else (mean, var)


def axes_mistakes(subsets, wanted, lesson, **also):
    """Return an entry for each wrong set of axes, of both statistics and of one alone."""
    return tuple(
        Mistake(
            f"{what} over the wrong axes",
            f"{what}: taken over {words} (dim={dims if len(dims) > 1 else dims[0]}); {wanted}",
            lesson,
            **{knob: dims},
        )
        for what, knob in (("statistics", "over"), ("mean", "mean_over"), ("variance", "var_over"))
        for dims, words in subsets.items()
    )


UNBIASED = Mistake(
    "unbiased variance",
    "the variance is divided by n − 1; asked for is the biased one, ÷ n (n = N·L): `var(..., correction=0)` (or `unbiased=False`); torch's default is ÷ (n − 1)",
    3,
    var_by="n - 1",
)
CHANNEL_MISTAKES = (
    UNBIASED,
    Mistake(
        "standard deviation instead of variance",
        "the second result is the standard deviation; asked for is the variance, its square: no root",
        1,
        root=True,
    ),
    Mistake(
        "mean and variance swapped",
        "the variance comes first; return the mean, then the variance (`torch.var_mean` gives them the other way round)",
        order="var, mean",
    ),
    *axes_mistakes(
        {
            (0,): "the batch only, N: each position for itself",
            (2,): "the positions of one sample, L: each sample for itself",
            (1,): "the channels, C",
            (0, 1): "N and C, as if the channels came last (N, L, C)",
            (1, 2): "C and L: each sample as a whole, as layer norm does",
            (0, 1, 2): "the whole tensor: one mean for all channels",
        },
        "all N·L values of one channel share a mean and a variance: average over N and L, dim=(0, 2)",
        2,
    ),
    Mistake(
        "average of the samples' variances",
        "each sample's own variance is taken and then averaged: what the samples' means differ by is lost; take the variance of all N·L values at once",
        2,
        also=[dict(around="image's mean", var_by=by) for by in ("n", "n - N")],
    ),
    Mistake(
        "variance not centred", "the variance is the mean of x²; expected the mean of (x − mean)²", 1, around="zero"
    ),
    Mistake(
        "sum instead of mean",
        "the mean's sum is never divided by n = N·L",
        mean_by="1",
        also=[dict(mean_by="1", around="true mean")],
    ),
    Mistake("sum instead of mean in the variance", "the squares are summed and never divided by n = N·L", var_by="1"),
    Mistake(
        "mean divided by N",
        "the mean's sum is divided by N; N·L numbers were added",
        mean_by="N",
        also=[dict(mean_by="N", around="true mean")],
    ),
    Mistake(
        "mean divided by L",
        "the mean's sum is divided by L; N·L numbers were added",
        mean_by="H·W",
        also=[dict(mean_by="H·W", around="true mean")],
    ),
    Mistake("variance divided by N", "the sum of squares is divided by N; N·L numbers were added", var_by="N"),
    Mistake("variance divided by L", "the sum of squares is divided by L; N·L numbers were added", var_by="H·W"),
    Mistake(
        "mean divided by n − 1",
        "the mean is the sum ÷ n; n − 1 belongs to the unbiased variance only",
        3,
        mean_by="n - 1",
        also=[dict(mean_by="n - 1", around="true mean")],
    ),
    Mistake("median instead of mean", "the first result is the median; asked for is the mean", middle="median"),
    SQUARES,
)


@cache
def rows_case(n, c, length, scale, mean, dtype, seed):
    return Case({"x": batch((n, c, length), seed, scale=scale, mean=mean, dtype=dtype)})


def drawn_rows():
    """Return the strategy for (N, C, L)."""
    size = one_of(1, 2, 3, 4)
    return st.builds(
        lambda n, *others: rows_case(n + 1, *others),  # two samples at least, so that an unbiased variance exists
        size,
        size,
        size,
        one_of(1.0, 0.01, 10.0, 100.0),
        one_of(0.0, 1.0, -20.0, 300.0),
        one_of(torch.float32, torch.float64),
        one_of(*range(8)),
    )


BY_HAND = torch.arange(12.0).reshape(2, 2, 3)  # lesson 02's example
CHANNEL_STATS = FunctionExercise(
    name="channel_stats",
    lesson=2,
    signature="channel_stats(x (N, C, L)) -> (mean (C,), biased var (C,))",
    asks="Return each channel's mean and biased variance, over all N·L numbers that share the channel.",
    formula=channel_stats,
    mistakes=CHANNEL_MISTAKES,
    cases=(
        Case({"x": BY_HAND}),
        Case({"x": batch((3, 4, 5), 1)}),
        Case({"x": batch((4, 2, 3), 2, dtype=torch.float64)}),
        Case({"x": batch((3, 3, 3), 3, mean=2.0)}),
        Case({"x": batch((1, 3, 4), 4)}, "N is 1"),
        Case({"x": batch((4, 3, 1), 5)}, "L is 1"),
        Case({"x": batch((2, 1, 3), 6)}, "C is 1"),
        Case({"x": batch((4, 2, 3), 7, mean=4000.0)}, "the mean is large", ill=True),
    ),
    drawn=drawn_rows(),
    results=("mean", "var"),
)

# ---- as_2d


def as_2d(x, *, how="right"):
    """Return x (N, C, L) as rows (N·L, C), bent by the knob."""
    c, length = x.shape[1:]
    return {
        "right": lambda: x.transpose(1, 2).reshape(-1, c),
        "no permute": lambda: x.reshape(-1, c),
        "N and C swapped": lambda: x.transpose(0, 1).reshape(-1, c),
        "all axes turned": lambda: x.permute(2, 0, 1).transpose(1, 2).reshape(-1, c),
        "L, C, N": lambda: x.permute(1, 2, 0).reshape(-1, c),
        "L as features": lambda: x.reshape(-1, length),
        "L as features, channel by channel": lambda: x.transpose(0, 1).reshape(-1, length),
        "channels as rows": lambda: x.transpose(0, 1).reshape(c, -1),
        "channels as rows, no permute": lambda: x.reshape(c, -1),
        "samples as rows": lambda: x.flatten(1),
        "still three axes": lambda: x.transpose(1, 2),
        "unchanged": lambda: x,
        "averaged over L": lambda: x.mean(2),
        "averaged over N": lambda: x.mean(0).T,
        "first position": lambda: x[:, :, 0],
        "last position": lambda: x[:, :, -1],
        "first sample": lambda: x[0].T,
        "channels turned round": lambda: x.transpose(1, 2).reshape(-1, c).flip(1),
        "already normalised": lambda: normalised(x.transpose(1, 2).reshape(-1, c)),
        "rows mixed": lambda: x.transpose(0, 1).transpose(1, 2).reshape(c, -1).T.reshape(-1, c),
    }[how]()


def normalised(rows):
    return (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()


CUTS = "`reshape` only cuts the same sequence of numbers elsewhere, it moves none: bring the channels to the last axis first, x.permute(0, 2, 1), then reshape"
AS_2D_MISTAKES = (
    Mistake("reshaped without permute", f"the rows mix channels and positions. {CUTS}", how="no permute"),
    Mistake(
        "N and C swapped",
        "the channels were moved to the front, not to the back: each row now holds neighbours of one channel; x.permute(0, 2, 1) brings C to the end",
        how="N and C swapped",
    ),
    Mistake(
        "axes in the wrong order",
        "after this permute the last axis is not C, so each row mixes channels; x.permute(0, 2, 1) brings C to the end",
        how="all axes turned",
    ),
    Mistake(
        "axes in the wrong order",
        "after this permute the last axis is N, so each row mixes samples; x.permute(0, 2, 1) brings C to the end",
        how="L, C, N",
    ),
    Mistake(
        "positions as features",
        "the rows are the L positions of one channel, (N·C, L); a column of the result has to be a channel: (N·L, C)",
        how="L as features",
    ),
    Mistake(
        "positions as features",
        "the rows are the L positions of one channel, (C·N, L); a column of the result has to be a channel: (N·L, C)",
        how="L as features, channel by channel",
    ),
    Mistake(
        "channels as rows",
        "the result is (C, N·L): its transpose is asked for, one column a channel",
        how="channels as rows",
    ),
    Mistake(
        "channels as rows, without permute",
        f"the result is (C, N·L) and its rows mix channels. {CUTS}",
        how="channels as rows, no permute",
    ),
    Mistake(
        "samples as rows",
        "each sample became one row of C·L numbers: 2D BatchNorm would then have C·L features; each (sample, position) is a row: (N·L, C)",
        how="samples as rows",
    ),
    Mistake(
        "still three axes",
        "the channels are last now, but the shape is still (N, L, C): flatten N and L into one axis with reshape(-1, C)",
        how="still three axes",
    ),
    Mistake("unchanged", "x comes back as it was, (N, C, L)", how="unchanged"),
    Mistake(
        "positions averaged", "the positions were averaged away: no number of x may get lost", how="averaged over L"
    ),
    Mistake("samples averaged", "the samples were averaged away: no number of x may get lost", how="averaged over N"),
    Mistake(
        "one position only",
        "only one position of each sample is left: no number of x may get lost",
        how="first position",
    ),
    Mistake(
        "one position only",
        "only one position of each sample is left: no number of x may get lost",
        how="last position",
    ),
    Mistake("one sample only", "only one sample is left: no number of x may get lost", how="first sample"),
    Mistake(
        "channels in another order",
        "the columns are the channels, but not in the order of x",
        how="channels turned round",
    ),
    Mistake(
        "already normalised",
        "the numbers are normalised already; only their layout is asked for",
        how="already normalised",
    ),
)
AS_2D = FunctionExercise(
    name="as_2d",
    lesson=2,
    signature="as_2d(x (N, C, L)) -> (N*L, C)",
    asks="Lay x out so that 2D BatchNorm on it equals 3D BatchNorm on x: one row for each (sample, position), in any order, one column for each channel.",
    formula=as_2d,
    mistakes=AS_2D_MISTAKES,
    cases=(
        Case({"x": BY_HAND}),
        Case({"x": batch((3, 4, 5), 1)}),
        Case({"x": batch((4, 2, 3), 2, dtype=torch.float64)}),
        Case({"x": batch((3, 3, 3), 3)}, "N, C and L are equal"),
        Case({"x": batch((2, 4, 2), 4)}),
    ),
    drawn=drawn_rows(),
    results=("rows",),
    unordered=True,
    explain=lambda x, expected, received: columns(expected, received),
)


def columns(expected, received):
    """Say which columns hold one channel's numbers."""
    alike = [
        torch.allclose(e.sort().values, r.sort().values, rtol=1e-4) for e, r in zip(expected.T, received.T, strict=True)
    ]
    if all(alike):
        return "Each column holds its channel's numbers, but they do not meet in the right rows: a row is one (sample, position)."
    wrong = ", ".join(str(c) for c, same in enumerate(alike) if not same)
    return f"Column {wrong}: not the numbers of that channel."


# ---- give_back


def give_back(
    x,
    eps,
    *,
    along=0,
    by="n",
    place="inside",
    root=True,
    order="γ, β",
    gamma="spread",
    beta="mean",
    fixed=None,
    around="mean",
):
    """Return the γ and β with which BN gives x (N, C) back, bent by the knobs."""
    eps = eps if fixed is None else fixed
    dims = {0: (0,), 1: (1,), "all": (0, 1)}[along]
    mean = average(x, dims)
    var = average((x - (mean if around == "mean" else 0)) ** 2, dims, by).squeeze(dims)
    mean = mean.squeeze(dims)
    if root:
        spread = {
            "inside": (var + eps).sqrt(),
            "missing": var.sqrt(),
            "outside": var.sqrt() + eps,
            "subtracted": (var - eps).sqrt(),
        }[place]
    else:
        spread = var if place == "missing" else var + eps
    scale = {"spread": spread, "inverse": 1 / spread, "one": torch.ones_like(spread)}[gamma]
    shift = {
        "mean": mean,
        "minus": -mean,
        "zero": torch.zeros_like(mean),
        "over spread": mean / spread,
        "minus over spread": -mean / spread,
        "times": mean * spread,
        "median": x.median(0).values,
    }[beta]
    return (scale, shift) if order == "γ, β" else (shift, scale)


GIVE_BACK_MISTAKES = (
    Mistake(
        "unbiased variance",
        "γ uses the variance ÷ (N − 1); BN divided by the root of the biased one, ÷ N: `correction=0` (or `unbiased=False`)",
        3,
        by="n - 1",
    ),
    Mistake(
        "epsilon missing",
        "γ is the plain standard deviation; BN divided by √(var + ε), so γ has to hold ε too",
        4,
        place="missing",
    ),
    Mistake("epsilon outside the root", "γ is √var + ε; BN divided by √(var + ε)", 4, place="outside"),
    Mistake(
        "variance instead of standard deviation", "γ is the variance; BN divided by its root, √(var + ε)", root=False
    ),
    Mistake(
        "gamma and beta swapped",
        "β comes first; return γ, the scale, then β, the shift: γ = √(var + ε), β = mean",
        order="β, γ",
    ),
    Mistake(
        "gamma inverted",
        "γ is 1 / √(var + ε): BN divided by the root already, γ has to multiply by it",
        gamma="inverse",
    ),
    Mistake("sign of beta", "β is −mean: BN subtracted the mean already, β has to add it", beta="minus"),
    Mistake(
        "gamma and beta undo nothing",
        "γ = 1 leaves the spread as BN made it; γ has to multiply by √(var + ε)",
        gamma="one",
    ),
    Mistake("gamma and beta undo nothing", "γ = 1 and β = 0 leave BN's output as it is", gamma="one", beta="zero"),
    Mistake("beta zero", "β = 0 does not bring the mean back", beta="zero"),
    Mistake(
        "beta divided by the spread",
        "β is added last, after γ has multiplied: it is the mean itself, not divided",
        beta="over spread",
    ),
    Mistake(
        "BN applied again",
        "1 / √(var + ε) and −mean / √(var + ε) are what BN does; its inverse is asked for",
        gamma="inverse",
        beta="minus over spread",
    ),
    Mistake("beta multiplied by gamma", "β is added last, after γ has multiplied: it is the mean itself", beta="times"),
    Mistake(
        "statistics over the wrong axes",
        "mean and variance are taken over each row (dim=1); each column is a channel: dim=0",
        along=1,
    ),
    Mistake(
        "statistics over the wrong axes",
        "mean and variance are taken over the whole table; each column is a channel: dim=0",
        along="all",
    ),
    Mistake("epsilon subtracted", "γ is √(var − ε); BN divided by √(var + ε)", 4, place="subtracted"),
    Mistake("variance not centred", "the variance is the mean of x²; expected the mean of (x − mean)²", around="zero"),
    Mistake("sum instead of mean in the variance", "the squares are summed and never divided by N", by="1"),
    Mistake("median instead of mean", "β is the median; BN subtracted the mean", beta="median"),
    *(
        Mistake("epsilon fixed", f"ε is always {value:g}, whatever is passed: use the argument `eps`", 4, fixed=value)
        for value in (1e-5, 1e-3, 1e-8, 1e-6)
    ),
    SQUARES,
)


@cache
def table_case(n, c, scale, mean, eps, dtype, seed):
    return Case({"x": batch((n, c), seed, scale=scale, mean=mean, dtype=dtype), "eps": eps})


GIVE_BACK = FunctionExercise(
    name="give_back",
    lesson=1,
    signature="give_back(x (N, C), eps) -> (gamma (C,), beta (C,))",
    asks="Return the γ and β with which BN, y = (x − mean) / √(var + ε) · γ + β, gives x itself back.",
    formula=give_back,
    mistakes=GIVE_BACK_MISTAKES,
    cases=(
        Case({"x": torch.tensor([[85.0, 60, 70], [90, 80, 75], [95, 50, 80], [88, 70, 85]]), "eps": 1.0}),
        Case({"x": batch((5, 3), 1), "eps": 0.1}),
        Case({"x": batch((3, 4), 2, dtype=torch.float64), "eps": 1e-3}),
        Case({"x": batch((3, 3), 3), "eps": 0.5}),
        Case({"x": batch((6, 1), 4, mean=2.0), "eps": 0.01}, "C is 1"),
        Case({"x": batch((4, 3), 5, scale=2e-3), "eps": 1e-5}, "a variance is tiny"),
        Case({"x": batch((8, 2), 6, mean=4000.0), "eps": 1e-5}, "the mean is large", ill=True),
    ),
    drawn=st.builds(
        table_case,
        one_of(3, 4, 5, 8),
        one_of(1, 2, 3, 4),
        one_of(1.0, 0.01, 10.0, 100.0),
        one_of(0.0, 60.0, -20.0, 300.0),
        one_of(1e-5, 1e-3, 0.1, 1.0),
        one_of(torch.float32, torch.float64),
        one_of(*range(8)),
    ),
    results=("gamma", "beta"),
)

# ---- running_stats


def running_stats(
    x,
    running_mean,
    running_var,
    momentum,
    *,
    var_by="n - 1",
    mean_share="new",
    var_share="new",
    fixed=None,
    order="mean, var",
    root="none",
    corrected="batch's",
    shape="(C,)",
    **knobs,
):
    """Return running mean and variance (C,) after the batch x (N, C, H, W), bent by the knobs."""
    momentum = momentum if fixed is None else fixed
    n, images = torch.tensor([x.numel() / x.shape[1], x.shape[0]], dtype=torch.float64)  # as tensors, n / 0 is inf
    by = var_by if var_by in ("n - 1", "n", "1", "N", "H·W", "n - N") else "n"
    mean, var = channel_statistics(x, var_by=by, **knobs)
    var = var * {
        "n, N for n": images / (images - 1),
        "n, H·W for n": n / (n - images),
        "twice": (n / (n - 1)) ** 2,
        "reversed": (n - 1) / n,
        "N - 1": n / (images - 1),
        "n - 2": n / (n - 2),
    }.get(var_by, 1)
    var = var.sqrt() if root == "batch" else var
    new_mean = moved(running_mean, mean, momentum, mean_share)
    new_var = moved(running_var, var, momentum, var_share)
    if corrected == "all":
        new_var = new_var * n / (n - 1)
    if root == "result":
        new_var = new_var.sqrt()
    if shape == "(1, C, 1, 1)":
        new_mean, new_var = new_mean.view(1, -1, 1, 1), new_var.view(1, -1, 1, 1)
    return {"mean, var": (new_mean, new_var), "var, mean": (new_var, new_mean)}[order]


def moved(old, new, momentum, share):
    """Return an average of `old` and `new`, in which `momentum` is the share of the new one, unless `share` bends it."""
    return {
        "new": lambda: (1 - momentum) * old + momentum * new,
        "old": lambda: momentum * old + (1 - momentum) * new,
        "replaced": lambda: new + 0 * old,
        "kept": lambda: old + 0 * new,
        "batch added": lambda: old + new,
        "share added": lambda: old + momentum * new,
        "no share for the new": lambda: (1 - momentum) * old + new,
        "step back": lambda: old - momentum * (new - old),
        "halves": lambda: (old + new) / 2,
        "share alone": lambda: momentum * new + 0 * old,
        "both by momentum": lambda: momentum * (old + new),
    }[share]()


def shares(share, name, cause, lesson=3):
    """Return the entries of one wrong update: of both statistics, of the mean alone, of the variance alone."""
    return (
        Mistake(name, cause, lesson, mean_share=share, var_share=share),
        Mistake(f"{name}, in the mean", f"in the running mean: {cause}", lesson, mean_share=share),
        Mistake(f"{name}, in the variance", f"in the running variance: {cause}", lesson, var_share=share),
    )


NEW = "new = (1 − momentum) · old + momentum · batch"
UPDATES = (
    *shares(
        "old",
        "momentum reversed",
        f"momentum is taken for the share of the old value; in PyTorch it is the share of the new one: {NEW}",
    ),
    *shares(
        "replaced",
        "running statistics replaced",
        f"the batch's statistics replace the running ones instead of being averaged in: {NEW}",
    ),
    *shares("kept", "running statistics not updated", f"the running statistics come back as they were: {NEW}"),
    *shares(
        "batch added",
        "running statistics summed",
        f"the batch's statistics are added to the running ones, which grow without end: {NEW}",
    ),
    *shares(
        "share added",
        "old share not reduced",
        f"momentum · batch is added, but the old value keeps its full weight: {NEW}",
    ),
    *shares(
        "no share for the new",
        "new share without momentum",
        f"the old value is reduced, but the batch enters with full weight: {NEW}",
    ),
    *shares(
        "step back",
        "step in the wrong direction",
        f"the step goes away from the batch's value: old + momentum · (batch − old), which is {NEW}",
    ),
    *shares("halves", "plain average of old and new", f"momentum is not used: {NEW}"),
    *shares("share alone", "old value dropped", f"only momentum · batch is left, the old value is dropped: {NEW}"),
    *shares(
        "both by momentum",
        "both shares are momentum",
        f"old and new are both multiplied by momentum; the shares must add up to 1: {NEW}",
    ),
)
RUNNING_AXES = {
    (0,): "the batch only: each pixel for itself",
    (1,): "the channels of one pixel",
    (2, 3): "each image and channel for itself",
    (1, 2, 3): "each image as a whole",
    (0, 1, 2, 3): "the whole tensor: one mean for all channels",
    (0, 1): "batch and channels",
    (0, 1, 2): "all but the last axis, as if the channels came last",
    (0, 2): "N and H, without W",
    (0, 3): "N and W, without H",
    (3,): "the last axis only",
    (2,): "the rows only",
}
RUNNING_MISTAKES = (
    Mistake(
        "biased variance",
        "the variance that enters is divided by n; what is stored is the unbiased one, ÷ (n − 1) with n = N·H·W: `var(..., correction=1)`, or times n / (n − 1)",
        3,
        var_by="n",
    ),
    *UPDATES,
    Mistake(
        "mean and variance swapped",
        "the running variance comes first; return the mean, then the variance",
        order="var, mean",
    ),
    Mistake(
        "standard deviation instead of variance",
        "the batch's standard deviation enters the running variance; it has to be the variance, without a root",
        3,
        root="batch",
    ),
    Mistake(
        "standard deviation instead of variance",
        "the root of the new running variance is returned; the variance itself is stored",
        3,
        root="result",
    ),
    Mistake(
        "wrong count in n / (n − 1)",
        "n is taken to be N, the number of images; n = N·H·W values share a channel",
        3,
        var_by="n, N for n",
    ),
    Mistake(
        "wrong count in n / (n − 1)",
        "n is taken to be H·W, the pixels of one image; n = N·H·W values share a channel",
        3,
        var_by="n, H·W for n",
    ),
    Mistake(
        "wrong count in n − 1",
        "the sum of squares is divided by N − 1; N·H·W values share a channel: ÷ (N·H·W − 1)",
        3,
        var_by="N - 1",
    ),
    Mistake(
        "n − 2",
        "the sum of squares is divided by n − 2, or the correction is applied to an estimate that has it already",
        3,
        var_by="n - 2",
    ),
    Mistake(
        "correction applied twice",
        "n / (n − 1) multiplies a variance that is unbiased already (`var` divides by n − 1 unless told otherwise)",
        3,
        var_by="twice",
    ),
    Mistake(
        "correction reversed",
        "the biased variance is multiplied by (n − 1) / n; the unbiased one is n / (n − 1) times the biased",
        3,
        var_by="reversed",
    ),
    Mistake(
        "correction on the running variance",
        "n / (n − 1) multiplies the whole new running variance; it belongs to the batch's variance only",
        3,
        var_by="n",
        corrected="all",
    ),
    *(
        Mistake("momentum fixed", f"momentum is always {value:g}, whatever is passed: use the argument", 3, fixed=value)
        for value in (0.1, 0.9, 0.99, 0.01)
    ),
    *axes_mistakes(
        RUNNING_AXES, "all values of one channel share a mean and a variance: average over N, H and W, dim=(0, 2, 3)", 4
    ),
    Mistake(
        "average of the images' variances",
        "each image's own variance is taken and then averaged: what the images' means differ by is lost",
        3,
        also=[dict(around="image's mean", var_by=by) for by in ("n - 1", "n", "n - N")],
    ),
    Mistake("variance not centred", "the variance is taken from x², not from (x − mean)²", 1, around="zero"),
    Mistake(
        "sum instead of mean",
        "the mean's sum is never divided by n = N·H·W",
        mean_by="1",
        also=[dict(mean_by="1", around="true mean")],
    ),
    Mistake("sum instead of mean in the variance", "the squares are summed and never divided by n − 1", var_by="1"),
    Mistake(
        "mean divided by n − 1",
        "the mean is the sum ÷ n; n − 1 belongs to the unbiased variance only",
        3,
        mean_by="n - 1",
        also=[dict(mean_by="n - 1", around="true mean")],
    ),
    Mistake("median instead of mean", "the median enters the running mean", middle="median"),
    SQUARES,
)


@cache
def running_case(n, c, h, w, scale, mean, momentum, dtype, seed):
    generator = torch.Generator().manual_seed(seed + 50)
    old = torch.rand(2, c, generator=generator, dtype=torch.float64) * 3 + 0.5
    n = n if n * h * w > 3 else 4
    x = batch((n, c, h, w), seed, scale=scale, mean=mean, dtype=dtype)
    return Case({"x": x, "running_mean": old[0].to(dtype), "running_var": old[1].to(dtype), "momentum": momentum})


WHOLE = torch.tensor([[[[6.0, 8]], [[0, 5]]], [[[1, 9]], [[5, 2]]]])
OLD = {"running_mean": torch.tensor([1.0, 2.0]), "running_var": torch.tensor([3.0, 1.0])}
RUNNING_STATS = FunctionExercise(
    name="running_stats",
    lesson=3,
    signature="running_stats(x (N, C, H, W), running_mean, running_var, momentum) -> (new_mean (C,), new_var (C,))",
    asks="Return the running mean and variance after this batch, as PyTorch keeps them, in new tensors.",
    formula=running_stats,
    mistakes=RUNNING_MISTAKES,
    cases=(
        Case({"x": WHOLE, **OLD, "momentum": 0.25}),
        running_case(3, 4, 2, 5, 1.0, 1.0, 0.1, torch.float32, 1),
        running_case(2, 3, 4, 3, 2.0, -1.0, 0.3, torch.float64, 2),
        running_case(4, 4, 4, 3, 1.0, 0.5, 0.9, torch.float32, 3),
        running_case(3, 3, 1, 2, 1.0, 0.5, 1.0, torch.float32, 4),
        running_case(4, 2, 1, 1, 1.0, 2.0, 0.6, torch.float32, 5),
        running_case(1, 3, 2, 3, 1.0, 2.0, 0.6, torch.float32, 6),
        Case(running_case(4, 2, 2, 2, 1.0, 4000.0, 0.5, torch.float32, 7).arguments, "the mean is large", ill=True),
    ),
    drawn=st.builds(
        running_case,
        *[one_of(1, 2, 3, 4)] * 4,
        one_of(1.0, 0.01, 5.0, 100.0),
        one_of(0.0, 1.0, -20.0, 300.0),
        one_of(0.1, 0.3, 1.0, 0.01),
        one_of(torch.float32, torch.float64),
        one_of(*range(8)),
    ),
    results=("new_mean", "new_var"),
)
