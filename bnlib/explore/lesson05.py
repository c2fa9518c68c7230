"""The explorers of lesson 05: training with other settings, and the activations that a training leaves behind."""

import math
import threading
import time
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import ClassVar, NamedTuple

import torch
from matplotlib.lines import TICKDOWN, Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..data import digits
from ..layers import BatchNorm
from ..models import lenet
from ..plots import BLUE, GREY, SKY, VERMILION
from ..training import evaluating, fit
from .base import Explorer, button, choice, slider, stops

EPOCHS = 10  # at most
POINTS_PER_EPOCH = 20  # of the loss curve
BINS = 60
WIDE = [i / BINS for i in range(BINS + 1)]  # the bins' edges, in shares of the axis
MOST_TICKS = 9
COLUMNS = 0.33, 0.5, 0.58, 0.69, 0.86, 0.985  # right ends of the table's, shares of the picture's width
PAUSE = 0.15  # seconds between two pictures of a training: it needs the processor, too
NORMS = {"scratch": "our layer", "torch": "torch.nn's layer", "none": "no normalization"}


@dataclass
class Run:
    """One training: its settings, and what is known of it so far."""

    settings: dict
    losses: list[tuple[float, float]] = field(default_factory=list)  # (epochs done, mean loss of a 20th of an epoch)
    train_accuracy: list[float] = field(default_factory=list)  # one an epoch, 0 to 1
    test_accuracy: list[float] = field(default_factory=list)
    state: str = "starting"
    stop: threading.Event = field(default_factory=threading.Event)
    over: bool = False

    def __str__(self):
        if not self.test_accuracy:
            return f"{words(**self.settings)}: {self.state}."
        return (
            f"{words(**self.settings)}: {self.state}; after epoch {len(self.test_accuracy)}, train accuracy "
            f"{self.train_accuracy[-1]:.3f} and test accuracy {self.test_accuracy[-1]:.3f}."
        )


def words(norm, lr, batch_size, momentum, schedule, epochs):
    """Return a training's settings in words."""
    memory = "" if norm == "none" else f" (momentum {momentum:g})"
    plan = f"{schedule} learning rate {lr:g}, batches of {batch_size}, {epochs} epoch{'s' * (epochs > 1)}"
    return f"{NORMS[norm]}{memory}, {plan}"


def train(run, images, tell):
    """Train LeNet as `run.settings` say; keep `run` up to date, and call `tell()` whenever there is news."""
    settings = dict(run.settings)
    norm, momentum = settings.pop("norm"), settings.pop("momentum")
    waiting = []  # losses since the last point of the curve

    def on_step(step):
        waiting.append(step.loss)
        if int(step.epoch * POINTS_PER_EPOCH) > (int(run.losses[-1][0] * POINTS_PER_EPOCH) if run.losses else 0):
            run.losses.append((step.epoch, torch.stack(waiting).mean().item()))
            waiting.clear()
            tell()
        return run.stop.is_set() or not threading.main_thread().is_alive()  # Python itself is about to end

    def on_epoch(history):
        run.train_accuracy, run.test_accuracy = [*history.train_accuracy], [*history.test_accuracy]
        tell()

    run.state = "training"
    try:
        images = digits() if images is None else images
        model = lenet(norm, momentum=momentum)
        history = fit(model, images, on_step=on_step, on_epoch=on_epoch, progress=False, **settings)
        done = len(history.test_accuracy)
        run.state = "finished" if done == settings["epochs"] else f"stopped in epoch {done + 1}"
    except Exception as error:  # in a thread it would go to a log that nobody reads
        run.state = f"failed: {str(error).rstrip('.')}"
    run.over = True
    tell()


