"""The explorers of lesson 06: what BN takes away from a gradient, and whose output moves when one value does."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from matplotlib.collections import LineCollection, PolyCollection
from torch import Tensor

from ..plots import BLUE, GREEN, GREY, VERMILION
from .base import Explorer, choice, slider, stops

EXAMPLE = torch.tensor([2.0, 4, 5, 6, 8], dtype=torch.float64)  # mean 5, variance 4
UPSTREAM = {  # dy, by the words on its button; the two others hang on the controls
    "example": (4.0, 0.0, -1.0, 2.0, 0.0),
    "all equal": (1.0, 1.0, 1.0, 1.0, 1.0),
    "alternating": (1.0, -1.0, 0.0, -1.0, 1.0),
}
EPSILONS = (1e-5, 0.1, 1.0)
N = len(EXAMPLE)


@dataclass
class Paths:
    """A channel's backward pass, one path at a time; each (n,)."""

    x_hat: Tensor
    direct: Tensor
    by_mean: Tensor
    by_var: Tensor
    dx: Tensor
    budget: tuple  # |dy|², of it along (1, …, 1), along x̂, and what is left: |dx|² / (γ/σ)²


def paths_of(x, dy, gamma, eps):
    """Return the `Paths` of one channel's values x (n,) and upstream gradient dy (n,).

    With g = γ dy: directly g / σ, through the mean -mean(g) / σ, through the variance -x̂ mean(g x̂) / σ. What is lost
    of |dy|² is Santurkar et al. 2018, Theorem 4.1, as an equality; ε gives (ε / (var + ε))² of the part along x̂ back.
    """
    var = x.var(correction=0)
    sigma = (var + eps).sqrt()
    x_hat = (x - x.mean()) / sigma
    g = gamma * dy
    direct, by_mean, by_var = g / sigma, -g.mean().expand(len(x)) / sigma, -x_hat * (g * x_hat).mean() / sigma
    total, along_ones = dy.square().sum().item(), dy.sum().item() ** 2 / len(x)
    length = x_hat.square().sum().item()
    along_x_hat = (dy * x_hat).sum().item() ** 2 / length if length else 0.0
    left = total - along_ones - along_x_hat * (1 - (eps / (var.item() + eps)) ** 2)
    return Paths(x_hat, direct, by_mean, by_var, direct + by_mean + by_var, (total, along_ones, along_x_hat, left))


@dataclass
class Nudge:
    """Outputs of one channel, γ = 1 and β = 0, before and after one value moved; each (n,)."""

    before: Tensor
    after: Tensor
    predicted: Tensor  # before + step · column
    column: Tensor  # of the Jacobian: how fast each output moves with this value


def nudged(x, i, step, eps):
    """Return the `Nudge` of x (n,) whose value i moves by `step`."""

    def normalised(values):
        return (values - values.mean()) / (values.var(correction=0) + eps).sqrt()

    before = normalised(x)
    moved = x.clone()
    moved[i] += step
    column = paths_of(x, torch.eye(len(x), dtype=x.dtype)[i], 1.0, eps).dx  # the Jacobian is symmetric
    return Nudge(before, normalised(moved), before + step * column, column)


def spell(values):
    """Return numbers as a caption says them."""
    return ", ".join(short(value) for value in values.tolist())


def short(value):
    """Return a number in three significant digits, what is rounding only as 0."""
    return f"{0.0 if abs(value) < 5e-4 else value:.3g}"


def round_limit(size):
    """Return the first of 1, 2, 4, 10, 20, … (and tenths) that is no smaller than `size`."""
    return next(a * 10.0**k for k in range(-3, 7) for a in (1, 2, 4) if a * 10.0**k >= size - 1e-9)


