"""The explorer of lesson 04: how far apart train() and eval() are."""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from matplotlib.collections import LineCollection
from torch import Tensor

from ..plots import BLUE, GREY, VERMILION
from .base import Redrawn, choice, slider
from .lesson03 import follow

EPS = 1e-5
BATCHES = 200  # a layer can have seen
LARGEST = 64  # images in the largest batch
SIDE = 4  # pixels
SHOWN = 9  # pixels of a batch that are marked
MOMENTA = [0.01, 0.03, 0.1, 0.3, 0.5, 1.0]
SEEN = [*range(7), 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200]


@dataclass
class Gap:
    """What a layer, γ = 1 and β = 0, makes of a batch in either mode; entry k is for batch k after k others."""

    x: Tensor  # (BATCHES + 1, N · SIDE · SIDE): each batch's pixels
    mean: Tensor  # (BATCHES + 1,): of each batch, what train() subtracts
    variance: Tensor  # (BATCHES + 1,): of each batch, biased
    running_mean: Tensor  # (BATCHES + 1,): after k batches, what eval() subtracts
    running_var: Tensor  # (BATCHES + 1,)
    gap: Tensor  # (BATCHES + 1,): root mean square over batch k of its output in train() less that in eval()


@cache
def draw_images(seed):
    """Return pixels (BATCHES + 1, LARGEST, SIDE · SIDE), mean 3, variance 4, half of it shared by an image's pixels."""
    generator = torch.Generator().manual_seed(seed)
    brightness = torch.randn(BATCHES + 1, LARGEST, 1, generator=generator, dtype=torch.float64)
    grain = torch.randn(BATCHES + 1, LARGEST, SIDE * SIDE, generator=generator, dtype=torch.float64)
    return 3 + 2**0.5 * (brightness + grain)


def train_against_eval(size, momentum, seed):
    """Return the `Gap` for batches of `size` images, one channel; momentum None: cumulative."""
    x = draw_images(seed)[:, :size].flatten(1)
    n = x.shape[1]
    mean, variance = x.mean(1), x.var(1, correction=0)
    seen = (mean[:-1], 0.0), (variance[:-1] * (n / (n - 1)), 1.0)
    running_mean, running_var = (
        torch.cat([torch.tensor([start], dtype=torch.float64), follow(values, start, momentum)])
        for values, start in seen
    )
    own, kept = (variance + EPS).rsqrt(), (running_var + EPS).rsqrt()
    # own · (x - mean) - kept · (x - running_mean), squared and averaged; (x - mean) averages to 0
    gap = ((own - kept).square() * variance + (kept * (mean - running_mean)).square()).sqrt()
    return Gap(x, mean, variance, running_mean, running_var, gap)


class TrainEvalGap(Redrawn):
    """How far is what the layer computes in eval() from what it computes in train(), and what makes it small?

    One channel of images of 4 x 4 pixels, mean 3 and variance 4. Pixels of an image are alike (half of the variance
    is common to all of them), so that a batch's statistics hang on how many images it has.
    """

    name = "train_eval_gap"
    size = (6.8, 3.9)
    grid: ClassVar = {"size": [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64], "momentum": MOMENTA, "seen": SEEN}

    def __init__(self):
        controls = {
            "size": slider("Batch size N (images)", 8, 1, LARGEST, tooltip="How many images share mean and variance"),
            "momentum": slider("Momentum", 0.1, 0.01, 1.0, 0.01, tooltip="How much of each new batch enters"),
            "seen": slider("Batches seen", 10, 0, BATCHES, tooltip="How many batches the layer was trained on before"),
            "average": choice(
                "Average",
                "exponential",
                ["exponential", "cumulative"],
                tooltips=["momentum = a number", "momentum=None: the mean of all batches so far"],
            ),
        }
        super().__init__(controls, "Draw other images")

    def still(self, figure):
        """Draw the axes: what becomes of a pixel, and the gap as batches go by."""
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.06, right=0.97, top=0.9, bottom=0.155, wspace=0.3)
        left.set(xlim=(-4, 10), ylim=(-4, 9), xlabel="pixel x of the next batch")
        left.set_title("One pixel, two outputs")
        left.axhline(0, color="#cccccc", linewidth=1, zorder=0)
        self._bars = self.moves(left.add_collection(LineCollection([], colors=GREY, linewidths=1.5, label="gap")))
        self._outputs = [
            self.moves(left.plot([], [], style, color=color, markersize=7, label=mode)[0])
            for mode, style, color in (("train()", "o-", BLUE), ("eval()", "^--", VERMILION))
        ]
        left.legend(loc="upper left")
        right.set(xlim=(-3, BATCHES + 3), yscale="log", ylim=(0.008, 12))
        right.set(xlabel="batches seen", ylabel="root mean square")
        right.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
        right.set_title("Gap on the next batch")
        self._gaps = self.moves(right.plot([], [], color=GREY, linewidth=1.2)[0])
        self._typical = self.moves(right.plot([], [], "k--", linewidth=2)[0])
        self._here = self.moves(right.plot([], [], "D", color=VERMILION, markeredgecolor="white", markersize=10)[0])
        self._median = self.moves(right.text(BATCHES, 5.6, "", ha="right", va="center"))

    def show(self, size, momentum, seen, average):
        """Train on `seen` batches, then put the next one through in both modes."""
        self.controls["momentum"].disabled = average == "cumulative"
        result = train_against_eval(size, None if average == "cumulative" else momentum, self.seed)
        batch = result.x[seen].sort().values
        pixels = batch[torch.linspace(0, len(batch) - 1, SHOWN).long()]  # from the darkest to the brightest
        means, variances = zip((result.mean, result.variance), (result.running_mean, result.running_var), strict=True)
        own, kept = (
            (pixels - mean[seen]) / (variance[seen] + EPS).sqrt()
            for mean, variance in zip(means, variances, strict=True)
        )
        for curve, outputs in zip(self._outputs, (own, kept), strict=True):
            curve.set_data(pixels, outputs)
        self._bars.set_segments([[(x, a), (x, b)] for x, a, b in torch.stack([pixels, own, kept], 1).tolist()])
        typical = result.gap[-BATCHES // 2 :].median().item()
        self._gaps.set_data(range(BATCHES + 1), result.gap)
        self._typical.set_data([BATCHES // 2, BATCHES], [typical, typical])
        self._here.set_data([seen], [result.gap[seen]])
        self._median.set_text(f"median: {typical:.3f}")
        rule = "cumulative average" if average == "cumulative" else f"momentum {momentum:.2f}"
        mean, variance, running_mean, running_var = (
            values[seen].item() for values in (result.mean, result.variance, result.running_mean, result.running_var)
        )
        return (
            f"After {seen} batches of {size} image{'s' * (size > 1)}, {rule}: on the next batch train() uses its own "
            f"mean {mean:.3f} and variance {variance:.3f}, eval() the running {running_mean:.3f} and "
            f"{running_var:.3f}. A pixel of {pixels[-1]:.2f} becomes {own[-1]:.3f} in train() and {kept[-1]:.3f} in "
            f"eval(). The gap over the batch is {result.gap[seen]:.3f}, root mean square; the median gap of the "
            f"last {BATCHES // 2} batches is {typical:.3f}. "
            + (
                "No batch seen: the running statistics are still 0 and 1, and eval() changes almost nothing."
                if seen == 0
                else "The images' true mean is 3 and variance 4."
            )
        )
