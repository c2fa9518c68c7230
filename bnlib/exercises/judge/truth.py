"""The right answer to a case, or one bent by mistakes, and how far rounding may carry an honest one from it."""

from dataclasses import dataclass

import torch

UNIT = torch.finfo(torch.float32).eps


@dataclass
class Truth:
    """A case's right results, or gradients, in float64, and the slack that float32 deserves; None if no shapes fit."""

    values: tuple | None
    slack: tuple


def outputs_of(exercise, arguments, knobs):
    """Return what the formula gives under knobs, as a tuple; None where its shapes do not fit."""
    try:
        value = exercise.formula(**arguments, **knobs)
    except (RuntimeError, IndexError, ZeroDivisionError):
        return None
    return value if isinstance(value, tuple) else (value,)


def truth(exercise, case, bends=(), slopes=False):
    """Return the right results of a case, or bent ones; or the gradients for what is tracked, its `slopes`.

    The slack is 32 times what rounding the input, and computing in float32, does to the answer: an ill-conditioned
    input earns an honest answer its large rounding error, and nothing else does.
    """
    key = case, tuple(bends), slopes
    if key not in exercise.computed:
        generator = torch.Generator().manual_seed(0)

        def shaken(tensor):
            return tensor.double() * (1 + UNIT * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))

        def solved(change):
            arguments, leaves = case.fresh(exercise.tracked if slopes else (), change)
            if change is shaken:
                arguments |= {name: value * (1 + UNIT) for name, value in arguments.items() if isinstance(value, float)}
            outputs = outputs_of(exercise, arguments, together(bends))
            return tuple(gradients(outputs, leaves, change).values()) if outputs and slopes else outputs

        def slack(right, *moved):
            return 32 * (max(gap(right, other) for other in moved) + UNIT * gap(right, 0 * right))

        right, *moved = map(solved, (torch.Tensor.double, shaken, torch.Tensor.float))
        exercise.computed[key] = Truth(right, tuple(map(slack, right, *moved)) if right else ())
    return exercise.computed[key]


def values_agree(exercise, seen, case, bends=(), picks=None):
    """Return whether the values seen (of the results picked, or all) are the right ones, or those bent like this."""
    expected = truth(exercise, case, bends)
    if expected.values is None or seen.trouble:
        return expected.values is None and seen.trouble is not None
    picks = range(len(exercise.results)) if picks is None else picks
    return len(seen.outputs) == len(expected.values) and all(
        close(exercise, seen.outputs[k], expected.values[k], expected.slack[k] * seen.coarse) for k in picks
    )


def wrong_slopes(exercise, seen, case, bends=()):
    """Return the names of the arguments whose gradient differs from the right one, or the one bent like this."""
    if seen.values_only or not (exercise.tracked and case.smooth):
        return []
    values = truth(exercise, case, bends).values
    if values is None or not all(value.isfinite().all() for value in values):
        return []
    expected = truth(exercise, case, bends, slopes=True)
    return [
        name
        for name, slope, slack in zip(exercise.tracked, expected.values, expected.slack, strict=True)
        if seen.gradients is None or not close(exercise, seen.gradients[name], slope, slack * seen.coarse)
    ]


def is_right(exercise, seen, case):
    """Return whether an attempt is right on a case in every respect."""
    odd = seen.trouble or seen.gradient_trouble or seen.changed or seen.form
    return not odd and values_agree(exercise, seen, case) and not wrong_slopes(exercise, seen, case)


def close(exercise, received, expected, slack):
    """Return whether two tensors agree within `slack`; numbers that are not finite agree with each other."""
    if received.shape != expected.shape:
        return False
    received, expected = (ordered(exercise, tensor.double()) for tensor in (received, expected))
    near = (received - expected).abs() <= slack + 32 * UNIT * expected.abs()
    return bool(torch.where(expected.isfinite(), near, ~received.isfinite()).all())


def ordered(exercise, tensor):
    """Return the tensor, its rows sorted where their order is free."""
    if exercise.unordered and tensor.dim() == 2:
        return torch.tensor(sorted(tensor.tolist()), dtype=tensor.dtype).reshape(tensor.shape)
    return tensor


def gradients(outputs, leaves, change=torch.clone):
    """Return the gradient of (w · y).sum() for each leaf, zeros where none flows; w goes through `change`."""
    loss = sum((change(weights(output)) * output).sum() for output in outputs)
    flows = isinstance(loss, torch.Tensor) and loss.requires_grad
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if flows else [None] * len(leaves)
    return {
        name: torch.zeros_like(leaf) if slope is None else slope
        for (name, leaf), slope in zip(leaves.items(), found, strict=True)
    }


def weights(output):
    """Return the fixed weights w of the loss (w · y).sum(): a plain sum would not see every mistake."""
    generator = torch.Generator().manual_seed(output.numel())
    return torch.randint(-3, 4, output.shape, generator=generator).to(output.dtype)


def together(bends):
    """Return the knobs of several bends."""
    return {name: value for bend in bends for name, value in bend.knobs.items()}


def compatible(*bends):
    """Return whether no two bends turn the same knob."""
    return len(together(bends)) == sum(len(bend.knobs) for bend in bends)


def gap(right, other):
    """Return the largest difference between two tensors, where both are finite."""
    return (right - other).nan_to_num(0.0, 0.0, 0.0).abs().max().item() if right.numel() else 0.0
