"""`fit` against the loop that books print, in one run: the same network, data, batch size and learning rate.

The loop: a data set of PIL images, a DataLoader with its best number of workers, the textbook layer, figures read at
each step.
"""

import statistics
import time

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import bnlib
from bnlib import workers
from bnlib.distributed import run
from bnlib.training import find_device

from . import among, table

EXAMPLES, BATCH = 12_800, 256


class TextbookNorm(nn.Module):
    """The formula as it is usually printed: mode from autograd, moving statistics as plain attributes."""

    def __init__(self, features, dims):
        super().__init__()
        shape = (1, features) if dims == 2 else (1, features, 1, 1)
        self.gamma, self.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.moving_mean, self.moving_var = torch.zeros(shape), torch.ones(shape)

    def forward(self, x):
        if self.moving_mean.device != x.device:
            self.moving_mean, self.moving_var = self.moving_mean.to(x.device), self.moving_var.to(x.device)
        if not torch.is_grad_enabled():
            normalised = (x - self.moving_mean) / torch.sqrt(self.moving_var + 1e-5)
        else:
            axes = 0 if x.dim() == 2 else (0, 2, 3)
            mean = x.mean(axes, keepdim=True)
            var = ((x - mean) ** 2).mean(axes, keepdim=True)
            normalised = (x - mean) / torch.sqrt(var + 1e-5)
            self.moving_mean = 0.9 * self.moving_mean + 0.1 * mean.detach()
            self.moving_var = 0.9 * self.moving_var + 0.1 * var.detach()
        return self.gamma * normalised + self.beta


class PilImages(Dataset):
    """Images as files hold them: bytes, turned one by one into floats, in the steps of torchvision's ToTensor."""

    def __init__(self, images):
        self.bytes = (images.train_images[:, 0] * 255).round().byte()
        self.labels = images.train_labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = Image.fromarray(self.bytes[i].numpy())
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True)).view(*reversed(image.size), 1)
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255), int(self.labels[i])


def textbook_lenet():
    """Return `lenet` with the textbook's layers in place of ours."""
    model = bnlib.lenet()
    for i, layer in enumerate(model):
        if isinstance(layer, bnlib.BatchNorm2d | bnlib.BatchNorm1d):
            model[i] = TextbookNorm(layer.num_features, 4 if isinstance(layer, bnlib.BatchNorm2d) else 2)
    return model


def books_loop(images, workers, device):
    """Return examples per second of one epoch."""
    model = textbook_lenet().to(device)
    loader = DataLoader(PilImages(images), BATCH, shuffle=True, num_workers=workers)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss_sum = right = seen = 0.0
    start = time.perf_counter()
    for x, y in loader:
        optimizer.zero_grad()
        x, y = x.to(device), y.to(device)
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            loss_sum += float(loss) * len(x)
            right += float((logits.argmax(1) == y).sum())
            seen += len(x)
    return seen / (time.perf_counter() - start)


def ten_epochs(images, rounds):
    """Return the seconds that whole trainings take, the recording of a step and all evaluation included."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        bnlib.fit(bnlib.lenet(), images, progress=False)
        seconds.append(time.perf_counter() - start)
    return seconds


def two_processes(rounds=3):
    """Return a row: a synchronised training in two processes of this machine, against one process."""
    images, speeds = bnlib.load_images("digits"), {1: [], 2: []}
    settings = {"epochs": 2, "batch_size": 256, "device": "cpu"}
    for _ in range(rounds):
        for processes, seen in speeds.items():
            seen.append(run(workers.training, images, settings, processes=processes)[0]["speed"])
    return row("two processes that synchronise, one thread each", speeds[2], "one process, one thread", speeds[1])


def row(what, speeds, base, base_speeds):
    """Return a row: what, its speed over that of `base` in the same round, and its examples per second."""
    ratios = [speed / other for speed, other in zip(speeds, base_speeds, strict=True)]
    return {
        "what": what,
        "base": base,
        "ratio": statistics.median(ratios),
        "spread": (min(ratios), max(ratios)),
        "speed": statistics.median(speeds),
    }


def measure(rounds=5):
    """Return rows; each round runs every variant once, so that all share the weather."""
    images = bnlib.load_images()
    device = find_device()
    rows = []
    if device.type == "cuda":  # minutes on a CPU
        rows.append({"what": f"ten epochs of {images.name}", "seconds": statistics.median(ten_epochs(images, rounds))})
    repeat = -(-EXAMPLES // len(images.train_images))
    images.train_images = images.train_images.repeat(repeat, 1, 1, 1)[:EXAMPLES]
    images.train_labels = images.train_labels.repeat(repeat)[:EXAMPLES]
    best = max((0, 1, 2), key=lambda workers: books_loop(images, workers, device))

    def fit(norm, **options):
        return bnlib.fit(bnlib.lenet(norm), images, epochs=1, progress=False, **options).examples_per_second

    base = f"the books' loop, {best} workers"
    variants = {
        base: lambda: books_loop(images, best, device),
        "fit, our layer": lambda: fit("scratch"),
        "fit, torch's layer": lambda: fit("torch"),
        "fit, no normalization": lambda: fit("none"),
    }
    speeds = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            speeds[name].append(variant())
    rows += [row(name, values, base, speeds[base]) for name, values in speeds.items()]
    return [*rows, two_processes()]


def tell(rows):
    """Return the rows as a section of a page, Markdown."""
    *whole, _, ours, theirs, none, two = rows
    lines = [[r["what"], f"{r['speed']:,.0f}", r["base"], f"{r['ratio']:.2f}", among(*r["spread"])] for r in rows[-5:]]
    return "\n\n".join(
        [
            "## Training LeNet",
            f"`fit` with our layer sees {ours['ratio']:.1f} times as many images a second as the loop that books "
            "print (PIL images, a DataLoader with its best number of workers, the textbook layer, figures read at each "
            f"step), with torch's layer {theirs['ratio']:.1f} times, without normalization {none['ratio']:.1f} times. "
            f"Two processes that synchronise their statistics see {two['ratio']:.2f} times as many as one.",
            *(f"{each['what'].capitalize()}, evaluation included: {each['seconds']:.1f} s." for each in whole),
            table(["what", "images a second", "against", "ratio", "lowest to highest"], lines),
        ]
    )


if __name__ == "__main__":
    print(tell(measure()))
