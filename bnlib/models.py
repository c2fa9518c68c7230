"""The networks of the lessons, each built with our batch normalization, torch's, another norm, or none."""

import torch
from torch import nn

from .layers import BatchNorm1d, BatchNorm2d


def _batch(layer):
    return lambda channels, momentum: layer(channels, momentum=momentum)


NORMS = {  # name -> (for tables, for images): functions of the number of channels and the momentum, None for no layer
    "scratch": (_batch(BatchNorm1d), _batch(BatchNorm2d)),
    "torch": (_batch(nn.BatchNorm1d), _batch(nn.BatchNorm2d)),
    "convolutions": (None, _batch(BatchNorm2d)),
    "group": (lambda channels, _: nn.GroupNorm(2, channels),) * 2,
    "layer": (lambda channels, _: nn.GroupNorm(1, channels),) * 2,
    "instance": (None, lambda channels, _: nn.InstanceNorm2d(channels, affine=True)),
    "none": (None, None),
}


def lenet(norm="scratch", *, momentum=0.1, seed=0, activation=nn.Sigmoid) -> nn.Sequential:
    """Return LeNet for images (B, 1, 28, 28) and 10 classes, with a normalization before each `activation`.

    norm      "scratch" (this library's layers) | "torch" (`torch.nn`'s) | "none", and those of lesson 07:
              "convolutions" (this library's, after the convolutions only), "group" (of 2), "layer" (all of an image's
              channels and pixels), "instance" (after the convolutions: one number has no spread)
    momentum  of the batch normalization layers; None for cumulative statistics
    seed      all weights come from it (Xavier-uniform; biases 0), whatever the norm: networks of one seed differ in
              their normalization alone. The global random state is left as it was.
    activation  the class of the layer after each normalization

    Raises ValueError for an unknown norm. LeCun et al. 1998, "Gradient-based learning applied to document recognition".
    """
    norm1d, norm2d = _norm_layers(norm, momentum)

    def build():
        return nn.Sequential(
            *(nn.Conv2d(1, 6, kernel_size=5), *norm2d(6), activation(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, kernel_size=5), *norm2d(16), activation(), nn.MaxPool2d(2)),
            nn.Flatten(),
            *(nn.Linear(256, 120), *norm1d(120), activation()),
            *(nn.Linear(120, 84), *norm1d(84), activation()),
            nn.Linear(84, 10),
        )

    return _seeded(build, seed)


def deep_convnet(norm="scratch", *, depth=10, channels=16, seed=0) -> nn.Sequential:
    """Return `depth` 3×3 convolutions with ReLU for images (B, 1, 28, 28) and 10 classes.

    Each convolution has `channels` outputs and is followed by a normalization if `norm` says so; the first three halve
    the sides. `norm` and `seed` as in `lenet`.
    """
    _, norm2d = _norm_layers(norm)

    def build():
        layers = []
        for i in range(depth):
            layers += [
                nn.Conv2d(channels if i else 1, channels, kernel_size=3, padding=1),
                *norm2d(channels),
                nn.ReLU(),
            ]
            if i < 3:
                layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))

    return _seeded(build, seed)


def head_teacher(norm="scratch", *, hidden=16, seed=0) -> nn.Sequential:
    """Return a network from three grades (N, 3) to one mark (N, 1): Linear, normalization, ReLU, Linear.

    `norm` and `seed` as in `lenet`.
    """
    norm1d, _ = _norm_layers(norm)
    return _seeded(
        lambda: nn.Sequential(nn.Linear(3, hidden), *norm1d(hidden), nn.ReLU(), nn.Linear(hidden, 1)),
        seed,
    )


def _norm_layers(norm, momentum=0.1):
    """Return two functions, for 1d and 2d: number of channels -> list with the normalization layer, empty for none."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}, got {norm!r}")
    return tuple(lambda channels, make=make: [make(channels, momentum)] if make else [] for make in NORMS[norm])


def _seeded(build, seed):
    """Return what `build` builds, its weights drawn from `seed`, Xavier-uniform, and its biases 0.

    They are the ones that `torch.manual_seed(seed)`, the constructors and `nn.init.xavier_uniform_` would give, but
    nothing is drawn from the global random state, in which another thread could be drawing.
    """
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    weighted = [module for module in model if isinstance(module, nn.Conv2d | nn.Linear)]
    generator = torch.Generator().manual_seed(seed)
    drawn = sum(p.numel() for module in weighted for p in module.parameters())  # by the constructors
    torch.rand(drawn, generator=generator, device="cpu")
    for module in model:
        if module in weighted:
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model.to(torch.get_default_device())
