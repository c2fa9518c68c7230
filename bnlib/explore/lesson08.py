"""The explorer of lesson 08: what synchronised statistics cost on many machines, and what they buy."""

from dataclasses import dataclass
from typing import ClassVar

from ..plots import BLUE, GREY, VERMILION
from .base import Explorer, choice, stops

MACHINES = [2**k for k in range(1, 11)]  # 2 to 1024
LAYERS, PARAMETERS = 53, 25_557_032  # of a ResNet-50
GROUP = 8
FLOAT = 4  # bytes
BUCKETS = 5  # in which DistributedDataParallel sends so many gradients: one of 1 MB, then 25 MB each
SCOPES = {"all": "all machines", "groups": f"groups of {GROUP}", "none": "each its own"}
STYLES = {"all": (VERMILION, "-"), "groups": (BLUE, "--"), "none": (GREY, ":")}


def messages(channels):
    """Return how many numbers each message of one layer carries in a step: two on the way forth, two back."""
    return [channels + 1, channels, channels, channels + 1]


def all_reduce(numbers, machines, latency, bandwidth):
    """Return the seconds that an all-reduce of so many float32 takes in a ring (Patarasuk & Yuan 2009).

    latency in seconds a hop, bandwidth in bytes a second: 2 (p - 1) hops, each with a p-th of the numbers
    """
    hops = 2 * (machines - 1)
    return hops * (latency + FLOAT * numbers / (machines * bandwidth))


@dataclass
class Price:
    """What one choice costs and buys, for one number of machines."""

    seconds: float  # a step, in messages of statistics
    waiting: float  # of these, the latency
    numbers: int  # sent a step, by each machine
    error: float  # standard error of a batch mean, in standard deviations of the values
    images: int  # that share one mean


def price(machines, batch, channels, latency, bandwidth, scope):
    """Return the `Price` of statistics over `scope`, one of SCOPES, in a network of 53 layers.

    batch images on each machine, `channels` in each layer; each channel has one value an image, as in a linear layer
    """
    members = {"all": machines, "groups": min(GROUP, machines), "none": 1}[scope]
    sizes = messages(channels) * LAYERS if members > 1 else []
    seconds = sum(all_reduce(size, members, latency, bandwidth) for size in sizes)
    waiting = sum(all_reduce(0, members, latency, bandwidth) for _ in sizes)
    return Price(seconds, waiting, sum(sizes), (members * batch) ** -0.5, members * batch)


def gradients(machines, latency, bandwidth):
    """Return the seconds that the gradients of a ResNet-50 travel; they may overlap with the backward pass."""
    return BUCKETS * all_reduce(PARAMETERS / BUCKETS, machines, latency, bandwidth)


class ManyMachines(Explorer):
    """What do statistics over all machines, or over groups of eight, cost, and what do they buy?"""

    name = "many_machines"
    size = (6.8, 3.9)
    grid: ClassVar = {
        **{"machines": [2, 4, 8, 16, 64, 256, 1024], "batch": [2, 8, 32, 128], "channels": [64, 512, 2048]},
        **{"latency": [1, 10, 200], "bandwidth": [1.25, 25.0, 400.0]},
    }

    def __init__(self):
        powers = [(f"{n:,}", n) for n in MACHINES]
        controls = {
            "machines": stops("Machines", 64, powers, tooltip="How many processes, each with a share of the batch"),
            "batch": stops("Images on each", 8, [1, 2, 4, 8, 16, 32, 64, 128], tooltip="How many images a machine has"),
            "channels": stops("Channels a layer", 512, [2**k for k in range(4, 12)], tooltip="In each of 53 layers"),
            "latency": stops(
                "Latency (µs a hop)", 10, [1, 2, 5, 10, 20, 50, 100, 200, 500], tooltip="What a message takes by itself"
            ),
            "bandwidth": stops(
                "Bandwidth (GB/s)",
                25.0,
                [0.1, 0.5, 1.25, 5.0, 12.5, 25.0, 100.0, 400.0],
                tooltip="Of one machine's link",
            ),
            "scope": choice(
                "Statistics of",
                "all",
                [(words, scope) for scope, words in SCOPES.items()],
                tooltips=["All shares together", "Eight machines' shares together", "No messages: plain BN"],
            ),
        }
        super().__init__(controls)

    def still(self, figure):
        """Draw the axes: milliseconds a step, and the error of a mean, both against the number of machines."""
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.105, right=0.965, top=0.9, bottom=0.15, wspace=0.3)
        for axes in (left, right):
            axes.set(xscale="log", yscale="log", xlim=(1.7, 1250), xlabel="machines")
            axes.set_xticks([2, 8, 64, 1024], ["2", "8", "64", "1024"])
            axes.minorticks_off()
        left.set(ylim=(0.01, 1e6), title="Milliseconds a step")
        left.set_yticks([0.01, 1, 100, 1e4, 1e6], ["0.01", "1", "100", "10⁴", "10⁶"])
        right.set(ylim=(0.0003, 1.5), title="Error of a mean (σ)")
        right.set_yticks([0.001, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
        self._costs, self._errors = {}, {}
        for scope, (color, style) in STYLES.items():
            for axes, lines in ((left, self._costs), (right, self._errors)):
                if axes is right or scope != "none":
                    lines[scope] = self.moves(
                        axes.plot([], [], style, color=color, linewidth=2, label=SCOPES[scope])[0]
                    )
        self._gradients = self.moves(left.plot([], [], "-.", color="black", linewidth=1.2, label="gradients")[0])
        self._marks = [
            self.moves(axes.plot([], [], "D", color="black", markeredgecolor="white", markersize=10)[0])
            for axes in (left, right)
        ]
        left.legend(loc="lower right")
        right.legend(loc="lower left")

    def show(self, machines, batch, channels, latency, bandwidth, scope):
        """Draw time and error against the number of machines, and say them for the one chosen."""
        link = latency * 1e-6, bandwidth * 1e9
        here = price(machines, batch, channels, *link, scope)
        for which in SCOPES:
            prices = [price(p, batch, channels, *link, which) for p in MACHINES]
            if which != "none":
                self._costs[which].set_data(MACHINES, [1e3 * each.seconds for each in prices])
            self._errors[which].set_data(MACHINES, [each.error for each in prices])
        self._gradients.set_data(MACHINES, [1e3 * gradients(p, *link) for p in MACHINES])
        time, error = self._marks
        time.set_data([machines] if here.numbers else [], [1e3 * here.seconds] if here.numbers else [])
        error.set_data([machines], [here.error])
        words = f"{machines:,} machines with {batch} image{'s' * (batch > 1)} each, statistics of {SCOPES[scope]}: "
        buys = (
            f"{here.images:,} image{'s share' if here.images > 1 else ' has'} a mean, which is off by {here.error:.3f} "
            "standard deviations (one value an image)."
        )
        weighs = f"The gradients of a ResNet-50 take {milliseconds(gradients(machines, *link))}."
        if not here.numbers:
            return f"{words}no message, no wait; {buys} {weighs}"
        share = here.waiting / here.seconds
        return (
            f"{words}{4 * LAYERS} messages a step carry {here.numbers:,} numbers in {milliseconds(here.seconds)}; "
            f"{100 * share:.0f} % of it is latency. {weighs} {buys[0].upper()}{buys[1:]}"
        )


def milliseconds(seconds):
    """Return a time in words, three digits of it."""
    ms = 1e3 * seconds
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"
