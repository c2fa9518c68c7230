"""What an attempt did on a case: its answer, in the right form where that can be mended, and what was odd about it."""

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import torch

from .catalogue import Mistake
from .guard import Trouble, holds_dots
from .truth import UNIT, gradients, truth, values_agree

NOTHING, TYPE = "returns nothing", "returns the wrong type"
DTYPE, SHAPE = "returns the wrong dtype", "returns the wrong shape"


@dataclass
class Seen:
    """What came of an attempt on a case: its results, or trouble; the arguments after the call; oddities of form.

    values_only  gradients say nothing more, since something else that was found spoils them
    coarse       how much more slack the numbers need, being of a coarser dtype
    function     the name of a function whose backward pass the reader wrote by hand, if there is one
    """

    outputs: tuple = ()
    gradients: dict | None = None
    after: dict | None = None
    changed: tuple = ()
    form: tuple = ()
    trouble: Trouble | None = None
    gradient_trouble: Trouble | None = None
    values_only: bool = False
    coarse: float = 1.0
    function: str = ""

    def with_outputs(self, outputs):
        """Return the same with other outputs, and no gradients."""
        return replace(self, outputs=outputs, gradients=None, values_only=True)


def observe(exercise, guard, attempt, case):
    """Return what an attempt does on a case: its values, then in a second call its gradients."""
    arguments, _ = case.fresh()
    value, trouble = guard.call(attempt, *arguments.values())
    if holds_dots(value):
        trouble = Trouble("unanswered", "a `...` is left")
    if trouble:
        return Seen(trouble=trouble)
    wanted, dtype = truth(exercise, case).values, case.main.dtype
    outputs, form = read(value, exercise.results, wanted, dtype)
    changed = tuple(name for name, before in case.tensors.items() if not identical(arguments[name], before))
    seen = Seen(tuple(output.detach() for output in outputs), None, arguments, changed, form)
    seen.values_only = bool(changed) or TYPE in [odd.name for odd in form]
    seen.coarse = max([1.0, *(torch.finfo(output.dtype).eps / UNIT for output in outputs)])
    if exercise.tracked and case.smooth and outputs:
        arguments, leaves = case.fresh(exercise.tracked)

        def forward_and_backward():
            results = read(attempt(*arguments.values()), exercise.results, wanted, dtype)[0]
            return gradients(results, leaves), by_hand(results)

        answer, trouble = guard.call(forward_and_backward)
        seen.gradients, seen.function = answer or (None, "")
        if trouble and "modified by an inplace operation" in trouble.text:
            seen.values_only = True  # on a copy of one's own that is a matter of autograd, not of the formula
        else:
            seen.gradient_trouble = trouble
    return seen


def by_hand(outputs):
    """Return the name of the first `autograd.Function` in the outputs' graph, "" if there is none."""
    nodes = [output.grad_fn for output in outputs if output.grad_fn]
    met = set(nodes)
    for node in nodes:  # grows while it is walked through
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return type(node).__name__.removesuffix("Backward")
        following = {after for after, _ in node.next_functions if after} - met
        met |= following
        nodes += following
    return ""


