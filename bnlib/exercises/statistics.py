"""The exercises on a batch's statistics, `channel_stats` and `running_stats`, and their mistakes."""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from . import mistakes as m
from .formula import IMAGES, batch, cut, drawn_batches, statistics
from .judge import Case, Exercise, Mistake, rarely
from .reading import Place


def channel_statistics(x, *, over=None, laid="last", middle="mean", **knobs):
    """Return mean and variance (C,) of x (N, C, *), bent by the knobs, which are those of `formula.statistics`.

    over may also be a way of rearranging x first; laid: "keepdim" for statistics that keep the averaged axes
    """
    if isinstance(over, str):
        x, over = cut(x, over), None
    mean_dims, var_dims, mean, var = statistics(x, over=over, **knobs)
    if laid == "keepdim":
        return mean, var
    mean = x.movedim(1, 0).flatten(1).median(1).values if middle == "median" else mean.squeeze(mean_dims)
    return mean, var.squeeze(var_dims)


# ---- channel_stats


def channel_stats(x, *, order="mean, var", root=False, **knobs):
    """Return mean and biased variance (C,) of x (N, C, L), bent by the knobs."""
    mean, var = channel_statistics(x, **knobs)
    var = var.sqrt() if root else var
    return (mean, var) if order == "mean, var" else (var, mean)


AXES_3D = {
    (0,): "the batch only, each position for itself",
    (2,): "each sample for itself",
    (1,): "the channels of one position",
    (0, 1): "all but the last axis, as if the channels came last",
    (1, 2): "each sample as a whole, as layer norm does",
    (0, 1, 2): "the whole tensor, one mean for all channels",
}
POSITIONS = "all values of one channel share them: average over N and L, dim=(0, 2)"
ADDED = "N·L numbers were added"
MISTAKES = (
    Mistake(
        "unbiased variance",
        "the variance is divided by n − 1; asked for is the biased one, ÷ n with n = N·L: `var(..., correction=0)`, as "
        "torch's default is ÷ (n − 1)",
        var_by="n - 1",
    ),
    Mistake(
        "standard deviation instead of variance", "the root was taken; the variance itself is asked for", root=True
    ),
    Mistake(
        "mean and variance swapped",
        "the variance comes first; return the mean, then the variance (`torch.var_mean` has it the other way round)",
        order="var, mean",
    ),
    *m.axes_mistakes("NCL", AXES_3D, POSITIONS),
    m.RESHAPED,
    *m.of_parts("sample", "position", "L"),
    m.NOT_CENTRED,
    Mistake("sum instead of mean", "the mean's sum is never divided by n = N·L", also=m.around_either(mean_by="1")),
    Mistake("sum instead of mean in the variance", "the squares are summed, not averaged: ÷ n, n = N·L", var_by="1"),
    Mistake("mean divided by N", f"its sum is divided by N; {ADDED}", also=m.around_either(mean_by="N")),
    Mistake("mean divided by L", f"its sum is divided by L; {ADDED}", also=m.around_either(mean_by="H·W")),
    Mistake("variance divided by N", f"its sum is divided by N; {ADDED}", var_by="N"),
    Mistake("variance divided by L", f"its sum is divided by L; {ADDED}", var_by="H·W"),
    Mistake("both divided by N", f"the sums are divided by N; {ADDED}", mean_by="N", var_by="N"),
    Mistake("both divided by L", f"the sums are divided by L; {ADDED}", mean_by="H·W", var_by="H·W"),
    m.ONE_TOO_FEW,
    Mistake("median instead of mean", "the first result is the median; asked for is the mean", middle="median"),
    m.SQUARES,
)


DRAWN_ROWS = drawn_batches(lambda x, _: Case({"x": x}), (2, 3, 4, 5), (1, 2, 3, 4), (1, 2, 3, 4))
CHANNEL_STATS = Exercise(
    name="channel_stats",
    place=Place(2, "(N, C, L): every position counts"),
    signature="channel_stats(x (N, C, L)) -> (mean (C,), biased var (C,))",
    asks="Return each channel's mean and biased variance, over all N·L numbers that share the channel.",
    formula=channel_stats,
    mistakes=MISTAKES,
    cases=(
        Case({"x": torch.arange(12.0).reshape(2, 2, 3)}),  # lesson 02's example
        Case({"x": batch((3, 4, 5), 1)}),
        Case({"x": batch((4, 2, 3), 2, dtype=torch.float64)}),
        Case({"x": batch((3, 3, 3), 3, mean=2.0)}),
        Case({"x": batch((1, 3, 4), 4)}, "N is 1"),
        Case({"x": batch((4, 3, 1), 5)}, "L is 1"),
        Case({"x": batch((2, 1, 3), 6)}, "C is 1"),
        Case({"x": batch((4, 2, 3), 7, mean=4000.0)}, "the mean is large", ill=True),
    ),
    drawn=DRAWN_ROWS,
    results=("mean", "var"),
)

