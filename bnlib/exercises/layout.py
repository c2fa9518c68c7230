"""The exercises `as_2d` and `give_back`, and their mistakes."""

import torch

from .formula import EPSILONS, GRADES, batch, divided, drawn_batches, normalise
from .judge import Case, Exercise, Mistake
from .mistakes import FIXED, NOT_CENTRED, SQUARES, WRONG_AXES
from .reading import Place
from .statistics import CHANNEL_STATS, DRAWN_ROWS, channel_statistics

# ---- as_2d


def as_2d(x, *, how=("NLC", -1, "C")):
    """Return x (N, C, L) with its axes in another order, then reshaped; in the shape letters stand for their sizes."""
    if callable(how):
        return how(x)
    order, *shape = how
    sizes = dict(zip("NCL", x.shape, strict=True))
    return x.permute(["NCL".index(axis) for axis in order]).reshape([sizes.get(size, size) for size in shape])


LAST = "bring the channels to the last axis, x.permute(0, 2, 1), then reshape(-1, C)"
LOST = "no number of x may get lost: each (sample, position) is a row, (N·L, C)"
LAYOUTS = (
    Mistake(
        "reshaped without permute",
        f"the rows mix channels and positions: `reshape` moves no number, it cuts the same sequence elsewhere; {LAST}",
        how=("NCL", -1, "C"),
    ),
    Mistake(
        "axes in the wrong order",
        f"after the permute the last axis is not C, so each row holds one channel's neighbours; {LAST}",
        also=[dict(how=(order, -1, "C")) for order in ("CNL", "CLN", "LCN")],
    ),
    Mistake(
        "positions as features",
        f"the rows are the L positions of one channel; a column of the result has to be a channel: {LAST}",
        also=[dict(how=(order, -1, "L")) for order in ("NCL", "CNL", "LCN")],
    ),
    Mistake(
        "channels as rows",
        "the result is (C, N·L); its transpose is asked for, one column a channel",
        how=("CNL", "C", -1),
    ),
    Mistake(
        "channels as rows, without permute",
        f"the result is (C, N·L), and its rows mix channels: `reshape` moves no number; {LAST}",
        how=("NCL", "C", -1),
    ),
    Mistake(
        "samples as rows",
        f"each sample became one row of C·L numbers, and 2D BatchNorm would have C·L features; {LAST}",
        how=("NCL", "N", -1),
    ),
    Mistake(
        "still three axes",
        "the channels are last, but the shape is still (N, L, C): make one axis of N and L, reshape(-1, C)",
        how=("NLC", "N", "L", "C"),
    ),
    Mistake("unchanged", f"x comes back as it was, (N, C, L): {LAST}", how=lambda x: x),
    Mistake("everything in one row", f"all axes were flattened into one; {LAST}", how=("NCL", -1)),
    Mistake("positions averaged", f"the positions were averaged away; {LOST}", how=lambda x: x.mean(2)),
    Mistake("samples averaged", f"the samples were averaged away; {LOST}", how=lambda x: x.mean(0).T),
    Mistake(
        "one position only",
        f"one position of each sample is left; {LOST}",
        also=[dict(how=lambda x: x[:, :, 0]), dict(how=lambda x: x[:, :, -1])],
    ),
    Mistake("one sample only", f"one sample is left; {LOST}", how=lambda x: x[0].T),
    Mistake("channels in another order", "a column is a channel, but not that of x", how=lambda x: as_2d(x).flip(1)),
    Mistake(
        "already normalised",
        "the numbers are normalised; only their layout is asked for",
        how=lambda x: normalise(as_2d(x)),
    ),
)


def columns(x, expected, received):
    """Say which columns hold their channel's numbers."""
    pairs = zip(expected.T, received.T, strict=True)
    alike = [torch.allclose(right.sort().values, other.sort().values, rtol=1e-4) for right, other in pairs]
    if all(alike):
        return "Each column holds its channel's numbers, but in rows that are not one (sample, position) each."
    return f"Not its channel's numbers: column {', '.join(str(c) for c, same in enumerate(alike) if not same)}."


AS_2D = Exercise(
    name="as_2d",
    place=Place(2, "(N, C, L): every position counts"),
    signature="as_2d(x (N, C, L)) -> (N*L, C)",
    asks="Lay x out so that 2D BatchNorm on it equals 3D BatchNorm on x: one row for each (sample, position), in any "
    "order, one column for each channel.",
    formula=as_2d,
    mistakes=LAYOUTS,
    cases=(
        *CHANNEL_STATS.cases[:3],
        Case({"x": batch((3, 3, 3), 3)}, "N, C and L are equal"),
        Case({"x": batch((2, 4, 2), 4)}),
    ),
    drawn=DRAWN_ROWS,
    results=("rows",),
    unordered=True,
    explain=columns,
)

