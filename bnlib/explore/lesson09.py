"""The explorer of lesson 09: what other data do to a trained network, and whose statistics help."""

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..data import digits
from ..models import lenet
from ..plots import BLUE, GREY, VERMILION
from ..training import fit, reestimate_statistics
from .base import Redrawn, choice, slider, stops

SHOWN, SIDE = 8, 14  # images, and pixels of a side: as many as a page can draw
WHOSE = "training images", "target batch"


@dataclass
class Other:
    """A trained LeNet on a changed target."""

    images: Tensor  # (SHOWN, SIDE, SIDE): the last of them, made smaller
    accuracy: dict[str, float]  # whose statistics -> share of right answers on the target
    lags: dict[str, list[float]]  # whose statistics -> of each BN layer, mean off by (target's σ, median channel)


@cache
def trained():
    """Return (LeNet trained on the digits, their test images and labels); once a session, in a few seconds.

    Trained in float64: what rounding differs by, from machine to machine, does not grow to a digit that is shown.
    """
    images, model = digits(), lenet("torch").double()
    exact = replace(images, train_images=images.train_images.double(), test_images=images.test_images.double())
    fit(model, exact, epochs=6, batch_size=64, lr=0.5, device="cpu", progress=False)
    model = reestimate_statistics(model, exact).float().eval().to(memory_format=torch.channels_last)
    return model, images.test_images, images.test_labels


@cache
def order(seed):
    """Return a shuffled order of the test images (360,), and noise for them (360, 1, 28, 28)."""
    g = torch.Generator().manual_seed(seed)
    return torch.randperm(360, generator=g), torch.randn(360, 1, 28, 28, generator=g)


