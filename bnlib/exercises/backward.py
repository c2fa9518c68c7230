"""The exercises of lesson 06: `batch_norm_backward`, `numerical_gradient` and `swallowed`."""

from dataclasses import dataclass

import torch

from .formula import batch
from .judge import Case, Exercise, Mistake, drawn, rarely
from .judge.answers import SHAPE, describe, identical, read
from .judge.diagnosis import IN_PLACE, RAISES, Unanswered
from .judge.guard import holds_dots
from .judge.verdict import judged
from .mistakes import SQUARES
from .reading import Place

# ---- the backward pass, with a knob for each of its terms


def backward(
    dy,
    x,
    gamma,
    eps,
    *,
    mean_path=1.0,
    var_path=1.0,
    gammas=(1, 1, 1),
    divided="σ",
    mean_by="n",
    var_by="n",
    var="biased",
    outer="x̂",
    inner="x̂",
    place="inside",
    over=0,
    scale="dy · x̂",
    shift="dy",
    sums="a channel's",
    sums_of=("gamma", "beta"),
    signs=(1, 1, 1),
    order=(0, 1, 2),
):
    """Return (dx, dγ, dβ) of BN on x (N, C), bent by the knobs.

    mean_path, var_path  how often the path through the mean, the variance is counted
    gammas         how often γ multiplies the direct path, the mean's, the variance's
    divided        what all of dx is divided by
    mean_by, var_by  what the sums of the two paths are divided by
    var            which variance σ and x̂ are made of
    outer, inner   what stands for x̂ before the variance path's sum, and in it
    place          where ε stands
    over           the axes of the statistics
    scale, shift   what is summed for dγ and for dβ
    sums, sums_of  over what these are summed; which of the two
    signs, order   of what is returned
    """
    n = {0: len(x), 1: x.shape[1], (0, 1): x.numel()}[over]
    count = {"n": n, "1": 1, "n - 1": n - 1, "C": x.shape[1], "N·C": x.numel()}

    def total(values):
        return values.sum(over, keepdim=True)

    centred = x - total(x) / n
    variance = total(centred**2) / count["n - 1" if var == "unbiased" else "n"]
    sigma = {
        "inside": (variance + eps).sqrt(),
        "missing in dvar": (variance + eps).sqrt(),
        "missing": variance.sqrt(),
        "outside": variance.sqrt() + eps,
    }[place]
    z = centred / sigma
    direct, by_mean, by_var = (gamma**power * dy for power in gammas)
    hats = {"x̂": z, "x - mean": centred, "x": x}
    by_var = hats[outer] * total(by_var * hats[inner]) / count[var_by]
    if place == "missing in dvar":
        by_var = by_var * sigma**2 / variance.sqrt() ** 3 * sigma
    divisor = {"σ": sigma, "nothing": 1.0, "variance": sigma**2, "1/σ": 1 / sigma}[divided]
    dx = (direct - mean_path * total(by_mean) / count[mean_by] - var_path * by_var) / divisor
    dy_scale = {"dy · x̂": dy * z, "dy · x": dy * x, "dy · (x - mean)": dy * centred, "γ · dy · x̂": gamma * dy * z}[
        scale
    ]
    dy_shift = {"dy": dy, "γ · dy": gamma * dy}[shift]

    def summed(values, name):
        if name not in sums_of or sums == "a channel's":
            return values.sum(0)
        return {
            "averaged": lambda: values.mean(0),
            "whole table": lambda: values.sum(),
            "not summed": lambda: values,
            "a sample's": lambda: values.sum(1),
        }[sums]()

    results = dx, summed(dy_scale, "gamma"), summed(dy_shift, "beta")
    return tuple(signs[k] * results[k] for k in order)


