"""The explorers of lesson 03: the loops one step at a time, and the running statistics over a stream of batches."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from ipywidgets import Play
from matplotlib.collections import PolyCollection
from torch import Tensor

from ..plots import BLUE, GREY, SKY, VERMILION
from .base import Explorer, Redrawn, button, choice, slider

EPS = 1e-5
BATCHES = 200  # in the stream
LARGEST = 64  # values in the largest batch
MOMENTA = [0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]


@dataclass
class Walk:
    """What the loops know after some of their 3n steps through one channel of n numbers: mean, variance, output."""

    values: Tensor  # (n,): the channel's numbers in the order of the loops: sample, row, column
    passed: int  # 0, 1, 2: the pass of the last step
    visited: int  # numbers visited in this pass
    means: Tensor  # (n,) or fewer: the mean so far, after each number visited
    variances: Tensor  # (n,) or fewer: the mean of the squared differences so far
    y: Tensor  # (n,) or fewer: the numbers normalised so far


def walk(x, channel, step):
    """Return the `Walk` after `step` steps of the loops through `channel` of x (N, C, H, W)."""
    values = x[:, channel].flatten().double()
    n, counts = len(values), torch.arange(1, x[:, channel].numel() + 1)
    squares = (values - values.mean()).square()
    passed = max(step - 1, 0) // n
    done = [min(max(step - n * k, 0), n) for k in range(3)]
    means, variances = values.cumsum(0) / counts, squares.cumsum(0) / counts
    y = (values - values.mean()) / (squares.mean() + EPS).sqrt()
    return Walk(values, passed, done[passed], means[: done[0]], variances[: done[1]], y[: done[2]])


class Loops(Explorer):
    """What do the loops over one channel do, step by step: the sum, the mean so far, the variance, the output?

    x  (N, C, H, W), at most 4 samples of 2 x 2; by default whole numbers of shape (4, 4, 2, 2)

    Raises ValueError for another shape, or for values that are no number.
    """

    name = "loops"
    size = (6.8, 4.8)
    grid: ClassVar = {}

    def __init__(self, x=None):
        if x is None:
            x = torch.randint(10, (4, 4, 2, 2), generator=torch.Generator().manual_seed(3))  # for numbers easy to add
        self._x = torch.as_tensor(x)
        shape = tuple(self._x.shape)
        if len(shape) != 4 or not (0 < shape[0] <= 4 and shape[1] > 0 and 0 < shape[2] <= 2 and 0 < shape[3] <= 2):
            raise ValueError(f"expected (N, C, H, W) of 4 samples and 2 x 2 pixels at most, got {shape}")
        if not self._x.isfinite().all():
            raise ValueError(f"{(~self._x.isfinite()).sum()} values of x are no number; no loop can add them")
        self._n = shape[0] * shape[2] * shape[3]
        step = slider("Step", 6, 0, 3 * self._n, tooltip="How many numbers the loops have visited, in three passes")
        self._speed = choice(
            "Steps a second",
            4,
            [1, 2, 4, 8, 16],
            tooltips=[f"Play {k} a second" for k in (1, 2, 4, 8, 16)],
            width="auto",
        )
        self._play = Play(
            value=6, max=3 * self._n, interval=250, show_repeat=False, tooltip="Play, pause, back to the start"
        )
        self._play.observe(self._tick, "value")
        self._speed.observe(self._change_speed, "value")
        buttons = [self._play]
        for words, by, icon in (("Back", -1, "step-backward"), ("Step", 1, "step-forward")):
            walk_on = functools.partial(self._walk_on, by)
            buttons.append(button(words, walk_on, icon=icon, tooltip=f"One step {'back' if by < 0 else 'on'}"))
        controls = {"step": step}
        if shape[1] > 1:
            controls["channel"] = slider("Channel c", 0, 0, shape[1] - 1, tooltip="Whose numbers are averaged")
        super().__init__(controls, [*buttons, self._speed])

    def _tick(self, change):
        if change.new != self.controls["step"].value:
            self.set(step=change.new)

    def _walk_on(self, by):
        self.set(step=self.controls["step"].value + by)

    def _change_speed(self, change):
        self._play.interval = 1000 // change.new

    def refresh(self):
        """Show the step, and have Play go on from there; a link in the browser would send Play's news first."""
        super().refresh()
        self._play.value = self.controls["step"].value

    def reset(self):
        """Stop playing, and put step, channel and speed back."""
        self._play.playing = False
        self._speed.value = 4
        super().reset()

    def still(self, figure):
        """Draw the code, the names of the samples, and the axes of the averages."""
        samples, _, height, width = self._x.shape
        page = figure.add_axes((0, 0, 1, 1), xlim=(0, 680), ylim=(480, 0))  # pixels, from the top
        page.set_axis_off()
        cell = 96 // height, min(62, 640 / (samples * (width + 0.6)))  # tall, wide
        left = (680 - cell[1] * (samples * (width + 0.6) - 0.6)) / 2
        n, h, w = torch.cartesian_prod(*map(torch.arange, (samples, height, width))).T.double()
        x, y = left + cell[1] * (n * (width + 0.6) + w), 30 + cell[0] * h
        for sample in range(samples):
            middle = left + cell[1] * (sample * (width + 0.6) + width / 2)
            page.text(middle, 14, f"n = {sample}", ha="center", va="center", size=12.5)
        corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]]) * torch.tensor([cell[1] - 3, cell[0] - 3])
        squares = PolyCollection((torch.stack([x, y], 1)[:, None] + corners).numpy(), linewidths=2)
        self._cells = self.moves(page.add_collection(squares))
        self._numbers = [
            self.moves(page.text(a + cell[1] / 2 - 1.5, b + cell[0] / 2 - 1.5, "", ha="center", va="center"))
            for a, b in zip(x.tolist(), y.tolist(), strict=True)
        ]
        code = (
            f"for n in range({samples}):",
            f"  for h in range({height}):",
            f"    for w in range({width}):",
            "      total += x[n,c,h,w]",
            f"mean = total / {self._n}",
            "for n, h, w, in that order:",
            "  squares += (x - mean)**2",
            f"var = squares / {self._n}",
            "for n, h, w, once more:",
            "  y = (x - mean)",
            "      / sqrt(var + eps)",
        )
        for line, words in enumerate(code):
            page.text(28, 160 + 23 * line, words, family="monospace", size=12.5, va="center")
        self._arrow = self.moves(page.text(8, 0, "▶", va="center", size=12.5, color=VERMILION))
        self._line = self.moves(page.axhspan(0, 1, 0.035, 0.46, color=SKY, alpha=0.3, linewidth=0))
        self._state = self.moves(page.text(28, 430, "", va="center", weight="bold", size=12.5))
        self._sum = self.moves(page.text(28, 458, "", va="center", weight="bold", size=12.5))
        averages = figure.add_axes((0.54, 0.13, 0.445, 0.46), xlim=(0, self._n + 0.5), xlabel="numbers visited")
        averages.locator_params(axis="x", integer=True)
        walks = [walk(self._x, c, 2 * self._n) for c in range(self._x.shape[1])]
        top = max(max(each.variances.max().item(), each.means.max().item()) for each in walks)
        bottom = min(0.0, *(each.means.min().item() for each in walks))
        averages.set_ylim(1.05 * bottom, 1.05 * top or 1)
        self._means = self.moves(averages.plot([], [], "o-", color=BLUE, label="mean so far")[0])
        self._variances = self.moves(averages.plot([], [], "^--", color=VERMILION, label="variance so far")[0])
        averages.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), borderaxespad=0)

    def show(self, step, channel=0):
        """Mark what has been visited after `step` steps, and what has been added up."""
        result = walk(self._x, channel, step)
        names = [f"{value:.3g}" for value in result.values.tolist()]
        if result.passed == 2:
            names[: result.visited] = [f"{y:.2f}" for y in result.y.tolist()]
        for text, words in zip(self._numbers, names, strict=True):
            text.set_text(words)
        here = result.visited - 1
        self._cells.set_facecolor(["#d9ecf7" if i <= here else "#f2f2f2" for i in range(self._n)])
        self._cells.set_edgecolor(["black" if i == here else "white" for i in range(self._n)])
        for curve, averages in ((self._means, result.means), (self._variances, result.variances)):
            curve.set_data(range(1, len(averages) + 1), averages)
        line = (3, 6, 9)[result.passed]
        self._arrow.set_position((8, 160 + 23 * line))
        self._line.set(y=148.5 + 23 * line, height=23 * (1 + (result.passed == 2)))
        start = f"Channel {channel}, step {step} of {3 * self._n}: "
        if step == 0:
            self._state.set_text("")
            self._sum.set_text("total = 0")
            return f"{start}nothing is visited yet. The total starts at 0."
        _, _, height, width = self._x.shape
        n, h, w = here // (height * width), here // width % height, here % width
        self._state.set_text(f"n = {n}   h = {h}   w = {w}")
        visit = f"{start}the loops are at n = {n}, h = {h}, w = {w}, whose number is {result.values[here]:g}. "
        if result.passed == 0:
            total, mean = result.values[: here + 1].sum().item(), result.means[-1].item()
            self._sum.set_text(f"total = {total:g}   so far {mean:.4f}")
            return visit + (
                f"The total of {here + 1} is {total:g}, so the mean so far is {mean:.4f}"
                + (": the mean of the channel." if here + 1 == self._n else ".")
            )
        mean, variance = result.means[-1].item(), result.variances[-1].item()
        if result.passed == 1:
            total = variance * (here + 1)
            self._sum.set_text(f"squares = {total:.2f}   so far {variance:.4f}")
            return visit + (
                f"Its squared distance from the mean {mean:.4f} is added: {total:.4f} in all, on average {variance:.4f}"
                + (
                    f": the biased variance (÷ {self._n}). " + self._unbiased(total)
                    if here + 1 == self._n
                    else " so far."
                )
            )
        self._sum.set_text(f"mean = {mean:.4f}   var = {variance:.4f}")
        return visit + f"With mean {mean:.4f} and variance {variance:.4f} it becomes {result.y[here]:.4f}."

    def _unbiased(self, squares):
        if self._n == 1:
            return "The unbiased one (÷ 0) does not exist."
        return f"The unbiased one (÷ {self._n - 1}), for the running variance, is {squares / (self._n - 1):.4f}."