class ThreePaths(Explorer):
    """What does BN take away from a gradient?

    Five values of one channel, each with four bars: the gradient that comes directly, through the mean, through the
    variance, and their sum, which is dx.
    """

    name = "three_paths"
    size = (6.8, 4.6)
    grid: ClassVar = {"gamma": [-6.0, -4.0, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}

    def __init__(self):
        controls = {
            "upstream": choice(
                "Upstream gradient dy",
                "example",
                ("example", "one output", "all equal", "like x̂", "alternating"),
                tooltips=(
                    "4, 0, −1, 2, 0: the lesson's numbers",
                    "The loss is one of the outputs",
                    "The loss is the sum of the outputs",
                    "The loss grows where x̂ does",
                    "1, −1, 0, −1, 1: neither constant nor like x̂",
                ),
            ),
            "output": slider("Which output", 1, 1, N, tooltip="For “one output”: the loss is this output"),
            "spread": stops(
                "Spread of x",
                1.0,
                [("× 0.1", 0.1), ("× 0.5", 0.5), ("× 1", 1.0), ("× 2", 2.0), ("× 10", 10.0)],
                tooltip="The values move away from their mean 5, or towards it",
            ),
            "gamma": slider("γ", 4.0, -6.0, 6.0, 0.5, tooltip="The scale; every path is multiplied by it"),
            "eps": stops("ε", 1e-5, EPSILONS, tooltip="Added to the variance, inside the root"),
        }
        super().__init__(controls)

    def still(self, figure):
        """Draw the axes, the legend and the names of the rows below."""
        axes = figure.subplots()
        figure.subplots_adjust(left=0.11, right=0.99, top=0.85, bottom=0.23)
        axes.set(xlim=(-0.5, N - 0.5), ylim=(-1.08, 1.08), xticks=[], yticks=[-1, -0.5, 0, 0.5, 1], yticklabels=[])
        axes.axhline(0, color="black", linewidth=0.8)
        for between in range(1, N):
            axes.axvline(between - 0.5, color=GREY, linewidth=0.4)
        self._bars = [
            self.moves(axes.add_collection(PolyCollection([], facecolor=colour, hatch=hatch, edgecolor="white", lw=0)))
            for colour, hatch in ((BLUE, None), (VERMILION, "//"), (GREEN, ".."), ("black", None))
        ]
        figure.legend(
            self._bars,
            ("direct", "through the mean", "through the variance", "sum: dx"),
            loc="upper center",
            ncols=4,
            columnspacing=1.0,
            handlelength=1.4,
        )
        axes.set_title("Gradient that reaches each value", y=1.0)

        def written(x, y, **where):
            return self.moves(axes.text(x, y, "", **where))

        rows = (-1.25, -1.47, -1.69)
        self._ticks = [written(-0.57, 0.5 * k, ha="right", va="center") for k in (-2, -1, 0, 1, 2)]
        self._rows = [[written(k, y, ha="center", va="center") for k in range(N)] for y in rows]
        for name, y in zip(("x", "x̂", "dy"), rows, strict=True):
            axes.text(-0.57, y, name, ha="right", va="center", fontweight="bold", clip_on=False)

    def show(self, upstream, output, spread, gamma, eps):
        """Set the bars and the rows, and say the sums."""
        self.controls["output"].disabled = upstream != "one output"
        x = 5 + spread * (EXAMPLE - 5)
        if upstream == "one output":
            dy = torch.eye(N, dtype=x.dtype)[output - 1]
        elif upstream == "like x̂":
            dy = (x - 5) / (x.var(correction=0) + eps).sqrt()
        else:
            dy = torch.tensor(UPSTREAM[upstream], dtype=x.dtype)
        paths = paths_of(x, dy, gamma, eps)
        heights = torch.stack([paths.direct, paths.by_mean, paths.by_var, paths.dx])  # (4, n)
        limit = round_limit(max(heights.abs().max().item(), 1e-3))
        for k, (bars, row) in enumerate(zip(self._bars, (heights / limit).tolist(), strict=True)):
            left = [i - 0.4 + 0.2 * k for i in range(N)]
            bars.set_verts([[(a, 0), (a + 0.18, 0), (a + 0.18, h), (a, h)] for a, h in zip(left, row, strict=True)])
        for k, tick in enumerate(self._ticks, start=-2):
            tick.set_text(f"{limit * k / 2:g}".replace("-", "−"))
        for texts, values in zip(self._rows, (x, paths.x_hat, dy), strict=True):
            for text, value in zip(texts, values.tolist(), strict=True):
                text.set_text(short(value).replace("-", "−"))
        total, ones, along, left = map(short, paths.budget)
        gain = (gamma**2 / (x.var(correction=0) + eps)).item()
        return (
            f"dx = {spell(paths.dx)}: direct {spell(paths.direct)}; through the mean {short(paths.by_mean[0].item())} "
            f"each; through the variance {spell(paths.by_var)}. dx sums to {short(paths.dx.sum().item())}. Of |dy|² = "
            f"{total}, {ones} lay along (1, …, 1) and {along} along x̂: {left} {'is' if left == '1' else 'are'} left, "
            f"times (γ/σ)² = {short(gain)} makes |dx|² = {short(paths.dx.square().sum().item())}."
        )


class NudgeOne(Explorer):
    """Whose output moves when one value does?

    Five values of one channel: their outputs before and after one of them moved, and what the Jacobian predicts.
    """

    name = "nudge"
    size = (6.8, 3.9)
    grid: ClassVar = {}

    def __init__(self):
        steps = [(f"{step:+g}".replace("-", "−"), step) for step in (-1000, -10, -3, -1, 0, 0.5, 1, 2, 3, 10, 1000)]
        controls = {
            "value": slider("Which value moves", 5, 1, N, tooltip="One of x = 2, 4, 5, 6, 8"),
            "step": stops("By how much", 2, steps, tooltip="What is added to it"),
            "eps": stops("ε", 1e-5, EPSILONS, tooltip="Added to the variance, inside the root"),
        }
        super().__init__(controls)

    def still(self, figure):
        """Draw the axes and the two lines that no output crosses."""
        axes = figure.subplots()
        figure.subplots_adjust(left=0.1, right=0.99, top=0.88, bottom=0.1)
        axes.set(xlim=(-0.5, N - 0.5), ylim=(-2.6, 2.6), ylabel="output x̂")
        axes.set_xticks(range(N), [f"x = {value:g}" for value in EXAMPLE.tolist()])
        for bound in (-2, 2):
            axes.axhline(bound, color=GREY, linewidth=1, linestyle="--")
        axes.text(-0.45, 2.08, "√(n − 1) = 2: no output gets farther", color=GREY, va="bottom")
        self._moves = self.moves(axes.add_collection(LineCollection([], color=GREY, linewidth=1.5)))
        marks = (
            dict(marker="o", color="white", markeredgecolor=BLUE, markeredgewidth=2, markersize=10, label="before"),
            dict(marker="o", color=BLUE, markersize=10, label="after"),
            dict(marker="x", color=VERMILION, markeredgewidth=2.5, markersize=9, label="predicted by the Jacobian"),
        )
        self._dots = [self.moves(axes.plot([], [], linestyle="", **mark)[0]) for mark in marks]
        figure.legend(loc="upper center", ncols=3, handletextpad=0.2)

    def show(self, value, step, eps):
        """Set the dots, and say how far the prediction is off."""
        result = nudged(EXAMPLE, value - 1, step, eps)
        for dots, outputs in zip(self._dots, (result.before, result.after, result.predicted), strict=True):
            dots.set_data(range(N), outputs)
        self._moves.set_segments(
            [[(k, a), (k, b)] for k, (a, b) in enumerate(zip(result.before, result.after, strict=True))]
        )
        off = (result.predicted - result.after).abs().max().item()
        outside = int((result.predicted.abs() > 2.6).sum())
        return (
            f"x = {EXAMPLE[value - 1]:g} becomes {EXAMPLE[value - 1] + step:g}. Outputs before: "
            f"{spell(result.before)}; after: {spell(result.after)}; predicted: {spell(result.predicted)}, off by "
            f"{short(off)} at most. For each 1 that this value moves, the outputs move by {spell(result.column)}, "
            "to begin with"
            + (f"; {outside} of the 5 predictions cannot be shown, they lie outside the picture." if outside else ".")
        )
