"""The explorers of lesson 07: what the company does to a prediction, and what a norm does not see."""

from dataclasses import dataclass
from math import erf
from typing import ClassVar

import torch
from torch import Tensor

from ..functional import batch_norm
from ..norms import group_norm, instance_norm, layer_norm, rms_norm
from ..plots import BLUE, GREY, VERMILION
from .base import Explorer, Redrawn, choice, slider

EPS = 1e-5
LARGEST = 64  # samples in the largest batch


@dataclass
class Company:
    """A batch of one feature from two classes, class A above 0 and class B as far below, spread 1, after BN."""

    x: Tensor  # (N,)
    y: Tensor  # (N,): x normalised; above 0 it is taken for an A
    is_a: Tensor  # (N,) bool
    threshold: float  # the x that becomes 0: what BN subtracts
    endless: float  # the same for an endless batch of this share
    right_a: float  # share of the As above the threshold, NaN if there are none
    right_b: float  # share of the Bs below it
    formula_a: float  # the same for an endless batch
    formula_b: float


def company(n, share, mode, distance, seed):
    """Return the `Company` of `n` samples, a `share` of them (0 to 1) of class A, whose mean is `distance` above B's.

    mode "train": BN with the batch's own statistics; "eval": with those of as many As as Bs.
    """
    generator = torch.Generator().manual_seed(seed)
    noise, order = torch.randn(LARGEST, generator=generator), torch.rand(LARGEST, generator=generator)
    is_a = order[:n].argsort().argsort() < round(share * n)
    x = (noise[:n] + torch.where(is_a, distance / 2, -distance / 2)).double()
    mean, var = torch.zeros(1).double(), torch.full((1,), 1 + distance**2 / 4).double()
    y = batch_norm(x[:, None], mean, var, training=mode == "train", momentum=1.0)[:, 0]
    threshold = mean.item()  # with momentum 1 a training step leaves the batch's mean there
    endless = (2 * share - 1) * distance / 2 if mode == "train" else 0.0
    return Company(
        x,
        y,
        is_a,
        threshold,
        endless,
        (y[is_a] > 0).double().mean().item(),
        (y[~is_a] < 0).double().mean().item(),
        normal(distance / 2 - endless),
        normal(distance / 2 + endless),
    )


def normal(z):
    """Return the probability that a standard normal number is below z."""
    return (1 + erf(z / 2**0.5)) / 2


def of_class(letter, share):
    """Return a share of a class in words."""
    return f"none of {letter}, for there is none" if share != share else f"{100 * share:.0f} % of {letter}"