WAYS = "x acts on the loss directly, through the mean and through the variance, and dx is the sum of the three"
MEAN_TERM = "the mean's path is −Σ γ·dy / (n·σ), the same for each value of a channel"
VAR_TERM = "the variance's path is −x̂ · Σ γ·dy·x̂ / (n·σ)"
GAMMA = "g = γ · dy reaches x̂, and all three paths start from g, γ once in each"
COUNT = "n is the number of values that share a mean, here N"
BACKWARD = (
    Mistake("path through the mean missing", f"{WAYS}; {MEAN_TERM}; each channel of dx must sum to 0", mean_path=0.0),
    Mistake(
        "path through the variance missing",
        f"{WAYS}; {VAR_TERM}; x̂ and dx must be orthogonal in each channel, but for ε",
        var_path=0.0,
    ),
    Mistake(
        "mean and variance taken for constants",
        f"γ/σ · dy is what eval() has, whose statistics are constants; in training {WAYS}",
        mean_path=0.0,
        var_path=0.0,
    ),
    Mistake(
        "n − 1 in the gradient",
        f"both sums are divided by n − 1; {COUNT}, and the biased variance divides by it, too",
        mean_by="n - 1",
        var_by="n - 1",
    ),
    Mistake(
        "unbiased variance",
        "σ and x̂ are made of the variance ÷ (n − 1), as `x.var(0)` is; BN normalises with the biased one, "
        "`x.var(0, correction=0)`",
        var="unbiased",
        also=[dict(var="unbiased", var_by="n - 1")],
    ),
    Mistake("gamma forgotten in dx", f"γ does not enter dx; {GAMMA}", gammas=(0, 0, 0)),
    Mistake(
        "gamma in the direct path only",
        f"the sums of the other two paths are taken over dy, without γ; {GAMMA}",
        gammas=(1, 0, 0),
    ),
    Mistake(
        "gamma twice in the sums",
        f"the sums are taken over γ·dy and then multiplied by γ again; {GAMMA}",
        gammas=(1, 2, 2),
    ),
    Mistake("sums not divided by n", f"{MEAN_TERM}; {VAR_TERM}; both are averages", mean_by="1", var_by="1"),
    Mistake("sum of the mean path not divided by n", f"{MEAN_TERM}", mean_by="1"),
    Mistake("sum of the variance path not divided by n", f"{VAR_TERM}", var_by="1"),
    Mistake("not divided by σ", "all three paths pass x̂ = (x − mean) / σ, and each is divided by σ", divided="nothing"),
    Mistake("divided by the variance", "dx is divided by var + ε; it is divided by its root σ", divided="variance"),
    Mistake("sign of the mean path", f"it is added where it should be subtracted; {MEAN_TERM}", mean_path=-1.0),
    Mistake("sign of the variance path", f"it is added where it should be subtracted; {VAR_TERM}", var_path=-1.0),
    Mistake(
        "factor 2 missing in the variance path",
        "the derivative of (x − mean)² is 2 (x − mean); the ½ of the root stands alone without it",
        var_path=0.5,
    ),
    Mistake(
        "factor ½ missing in the variance path",
        "the derivative of the root, √v, is ½ / √v; the 2 of the square stands alone without it",
        var_path=2.0,
    ),
    Mistake("mean path counted twice", f"{MEAN_TERM}, once", mean_path=2.0),
    Mistake(
        "x − mean for x̂ in the variance path, once",
        f"{VAR_TERM}; with x − mean in one of the two places the power of var + ε in dvar has to be −3/2, not −1",
        outer="x - mean",
        also=[dict(inner="x - mean")],
    ),
    Mistake(
        "x − mean for x̂ in the variance path, twice",
        f"{VAR_TERM}; with x − mean in both places the power of var + ε in dvar has to be −3/2, not −1/2",
        outer="x - mean",
        inner="x - mean",
    ),
    Mistake("dgamma with x", "dγ = Σ dy · x̂: y = γ · x̂ + β, so γ multiplies x̂, not x itself", scale="dy · x"),
    Mistake(
        "dgamma with x − mean",
        "dγ = Σ dy · x̂: x − mean is not yet divided by σ",
        scale="dy · (x - mean)",
    ),
    Mistake("gamma in dgamma", "dγ = Σ dy · x̂, of dy, not of γ · dy: dy is what reaches γ · x̂", scale="γ · dy · x̂"),
    Mistake("gamma in dbeta", "dβ = Σ dy, of dy, not of γ · dy: β is added after γ multiplied", shift="γ · dy"),
    Mistake(
        "gamma in dgamma and dbeta",
        "both are summed from γ · dy; dγ = Σ dy · x̂ and dβ = Σ dy stand after γ on the way back",
        scale="γ · dy · x̂",
        shift="γ · dy",
    ),
    Mistake("dgamma and dbeta averaged", "they are sums over the samples, not means", sums="averaged"),
    Mistake("dgamma averaged", "dγ = Σ dy · x̂ is a sum, not a mean", sums="averaged", sums_of=("gamma",)),
    Mistake("dbeta averaged", "dβ = Σ dy is a sum, not a mean", sums="averaged", sums_of=("beta",)),
    Mistake("dgamma and dbeta swapped", "return dx, dgamma, dbeta, in this order", order=(0, 2, 1)),
    Mistake("epsilon missing", "σ is √(var + ε), backward as forward", place="missing"),
    Mistake(
        "epsilon missing in dvar",
        "the root's derivative is taken at var + ε: −½ (var + ε)^(−3/2)",
        place="missing in dvar",
    ),
    Mistake("epsilon outside the root", "σ is √(var + ε), not √var + ε", place="outside"),
    *rarely(
        Mistake("gamma missing in the direct path", GAMMA, gammas=(0, 1, 1)),
        Mistake("gamma missing in the mean path", GAMMA, gammas=(1, 0, 1)),
        Mistake("gamma missing in the variance path", GAMMA, gammas=(1, 1, 0)),
        Mistake("gamma twice in the mean path", GAMMA, gammas=(1, 2, 1)),
        Mistake("gamma twice in the variance path", GAMMA, gammas=(1, 1, 2)),
        Mistake("gamma twice in dx", GAMMA, gammas=(2, 2, 2)),
        Mistake("multiplied by σ", "dx is multiplied by σ where it is divided by it", divided="1/σ"),
        Mistake("n − 1 in the mean path", f"its sum is divided by n − 1; {COUNT}", mean_by="n - 1"),
        Mistake("n − 1 in the variance path", f"its sum is divided by n − 1; {COUNT}", var_by="n - 1"),
        Mistake("n is C", f"the sums are divided by the number of channels; {COUNT}", mean_by="C", var_by="C"),
        Mistake("n is C in the mean path", f"its sum is divided by the number of channels; {COUNT}", mean_by="C"),
        Mistake("n is C in the variance path", f"its sum is divided by the number of channels; {COUNT}", var_by="C"),
        Mistake("n is N·C", f"the sums are divided by N·C, as `.numel()` is; {COUNT}", mean_by="N·C", var_by="N·C"),
        Mistake("x for x̂ in the variance path", f"{VAR_TERM}; x stands before the sum", outer="x"),
        Mistake("x for x̂ in the variance path's sum", f"{VAR_TERM}; x stands in the sum", inner="x"),
        Mistake("variance path counted thrice", VAR_TERM, var_path=3.0),
        Mistake("both signs turned", f"{MEAN_TERM}; {VAR_TERM}", mean_path=-1.0, var_path=-1.0),
        *(
            Mistake(f"{what} {how}", "dγ = Σ dy · x̂ and dβ = Σ dy: over a channel's samples, axis 0", sums=sums, **one)
            for sums, how in (
                ("whole table", "over the whole table"),
                ("not summed", "not summed"),
                ("a sample's", "along the wrong axis"),
            )
            for what, one in (
                ("dgamma and dbeta", {}),
                ("dgamma", {"sums_of": ("gamma",)}),
                ("dbeta", {"sums_of": ("beta",)}),
            )
        ),
        Mistake(
            "returned in another order",
            "return dx, dgamma, dbeta",
            order=(1, 2, 0),
            also=[dict(order=order) for order in ((2, 1, 0), (1, 0, 2), (2, 0, 1))],
        ),
        Mistake("sign of dx", "dx is turned round: every sign is the other one", signs=(-1, 1, 1)),
        Mistake("sign of dgamma", "dγ = Σ dy · x̂ is turned round", signs=(1, -1, 1)),
        Mistake("sign of dbeta", "dβ = Σ dy is turned round", signs=(1, 1, -1)),
        Mistake(
            "statistics over the wrong axis",
            "mean and variance are taken over the channels of a sample (axis 1), as "
            "layer norm does; BN takes them over the samples of a channel (axis 0)",
            over=1,
        ),
        Mistake(
            "statistics over the whole table",
            "mean and variance are taken over all N·C numbers; each channel has its own (axis 0)",
            over=(0, 1),
        ),
    ),
    SQUARES,
)