def read(value, names, wanted, dtype):
    """Return (tensors, mistakes of form) of an answer; no tensors where the form cannot be mended.

    names   of the results, such as ("low", "high")
    wanted  the right tensors, for their number and shapes
    dtype   that of the input, and so of the answer
    """
    many = len(names) > 1
    if value is None:
        return (), (Mistake(NOTHING, f"the function ends without a value: end it with `return {', '.join(names)}`"),)
    if many and isinstance(value, torch.Tensor) and value.shape == (len(names), *wanted[0].shape):
        value = tuple(value)  # it unpacks like a pair
    sequence = isinstance(value, (tuple, list))
    if many and not (sequence and len(value) == len(names)):
        cause = f"it returns {describe(value)}; expected {len(names)} tensors: {', '.join(names)}"
        return (), (Mistake(TYPE, cause),)
    odd = []
    if not many and sequence and any(isinstance(part, torch.Tensor) and part.dim() for part in value):
        odd.append(Mistake(TYPE, f"it returns {describe(value)}; expected one tensor, {names[0]}"))
        tensors = [part for part in value if isinstance(part, torch.Tensor)]
        rows = len(tensors) == len(wanted[0]) and all(part.shape == wanted[0].shape[1:] for part in tensors)
        fitting = next((part for part in tensors if part.shape == wanted[0].shape), tensors[0])
        value = torch.stack(tensors) if rows else fitting
    outputs = []
    for name, part, target in zip(names, value if many else (value,), wanted, strict=True):
        if part is None:
            return (), (*odd, Mistake(TYPE, f"{name} is None; expected a tensor of shape {tuple(target.shape)}"))
        if not isinstance(part, torch.Tensor):
            odd.append(Mistake(TYPE, f"{name} is {describe(part)}; expected a tensor of shape {tuple(target.shape)}"))
            try:
                part = torch.tensor(np.asarray(part, dtype=float), dtype=dtype)
            except (TypeError, ValueError, RuntimeError):
                return (), tuple(odd)
        if part.is_complex() or part.layout != torch.strided:
            cause = f"{name} is {describe(part)}; expected an ordinary tensor of real numbers"
            return (), (*odd, Mistake(TYPE, cause))
        if part.dtype != dtype:
            cause = (
                f"{name} is {short(part.dtype)} for an input of {short(dtype)}: keep the input's dtype, "
                "as in `torch.zeros_like(x)` or `.to(x.dtype)`"
            )
            odd.append(Mistake(DTYPE, cause))
            part = part if part.is_floating_point() else part.to(dtype)
        outputs.append(part)
    return tuple(outputs), tuple(odd)


def with_right_shapes(exercise, seen):
    """Return what was seen with the shapes mended, gradients left out, and the mistake of shape, None if none."""
    rank = max(output.dim() for observed in seen.values() for output in observed.outputs or [torch.zeros(0)])
    for order in permutations(range(rank)) if len(exercise.results) == 1 else ():
        mended = {
            case: observed.with_outputs(tuple(y.permute(order) if y.dim() == rank else y for y in observed.outputs))
            for case, observed in seen.items()
        }
        if all(values_agree(exercise, observed, case) for case, observed in mended.items()):
            cause = f"the axes of {exercise.results[0]} are in another order: .permute{order} would mend it"
            return mended, Mistake(SHAPE, cause)
    mended, mistakes = {}, []
    for case, observed in seen.items():
        outputs = list(observed.outputs)
        for k, (output, target) in enumerate(zip(outputs, truth(exercise, case).values, strict=False)):
            if output.shape != target.shape and output.numel() == target.numel():
                mistakes.append(wrong_shape(exercise.results[k], output, target))
                across = output.dim() == 2 and output.T.shape == target.shape
                outputs[k] = (output.T if across else output).reshape(target.shape)
        mended[case] = observed.with_outputs(tuple(outputs))
    return mended, next(iter(mistakes), None)


def wrong_shape(name, output, target):
    """Return the mistake of a result that has another shape than the right one."""
    return Mistake(SHAPE, f"{name} has shape {tuple(output.shape)}, expected {tuple(target.shape)}")


def describe(value):
    """Return what a value is, in a few words."""
    if isinstance(value, torch.Tensor):
        return f"a {short(value.dtype)} tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of shape {value.shape}"
    if isinstance(value, (tuple, list, dict, set)):
        return f"a {type(value).__name__} of {len(value)}"
    kind = "class" if isinstance(value, type) else type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def short(dtype):
    """Return a dtype's name without the `torch.` before it."""
    return str(dtype).removeprefix("torch.")


def identical(after, before):
    """Return whether a tensor is as it was."""
    return after.shape == before.shape and torch.equal(after, before)


def telling_digits(one, other):
    """Return how many significant digits, four at least, tell two numbers apart."""
    return next((digits for digits in range(4, 18) if f"{one:.{digits}g}" != f"{other:.{digits}g}"), 4)