class WhoIsInTheBatch(Redrawn):
    """What does the company do to a prediction?

    One feature tells two classes apart: A is taken for whatever BN puts above 0. In train() BN subtracts the mean of
    this batch, so where 0 lies depends on who else is in it.
    """

    name = "who_is_in_the_batch"
    size = (6.8, 3.9)
    grid: ClassVar = {"n": [2, 4, 8, 16, 32, LARGEST], "share": [*range(0, 101, 10)], "distance": [1.0, 2.0, 4.0, 6.0]}

    def __init__(self):
        controls = {
            "n": slider(
                "Batch size N (samples)", LARGEST, 2, LARGEST, tooltip="How many samples share mean and spread"
            ),
            "share": slider("Share of class A (%)", 50, 0, 100, 5, tooltip="How many of the batch are of class A"),
            "distance": slider("Distance of classes", 4.0, 0.5, 6.0, 0.5, tooltip="In standard deviations of a class"),
            "mode": choice(
                "Mode",
                "train",
                [("train()", "train"), ("eval()", "eval")],
                tooltips=["BN with this batch's mean and variance", "BN with those of as many As as Bs"],
            ),
        }
        super().__init__(controls, "Draw other samples")

    def still(self, figure):
        """Draw the axes: the feature as it comes in, and what BN makes of it."""
        axes = figure.subplots(2, 1)
        figure.subplots_adjust(left=0.13, right=0.98, top=0.92, bottom=0.15, hspace=0.72)
        self._dots, self._lines = [], []
        for ax, title, reach in zip(axes, ("Before BN", "After BN"), (6.5, 4.2), strict=True):
            ax.set(xlim=(-reach, reach), ylim=(-0.6, 1.6), yticks=[0, 1], yticklabels=["class B", "class A"])
            ax.set_title(title)
            self._lines.append(self.moves(ax.plot([], [], "k--", linewidth=2)[0]))
            self._dots.append(
                [
                    self.moves(ax.plot([], [], style, color=color, markersize=7, alpha=0.7, linestyle="")[0])
                    for style, color in (("o", BLUE), ("^", VERMILION))
                ]
            )
        self._endless = self.moves(axes[0].plot([], [], ":", color=GREY, linewidth=2)[0])
        axes[0].set_xlabel("feature x; dashed: what BN subtracts, dotted: of a large batch")
        axes[1].set_xlabel("output y; to the right of 0 it is taken for an A")

    def show(self, n, share, distance, mode):
        """Draw the batch, before and after."""
        result = company(n, share / 100, mode, distance, self.seed)
        jitter = torch.linspace(-1, 1, LARGEST)[torch.arange(n) * 27 % LARGEST] * 0.3
        for values, dots, line, zero in zip(
            (result.x, result.y), self._dots, self._lines, (result.threshold, 0.0), strict=True
        ):
            line.set_data([zero, zero], [-0.6, 1.6])
            for marks, members, height in zip(dots, (result.is_a, ~result.is_a), (1, 0), strict=True):
                marks.set_data(values[members], height + jitter[members])
        self._endless.set_data([result.endless] * 2, [-0.6, 1.6])
        count = int(result.is_a.sum())
        return (
            f"{n} samples, {count} of class A and {n - count} of class B, in {mode}(): BN subtracts "
            f"{result.threshold:.2f}. On the right side of 0 are {of_class('A', result.right_a)} and "
            f"{of_class('B', result.right_b)}. From a large batch of this share it would subtract "
            f"{result.endless:.2f}, with {100 * result.formula_a:.0f} and {100 * result.formula_b:.0f} %. "
            + (
                "In eval() who else is there makes no difference."
                if mode == "eval"
                else "BN takes away what all have in common: with one class alone, that is the class."
                if count in (0, n)
                else "As many As as Bs: the threshold lies about halfway."
                if 2 * count == n
                else "The threshold has moved towards the class that is more frequent."
            )
        )


NORMS = {  # of x (N, C, H, W)
    "batch": lambda x: batch_norm(x, None, None, training=True, eps=EPS),
    "layer": lambda x: layer_norm(x, x.shape[1:], eps=EPS),
    "group": lambda x: group_norm(x, 2, eps=EPS),
    "instance": lambda x: instance_norm(x, eps=EPS),
    "RMS": lambda x: rms_norm(x, x.shape[1:], eps=EPS),
}
PLACES = {
    "everything": (slice(None), slice(None)),
    "channel 0": (slice(None), 0),
    "image 0": (0, slice(None)),
}
UNSEEN = 1e-3  # a smaller change of the output is ε's


@dataclass
class Change:
    """A batch (2, 4, 3, 3) of which a part has changed, and a norm's output without and with the change."""

    changed: Tensor  # (2, 4, 3, 3): the input, changed
    before: Tensor  # (2, 4, 3, 3): the output for the input as it was
    after: Tensor  # (2, 4, 3, 3)
    largest: list  # of each image: the largest change of its output


def change(norm, place, how, amount):
    """Return the `Change` when `amount` is added to, or multiplies (`how` "+", "×"), a place of fixed images."""
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x + torch.linspace(-1, 1, 4, dtype=torch.float64).view(4, 1, 1)
    changed = x.clone()
    changed[PLACES[place]] = x[PLACES[place]] + amount if how == "+" else x[PLACES[place]] * amount
    before, after = NORMS[norm](x), NORMS[norm](changed)
    return Change(changed, before, after, (after - before).abs().amax((1, 2, 3)).tolist())


