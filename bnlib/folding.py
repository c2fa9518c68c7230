"""Batch normalization folded into the layer before it: for prediction, when the statistics no longer move."""

import copy

import torch
from torch import fx, nn

from .layers import BatchNorm

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (BatchNorm, nn.modules.batchnorm._BatchNorm)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, NORMS) or super().is_leaf_module(module, name)


def fold(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which every batch normalization is part of the convolution or linear layer before it.

    With s = γ / √(running_var + ε), per output channel: weight' = s · weight, bias' = (bias - running_mean) · s + β.
    The normalizations become `nn.Identity`, so that other layers keep their names. In evaluation the outputs are the
    same but for rounding. The copy is not to be trained: it has forgotten how.

    Raises ValueError, with the layer's name, where that would not be exact: a layer in training mode, without running
    statistics, behind anything but a convolution or linear layer, or behind one whose output goes elsewhere, too.
    Jacob et al. 2018, "Quantization and training of neural networks", section 3.2.
    """
    try:
        nodes = _Tracer().trace(model).nodes
    except Exception as error:  # whatever the model's own forward makes of a symbol in place of a tensor
        raise ValueError(
            f"cannot see which layer follows which, as the forward pass depends on its data ({error}); "
            "fold the parts of the model that do not"
        ) from error
    folded = copy.deepcopy(model)
    calls = [node.target for node in nodes if node.op == "call_module"]
    for node in nodes:
        if node.op != "call_module" or not isinstance(norm := folded.get_submodule(node.target), NORMS):
            continue
        before = node.all_input_nodes[0]
        layer = folded.get_submodule(before.target) if before.op == "call_module" else None
        if norm.training:
            reason = "it is in training mode, and normalises with each batch's own statistics: call eval() first"
        elif norm.running_mean is None:
            reason = "it has no running statistics (track_running_stats=False): there is nothing constant to fold"
        elif not isinstance(layer, FOLDABLE):
            named = before.target if before.op != "placeholder" else "the input"
            reason = f"before it comes {type(layer).__name__ if layer else named}, no convolution or linear layer"
        elif (
            isinstance(layer, nn.Linear)
            and not isinstance(norm, (nn.BatchNorm1d,))
            and 2 not in getattr(norm, "ranks", {})
        ):
            reason = "a linear layer has its features on the last axis, this normalization its channels on axis 1"
        elif len(before.users) > 1 or calls.count(before.target) > 1 or calls.count(node.target) > 1:
            reason = f"{before.target} or {node.target} is used more than once"
        else:
            _into(layer, norm)
            parent, _, name = node.target.rpartition(".")
            setattr(folded.get_submodule(parent), name, nn.Identity())
            continue
        raise ValueError(f"{node.target} cannot be folded: {reason}")
    return folded


@torch.no_grad()
def _into(layer, norm):
    """Scale and shift the outputs of `layer`, in place, as `norm` would in evaluation."""
    one, zero = torch.ones_like(norm.running_var), torch.zeros_like(norm.running_mean)
    gamma, beta = (one if norm.weight is None else norm.weight), (zero if norm.bias is None else norm.bias)
    scale = gamma / torch.sqrt(norm.running_var + norm.eps)  # (C,)
    bias = zero if layer.bias is None else layer.bias
    weight = layer.weight
    if isinstance(layer, TRANSPOSED):  # (in, out / groups, *): output channels group by group on axis 1
        shaped = weight.unflatten(0, (layer.groups, -1)) * scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = shaped.flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    shift = (bias - norm.running_mean) * scale + beta
    learns = layer.weight.requires_grad
    layer.weight, layer.bias = nn.Parameter(weight, learns), nn.Parameter(shift, learns)