@dataclass
class Stream:
    """A stream of batches and what a layer remembers of it; tensors are (BATCHES,) where nothing else is said."""

    batches: Tensor  # (BATCHES, size)
    means: Tensor  # of each batch
    variances: Tensor  # of each batch, biased or unbiased; nan where it does not exist
    running_mean: Tensor  # after each batch
    running_var: Tensor


def stream(population, size, momentum, unbiased, seed):
    """Return the `Stream` of `BATCHES` batches of `size` values, drawn with replacement from `population` (values,).

    momentum  how much of a batch enters: new = (1 - momentum) · old + momentum · batch; None: the cumulative average
    unbiased  take the unbiased variance of a batch (÷ n - 1), as PyTorch does, not the biased one (÷ n)
    """
    generator = torch.Generator().manual_seed(seed)
    # the largest batch that can be asked for is drawn, so that a slider changes how much is used and not what is drawn
    picked = population.double()[torch.randint(len(population), (BATCHES, LARGEST), generator=generator)][:, :size]
    means = picked.mean(1)
    squares = (picked - means[:, None]).square().sum(1)
    variances = squares / (size - unbiased) if size > unbiased else torch.full_like(means, torch.nan)
    return Stream(picked, means, variances, follow(means, 0.0, momentum), follow(variances, 1.0, momentum))