# ---- running_stats


def running_stats(
    x,
    running_mean,
    running_var,
    momentum,
    *,
    var_by="n - 1",  # what the sum of squares is divided by
    factor="",  # what multiplies the biased variance, or the whole running variance
    twice="",  # what multiplies the unbiased variance
    mean_share=None,  # how old and new are put together, in the mean
    var_share=None,  # in the variance
    fixed=None,  # the momentum that is always used
    drifted="",  # the running mean, "old" or "new", that the squares are taken around
    root="",  # of what the root is taken: "batch", "result", "mixed" for each of the two that are put together
    entered="var",  # what enters the running variance
    added=0.0,  # what is added to it
    laid="last",  # where the channels lie in statistics that have too many axes
    order="mean, var",
    **knobs,
):
    """Return running mean and variance (C,) after the batch x (N, C, H, W), bent by the knobs."""
    momentum = momentum if fixed is None else fixed
    var_by = "n" if factor else var_by
    mean, var = channel_statistics(x, var_by=var_by, laid=laid, **knobs)
    new_mean = moved(running_mean, mean, momentum, mean_share, laid)
    if drifted:
        centre = {"old": running_mean, "new": new_mean}[drifted].view(1, -1, 1, 1)
        _, var = channel_statistics(x, var_by=var_by, around=centre)
    images, n = torch.tensor([len(x), x.numel() / x.shape[1]], dtype=torch.float64)  # as tensors, n / 0 is inf
    batch_factor = {
        "n/(n-1)": n / (n - 1),
        "(n-1)/n": (n - 1) / n,
        "N/(N-1)": images / (images - 1),
        "HW/(HW-1)": n / (n - images),
        "n/(N-1)": n / (images - 1),
        "n/(n-2)": n / (n - 2),
    }.get(factor or twice, 1.0)
    var = var * batch_factor
    if root == "mixed":
        running_var, var = running_var.sqrt(), var.sqrt()
    var = mean if entered == "mean" else var.sqrt() if root == "batch" else var
    new_var = moved(running_var, var, momentum, var_share, laid)
    new_var = new_var**2 if root == "mixed" else new_var + added
    if factor == "on all":
        new_var = new_var * n / (n - 1)
    if root == "result":
        new_var = new_var.sqrt()
    return (new_mean, new_var) if order == "mean, var" else (new_var, new_mean)


class Shares(NamedTuple):
    """The shares of old and new, each a line in the momentum, (a, b) for a + b · momentum."""

    old: tuple
    new: tuple

    def at(self, momentum):
        """Return the two shares at a momentum."""
        return tuple(constant + slope * momentum for constant, slope in self)

    def __str__(self):
        return f"new = {in_words(*self.old)} · old + {in_words(*self.new)} · batch"


def in_words(constant, slope):
    """Return a share, constant + slope · momentum, as text."""
    times = "momentum" if abs(slope) == 1 else f"{abs(slope):g} · momentum"
    if constant and slope:
        return f"({constant:g} {'+' if slope > 0 else '−'} {times})"
    return f"{'−' * (slope < 0)}{times}" if slope else f"{constant:g}"


ALL, NONE, MOMENTUM, REST, HALF = (1, 0), (0, 0), (0, 1), (1, -1), (0.5, 0)
RIGHT = Shares(REST, MOMENTUM)
NEW = "new = (1 − momentum) · old + momentum · batch"
SHARES = (  # (name, cause, old, new)
    ("momentum reversed", "momentum is the share of the new value in PyTorch, not of the old one", MOMENTUM, REST),
    ("running statistics replaced", "the batch's are stored as they are, instead of averaged in", NONE, ALL),
    ("running statistics not updated", "they stay as they were", ALL, NONE),
    ("running statistics summed", "the batch's statistics are added, and the sums grow without end", ALL, ALL),
    ("old share not reduced", "momentum · batch is added, but the old value keeps its full weight", ALL, MOMENTUM),
    ("new share without momentum", "the old value is reduced, but the batch enters with full weight", REST, ALL),
    ("step in the wrong direction", "the step goes away from the batch's value", (1, 1), (0, -1)),
    ("plain average of old and new", "momentum is not used", HALF, HALF),
    ("old value dropped", "only momentum · batch is left", NONE, MOMENTUM),
    ("both shares are momentum", "the shares of old and new have to add up to 1", MOMENTUM, MOMENTUM),
)
KNOBS = (("mean", "mean_share"), ("variance", "var_share"))


