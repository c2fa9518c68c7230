"""The parts of a layer: which of its tensors is γ, β, the running mean, the running variance, and how each is kept."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.parameter import is_lazy

ROLES = {
    "gamma": (("weight", "gamma", "scale"), 1.0),
    "beta": (("bias", "beta", "shift", "offset"), 0.0),
    "running mean": (("mean", "mu"), 0.0),
    "running variance": (("var", "std", "sigma"), 1.0),
}
AFFINE, RUNNING = ("gamma", "beta"), ("running mean", "running variance")


@dataclass
class Part:
    """A tensor of a layer, and how it is kept: "parameter", "buffer", "unsaved buffer" or "attribute"."""

    kind: str
    name: str
    tensor: torch.Tensor

    def put(self, layer, value):
        """Give the layer another value, in the shape that it keeps; return what a functional call has to replace."""
        channels = max(self.tensor.numel(), 1)
        value = value.view([-1 if size == channels else size for size in self.tensor.shape])
        if self.kind != "attribute":
            return {self.name: value}
        *owners, attribute = self.name.split(".")
        owner = layer.get_submodule(".".join(owners))
        setattr(owner, attribute, value.numpy() if isinstance(getattr(owner, attribute), np.ndarray) else value)
        return {}

    @property
    def shape(self):
        """The shape in words, C for the channels."""
        sizes = ["C" if size == self.tensor.numel() else str(size) for size in self.tensor.shape]
        return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def parts(layer):
    """Return every tensor of a layer that may stand for a statistic or a parameter, by name, parameters first."""
    unsaved = {id(m._buffers[name]) for m in layer.modules() for name in m._non_persistent_buffers_set}
    found = [Part("parameter", name, tensor) for name, tensor in layer.named_parameters()]
    for name, tensor in layer.named_buffers():
        found.append(Part("unsaved buffer" if id(tensor) in unsaved else "buffer", name, tensor))
    for prefix, module in layer.named_modules():
        for name, value in {**vars(type(module)), **vars(module)}.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                value = torch.from_numpy(value)
            if isinstance(value, torch.Tensor):
                found.append(Part("attribute", f"{prefix}.{name}".lstrip("."), value))
    return {part.name: part for part in found if not is_lazy(part.tensor) and part.tensor.is_floating_point()}


def roles(before, after, channels):
    """Return {role: name} of the parts that hold one number for each channel.

    before, after  the parts of a new layer, and those once a batch far below 0 has trained it: where no name says which
                   of the running statistics a part is, the mean has gone down, the variance up

    A part of the usual kind (a parameter for γ and β, no parameter for a statistic) comes before others of its role.
    """
    found = [part for part in (after | before).values() if part.tensor.numel() == channels]
    names = {}
    for part in sorted(found, key=lambda part: (part.kind == "parameter") != (role_of(part) in AFFINE)):
        if role := role_of(part):
            names.setdefault(role, part.name)
    for name, part in after.items():
        if name not in names.values() and part.kind != "parameter" and part.tensor.numel() == channels:
            change = (part.tensor.detach() - (before[name].tensor if name in before else 0)).sum()
            if change != 0:
                names.setdefault(RUNNING[int(change > 0)], name)
    return names


def role_of(part):
    """Return what a new layer's part is for: its name says it, else the value it starts at; None if neither does."""
    last = part.name.split(".")[-1].lower()
    for role in RUNNING:
        if any(word in (last if len(word) > 2 else last.split("_")) for word in ROLES[role][0]):  # mu, but not mul
            return role
    for role in AFFINE:
        if last in ROLES[role][0] or last.startswith(ROLES[role][0][:2]):
            return role
    if part.tensor.dim() == 0:  # a momentum, a count
        return None
    candidates = AFFINE if part.kind == "parameter" else RUNNING
    return next((role for role in candidates if (part.tensor == ROLES[role][1]).all()), None)