def channel_sums(_, expected, received):
    """Say of a wrong dx whether its channels sum to 0, as they must; of dγ and dβ nothing."""
    if received.shape != expected.shape or received.dim() != 2:
        return ""
    sums = received.sum(0)
    c = int(sums.abs().nan_to_num(0.0).argmax())
    if sums[c].abs() > 1e-3 * received.abs().max():
        return f"Channel {c} of dx sums to {sums[c]:.4g}; whatever dy is, it must sum to 0."
    return "Each channel of dx sums to 0, as it must: look at the variance's path and the factor γ/σ."


def random_case(trait="", *, shape, eps, seed, dtype=torch.float32, dy=None, x=None, **flags):
    """Return a case: dy neither constant nor centred, γ not 1, the third channel's negative."""
    generator = torch.Generator().manual_seed(seed + 200)
    scale, mean = flags.pop("scale", 1.0), flags.pop("mean", 1.0)
    x = batch(shape, seed, scale=scale, mean=mean, dtype=dtype) if x is None else x
    dy = batch(shape, seed + 50, mean=0.5, dtype=dtype) if dy is None else dy
    gamma = torch.rand(shape[1], generator=generator, dtype=torch.float64) + 0.4
    gamma[2:3] *= -1
    return Case({"dy": dy, "x": x, "gamma": gamma.to(dtype), "eps": eps}, trait, **flags)