def moved(old, new, momentum, shares, laid):
    """Return old and new put together, with the right shares if none are given."""
    if laid == "first":  # averaged over too few axes, and the old ones given as many
        old = old.view(-1, *[1] * (new.dim() - 1))
    of_old, of_new = (shares or RIGHT).at(momentum)
    return of_old * old + of_new * new


def fitted_shares(k, knob, solve, answers, knobs, picks, constant=False):
    """Return the shares of old and new in the k-th result, or the constant share of the new, by least squares."""
    if k not in picks or {"mean_share", "var_share"} & knobs.keys():
        return None
    rows, targets, momenta = [], [], [case.arguments.get("momentum", 0.1) for case, _ in answers[:5]]
    for (case, outputs), momentum in zip(answers, momenta, strict=False):
        old, received = list(case.tensors.values())[1 + k].double(), outputs[picks.index(k)].double()
        bent = solve(case, frozenset({**knobs, **{share: Shares(NONE, ALL) for _, share in KNOBS}}.items()))
        new = bent[k].double() if bent else received[:0]
        if not new.shape == old.shape == received.shape or not (new + received).isfinite().all():
            return None
        slope = momentum if len(set(momenta)) > 1 else 0.0
        weight = 1 / (old.abs() + new.abs() + 1e-9)
        rows.append(torch.stack([old, slope * old, new, slope * new], -1) * weight[:, None])
        targets.append(received * weight)
    solution = np.linalg.lstsq(torch.cat(rows).numpy(), torch.cat(targets).numpy(), rcond=None)[0]
    a, b, c, d = (round(number, 4) + 0.0 for number in solution.tolist())
    if constant:
        return {"fixed": c} if (round(a + c, 4), b, d) == (1, 0, 0) else None
    found = Shares((a, b), (c, d))
    known = (RIGHT, *(Shares(*shares) for _, _, *shares in SHARES))
    named = any(all(np.allclose(found.at(each), shares.at(each)) for each in momenta) for shares in known)
    return None if named else {knob: found}


def fitted_momentum(*search):
    """Return the momentum that is always used, from either result; `search` as for every `fit`."""
    _, _, knobs, _ = search
    fits = (fitted_shares(k, knob, *search, constant=True) for k, (_, knob) in enumerate(KNOBS))
    return None if "fixed" in knobs else next(filter(None, fits), None)


def update(name, cause, shares, *knobs):
    """Return the entry of an update with these shares of old and new."""
    return Mistake(name, f"{cause}: {NEW}", **dict.fromkeys(knobs, Shares(*shares)))