class TrainItYourself(Explorer):
    """Which settings train, which do not, and what does normalization change about that?

    images  what `load_images` returns; by default the digits, on which a training takes seconds

    Start trains LeNet in a thread, so that the notebook and the controls go on working; Stop ends it after the step
    under way. The training before stays in the picture, dashed.
    """

    name = "train_it_yourself"
    size = (6.8, 4.8)
    grid: ClassVar = {
        "norm": ["scratch", "none"],
        "batch_size": [8, 64, 256],
        "momentum": [0.01, 0.1, 1.0],
        "epochs": [EPOCHS],
    }

    def __init__(self, images=None):
        self._images = images
        self._runs = []  # the one before and the last
        self._shown = 0.0
        start = button("Start", self.start, icon="play", tooltip="Train with these settings")
        stop = button("Stop", self.stop, icon="stop", tooltip="End the training after the step under way")
        controls = {
            "norm": choice(
                "Normalization",
                "scratch",
                list(NORMS),
                tooltips=["Our BatchNorm2d and BatchNorm1d", "Those of torch.nn", "LeNet without them"],
                width="auto",
            ),
            "schedule": choice(
                "Schedule",
                "constant",
                ["constant", "cosine"],
                tooltips=["The learning rate stays", "The learning rate falls to 0 along half a cosine"],
                width="auto",
            ),
            "lr": stops("Learning rate", 1.0, [0.01, 0.03, 0.1, 0.3, 1.0, 3.0], tooltip="How far a step goes"),
            "batch_size": stops("Batch size (images)", 64, [4, 8, 16, 32, 64, 128, 256], tooltip="Images in a step"),
            "momentum": stops(
                "Momentum",
                0.1,
                [0.01, 0.03, 0.1, 0.3, 1.0],
                tooltip="How much of each batch enters the running statistics, which eval() uses",
            ),
            "epochs": slider("Epochs", EPOCHS, 1, EPOCHS, tooltip="Passes over the training images"),
        }
        super().__init__(controls, [start, stop])

    def start(self):
        """Train with the controls' settings, unless a training is under way; return the thread that trains."""
        if not self._runs or self._runs[-1].over:
            run = Run(self.values())
            self._runs = [*self._runs[-1:], run]
            self.refresh()
            self._thread = threading.Thread(target=train, args=(run, self._images, lambda: self._news(run)))
            self._thread.start()
        return self._thread

    def stop(self):
        """End the training under way, if there is one, after its present step."""
        for run in self._runs:
            run.stop.set()

    def reset(self):
        """Stop, forget the trainings, and put the controls back."""
        self.stop()
        self._runs = []
        super().reset()

    def close(self):
        """Stop the training under way, too: nothing shows it any more."""
        self.stop()
        super().close()

    def _news(self, run):
        if run.over or time.monotonic() - self._shown > PAUSE:
            self.refresh()
            self._shown = time.monotonic()

    def still(self, figure):
        """Draw the axes, loss and accuracy, and above them the table of settings."""
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.065, right=0.97, top=0.685, bottom=0.125, wspace=0.2)
        left.set(ylim=(0, 2.7), title="Loss in training (nats)")
        right.set(ylim=(0, 1.02), title="Test accuracy (thin: train)")
        self._ends = []
        for axes, chance in ((left, math.log(10)), (right, 0.1)):
            axes.set(xlim=(0, EPOCHS + 0.2), xticks=range(0, EPOCHS + 1, 2), xlabel="epochs")
            axes.axhline(chance, color=GREY, linestyle=":")
            axes.text(EPOCHS, chance, "chance", ha="right", va="bottom", color=GREY)
            self._ends.append(self.moves(axes.axvline(0, color=GREY, linestyle="-.", linewidth=1)))
        self._hint = self.moves(left.text(EPOCHS / 2, 1.2, "Start draws here", ha="center", va="center"))
        self._curves, self._table = [], []
        for place, name in zip(COLUMNS, ("norm", "schedule", "rate", "batch", "momentum", "epochs"), strict=True):
            figure.text(place, 0.965, name, ha="right", va="center", color=GREY)
        rows = ("this run", BLUE, "-", "o"), ("before", VERMILION, "--", "^"), ("next", "none", "-", "")
        for y, (name, color, line, marker) in zip((0.905, 0.85, 0.795), rows, strict=True):
            figure.add_artist(Line2D([0.012, 0.06], [y, y], color=color, linestyle=line, marker=marker, linewidth=2))
            figure.text(0.075, y, name, va="center", weight="bold")
            cells = (figure.text(place, y, "", ha="right", va="center") for place in COLUMNS)
            self._table.append([self.moves(cell) for cell in cells])
            kinds = (left, {"linewidth": 2}), (right, {"linewidth": 1}), (right, {"linewidth": 2, "marker": marker})
            self._curves.append(
                [self.moves(axes.plot([], [], color=color, linestyle=line, **kind)[0]) for axes, kind in kinds]
            )

    def show(self, **settings):
        """Draw the last two trainings as far as they are, and write down the settings of the next."""
        self.controls["momentum"].disabled = settings["norm"] == "none"
        nothing = Run({})
        runs = [*self._runs[::-1], nothing, nothing][:2]
        for cells, curves, run in zip(self._table, self._curves, [*runs, Run(settings)], strict=True):
            for cell, name in zip(cells, settings, strict=True):
                unused = name == "momentum" and run.settings.get("norm") == "none"
                cell.set_text("–" if unused else str(run.settings.get(name, "–")))
            losses = torch.tensor(run.losses).view(-1, 2).T
            for curve, values in zip(curves, (losses, run.train_accuracy, run.test_accuracy), strict=True):
                curve.set_data(*(values if values is losses else (range(1, len(values) + 1), values)))
        for line in self._ends:
            line.set_xdata([settings["epochs"]] * 2)
        self._hint.set_visible(not self._runs)
        plan = words(**settings)
        if not self._runs:
            data = "the digits" if self._images is None else self._images.name
            return (
                f"No training yet. Start trains LeNet on {data} with {plan}, and draws its loss and accuracy here as "
                "they come. A second run will stand over the first."
            )
        before = f" The run before, {self._runs[0]}" if len(self._runs) == 2 else ""
        return f"This run, {self._runs[-1]}{before} Start would train {plan}."


