"""The exercise of lesson 08, `sync_stats`: a batch's mean and variance from what each process knows of its share."""

import torch

from .formula import batch
from .judge import Case, Exercise, Mistake, drawn, rarely
from .mistakes import SQUARES
from .reading import Place


def sync_stats(
    sums,
    squares,
    counts,
    *,
    mean_of="values",
    var_of="values",
    around="mean",
    between="weighted",
    by="n",
    empty="",
    order="mean, var",
    root=False,
    along=0,
):
    """Return mean and biased variance (C,) of a batch from its W shares, bent by the knobs.

    sums (W, C), squares (W, C), counts (W,)  of each share: Σ x, Σ (x - its own mean)², how many values a channel has

    mean_of  "values", or "means" (shares count alike), "first" (share alone), "W" (Σ sums / W), "first count", "n - 1"
    var_of   "values", or "shares" (the part between them left out), "variances" (shares count alike), "unbiased
             variances" (each ÷ (n_w - 1), alike), "pooled" (÷ (n - W)), "between" alone, "first" share alone, "x²" (the
             squares taken for sums of x²), "variances + between" (shares alike in both), "values + between" (in the
             second), "values + var" (of the own means), "undivided" (the part between them)
    around   the mean that the own means' distances are measured from: "mean" (as returned) or "true mean"
    between  "weighted" by the counts, by "n", the "largest" count, "squared" ones, "alike", "subtracted", or "rooted"
             (the distances not squared)
    by       what the variance is divided by: n, "n - 1", "n - W", "1", "W"
    empty    "divided": an empty share is divided by its count, 0; "skipped": it is no share; "counted": as of one value
    along    1 for sums over the channels
    """
    if empty == "skipped":
        sums, squares, counts = (each[counts > 0] for each in (sums, squares, counts))
    if along == 1:
        sums, squares = sums.T, squares.T
    counts = counts.clamp_min(1) if empty == "counted" else counts
    n, shares = counts.sum(), len(counts)
    counts = counts.to(sums.dtype).unsqueeze(1)  # (W, 1)
    present = counts if empty == "divided" else counts.clamp_min(1)
    own = sums / present  # (W, C), each share's own mean
    right = sums.sum(0) / n
    mean = {
        "values": lambda: right,
        "means": lambda: own.mean(0),
        "first": lambda: own[0],
        "W": lambda: sums.sum(0) / shares,
        "first count": lambda: sums.sum(0) / (shares * present[0]),
        "1": lambda: sums.sum(0),
        "n - 1": lambda: sums.sum(0) / (n - 1),
    }[mean_of]()
    centre = right if around == "true mean" else mean
    far = (own - centre).abs() if between == "rooted" else (own - centre).square()
    weights = {"alike": 1, "subtracted": -counts, "n": n, "largest": counts.max(), "squared": counts**2}
    spread = weights.get(between, counts) * far
    divisor = {"n": n, "n - 1": n - 1, "n - W": n - shares, "1": 1, "W": shares, "first count": shares * present[0]}[by]
    var = {
        "values": lambda: (squares + spread).sum(0) / divisor,
        "shares": lambda: squares.sum(0) / divisor,
        "variances": lambda: (squares / present).mean(0),
        "variances + between": lambda: (squares / present + (own - centre).square()).mean(0),
        "values + between": lambda: squares.sum(0) / divisor + (own - centre).square().mean(0),
        "values + var": lambda: squares.sum(0) / divisor + own.var(0, correction=0),
        "values + unbiased var": lambda: squares.sum(0) / divisor + own.var(0, correction=min(1, len(own) - 1)),
        "undivided": lambda: squares.sum(0) / divisor + spread.sum(0),
        "unbiased variances": lambda: (squares / (present - 1).clamp_min(0 if empty == "divided" else 1)).mean(0),
        "pooled": lambda: squares.sum(0) / (n - shares),
        "between": lambda: spread.sum(0) / divisor,
        "first": lambda: squares[0] / present[0],
        "x²": lambda: squares.sum(0) / n - centre.square(),
    }[var_of]()
    var = var.sqrt() if root else var
    return (mean, var) if order == "mean, var" else (var, mean)