# ---- give_back


def give_back(
    x, eps, *, spread="root", place="inside", fixed=None, scale="spread", shift="mean", order="γ, β", **knobs
):
    """Return the γ and β with which BN gives x (N, C) back, bent by the knobs, those of its statistics among them."""
    mean, var = channel_statistics(x, **knobs)
    one = torch.ones_like(var)
    inverse = divided(one, var, eps if fixed is None else fixed, spread, place)
    gamma = {"spread": 1 / inverse, "inverse": inverse, "one": one}[scale]
    beta = {
        "mean": mean,
        "minus": -mean,
        "zero": torch.zeros_like(mean),
        "divided": mean * inverse,
        "minus, divided": -mean * inverse,
        "multiplied": mean / inverse,
    }[shift]
    return (gamma, beta) if order == "γ, β" else (beta, gamma)


DIVIDED = "BN divided by √(var + ε)"
INVERSES = (
    Mistake("unbiased variance", f"γ holds the variance ÷ (N − 1); {DIVIDED} with ÷ N: `correction=0`", var_by="n - 1"),
    Mistake("epsilon missing", f"γ is the standard deviation alone; {DIVIDED}, with ε in it", place="missing"),
    Mistake("epsilon outside the root", f"γ is √var + ε; {DIVIDED}", place="outside"),
    Mistake(
        "variance instead of standard deviation",
        f"γ is the variance; {DIVIDED}, so a root is missing",
        spread="variance",
    ),
    Mistake("gamma and beta swapped", "β comes first; return γ, the scale √(var + ε), then β, the mean", order="β, γ"),
    Mistake("gamma inverted", f"γ is 1 / √(var + ε); {DIVIDED} already, γ has to multiply by it", scale="inverse"),
    Mistake("sign of beta", "β is −mean; BN subtracted the mean already, β has to add it", shift="minus"),
    Mistake(
        "gamma and beta undo nothing",
        "γ = 1 leaves the spread as BN made it: γ has to multiply by √(var + ε), β to add the mean",
        also=[dict(scale="one"), dict(scale="one", shift="zero")],
    ),
    Mistake("beta zero", "β = 0 does not bring the mean back", shift="zero"),
    Mistake("beta divided", "β is the mean itself: it is added last, after γ has multiplied", shift="divided"),
    Mistake("beta multiplied", "β is the mean itself: it is added last, after γ has multiplied", shift="multiplied"),
    Mistake(
        "BN applied again",
        "1 / √(var + ε) and −mean / √(var + ε) are what BN does; its inverse is asked for",
        scale="inverse",
        shift="minus, divided",
    ),
    Mistake(WRONG_AXES, "they are each row's (dim=1); each column is a channel: dim=0", over=(1,)),
    Mistake(WRONG_AXES, "they are the whole table's; each column is a channel: dim=0", over=(0, 1)),
    Mistake("epsilon subtracted", f"γ is √(var − ε); {DIVIDED}", place="subtracted"),
    NOT_CENTRED,
    Mistake("sum instead of mean in the variance", "the squares are summed, not averaged: ÷ N", var_by="1"),
    Mistake("median instead of mean", "β is the median; BN subtracted the mean", middle="median"),
    FIXED,
    SQUARES,
)


GIVE_BACK = Exercise(
    name="give_back",
    place=Place(1, "γ and β: what the head teacher wishes"),
    signature="give_back(x (N, C), eps) -> (gamma (C,), beta (C,))",
    asks="Return the γ and β with which BN, y = (x − mean) / √(var + ε) · γ + β, gives x itself back.",
    formula=give_back,
    mistakes=INVERSES,
    cases=(
        Case({"x": GRADES, "eps": 1.0}),
        Case({"x": batch((5, 3), 1), "eps": 0.1}),
        Case({"x": batch((3, 4), 2, dtype=torch.float64), "eps": 1e-3}),
        Case({"x": batch((3, 3), 3), "eps": 0.5}),
        Case({"x": batch((6, 1), 4, mean=2.0), "eps": 0.01}, "C is 1"),
        Case({"x": batch((4, 3), 5, scale=2e-3), "eps": 1e-5}, "a variance is tiny"),
        Case({"x": batch((8, 2), 6, mean=4000.0), "eps": 1e-5}, "the mean is large", ill=True),
        Case({"x": batch((5, 3), 7, scale=1000.0, dtype=torch.float64), "eps": 1e-5}, plain=True),
    ),
    drawn=drawn_batches(
        lambda x, eps, _: Case({"x": x, "eps": eps}),
        (3, 4, 5, 8),
        (1, 2, 3, 4),
        means=(0.0, 60.0, -20.0, 300.0),
        more=[EPSILONS],
    ),
    results=("gamma", "beta"),
)