def follow(values, start, momentum):
    """Return the running average (n,) of `values` (n,), that starts at `start`; momentum as in `stream`."""
    running, past = start, []
    for k, value in enumerate(values.tolist(), 1):
        weight = 1 / k if momentum is None else momentum
        running = (1 - weight) * running + weight * value
        past.append(running)
    return torch.tensor(past, dtype=torch.float64)


class RunningStatistics(Redrawn):
    """How do the running mean and variance chase those of the population, over a stream of batches?

    population  (values,), at least two; by default 10,000 normal ones with mean 3 and standard deviation 2

    Raises ValueError for another shape, or for values that are no number.
    """

    name = "running_statistics"
    size = (6.8, 4.6)
    grid: ClassVar = {"size": [*range(1, 11), 12, 16, 20, 24, 32, 48, 64], "momentum": MOMENTA}

    def __init__(self, population=None):
        if population is None:
            population = 3 + 2 * torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        self._population = torch.as_tensor(population).double()
        if self._population.dim() != 1 or len(self._population) < 2:
            raise ValueError(f"expected a population (values,) of two or more, got {tuple(self._population.shape)}")
        if not self._population.isfinite().all():
            wrong = (~self._population.isfinite()).sum()
            raise ValueError(f"{wrong} values of the population are no number; leave them out")
        controls = {
            "size": slider(
                "Batch size n (values)", 8, 1, LARGEST, tooltip="How many values each batch has per channel"
            ),
            "momentum": slider("Momentum", 0.1, 0.01, 1.0, 0.01, tooltip="How much of each new batch enters"),
            "average": choice(
                "Average",
                "exponential",
                ["exponential", "cumulative"],
                tooltips=["momentum = a number", "momentum=None: the mean of all batches so far"],
                width="auto",
            ),
            "unbiased": choice(
                "Variance",
                True,
                [("unbiased, ÷ (n − 1)", True), ("biased, ÷ n", False)],
                tooltips=["What PyTorch stores", "What normalises the batch, but is not stored"],
                width="auto",
            ),
        }
        super().__init__(controls, f"Another stream of {BATCHES} batches")

    def still(self, figure):
        """Draw the axes, and the population's mean and variance."""
        mean, variance = self._population.mean().item(), self._population.var(correction=0).item()
        sd = variance**0.5
        upper, lower = figure.subplots(2, 1, sharex=True)
        figure.subplots_adjust(left=0.11, right=0.965, top=0.93, bottom=0.125, hspace=0.25)
        upper.set(xlim=(0, BATCHES), ylim=(min(0, mean - 2.2 * sd) - 0.1 * sd, max(0, mean + 2.2 * sd) + 0.1 * sd))
        upper.set_ylabel("running mean")
        lower.set(ylim=(0, max(1.2, 3.2 * variance)), xlabel="batches seen")
        lower.set_ylabel("running variance")
        figure.align_ylabels()
        self._dots, self._curves = [], []
        for axes, color, marker, goal in ((upper, BLUE, "o", mean), (lower, VERMILION, "^", variance)):
            axes.axhline(goal, color="black", linestyle="--", linewidth=1.5, label="of the population")
            dots = axes.plot([], [], marker, color=GREY, markersize=3.5, alpha=0.5, label="of each batch")[0]
            self._dots.append(self.moves(dots))
            self._curves.append(self.moves(axes.plot([], [], color=color, linewidth=2.5, label="running")[0]))
            axes.legend(loc="upper right", ncols=3, borderaxespad=0, bbox_to_anchor=(1, 1.2))
        none = lower.text(BATCHES / 2, 0.6 * variance, "a batch of one value has no unbiased variance", ha="center")
        self._none = self.moves(none)

    def show(self, size, momentum, average, unbiased):
        """Follow the stream of batches of `size`."""
        self.controls["momentum"].disabled = average == "cumulative"
        momentum = None if average == "cumulative" else momentum
        result = stream(self._population, size, momentum, unbiased, self.seed)
        seen = range(BATCHES + 1)
        for i, (batch, running, start) in enumerate(
            ((result.means, result.running_mean, 0.0), (result.variances, result.running_var, 1.0))
        ):
            self._dots[i].set_data(seen[1:], batch)
            self._curves[i].set_data(seen, [start, *running.tolist()])
        mean, variance = self._population.mean().item(), self._population.var(correction=0).item()
        last = slice(BATCHES // 2, None)
        self._none.set_visible(size == 1 and unbiased)
        words = (
            f"After {BATCHES} batches of {size} the running mean is {result.running_mean[-1]:.3f}, the population's "
            f"{mean:.3f}; over the last {BATCHES // 2} batches it strays by "
            f"{(result.running_mean[last] - mean).square().mean().sqrt():.3f}, root mean square. "
        )
        if size == 1:
            words += (
                "A batch of one value has no unbiased variance, 0 ÷ 0, and PyTorch refuses to train on it."
                if unbiased
                else "The biased variance of one value is 0, so the running variance falls to 0."
            )
        else:
            words += f"The running variance is {result.running_var[-1]:.3f}, the population's {variance:.3f}"
            expected = variance * (size - 1) / size
            words += "." if unbiased else f"; biased, it aims at (n − 1)/n of that, {expected:.3f}."
        if momentum is None:
            return words + " Cumulative: every batch weighs the same, and the average settles."
        return (
            words + f" Momentum {momentum:.2f}: each batch enters with {momentum:.0%}, and the average never settles."
        )
