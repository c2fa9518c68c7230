"""One layer, forward and backward: ours against `torch.nn`'s and the textbook formula, on the shapes of real networks.

`python -m benchmarks.layers` measures this alone.
"""

import shutil
import statistics
import time
from functools import partial

import torch
from torch import nn

import bnlib
from bnlib.training import find_device

from . import among, table
from .training import TextbookNorm

SHAPES = [(256, 6, 24, 24), (256, 16, 8, 8), (256, 120), (64, 64, 56, 56), (32, 256, 14, 14)]
BATCHES = [(n, 16, 8, 8) for n in (1, 16, 256, 4096)]
CHANNELS = [(64, c, 8, 8) for c in (1, 16, 256, 2048)]


def steps(shape, device, compiled):
    """Return, by name, functions that each run one layer forward and backward, as a training step does."""
    x = torch.randn(shape, device=device, requires_grad=True)
    dy = torch.randn_like(x)
    kind = "BatchNorm1d" if len(shape) == 2 else "BatchNorm2d"
    layers = {
        "torch.nn": getattr(nn, kind)(shape[1]),
        "ours": getattr(bnlib, kind)(shape[1]),
        "textbook": TextbookNorm(shape[1], len(shape)),
    }
    if compiled:
        torch._dynamo.reset()
        layers["ours, compiled"] = torch.compile(getattr(bnlib, kind)(shape[1]), dynamic=False)

    def step(layer):
        layer(x).backward(dy)
        layer.zero_grad()
        x.grad = None

    return {name: partial(step, layer.to(device)) for name, layer in layers.items()}


def seconds(run, calls, device):
    start = time.perf_counter()
    for _ in range(calls):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def alternately(runs, device, rounds, slice_=0.02):
    """Return, by name, the seconds of one call in each round; in a round every run has its turn of `slice_` seconds."""
    calls = {name: max(1, int(slice_ / seconds(run, 1, device))) for name, run in runs.items() if not run()}
    taken = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(seconds(run, calls[name], device))
    return taken


def measure(rounds=15):
    """Return rows: shape, layer, ratio (time over torch.nn's in the same round), lowest and highest, microseconds."""
    device = find_device()
    compiler = any(map(shutil.which, ("c++", "g++", "clang++", "cl")))
    rows = []
    for shape in dict.fromkeys(SHAPES + BATCHES + CHANNELS):
        taken = alternately(steps(shape, device, compiler and shape in SHAPES), device, rounds)
        for layer in taken:
            ratios = [one / theirs for one, theirs in zip(taken[layer], taken["torch.nn"], strict=True)]
            rows.append(
                {
                    "shape": shape,
                    "layer": layer,
                    "ratio": statistics.median(ratios),
                    "spread": (min(ratios), max(ratios)),
                    "us": statistics.median(taken[layer]) * 1e6,
                }
            )
    return rows


def tell(rows):
    """Return the rows as a section of a page, Markdown."""
    by_shape = {}
    for row in rows:
        by_shape.setdefault(row["shape"], {})[row["layer"]] = row
    others = ("ours", "ours, compiled", "textbook")

    def ratios(layer, shapes):
        return {size(shape): by_shape[shape][layer]["ratio"] for shape in shapes if layer in by_shape[shape]}

    said = []
    for layer in others:
        if five := ratios(layer, SHAPES):
            worst = max(five, key=five.get)
            said.append(
                f"{layer} takes {statistics.median(five.values()):.2f} times torch's time in the median, "
                f"{five[worst]:.2f} times at worst ({worst})"
            )
    slowest = max(by_shape, key=lambda shape: by_shape[shape]["ours"]["ratio"])
    lines = []
    for shape, row in by_shape.items():
        cells = [
            f"{row[layer]['ratio']:.2f} ({among(*row[layer]['spread'])})" if layer in row else "" for layer in others
        ]
        lines.append([size(shape), f"{row['torch.nn']['us']:,.0f}", *cells])
    return "\n\n".join(
        [
            "## One layer, forward and backward",
            f"On the shapes of {len(SHAPES)} networks, the first {len(SHAPES)} below: {'; '.join(said)}. Over all "
            f"shapes ours is slowest at {size(slowest)}, {by_shape[slowest]['ours']['ratio']:.2f} times torch's "
            f"{by_shape[slowest]['torch.nn']['us']:,.0f} µs.",
            table(["input", "torch.nn, µs", *(f"{layer}, ratio (lowest to highest)" for layer in others)], lines),
        ]
    )


def size(shape):
    """Return a shape as a reader writes it."""
    return "×".join(map(str, shape))


if __name__ == "__main__":
    print(tell(measure()))