def backward_cases():
    """Return the fixed cases, the first in short decimals: σ is 2.5 and 1.5."""
    x = torch.tensor([[2.0, 3], [4, 3], [5, 3], [6, 3], [8, 3]])
    dy = torch.tensor([[4.0, 1], [0, -2], [-1, 0], [2, 3], [0, 1]])
    x[:, 1] = torch.tensor([1.0, 2, 3, 4, 5])
    constant = batch((5, 3), 9)
    constant[:, 1] = 0.75  # its mean is exact in float32
    centred = batch((5, 3), 60)
    double = torch.float64
    return (
        Case({"dy": dy, "x": x, "gamma": torch.tensor([4.0, 0.5]), "eps": 2.25}),
        random_case(shape=(5, 3), eps=0.1, seed=1),
        random_case(shape=(6, 4), eps=1.0, seed=2, dtype=double),
        random_case(shape=(7, 2), eps=0.5, seed=3),
        random_case(shape=(8, 3), eps=1e-5, seed=4),
        random_case("C is 1", shape=(6, 1), eps=0.01, seed=5),
        random_case("N is 2", shape=(2, 3), eps=0.5, seed=6),
        random_case("a variance is tiny", shape=(6, 3), eps=1e-5, seed=7, scale=2e-3, mean=0.01),
        random_case("a variance is 0", shape=(5, 3), eps=0.01, seed=8, x=constant),
        random_case("dy sums to 0", shape=(5, 3), eps=0.1, seed=9, dy=centred - centred.mean(0)),
        random_case("the mean is large", shape=(8, 2), eps=1e-5, seed=10, mean=4000.0, ill=True),
    )


def drawn_backwards():
    """Return the strategy for further cases."""

    def build(n, c, scale, mean, eps, dtype, seed):
        return random_case(shape=(n, c), eps=eps, seed=seed, dtype=dtype, scale=scale, mean=mean)

    return drawn(
        build,
        (3, 4, 5, 8),
        (1, 2, 3, 4),
        (1.0, 0.01, 5.0, 100.0),
        (0.0, 1.0, -20.0, 300.0),
        (1e-3, 0.01, 0.1, 1.0),
        (torch.float32, torch.float64),
        range(8),
    )


BATCH_NORM_BACKWARD = Exercise(
    name="batch_norm_backward",
    place=Place(6, "Three paths to x"),
    signature="batch_norm_backward(dy (N, C), x (N, C), gamma (C,), eps) -> dx (N, C), dgamma (C,), dbeta (C,)",
    asks="From dy, the gradient for y, find the gradients for x, γ and β: BN in training, ε inside the root.",
    formula=backward,
    mistakes=BACKWARD,
    cases=backward_cases(),
    drawn=drawn_backwards(),
    results=("dx", "dgamma", "dbeta"),
    explain=channel_sums,
)