UPDATES = (
    *(update(name, cause, shares, "mean_share", "var_share") for name, cause, *shares in SHARES),
    *rarely(
        *(
            update(f"{name}, in the {statistic}", f"in the running {statistic}, {cause}", shares, knob)
            for name, cause, *shares in SHARES
            for statistic, knob in KNOBS
        )
    ),
)
STORED = "what is stored is the unbiased one, ÷ (n − 1) with n = N·H·W"
RUNNING_MISTAKES = (
    Mistake(
        "biased variance",
        f"the variance that enters is divided by n; {STORED}: `var(..., correction=1)`, or the biased one times n / "
        "(n − 1)",
        var_by="n",
    ),
    *UPDATES,
    Mistake(
        "mean and variance swapped", "the running variance comes first; return mean, then variance", order="var, mean"
    ),
    Mistake(
        "standard deviation instead of variance",
        "a standard deviation enters the running variance, or is returned; it is the variance that is averaged",
        also=[dict(root="batch"), dict(root="result"), dict(root="mixed")],
    ),
    Mistake(
        "wrong count in n / (n − 1)",
        f"n is not the number of images, nor the pixels of one; {STORED}",
        also=[dict(factor=factor) for factor in ("N/(N-1)", "HW/(HW-1)", "n/(N-1)")],
    ),
    Mistake(
        "correction applied twice",
        f"n / (n − 1), or what was taken for n, multiplies a variance that is unbiased already; {STORED}",
        also=[dict(twice=factor) for factor in ("n/(n-1)", "N/(N-1)", "HW/(HW-1)")],
    ),
    Mistake("correction applied twice", f"the sum of squares is divided by n − 2; {STORED}", factor="n/(n-2)"),
    Mistake(
        "correction reversed",
        f"(n − 1) / n multiplies; {STORED}: n / (n − 1) times the biased one",
        factor="(n-1)/n",
    ),
    Mistake("correction on the running variance", "n / (n − 1) belongs to the batch's variance only", factor="on all"),
    Mistake(
        "momentum fixed",
        "momentum is always {fixed:g}, whatever is passed: use the argument",
        also=[dict(fixed=0.1), dict(fixed=0.9)],
        fit=fitted_momentum,
    ),
    *(
        Mistake(
            f"shares of old and new, in the {statistic}",
            f"in the running {statistic}, {{{knob}}}; the two shares have to add up to 1: {NEW}",
            fit=partial(fitted_shares, k, knob),
        )
        for k, (statistic, knob) in enumerate(KNOBS)
    ),
    *m.axes_mistakes("NCHW", m.AXES_4D, m.PIXELS, dict(factor="n/(n-1)")),
    Mistake(
        m.WRONG_AXES,
        f"mean and variance are taken over N, dim=0, each pixel for itself, and the results are (C, H, W); {m.PIXELS}",
        over=(0,),
        laid="first",
    ),
    m.RESHAPED,
    Mistake(
        "epsilon in the running variance",
        "{added:g} is added to the running variance; ε is added when it is used, under the root",
        also=[dict(added=1e-5), dict(added=1e-3)],
    ),
    Mistake(
        "statistics keep their axes",
        "mean and variance are (1, C, 1, 1), so that beside the running ones, (C,), the results broadcast to "
        "another shape, (1, C, 1, C)",
        laid="keepdim",
    ),
    Mistake(
        "variance around the running mean",
        "the squares are taken of x − running mean, not of x − the batch's own mean",
        also=[dict(drifted="new"), dict(drifted="old")],
    ),
    *m.of_parts("image", "pixel", "H·W"),
    *rarely(
        Mistake("mean in place of the variance", "the batch's mean enters the running variance", entered="mean"),
        Mistake("variance not centred", "the variance is the mean of x², not of (x − mean)²", around="zero"),
        Mistake(
            "sum instead of mean", "the mean's sum is never divided by n = N·H·W", also=m.around_either(mean_by="1")
        ),
        Mistake("sum instead of mean in the variance", f"the squares are summed, not averaged; {STORED}", var_by="1"),
        m.ONE_TOO_FEW,
        Mistake("median instead of mean", "the median enters the running mean", middle="median"),
    ),
    m.SQUARES,
)


def running_case(x, momentum, seed, *, zero=False, **flags):
    """Return the case of a batch (N, C, H, W) and old running statistics; of zeros only the batch's are seen."""
    old = torch.rand(2, x.shape[1], generator=torch.Generator().manual_seed(seed + 50), dtype=torch.float64) * 3 + 0.5
    mean, var = (old * (not zero)).to(x.dtype)
    return Case({"x": x, "running_mean": mean, "running_var": var, "momentum": momentum}, **flags)


BY_HAND_TOO = {"running_mean": torch.tensor([1.0, 2.0]), "running_var": torch.tensor([3.0, 1.0]), "momentum": 0.25}
RUNNING_STATS = Exercise(
    name="running_stats",
    place=Place(3, "Momentum"),
    signature="running_stats(x (N, C, H, W), running_mean, running_var, momentum) -> (new_mean (C,), new_var (C,))",
    asks="Return the running mean and variance after this batch, as PyTorch keeps them, in new tensors.",
    formula=running_stats,
    mistakes=RUNNING_MISTAKES,
    cases=(
        Case({"x": IMAGES, **BY_HAND_TOO}),
        running_case(batch((3, 4, 2, 5), 1, mean=1.0), 0.1, 1),
        running_case(batch((2, 3, 4, 3), 2, scale=2.0, mean=-1.0, dtype=torch.float64), 0.3, 2),
        running_case(batch((4, 4, 4, 3), 3, mean=0.5), 0.9, 3),
        running_case(batch((3, 3, 1, 2), 4, mean=0.5), 1.0, 4),
        running_case(batch((4, 2, 1, 1), 5, mean=2.0), 0.6, 5),
        running_case(batch((1, 3, 2, 3), 6, mean=2.0), 0.6, 6),
        running_case(batch((3, 3, 2, 3), 9, scale=0.01, mean=0.02, dtype=torch.float64), 0.4, 9),
        running_case(batch((4, 2, 2, 2), 7, mean=4000.0), 0.5, 7, trait="the mean is large", ill=True),
        running_case(batch((3, 4, 2, 5), 8, mean=1.0, dtype=torch.float64), 0.1, 8, zero=True, plain=True),
    ),
    drawn=drawn_batches(
        running_case, *[(1, 2, 3, 4)] * 4, scales=(1.0, 0.01, 5.0, 100.0), more=[(0.1, 0.3, 1.0, 0.01)], least=4
    ),
    results=("new_mean", "new_var"),
)
