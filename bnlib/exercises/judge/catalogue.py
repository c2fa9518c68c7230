"""What a catalogue of mistakes and the inputs that show them are made of."""

import copy
from dataclasses import dataclass
from functools import cache

import torch
from hypothesis import strategies as st


class Mistake:
    """An entry of a catalogue.

    name, cause  what it is called; in one line, what is wrong and what to look at; {knob} stands for a knob's value
    knobs        keyword arguments that bend the right formula into this mistake; none for a mistake of arithmetic,
                 which shows on ill-conditioned inputs alone
    also         further knobs that come to the same mistake
    free         the knob that may hold any number; it is solved for where none of the listed ones fits
    fit          fit(solve, answers, knobs, picks) -> further knobs, or None: how to find them from what an attempt
                 returned (`answers`: pairs of a Case and the results whose numbers are `picks`), beside the knobs
                 found so far; solve(case, frozenset of knobs' items) gives the formula's results
    rare         tried together with few others where it has nothing to go by
    """

    def __init__(self, name, cause, *, also=(), free="", fit=None, **knobs):
        self.name, self.cause, self.free, self.fit = name, cause, free, fit
        self.rare = False
        self.variants = ((knobs,) if knobs else ()) + tuple(also)

    def worded(self, *words, **values):
        """Return the mistake with words, and values of knobs, put into its cause."""
        entry = copy.copy(self)
        entry.cause = self.cause.format(*words, **values)
        return entry

    def __repr__(self):
        return f"Mistake({self.name!r}, {self.cause!r})"


def rarely(*mistakes):
    """Return mistakes marked as rare."""
    marked = tuple(map(copy.copy, mistakes))
    for mistake in marked:
        mistake.rare = True
    return marked


@dataclass(frozen=True, eq=False)
class Bend:
    """One way to make a mistake: the knobs it turns."""

    mistake: Mistake
    knobs: dict


@dataclass(eq=False)
class Case:
    """An input to try.

    arguments  by name, in the order of the call
    trait      in words what is special about it
    ill        a rounding error of the input moves the answer a lot: only good arithmetic survives it
    smooth     False where a gradient need not exist
    plain      some mistakes make no difference here, so that others show alone
    """

    arguments: dict
    trait: str = ""
    ill: bool = False
    smooth: bool = True
    plain: bool = False

    @property
    def tensors(self):
        """The arguments that are tensors, by name."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, torch.Tensor)}

    @property
    def main(self):
        """The first argument that is a tensor."""
        return next(iter(self.tensors.values()))

    def fresh(self, tracked=(), change=torch.clone):
        """Return the arguments anew, their real numbers through `change`, and the leaves of the tracked ones."""
        anew = {name: (change(x) if x.is_floating_point() else x).clone() for name, x in self.tensors.items()}
        arguments = self.arguments | anew
        leaves = {name: arguments[name].requires_grad_() for name in tracked}
        # what is passed on is no leaf, so that in-place operations run and can be named
        return arguments | {name: leaf.clone() for name, leaf in leaves.items()}, leaves


def drawn(build, *options):
    """Return a strategy for build(one of each of the options); the same draws give the same, solved only once.

    Each holds a power of two of them, and shrinks to its first. It is made of booleans alone: hypothesis draws integers
    in part from constants that it finds in whatever modules are loaded, so that the same attempt might meet other
    inputs the next time.
    """

    def one_of(options):
        bits = [st.booleans()] * (len(options) - 1).bit_length()
        return st.tuples(*bits).map(lambda flips: options[sum(flip << i for i, flip in enumerate(flips))])

    return st.builds(cache(build), *map(one_of, options))