# ---- finite differences


@dataclass(frozen=True)
class Named:
    """A function that says its formula where a verdict shows it."""

    words: str
    function: object

    def __call__(self, x):  # noqa: D102
        return self.function(x)

    def __repr__(self):
        return self.words


def differences(f, x, dy, h, *, scheme="central", by="2h", upstream="dy", moved="one", restored=True, sign=1):
    """Return the slope of (dy · f(x)).sum() for each x, bent by the knobs.

    scheme    which two points are compared
    by        what their difference is divided by
    upstream  what the outputs are weighted with; "own" for the moved value's own output alone
    moved     "one" value at a time, or a "row" or a "column" at once
    restored  whether a value is put back before the next one moves
    sign      of the result
    """
    result, x = torch.zeros_like(x), x.clone()
    divisor = {"2h": 2 * h, "h": h, "1": 1.0}[by]
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            step = torch.zeros_like(x)
            step[{"one": (i, j), "row": i, "column": (slice(None), j)}[moved]] = h
            high = f(x if scheme == "backward" else x + step)
            low = f(x if scheme in ("forward", "half") else x - step)
            change = high - low
            weighted = {
                "dy": lambda change=change: (dy * change).sum(),
                "1": lambda change=change: change.sum(),
                "own": lambda change=change, i=i, j=j: dy[i, j] * change[i, j],
            }[upstream]()
            result[i, j] = sign * weighted / (divisor if scheme in ("central", "half") else divisor / 2)
            if not restored:
                x = x - step
    return result


