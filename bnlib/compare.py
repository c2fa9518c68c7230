"""Two layers side by side."""

import copy
from dataclasses import dataclass, field
from html import escape

import torch
from torch import Tensor, nn

BOUNDS = {  # dtype of the input -> (relative, absolute) bound for outputs and buffers
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-5, 1e-6),
    torch.bfloat16: (1.6e-2, 1e-2),
    torch.float16: (2e-3, 1e-3),
}


@dataclass
class Comparison:
    """What `compare` found.

    equal      True when outputs, gradients and buffers all agree within `bounds`
    output     largest absolute difference between the two outputs
    gradients  the same for the gradient of the input and of each parameter, in float64
    buffers    the same for each buffer after the call
    bounds     (relative, absolute); gradients are held against float64's
    apart      what does not agree, with the reason, in words
    """

    output: float
    gradients: dict[str, float]
    buffers: dict[str, float]
    bounds: tuple[float, float]
    apart: dict[str, str] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether nothing lies apart."""
        return not self.apart

    def __repr__(self):
        relative, absolute = self.bounds
        within = f"within {relative:g} relative and {absolute:g} absolute"
        if self.equal:
            parts = ["output", *(f"gradient of {name}" for name in self.gradients), *self.buffers]
            return f"equal {within}: " + ", ".join(parts)
        return f"not equal {within}:\n" + "\n".join(f"  {name}: {why}" for name, why in self.apart.items())

    def _repr_html_(self):
        mark = "✓ equal" if self.equal else "✗ not equal"
        relative, absolute = self.bounds
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(self.apart.get(name, 'equal'))}</td></tr>"
            for name in ["output", *(f"gradient of {name}" for name in self.gradients), *self.buffers]
        )
        return (
            f"<strong>{mark}</strong> within {relative:g} relative and {absolute:g} absolute"
            f"<table><thead><tr><th>what</th><th>verdict</th></tr></thead><tbody>{rows}</tbody></table>"
        )


def compare(a: nn.Module, b: nn.Module, x: Tensor) -> Comparison:
    """Return how far the layers `a` and `b` are apart on the input `x`, in the mode each of them is in.

    Both run on copies, so neither layers nor `x` change. Outputs and buffers are compared in the layers' own dtype,
    gradients in float64, of the same randomly weighted sum of the output (a plain sum has a zero gradient behind batch
    normalization and would hide errors). Bounds: float64 1e-9; float32 1e-5 relative and 1e-6 absolute.

    x  any floating tensor that both layers take
    Raises TypeError if `x` is not a floating tensor, ValueError if the shapes of the outputs differ.
    """
    if not isinstance(x, Tensor) or x.dtype not in BOUNDS:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of {', '.join(map(str, BOUNDS))}, got {got}")
    ours, theirs = copy.deepcopy(a), copy.deepcopy(b)
    with torch.no_grad():
        outputs = ours(x.clone()), theirs(x.clone())
    if outputs[0].shape != outputs[1].shape:
        raise ValueError(f"the outputs differ in shape: {tuple(outputs[0].shape)} and {tuple(outputs[1].shape)}")
    bounds = BOUNDS[x.dtype]
    apart = {}

    def largest(name, left, right, bounds):
        if left is None or right is None:
            if left is not right:
                apart[name] = "only one of the two has it"
            return 0.0
        left, right = left.detach().double(), right.detach().double()
        if left.shape != right.shape:
            apart[name] = f"shapes {tuple(left.shape)} and {tuple(right.shape)}"
            return float("inf")
        difference = (left - right).abs()
        if not _agree(left, right, bounds):
            apart[name] = f"largest difference {difference.max().item():.4g}"
        return difference.max().item() if difference.numel() else 0.0

    output = largest("output", *outputs, bounds)
    left, right = dict(ours.named_buffers()), dict(theirs.named_buffers())
    buffers = {name: largest(name, left.get(name), right.get(name), bounds) for name in left | right}
    alike, theirs = dict(a.named_buffers()), copy.deepcopy(b)
    for name, buffer in theirs.named_buffers():  # equal but for rounding: float64 would see it in the gradients again
        if name in alike and _agree(alike[name], buffer, bounds):
            buffer.data.copy_(alike[name])
    left, right = _gradients(a, x), _gradients(theirs, x)
    gradients = {
        name: largest(f"gradient of {name}", left.get(name), right.get(name), BOUNDS[torch.float64])
        for name in left | right
    }
    return Comparison(output, gradients, buffers, bounds, apart)


def _agree(left, right, bounds):
    relative, absolute = bounds
    left, right = left.double(), right.double()
    return left.shape == right.shape and torch.allclose(left, right, rtol=relative, atol=absolute, equal_nan=True)


def _gradients(layer, x):
    """Return the float64 gradients of a randomly weighted sum of layer(x): of the input, and of each parameter."""
    with torch.inference_mode(False), torch.enable_grad():  # wherever it is called
        layer = copy.deepcopy(layer).double()
        layer.zero_grad()
        x = x.detach().to(torch.float64, copy=True).requires_grad_()
        y = layer(x)
        weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
        if y.requires_grad:
            (y * weights.to(y.device)).sum().backward()
    return {"input": x.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}}
