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
    """Return one row: seconds for a whole training, the recording of a step and all evaluation included."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        bnlib.fit(bnlib.lenet(), images, progress=False)
        seconds.append(time.perf_counter() - start)
    return {
        "what": "training LeNet: ten epochs with evaluation, in seconds",
        "ratio": statistics.median(seconds),
        "spread": (min(seconds), max(seconds)),
        "note": images.name,
    }


def two_processes(rounds=3):
    """Return one row: a synchronised training in two processes of this machine, against one process."""
    images, speeds = bnlib.load_images("digits"), {1: [], 2: []}
    settings = {"epochs": 2, "batch_size": 256, "device": "cpu"}
    for _ in range(rounds):
        for processes, seen in speeds.items():
            seen.append(run(workers.training, images, settings, processes=processes)[0]["speed"])
    ratios = [two / one for one, two in zip(*speeds.values(), strict=True)]
    return {
        "what": "training LeNet: two processes that synchronise, speed over one",
        "ratio": statistics.median(ratios),
        "spread": (min(ratios), max(ratios)),
        "note": f"{statistics.median(speeds[2]):,.0f} examples/s of {images.name}, one thread each",
    }


def measure(rounds=5):
    """Return rows: what, ratio, spread, note; each round runs every variant once, so that all share the weather."""
    images = bnlib.load_images()
    device = find_device()
    rows = [ten_epochs(images, rounds)] if device.type == "cuda" else []  # minutes on a CPU
    repeat = -(-EXAMPLES // len(images.train_images))
    images.train_images = images.train_images.repeat(repeat, 1, 1, 1)[:EXAMPLES]
    images.train_labels = images.train_labels.repeat(repeat)[:EXAMPLES]
    best = max((0, 1, 2), key=lambda workers: books_loop(images, workers, device))

    def fit(norm, **options):
        return bnlib.fit(bnlib.lenet(norm), images, epochs=1, progress=False, **options).examples_per_second

    variants = {
        "the books' loop": lambda: books_loop(images, best, device),
        "fit, our layer": lambda: fit("scratch"),
        "fit, torch's layer": lambda: fit("torch"),
        "fit, no normalization": lambda: fit("none"),
    }
    speeds = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            speeds[name].append(variant())
    base = speeds["the books' loop"]
    for name, values in speeds.items():
        ratios = [value / loop for value, loop in zip(values, base, strict=True)]
        note = f"{statistics.median(values):,.0f} examples/s on {device.type}"
        if name == "the books' loop":
            note += f", best of 0, 1, 2 workers: {best}"
        rows.append(
            {
                "what": f"training LeNet: {name}, speed over the books' loop",
                "ratio": statistics.median(ratios),
                "spread": (min(ratios), max(ratios)),
                "note": note,
            }
        )
    return [*rows, two_processes()]


if __name__ == "__main__":
    for row in measure():
        print(row)
