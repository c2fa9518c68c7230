"""What the other norms refuse: torch's exception and its sentence, then what to do about it."""

import math

import torch


def axes(x, dims):
    """Raise IndexError unless x has all the axes `dims`."""
    for dim in (dims,) if isinstance(dims, int) else dims:
        if not -x.dim() <= dim < x.dim():
            raise IndexError(
                f"Dimension out of range (expected to be in range of [{-x.dim()}, {x.dim() - 1}], but got {dim}): "
                f"an input {tuple(x.shape)} has {x.dim()} axes, counted from 0"
            )


def last_axes(name, input, normalized_shape, **parameters):
    """Return the last axes of `input`, those of `normalized_shape`, or raise if it or a parameter does not fit."""
    if not isinstance(normalized_shape, (tuple, list)):
        raise TypeError(
            f"{name}(): argument 'normalized_shape' (position 2) must be tuple of ints, "
            f"not {type(normalized_shape).__name__}; for the last axis alone write (C,)"
        )
    shape, wanted = list(input.shape), list(normalized_shape)
    if not wanted:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got "
            f"normalized_shape = []; for the last axis pass {tuple(shape[-1:])}"
        )
    for parameter, tensor in parameters.items():
        if tensor is not None and list(tensor.shape) != wanted:
            raise RuntimeError(
                f"Expected {parameter} to be of same shape as normalized_shape, but got {parameter} of shape "
                f"{list(tensor.shape)} and normalized_shape = {wanted}: each place has an element of its own"
            )
    if len(shape) < len(wanted) and name == "rms_norm":
        raise ValueError(
            f"Input tensor must have at least {len(wanted)} dimensions, but got {len(shape)}: "
            f"normalized_shape {wanted} names the last of them"
        )
    if shape[-len(wanted) :] != wanted:
        sizes = "*" + ", " * (name == "layer_norm") + str(wanted)[1:-1]
        raise RuntimeError(
            f"Given normalized_shape={wanted}, expected input with shape [{sizes}], but got input of size{shape}: "
            "pass the sizes of the last axes, and move what is to be normalised there"
        )
    return tuple(range(-len(wanted), 0))


def groups(input, num_groups, **parameters):
    """Raise unless `num_groups` divides the channels of `input` (N, C, *), and the parameters are (C,)."""
    shape = list(input.shape)
    if len(shape) < 2:
        raise RuntimeError(
            f"Expected at least 2 dimensions for input tensor but received {len(shape)}: (N, C, *), such as x[None]"
        )
    if not isinstance(num_groups, int):
        raise TypeError(
            f"group_norm(): argument 'num_groups' (position 2) must be int, not {type(num_groups).__name__}; "
            "divide whole numbers with //"
        )
    if num_groups == 0:
        raise ZeroDivisionError("integer division or modulo by zero: 0 groups; 1 takes all channels together")
    if shape[0] * shape[1] // num_groups * math.prod(shape[2:]) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {shape} and {num_groups} groups. "
            "One value has no spread: take fewer groups, or more values"
        )
    if num_groups < 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}; 1 takes all channels together")
    if shape[1] % num_groups:
        fit = ", ".join(str(count) for count in range(1, shape[1] + 1) if shape[1] % count == 0)
        raise RuntimeError(
            f"Expected number of channels in input to be divisible by num_groups, but got input of shape {shape} and "
            f"num_groups={num_groups}: {shape[1]} channels can be in {fit} groups"
        )
    for name, tensor in parameters.items():
        if tensor is not None and list(tensor.shape) != shape[1:2]:
            raise RuntimeError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, but got {name} of "
                f"shape {list(tensor.shape)} and input of shape {shape}: one element a channel, not one a group"
            )


def instances(input, use_input_stats, **tensors):
    """Raise unless each sample's channel has values to average, and the tensors (C,) fit `input` (N, C, *)."""
    shape = tuple(input.shape)
    if use_input_stats and math.prod(shape[2:]) == 1:
        raise ValueError(
            f"Expected more than 1 spatial element when training, got input size {input.shape}. "
            "One value has no spread: normalise before the pooling, or over the channels, with layer norm"
        )
    missing = [tensors[name] is None for name in ("running_mean", "running_var")]
    if not use_input_stats and any(missing):
        raise RuntimeError(
            "Expected running_mean and running_var to be defined when use_input_stats is false; pass both, or "
            "use_input_stats=True for each sample's own"
        )
    if any(missing) and not all(missing):
        raise ValueError("running_mean and running_var must either both be None or neither be None; pass both")
    if len(shape) < 2:
        raise IndexError(f"Dimension out of range: got {shape}, expected (N, C, *), such as x[None]")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != shape[1:2]:
            raise RuntimeError(
                f"{name} should contain {math.prod(shape[:2])} elements not {shape[0] * tensor.numel()}: {shape[0]} "
                f"samples share one vector of shape ({shape[1]},), got {tuple(tensor.shape)}"
            )


def mask(input, mask):
    """Raise IndexError unless `mask` holds a bool for each position (N, *) of `input` (N, C, *)."""
    if input.dim() < 2:
        raise IndexError(f"Dimension out of range: got {tuple(input.shape)}, expected (N, C, *), such as x[None]")
    if mask.dtype != torch.bool:
        raise IndexError(
            f"tensors used as indices must be long, int, byte or bool tensors; a mask is of bools, got {mask.dtype}: "
            "write mask.bool(), or mask != 0"
        )
    positions = input.shape[:1] + input.shape[2:]
    if mask.shape != positions:
        axis = next((d for d, (a, b) in enumerate(zip(mask.shape, positions, strict=False)) if a != b), mask.dim())
        raise IndexError(
            f"The shape of the mask {list(mask.shape)} at index {axis} does not match the shape of the indexed tensor "
            f"{list(input.movedim(1, -1).shape)} at index {axis}: the mask has one entry a position, "
            f"{tuple(positions)}, and none a channel"
        )
    if not mask.any():
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {[0, input.shape[1]]}: "
            "no position is under the mask. True marks what is real; is the mask turned around?"
        )


def dtypes(kernel, input, *parameters):
    """Raise unless `input` has fractions, and the parameters all its dtype, or float32 beside half precision."""
    if not (input.is_floating_point() or (kernel == "rms_norm" and input.is_complex())):
        raise NotImplementedError(
            f'"{kernel}" not implemented for {input.dtype}: averages are fractions; convert first, as in x.float()'
        )
    given = {parameter.dtype for parameter in parameters if parameter is not None}
    if not (given <= {input.dtype} or (given == {torch.float32} and input.dtype.itemsize == 2)):
        raise RuntimeError(
            f"mixed dtype: an input of {input.dtype} goes with parameters of {input.dtype}"
            f"{' or all of torch.float32' * (input.dtype.itemsize == 2)}, got {', '.join(sorted(map(str, given)))}; "
            "convert them with .to(dtype)"
        )