def tiled(x):
    """Return images (N, C, H, W) as one table (N · H, C · W): a row of tiles an image, a column a channel."""
    return x.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)


class WhatANormDoesNotSee(Explorer):
    """Which changes of its input does a norm not see?

    Two images of four channels. Whatever a mean or a standard deviation is common to can be added or multiplied
    without a trace in the output.
    """

    name = "what_a_norm_does_not_see"
    size = (6.8, 3.3)
    grid: ClassVar = {}

    def __init__(self):
        controls = {
            "norm": choice(
                "Norm",
                "batch",
                list(NORMS),
                tooltips=[
                    "A mean for each channel, over both images",
                    "A mean for each image",
                    "A mean for each image and each two channels",
                    "A mean for each image and channel",
                    "The root of the mean square of each image, no mean subtracted",
                ],
            ),
            "place": choice(
                "Changed",
                "channel 0",
                list(PLACES),
                tooltips=["All numbers of both images", "The first channel of both images", "All of the first image"],
            ),
            "how": choice("How", "+", ["+", "×"], tooltips=["The amount is added", "The amount multiplies"]),
            "amount": slider("Amount", 3.0, 0.5, 5.0, 0.5, tooltip="What is added, or multiplies"),
        }
        super().__init__(controls)

    def still(self, figure):
        """Draw three panels of tiles: a row an image, a column a channel."""
        axes = figure.subplots(1, 3)
        figure.subplots_adjust(left=0.125, right=0.99, top=0.86, bottom=0.2, wspace=0.08)
        self._panels = []
        panels = (
            ("Input", "cividis", -4, 7, "white"),
            ("Output", "cividis", -3, 3, "white"),
            ("Output's change", "Greys", 0, 6, GREY),
        )
        for ax, (title, colours, low, high, edge) in zip(axes, panels, strict=True):
            self._panels.append(
                self.moves(ax.imshow(torch.zeros(6, 12).numpy(), cmap=colours, vmin=low, vmax=high, aspect="auto"))
            )
            ax.set_xticks([1, 4, 7, 10], ["0", "1", "2", "3"])
            ax.set_yticks([1, 4], ["image 0", "image 1"] if ax is axes[0] else ["", ""])
            ax.tick_params(length=0)
            ax.set_title(title)
            ax.set_xlabel("channel")
            for x in (2.5, 5.5, 8.5):
                self.moves(ax.axvline(x, color=edge, linewidth=2))
            self.moves(ax.axhline(2.5, color=edge, linewidth=4))
        self._what = self.moves(axes[0].text(1, 1.035, "", ha="right", va="baseline", transform=axes[0].transAxes))
        self._labels = [
            self.moves(axes[2].text(5.5, y, "", ha="center", va="center", fontweight="bold")) for y in (1, 4)
        ]

    def show(self, norm, place, how, amount):
        """Change the place and show what becomes of it."""
        result = change(norm, place, how, amount)
        tables = (result.changed, result.after, (result.after - result.before).abs())
        for picture, table in zip(self._panels, tables, strict=True):
            picture.set_data(tiled(table).numpy())
        self._what.set_text(f"{place} {how} {amount:g}")
        seen = ["no change" if largest < UNSEEN else f"up to {largest:.2f}" for largest in result.largest]
        for words, said in zip(self._labels, seen, strict=True):
            words.set_text(said)
        name, what = norm[0].upper() + norm[1:], f"{amount:g} {'is added to' if how == '+' else 'multiplies'} {place}"
        if max(result.largest) < UNSEEN:
            verdict = f"{name} norm does not see it."
        elif place == "image 0" and result.largest[1] >= UNSEEN:
            verdict = f"{name} norm sees it, even in the image that was left as it was."
        else:
            verdict = f"{name} norm sees it."
        return (
            f"{what}. The output changes by at most {max(result.largest):.3f} (image 0: {seen[0]}; "
            f"image 1: {seen[1]}). {verdict}"
        )
