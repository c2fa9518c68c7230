"""What a catalogue of mistakes and the inputs that show them are made of."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st


class Mistake:
    """An entry of a catalogue.

    name, cause  what it is called; in one line, what is wrong and what to look at
    knobs        keyword arguments that bend the right formula into this mistake; none for a mistake of arithmetic,
                 which shows on ill-conditioned inputs alone
    also         further knobs that come to the same mistake
    rare         tried together with the catalogue's first three mistakes only, not with every other
    """

    def __init__(self, name, cause, *, also=(), **knobs):
        self.name = name
        self.cause = cause
        self.rare = False
        self.variants = ((knobs,) if knobs else ()) + tuple(also)

    def __repr__(self):
        return f"Mistake({self.name!r}, {self.cause!r})"


def rarely(*mistakes):
    """Return mistakes marked as rare."""
    for mistake in mistakes:
        mistake.rare = True
    return mistakes


@dataclass(eq=False)
class Case:
    """An input to try.

    arguments  by name, in the order of the call
    trait      in words what is special about it
    ill        a rounding error of the input moves the answer a lot (a large mean): only good arithmetic survives it
    smooth     False where a gradient need not exist (a variance of zero)
    """

    arguments: dict
    trait: str = ""
    ill: bool = False
    smooth: bool = True

    @property
    def tensors(self):
        """The arguments that are tensors, by name."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, torch.Tensor)}

    @property
    def main(self):
        """The first argument, the batch."""
        return next(iter(self.arguments.values()))

    def fresh(self, tracked=(), change=torch.clone):
        """Return the arguments anew, tensors through `change`, and the leaves of those whose gradient is tracked."""
        arguments = {name: change(value) if name in self.tensors else value for name, value in self.arguments.items()}
        leaves = {name: arguments[name].requires_grad_() for name in tracked}
        # what is passed on is no leaf, so that in-place operations run and can be named
        return arguments | {name: leaf.clone() for name, leaf in leaves.items()}, leaves


def batch(shape, seed, *, scale=1.0, mean=0.0, dtype=torch.float32):
    """Return noise of shape (N, C, *) whose channels c have different means, mean + c · scale, and spreads."""
    channel = torch.arange(shape[1], dtype=torch.float64).view(1, -1, *[1] * (len(shape) - 2))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise * scale * (channel + 2) / 2 + mean + channel * scale).to(dtype)


def one_of(*options):
    """Return a strategy for one of these (a power of two of them), which shrinks to the first.

    Made of booleans alone: hypothesis draws integers in part from constants that it finds in whatever modules are
    loaded, so that the same attempt might meet other inputs the next time.
    """
    bits = (len(options) - 1).bit_length()
    return st.tuples(*[st.booleans()] * bits).map(lambda flips: options[sum(flip << i for i, flip in enumerate(flips))])
