"""The explorer of lessons 02 and 04: which numbers of a tensor share one mean and one variance."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from torch import Tensor

from ..plots import BLUE, GREEN, GREY, PURPLE, SKY, VERMILION
from .base import Explorer, choice, slider

COLORS = torch.tensor([to_rgb(color) for color in (BLUE, VERMILION, GREEN, PURPLE, SKY, GREY)])
READINGS = {  # face -> the choices: words on the button, reading, tooltip
    "layouts": (
        ("2D (N, C)", "2D", "BatchNorm1d on a table: one mean for each column"),
        ("3D (N, C, L)", "3D", "BatchNorm1d on sequences: one mean for each channel, over samples and positions"),
        ("mistaken (N, L, C)", "mistaken", "Sequences with the channels last, given to BatchNorm1d all the same"),
    ),
    "norms": (
        ("batch norm", "batch", "One mean for each channel, over all samples"),
        ("layer norm", "layer", "One mean for each sample, over all its channels"),
        ("instance norm", "instance", "One mean for each channel of each sample"),
        ("group norm", "group", "One mean for each group of channels of each sample"),
    ),
}
HOW = {  # reading -> how the picture is laid out
    "2D": "rows are samples, columns are channels",
    "3D": "in each sample rows are channels, columns are positions",
    "mistaken": "rows are positions, which BatchNorm1d takes for channels",
} | dict.fromkeys(
    ("batch", "layer", "instance", "group"), "rows are samples, columns are channels, blocks are images H × W"
)


@dataclass
class Sharing:
    """The numbers 0, 1, 2 … in a tensor, and who shares a mean; every tensor has the shape of `x`."""

    x: Tensor
    group: Tensor  # the number of the group that shares one mean and one variance
    mean: Tensor  # of the group
    variance: Tensor  # of the group, biased (÷ n)
    y: Tensor  # (x - mean) / √(variance + 1e-5)


def share(shape, reading, groups=1):
    """Return the `Sharing` of a tensor of `shape`, channels on axis 1, under one of `READINGS`.

    groups  how many groups of channels group norm makes (Wu & He 2018)

    Raises ValueError if the channels cannot be divided into `groups`.
    """
    channels = shape[1]
    if reading == "group" and channels % groups:
        raise ValueError(
            f"{channels} channels cannot be divided into {groups} groups of one size; "
            f"choose {' or '.join(str(g) for g in range(1, channels + 1) if channels % g == 0)} groups"
        )
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    n, c = (torch.arange(size).view(-1, *[1] * (len(shape) - 1 - axis)) for axis, size in enumerate(shape[:2]))
    group = {
        "layer": n + 0 * c,
        "instance": n * channels + c,
        "group": n * groups + c // max(channels // groups, 1),
    }.get(reading, 0 * n + c)
    group = group.expand(shape)
    members = group.flatten() == torch.arange(group.max() + 1)[:, None]  # (groups, numbers)
    mean = torch.stack([x.flatten()[row].mean() for row in members])[group]
    variance = torch.stack([x.flatten()[row].var(correction=0) for row in members])[group]
    return Sharing(x, group, mean, variance, (x - mean) / (variance + 1e-5).sqrt())


class WhoSharesAMean(Explorer):
    """Which numbers of a tensor share one mean and one variance?

    face  "layouts": BatchNorm1d on (N, C), on (N, C, L), and on (N, L, C) by mistake;
          "norms": batch, layer, instance and group norm on (N, C, H, W)

    Raises ValueError for another face.
    """

    name = "who_shares_a_mean"
    size = (6.8, 3.9)
    grid: ClassVar = {}

    def __init__(self, face="layouts"):
        if face not in READINGS:
            raise ValueError(f"expected {' or '.join(map(repr, READINGS))}, got {face!r}")
        words, readings, tooltips = zip(*READINGS[face], strict=True)
        norms = face == "norms"
        start = "batch" if norms else "3D"
        controls = {
            "reading": choice(
                "Norm" if norms else "Reading", start, list(zip(words, readings, strict=True)), tooltips=tooltips
            ),
            "samples": slider("N (samples)", 3 if norms else 2, 1 + norms, 4, tooltip="Size of the batch"),
            "channels": slider("C (channels)", 4 if norms else 2, 2, 6 if norms else 4, tooltip="Features of a sample"),
        }
        if norms:
            controls |= {
                "sample": slider("Sample to look at", 0, 0, 2, tooltip="Where the thick frame is"),
                "channel": slider("Channel to look at", 0, 0, 3, tooltip="Where the thick frame is"),
                "groups": slider(
                    "Groups (group norm)", 2, 1, 6, tooltip="How many groups the channels are divided into"
                ),
            }
        else:
            controls |= {
                "length": slider("L (positions)", 3, 2, 4, tooltip="Length of a sequence; a table has none"),
                "channel": slider(
                    "Index on axis 1", 0, 0, 1, tooltip="Which channel to look at; BatchNorm1d's are on axis 1"
                ),
            }
        self._placed = None
        super().__init__(controls)

    def still(self, figure):
        """Draw an empty page: everything on it moves."""
        width, height = (100 * inches for inches in self.size)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))  # pixels, from the top
        axes.set_axis_off()
        self._cells = self.moves(axes.add_collection(PolyCollection([], edgecolors="white")))
        self._title = self.moves(axes.text(12, 20, "", va="center", weight="bold"))
        self._how = self.moves(axes.text(12, 44, "", va="center"))
        self._numbers = [self.moves(axes.text(0, 0, "", ha="center", va="center")) for _ in range(4 * 6 * 4)]
        self._names = [self.moves(axes.text(0, 0, "", va="center", color="#444444", size=12.5)) for _ in range(10)]

    def show(self, reading, samples, channels, channel, length=1, sample=0, groups=1):
        """Lay out the tensor, and mark the group that holds `channel` of `sample`."""
        if "groups" in self.controls:
            shape = samples, channels, 2, 2
            sample = self.limit("sample", samples - 1)
            self.controls["groups"].disabled = reading != "group"
        else:
            shape = (samples, channels) if reading == "2D" else (samples, channels, length)
            if reading == "mistaken":
                shape = (samples, length, channels)
            self.controls["length"].disabled = reading == "2D"
        channel = self.limit("channel", shape[1] - 1)
        result = share(shape, reading, groups)
        if self._placed != (shape, reading):
            self._placed = shape, reading
            self._place(shape, reading)
        here = (sample, channel, *[0] * (len(shape) - 2))
        marked = (result.group == result.group[here]).flatten()
        colors = COLORS[result.group.flatten() % len(COLORS)]
        self._cells.set_facecolor((1 - (1 - colors) * torch.where(marked, 0.6, 0.2)[:, None]).numpy())
        self._cells.set_edgecolor(["black" if mark else "white" for mark in marked])
        self._cells.set_linewidth(torch.where(result.x.flatten() == result.x[here], 4, 1).tolist())
        for text, mark in zip(self._numbers, marked.tolist(), strict=False):
            text.set_fontweight("bold" if mark else "normal")
        numbers = [f"{x:.0f}" for x in result.x.flatten()[marked].tolist()]
        mean, variance = (f"{round(v[here].item(), 4):.7g}" for v in (result.mean, result.variance))
        self._title.set_text(f"{len(numbers)} numbers share the mean {mean} and the variance {variance}")
        if len(numbers) > 12:
            numbers[6:-3] = ["…"]
        return (
            f"{self._who(reading, shape, sample, channel, groups)}: {', '.join(numbers)} share the mean {mean} and the "
            f"biased variance {variance} (÷ {int(marked.sum())}), in black frames. The thick frame, "
            f"{result.x[here]:.0f}, becomes {result.y[here]:.4f}.{self._remark(reading, shape, marked, groups)}"
        )

    def _who(self, reading, shape, sample, channel, groups):
        return {
            "layer": f"Layer norm on (N, C, H, W) = {shape}, sample {sample}",
            "instance": f"Instance norm on (N, C, H, W) = {shape}, channel {channel} of sample {sample}",
            "group": f"Group norm on (N, C, H, W) = {shape}, channel {channel} of sample {sample} and its group",
            "batch": f"Batch norm on (N, C, H, W) = {shape}, channel {channel}",
            "2D": f"(N, C) = {shape}, channel {channel}",
            "3D": f"(N, C, L) = {shape}, channel {channel}",
            "mistaken": f"(N, L, C) = {shape}, position {channel}, which BatchNorm1d takes for a channel",
        }[reading]

    def _remark(self, reading, shape, marked, groups):
        if marked.sum() == 1:
            return " One number has no spread: BatchNorm1d refuses to train on it."
        if reading == "group" and groups in (1, shape[1]):
            return " One group is layer norm." if groups == 1 else " As many groups as channels are instance norm."
        if reading != "mistaken":
            return ""
        if shape[1] == shape[2]:
            return f" L = C = {shape[1]}, so BatchNorm1d({shape[2]}) accepts it without a word, and mixes the channels."
        return f" BatchNorm1d({shape[2]}) refuses it, because axis 1 has {shape[1]} entries; only L = C slips through."

    def _place(self, shape, reading):
        """Put cells, numbers and names where a tensor of `shape` is read: as torch prints it, images block by block."""
        index = torch.cartesian_prod(*(torch.arange(size) for size in shape)).double()
        if len(shape) == 3:  # a block for each sample, a row for each entry of axis 1
            down, across, tall, wide = 1, 0, 1, shape[2] + 0.6
            row, column = index[:, 1], index[:, 0] * wide + index[:, 2]
        else:  # a row for each sample, a column or a block for each channel
            down, across, tall, wide = (0, 1, 1, 1) if len(shape) == 2 else (0, 1, shape[2] + 0.4, shape[3] + 0.4)
            row, column = index[:, 0] * tall, index[:, 1] * wide
            if len(shape) == 4:
                row, column = row + index[:, 2], column + index[:, 3]
        left, top = 118, 98
        width = min(96, (672 - left) / (column.max().item() + 1))
        height = min(84, (100 * self.size[1] - 10 - top) / (row.max().item() + 1))
        x, y = left + column * width, top + row * height  # of the cells' left top corners
        corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]]) * torch.tensor([width - 3, height - 3])
        self._cells.set_verts((torch.stack([x, y], 1)[:, None] + corners).numpy())
        places = list(zip((x + width / 2 - 1.5).tolist(), (y + height / 2 - 1.5).tolist(), strict=True))
        for i, text in enumerate(self._numbers):
            text.set_visible(i < len(places))
            if i < len(places):
                text.set(position=places[i], text=str(i))
        self._how.set_text(HOW[reading])
        names = ["sample", "position" if reading == "mistaken" else "channel"]
        rows = [
            (left - 10, top + (i * tall + int(tall) / 2) * height, "right", f"{names[down]} {i}")
            for i in range(shape[down])
        ]
        columns = [
            (left + (i * wide + int(wide) / 2) * width, top - 14, "center", f"{names[across]} {i}")
            for i in range(shape[across])
        ]
        for text in self._names:
            text.set_visible(False)
        for text, (x, y, side, words) in zip(self._names, rows + columns, strict=False):
            text.set(visible=True, position=(x, y), ha=side, text=words)