def skipped_or_not(*knobs):
    """Return the knobs with empty shares among the shares that are counted, and without."""
    return [{**each, **more} for each in knobs for more in ({}, {"empty": "skipped"})]


OWN = "squares are distances from each share's own mean"
BETWEEN = "the own means differ, too: add Σ counts · (own mean − mean)² before dividing by n"
MISTAKES = (
    Mistake(
        "mean of means",
        "the shares' means are averaged as if all were of one size: a share of 1 weighs as much as one of 63. Add up "
        "the sums, and divide by the sum of the counts",
        also=skipped_or_not(dict(mean_of="means"), dict(mean_of="means", around="true mean")),
    ),
    Mistake(
        "mean of variances",
        f"the shares' variances are averaged; {OWN}, so what the means differ by is lost, and a small share weighs as "
        f"much as a large one: {BETWEEN}",
        also=skipped_or_not(dict(var_of="variances")),
    ),
    Mistake(
        "variance between the shares left out", f"Σ squares / n is the variance within; {BETWEEN}", var_of="shares"
    ),
    Mistake(
        "unbiased parts pooled",
        f"Σ squares / (n − W) is the pooled variance, which supposes that all shares have the same mean; {BETWEEN}",
        also=skipped_or_not(dict(var_of="pooled")),
    ),
    Mistake(
        "mean of squares minus squared mean",
        f"Σ squares / n − mean² would need sums of x²; {OWN}: {BETWEEN}",
        var_of="x²",
        also=[dict(var_of="x²", around="true mean")],
    ),
    Mistake(
        "shares taken for equal",
        "the own means' distances enter as if all shares were of one size: each counts once for each of its values",
        also=skipped_or_not(
            dict(between="alike"),
            dict(var_of="variances + between"),
            dict(var_of="values + between"),
            dict(var_of="values + var"),
            dict(var_of="values + unbiased var"),
            dict(mean_of="means", var_of="variances + between"),
        ),
    ),
    Mistake(
        "shares taken for equal",
        "the sums are divided by W times the first count; the counts differ: divide by their sum",
        also=[
            dict(mean_of="first count", by="first count"),
            dict(mean_of="first count"),
            dict(mean_of="first count", around="true mean"),
            dict(by="first count"),
        ],
    ),
    Mistake("unbiased variance", "the variance is divided by n − 1; asked for is the biased one, ÷ n", by="n - 1"),
    Mistake(
        "division by the number of shares",
        "the sums are divided by W, how many shares there are; divide by how many values, the sum of the counts",
        also=skipped_or_not(
            dict(mean_of="W"),
            dict(mean_of="W", around="true mean"),
            dict(mean_of="W", by="W"),
            dict(mean_of="W", by="W", around="true mean"),
            dict(by="W"),
        ),
    ),
    Mistake(
        "empty share divided",
        "a share of no values has no mean, 0 / 0 is nan, and a weight of 0 does not undo it: write counts.clamp(min=1)",
        empty="divided",
    ),
    Mistake(
        "standard deviation instead of variance", "the root was taken; the variance itself is asked for", root=True
    ),
    Mistake(
        "mean and variance swapped",
        "it returns the variance first: return the mean, then the variance",
        order="var, mean",
    ),
    *rarely(
        Mistake(
            "mean of variances",
            f"the shares' unbiased variances are averaged; {OWN}: {BETWEEN}",
            also=skipped_or_not(dict(var_of="unbiased variances")),
        ),
        Mistake(
            "variance within the shares left out",
            "Σ squares is missing: it holds what each share varies by itself",
            var_of="between",
        ),
        Mistake(
            "one share alone",
            "the first share's statistics are not the batch's: add up all shares",
            also=[
                dict(mean_of="first", var_of="first"),
                dict(mean_of="first"),
                dict(mean_of="first", around="true mean"),
                dict(var_of="first"),
            ],
        ),
        Mistake(
            "variance between the shares subtracted",
            f"what the means differ by makes the variance larger; {BETWEEN}",
            between="subtracted",
        ),
        Mistake(
            "shares weighed wrongly",
            "the distance of an own mean counts once for each value of its share, `counts` times",
            also=[dict(between="n"), dict(between="largest"), dict(between="squared")],
        ),
        Mistake(
            "variance between the shares not divided", f"the two parts are divided by n; {BETWEEN}", var_of="undivided"
        ),
        Mistake(
            "empty share counted",
            "counts.clamp(min=1) is for the divisor alone: in n it makes an empty share one value",
            empty="counted",
        ),
        Mistake(
            "divided by n − W", "the variance is divided by n less the number of shares; asked for is ÷ n", by="n - W"
        ),
        Mistake(
            "mean divided by n − 1",
            "a mean is Σ x / n, also where a variance is unbiased",
            also=[
                dict(mean_of="n - 1"),
                dict(mean_of="n - 1", around="true mean"),
                dict(mean_of="n - 1", by="n - 1"),
            ],
        ),
        Mistake("distances not squared", "the own means' distances from the mean enter squared", between="rooted"),
        Mistake(
            "sum instead of mean",
            "the sums are never divided by n, the sum of the counts",
            also=[
                dict(mean_of="1", around="true mean"),
                dict(mean_of="1"),
                dict(mean_of="1", by="1"),
                dict(mean_of="1", by="1", around="true mean"),
                dict(by="1"),
            ],
        ),
        Mistake(
            "statistics over the wrong axes",
            "the sums are added over the channels; axis 0 is the shares', and each channel has its own mean",
            along=1,
        ),
    ),
    SQUARES,
)