def normalised(x, eps=0.1):
    """Return x (N, C) normalised per channel."""
    return (x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt()


def difference_cases():
    """Return the fixed cases: functions whose second derivative shows, with a step that is not small."""
    double = torch.float64
    cube = Named("lambda x: x**3", lambda x: x**3)
    norm = Named("batch norm, eps=0.1", normalised)
    mixed = Named("lambda x: x**2 * x.mean(0)", lambda x: x**2 * x.mean(0))

    def case(f, shape, seed, h, trait="", dtype=double):
        return Case(
            {
                "f": f,
                "x": batch(shape, seed, mean=1.0, dtype=dtype),
                "dy": batch(shape, seed + 50, dtype=dtype),
                "h": h,
            },
            trait,
        )

    first = {"x": torch.tensor([[1.0, 2], [3, 4], [5, 7]]), "dy": torch.tensor([[1.0, -1], [2, 0.5], [1, 3]])}
    return (
        Case({"f": cube, **{name: value.double() for name, value in first.items()}, "h": 0.5}),
        case(norm, (5, 3), 1, 0.25),
        case(norm, (4, 2), 2, 0.5),
        case(mixed, (3, 4), 3, 0.5),
        case(cube, (2, 5), 4, 0.5),
        case(norm, (6, 1), 5, 0.25, "C is 1"),
        case(mixed, (1, 3), 6, 0.5, "N is 1"),
        case(norm, (4, 3), 7, 0.5, dtype=torch.float32),
    )


DIFFERENCE = "(dy · (f(x + h) − f(x − h))).sum() / 2h, for one value at a time"
NUMERICAL_GRADIENT = Exercise(
    name="numerical_gradient",
    place=Place(6, "Check it: finite differences, and how not to"),
    signature="numerical_gradient(f, x (N, C), dy (N, C), h) -> (N, C)",
    asks="For each value of x find by central differences, a step h up and one down, how fast (dy · f(x)).sum() grows.",
    formula=differences,
    mistakes=(
        Mistake("forward difference", f"f(x + h) is compared with f(x); central: {DIFFERENCE}", scheme="forward"),
        Mistake("backward difference", f"f(x) is compared with f(x − h); central: {DIFFERENCE}", scheme="backward"),
        Mistake("divided by h", f"from x − h to x + h it is 2h; {DIFFERENCE}", by="h"),
        Mistake("not divided", DIFFERENCE, by="1"),
        Mistake("dy forgotten", f"the outputs are summed without dy; {DIFFERENCE}", upstream="1"),
        Mistake(
            "only its own output",
            f"one value moves all outputs of its channel, and each counts with its dy; {DIFFERENCE}",
            upstream="own",
        ),
        Mistake(
            "nudge not taken back",
            "a value that was moved stays moved while the next one is: put it back, or move a copy",
            restored=False,
        ),
        Mistake("whole row nudged", "all values of a sample move at once; move one at a time", moved="row"),
        Mistake("whole column nudged", "all values of a channel move at once; move one at a time", moved="column"),
        Mistake("sign turned", DIFFERENCE, sign=-1),
        Mistake(
            "second step of h instead of 2h",
            "from x + h a step of h leads back to x: it takes 2h to get to x − h",
            scheme="half",
        ),
    ),
    cases=difference_cases(),
    results=("dx",),
)

# ---- a gradient that BN swallows


class Swallowed:
    """The exercise `swallowed`, judged by its property: BN's backward pass makes nothing of the dy that is returned."""

    name = "swallowed"
    place = Place(6, "What BN lets through")
    signature = "swallowed(x (N, C)) -> dy (N, C)"
    asks = (
        "Return a dy that is not constant in any channel of x, and of which BN (γ = 1, ε = 1e-5) lets nothing through."
    )

    def judge(self, attempt):
        """Return the Verdict on an attempt."""
        right = "On every input tried dy varies in each channel, and dx is 0, but for ε."
        return judged(self, attempt, right, callable(attempt), self.name)

    def examine(self, guard, attempt):
        """Return (mistakes, evidence for a Verdict) of an attempt, no mistakes if it is right. Raises Unanswered."""
        for shape, seed, dtype in (((5, 3), 1, torch.float32), ((8, 4), 2, torch.float64), ((6, 1), 3, torch.float32)):
            x = batch(shape, seed, mean=-1.0, dtype=dtype)
            given = x.clone()
            dy, trouble = guard.call(attempt, given)
            if holds_dots(dy) or (trouble and trouble.kind == "unanswered"):
                raise Unanswered
            if trouble:
                return [Mistake(RAISES, f"{trouble.located}\ncalled with x {shape}")], {}
            outputs, form = read(dy, ("dy",), (x,), dtype)
            if form or not outputs:
                return list(form), {}
            if not identical(given, x):
                return [Mistake(IN_PLACE, "x is not the same after the call: work on a copy")], {}
            (dy,) = outputs
            mistake, dx = self.look(x.double(), dy.detach())
            if mistake:
                example = (("x", x), ("dy", dy.detach()))
                evidence = {} if dx is None else dict(
                    example=example, expected=(torch.zeros_like(x),), received=(dx,), shown="dx"
                )  # fmt: skip
                return [mistake], evidence
        return [], {}

    def look(self, x, dy):
        """Return (what is wrong with dy or None, the dx that it makes or None)."""
        if dy.shape != x.shape:
            return Mistake(SHAPE, f"dy is {describe(dy)}, expected {tuple(x.shape)}"), None
        dy = dy.double()
        if not dy.isfinite().all():
            return Mistake("not finite", "some of dy is infinite or not a number"), None
        if not dy.any():
            return Mistake("zero everywhere", "dy is 0: nothing comes in, so nothing can be swallowed"), None
        varying = (dy - dy.mean(0)).norm(dim=0)  # (C,)
        constant = varying <= 1e-4 * dy.norm(dim=0).clamp_min(1e-30)
        if constant.any():
            which = "" if constant.all() else f" {constant.nonzero()[:, 0].tolist()}"
            cause = (
                f"dy is the same for all values of a channel{which}: BN swallows that, but it is asked for another one"
            )
            return Mistake("constant", cause), None
        dx, _, _ = backward(dy, x, torch.ones_like(x[0]), 1e-5)
        sigma = (x.var(0, correction=0) + 1e-5).sqrt()
        share = (dx * sigma).norm(dim=0) / varying  # (C,): of what varies, how much comes through
        if (share > 1e-3).any():
            c = int(share.argmax())
            cause = (
                f"in channel {c} {100 * share[c]:.3g} % of what varies in dy comes through: BN swallows what is "
                "constant in a channel, and one thing more, which the path through the variance takes away"
            )
            return Mistake("BN lets it through", cause), dx
        return None, dx


SWALLOWED = Swallowed()