class Recording(NamedTuple):
    """What went into a layer and what came out of it, a sample of it for each channel."""

    kind: str  # the layer's class
    before: Tensor  # (C, values)
    after: Tensor  # (C, values)


class InsideTheLayers(Explorer):
    """What does each normalization make of its layer's activations, and how does that change as the training goes on?

    recordings  a list, one entry an epoch, each made by `record` in `on_epoch`:

        recordings = []
        fit(model, images, on_epoch=lambda history: recordings.append(inside_the_layers.record(model, x)))
        inside_the_layers(recordings)

    Raises ValueError for an empty list, or one of different models.
    """

    name = "inside_the_layers"
    size = (6.8, 4.4)
    grid: ClassVar = {}

    def __init__(self, recordings):
        self._recordings = list(recordings)
        if not self._recordings:
            raise ValueError(
                "no recordings; fill the list while training, with "
                "on_epoch=lambda history: recordings.append(explore.inside_the_layers.record(model, x))"
            )
        layers = list(self._recordings[0])
        if any(list(recording) != layers for recording in self._recordings):
            raise ValueError("the recordings name different layers; expected one model, recorded after each epoch")
        self._layer = None
        epochs = len(self._recordings)
        controls = {
            "layer": stops(
                "Layer (number)", layers[0], layers, tooltip="Which normalization, as numbered in the model"
            ),
            "epoch": slider("Epochs trained", epochs, 1, epochs, tooltip="After which epoch it was recorded"),
            "channel": slider("Channel c", 0, 0, 1, tooltip="The channel drawn as a line"),
        }
        super().__init__({name: control for name, control in controls.items() if name != "epoch" or epochs > 1})

    @staticmethod
    @torch.no_grad()
    def record(model, x, values=200):
        """Return what goes through the normalization layers of `model` for x (N, ...): {layer's number: Recording}.

        Layers are counted from 1 among those that hold no others, as lesson 05 numbers them. At most `values` values
        a channel are kept, evenly spaced. In evaluation mode: the running statistics are used and left as they are, and
        every module is then in the mode it was in. Raises ValueError if the model has no normalization layer.
        """
        recording = {}
        leaves = [module for module in model.modules() if not list(module.children())]

        def keep(number):
            def hook(layer, inputs, output):
                recording[number] = Recording(type(layer).__name__, sample(inputs[0], values), sample(output, values))

            return hook

        norms = {i: leaf for i, leaf in enumerate(leaves, 1) if isinstance(leaf, BatchNorm | _BatchNorm)}
        if not norms:
            raise ValueError('the model has no batch normalization layer to record; build it with norm="scratch"')
        hooks = [layer.register_forward_hook(keep(i)) for i, layer in norms.items()]
        try:
            with evaluating(model):
                model(x.to(next(model.parameters()).device))
        finally:
            for hook in hooks:
                hook.remove()
        return recording

    def still(self, figure):
        """Draw the axes: the distribution before above, after below."""
        upper, lower = figure.subplots(2, 1, sharex=True)
        figure.subplots_adjust(left=0.085, right=0.985, top=0.93, bottom=0.115, hspace=0.28)
        upper.set_title("Before")
        lower.set_title("After (with γ and β)")
        lower.set_xlabel("activation", labelpad=22)
        # ticks that move: to have matplotlib draw other axes would take five times as long
        below = lower.get_xaxis_transform()
        self._marks = self.moves(lower.plot([], [], "k", marker=TICKDOWN, ls="none", transform=below, clip_on=False)[0])
        self._numbers = [
            self.moves(lower.text(0, -0.055, "", transform=below, ha="center", va="top", fontsize=12.5))
            for _ in range(MOST_TICKS)
        ]
        self._shapes = []
        for axes, color, hatch in ((upper, GREY, None), (lower, SKY, "//")):
            axes.set(xlim=(0, 1), ylim=(0, 1.05), xticks=[], yticks=[], ylabel="how often")
            fill = axes.stairs([0], [0, 1], fill=True, color=color, alpha=0.5, hatch=hatch, label="all channels")
            line = axes.stairs([0], [0, 1], color=BLUE, linewidth=2, label="channel c")
            self._shapes.append((self.moves(fill), self.moves(line)))
            axes.legend(loc="lower right", bbox_to_anchor=(1, 0.95), ncols=2, borderaxespad=0)

    def show(self, layer, channel, epoch=1):
        """Draw the layer's distributions after `epoch`."""
        kind, *sides = self._recordings[epoch - 1][layer]
        lost = sum((~side.isfinite()).sum().item() for side in sides)
        if lost:
            raise ValueError(f"after epoch {epoch}, {lost} activations of layer {layer} are no number; choose another")
        channel = min(channel, self.limit("channel", len(sides[0]) - 1))
        if layer != self._layer:
            self._layer = layer
            low, high = self._range(layer)
            self._edges = torch.linspace(low, high, BINS + 1)
            ticks = [tick for tick in MaxNLocator(MOST_TICKS - 1).tick_values(low, high) if low <= tick <= high]
            marks = [((tick - low) / (high - low), f"{tick:g}".replace("-", "−")) for tick in ticks]
            self._marks.set_data([place for place, _ in marks], [0] * len(marks))
            for number, (place, words) in zip_longest(self._numbers, marks, fillvalue=(0, "")):
                number.set_x(place)
                number.set_text(words)
        parts = []
        for side, (fill, line), when in zip(sides, self._shapes, ("Before", "After"), strict=True):
            for shape, values in ((fill, side), (line, side[channel])):
                shape.set_data(frequencies(values, self._edges), WIDE)
            parts.append(
                f"{when}, its {len(side)} channels together have mean {side.mean():.3f} and standard deviation "
                f"{side.std(correction=0):.3f}; channel {channel} has {side[channel].mean():.3f} and "
                f"{side[channel].std(correction=0):.3f}."
            )
        return f"Layer {layer}, {kind}, after epoch {epoch}, in eval(). " + " ".join(parts)

    def _range(self, layer):
        """Return the lowest and highest activation to draw, the same for all epochs of a layer."""
        sides = [side for recording in self._recordings for side in recording[layer][1:] if side.isfinite().all()]
        middles, spreads = torch.tensor([(side.mean(), side.std(correction=0)) for side in sides]).T
        return (middles - 3.5 * spreads).min().item(), (middles + 3.5 * spreads).max().item()


def sample(x, most):
    """Return at most `most` values of each channel of x (N, C, *), evenly spaced, as (C, values) on the CPU."""
    rows = x.transpose(0, 1).flatten(1)  # (C, n)
    kept = rows[:, :: -(-rows.shape[1] // most)]
    kept = kept.to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)  # the rest can be forgotten
    share, power = torch.frexp(kept)
    return torch.ldexp((2048 * share).round() / 2048, power)  # 11 binary digits: what a picture shows, stored in half


def frequencies(values, edges):
    """Return how many `values` lie in each bin of `edges` (bins + 1,), of the fullest; the outer bins are open."""
    counts = torch.bincount(torch.bucketize(values.flatten(), edges[1:-1]), minlength=len(edges) - 1)
    return counts / counts.max()