def other_data(brightness, contrast, noise, share, size, seed=0):
    """Return what becomes of accuracy and statistics: `Other`.

    brightness, contrast  x becomes contrast · x + brightness; noise: standard deviation added to it
    share   of the target that is the digit 0, the rest is mixed as the test images are
    size    images in the target batch, whose statistics are taken
    """
    model, x, y = trained()
    shuffled, grain = order(seed)
    zeros = shuffled[y[shuffled] == 0]
    count = round(share * size)
    chosen = torch.cat([zeros[torch.arange(count) % len(zeros)], shuffled[: size - count]])
    target = x[chosen] * contrast + brightness + noise * grain[: len(chosen)]
    accuracy, lags = {}, {}
    with torch.no_grad():
        for whose in WHOSE:
            h, lags[whose] = target, []
            for layer in model:
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    dims = [d for d in range(h.dim()) if d != 1]
                    mean = h.mean(dims)
                    off = h - mean.view(-1, *(1,) * (h.dim() - 2))
                    var = off.square().mean(dims)  # h.var takes several times as long
                    kept = (layer.running_mean, layer.running_var) if whose == WHOSE[0] else (mean, var)
                    lags[whose].append(((kept[0] - mean).abs() / (var + layer.eps).sqrt()).median().item())
                    h = nn.functional.batch_norm(h, *kept, layer.weight, layer.bias, False, 0.0, layer.eps)
                else:
                    h = layer(h)
            accuracy[whose] = (h.argmax(1) == y[chosen]).float().mean().item()
    shown = nn.functional.avg_pool2d(target[-SHOWN:], 28 // SIDE)[:, 0]
    return Other((8 * shown).round() / 8, accuracy, lags)


class OtherData(Redrawn):
    """What happens when the images are not those of the training, and whose statistics should normalise them?"""

    name = "other_data"
    size = (6.8, 4.3)
    grid: ClassVar = {
        **{"brightness": [-0.25, 0.0, 0.25], "contrast": [0.25, 0.5, 1.0], "noise": [0.0, 0.4]},
        **{"share": [0.0, 1.0], "size": [2, 8, 128]},
    }
    draws = 2

    def __init__(self):
        controls = {
            "brightness": slider("Brightness added", 0.0, -0.5, 0.5, 0.05, tooltip="What is added to each pixel"),
            "contrast": slider("Contrast (factor)", 1.0, 0.1, 2.0, 0.05, tooltip="What each pixel is multiplied by"),
            "noise": slider("Noise (std. deviation)", 0.0, 0.0, 0.8, 0.05, tooltip="Spread of what is added at random"),
            "share": slider(
                "Share of zeros", 0.0, 0.0, 1.0, 0.1, tooltip="How much of the target is the digit 0 alone"
            ),
            "size": stops("Target batch (images)", 128, [2, 4, 8, 16, 32, 64, 128, 256], tooltip="Whose statistics"),
            "whose": choice(
                "Statistics of the",
                WHOSE[0],
                list(WHOSE),
                tooltips=["the running ones, from training", "mean and variance of the target batch itself"],
            ),
        }
        super().__init__(controls, "Take other test images")

    def still(self, figure):
        """Draw the axes: eight images, the accuracy with either statistics, the distance layer by layer."""
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 2.4))
        figure.subplots_adjust(left=0.09, right=0.97, top=0.97, bottom=0.14, wspace=0.28, hspace=0.22)
        top = figure.add_subplot(grid[0, :])
        top.set_axis_off()
        self._image = self.moves(
            top.imshow(torch.zeros(SIDE, SIDE * SHOWN).numpy(), cmap="gray_r", vmin=-0.5, vmax=1.5, aspect="equal")
        )
        left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
        left.set(ylim=(0, 1.12), xlim=(-0.6, 1.6), ylabel="accuracy")
        left.set_xticks([0, 1], ["training's", "target's"])
        left.set_xlabel("statistics")
        self._bars = [self.moves(bar) for bar in left.bar([0, 1], [0, 0], 0.6, color=[BLUE, VERMILION])]
        self._bars[1].set_hatch("//")
        self._bars[1].set_edgecolor("white")
        self._texts = [self.moves(left.text(i, 0, "", ha="center", va="bottom")) for i in (0, 1)]
        right.set(xlim=(-0.3, 3.3), ylim=(-0.1, 3), xlabel="BN layer", ylabel="mean off by (σ)")
        right.set_xticks(range(4), ["2", "6", "11", "14"])
        right.axhline(0, color=GREY, linewidth=0.8)
        self._lag = self.moves(right.plot([], [], "o-", color=BLUE, markersize=7)[0])

    def show(self, brightness, contrast, noise, share, size, whose):
        """Change the target, run the network with either statistics."""
        result = other_data(brightness, contrast, noise, share, size, self.seed)
        images = list(result.images) + [torch.zeros(SIDE, SIDE)] * (SHOWN - len(result.images))
        self._image.set_data(torch.cat(images, 1).numpy())
        for bar, text, name in zip(self._bars, self._texts, WHOSE, strict=True):
            accuracy = result.accuracy[name]
            bar.set_height(accuracy)
            bar.set_alpha(1.0 if name == whose else 0.35)
            text.set_y(accuracy + 0.015)
            text.set_text(f"{accuracy:.3f}")
        lags = result.lags[whose]
        self._lag.set_data(range(4), [min(lag, 2.95) for lag in lags])
        self._lag.set_color(BLUE if whose == WHOSE[0] else VERMILION)
        words = ", ".join(f"{lag:.2f}" for lag in lags)
        return (
            f"{size} target images, pixels · {contrast:.2f} + {brightness:.2f}, noise {noise:.2f}, {share:.0%} of them "
            f"picked to be zeros. With the statistics of the {whose} accuracy is {result.accuracy[whose]:.3f} "
            f"(training images' {result.accuracy[WHOSE[0]]:.3f}, target batch's {result.accuracy[WHOSE[1]]:.3f}). "
            f"In layers 2, 6, 11 and 14 the mean that is used lies {words} σ from the target's."
        )
