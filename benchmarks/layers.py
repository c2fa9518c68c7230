"""One layer, forward and backward: ours against `torch.nn`'s and the textbook formula, on the shapes of real networks.

`python -m benchmarks.layers` prints the rows alone.
"""

import shutil
import statistics
import time
from functools import partial

import torch
from torch import nn

import bnlib
from bnlib.training import find_device

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
    """Return rows: what, ratio (time over torch.nn's in the same round), spread, note."""
    device = find_device()
    compiler = any(map(shutil.which, ("c++", "g++", "clang++", "cl")))
    rows, medians = [], {}
    for shape in dict.fromkeys(SHAPES + BATCHES + CHANNELS):
        taken = alternately(steps(shape, device, compiler and shape in SHAPES), device, rounds)
        for name in taken.keys() - {"torch.nn"}:
            ratios = [ours / theirs for ours, theirs in zip(taken[name], taken["torch.nn"], strict=True)]
            median = statistics.median(ratios)
            if shape in SHAPES:
                medians.setdefault(name, []).append(median)
            rows.append(
                {
                    "what": f"layer {'×'.join(map(str, shape))}, forward + backward: {name}, time over torch.nn",
                    "ratio": median,
                    "spread": (min(ratios), max(ratios)),
                    "note": f"{statistics.median(taken[name]) * 1e6:,.0f} µs on {device.type}",
                }
            )
    for name, values in medians.items():
        rows.append(
            {
                "what": f"layer, median of {len(SHAPES)} networks' shapes: {name}, time over torch.nn",
                "ratio": statistics.median(values),
                "spread": (min(values), max(values)),
                "note": "of the medians above",
            }
        )
    return rows


if __name__ == "__main__":
    for row in measure():
        print(f"{row['ratio']:6.2f}  ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})  {row['what']}, {row['note']}")