def case(counts, channels, seed, trait="", *, dtype=torch.float32, scale=1.0, mean=1.0, **flags):
    """Return the case of a batch in shares of so many values."""
    x = batch((sum(counts), channels), seed, scale=scale, mean=mean, dtype=torch.float64)
    drift = torch.linspace(0, 2 * scale, len(x), dtype=torch.float64).unsqueeze(1)
    shares = (x + drift).split(counts)  # not alike: their means differ
    sums = torch.stack([share.sum(0) for share in shares])
    squares = torch.stack([(share - share.mean(0)).square().sum(0) if len(share) else sums[0] * 0 for share in shares])
    return Case({"sums": sums.to(dtype), "squares": squares.to(dtype), "counts": torch.tensor(counts)}, trait, **flags)


def drawn_case(first, second, third, channels, scale, mean, dtype, seed):
    """Return a further case."""
    return case((first, second, third), channels, seed, dtype=dtype, scale=scale, mean=mean)


SYNC_STATS = Exercise(
    name="sync_stats",
    place=Place(8, "The cure: one mean for all"),
    signature="sync_stats(sums (W, C), squares (W, C), counts (W,)) -> (mean (C,), biased var (C,))",
    asks="Each of W processes knows, of its share of a batch, the sum of x, the sum of (x − its own mean)², and how "
    "many values it has. Return the whole batch's mean and biased variance.",
    formula=sync_stats,
    mistakes=MISTAKES,
    cases=(
        case((3, 1), 2, 1),
        case((5, 2, 3), 4, 2),
        case((2, 7, 4), 3, 3, dtype=torch.float64),
        case((4, 4), 3, 4, "the shares are of one size"),
        case((6,), 2, 5, "there is one share"),
        case((4, 0, 3), 2, 6, "one share is empty"),
        case((1, 1, 1), 2, 7, "each share is one value"),
        case((5, 3), 2, 8, "the mean is large", mean=4000.0, ill=True),
    ),
    drawn=drawn(
        drawn_case,
        (1, 2, 3, 5),
        (2, 3, 4, 7),
        (1, 2, 6, 9),
        (1, 2, 3, 4),
        (1.0, 0.1, 10.0, 100.0),
        (0.0, 1.0, -20.0, 300.0),
        (torch.float32, torch.float64),
        range(8),
    ),
    results=("mean", "var"),
)
