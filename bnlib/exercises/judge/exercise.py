"""An exercise as data: the formula, whose keyword arguments ("knobs") bend it, the mistakes, the inputs to try."""

import re
from dataclasses import dataclass

from .catalogue import Bend
from .diagnosis import diagnosed, observed
from .verdict import judged


@dataclass(eq=False)
class Exercise:
    """An exercise whose answer is a function.

    name, signature, asks  what it is called; as the function is written; the task in words
    formula    formula(**arguments, **knobs): the right answer without knobs, a mistaken one with
    mistakes   the catalogue, common ones first
    cases      inputs to try, the one to show first; the second should have sizes that all differ
    drawn      hypothesis strategy for further cases, or None
    results    the names of what is returned
    tracked    the arguments whose gradients are compared
    unordered  whether the rows of the result may come in any order
    explain    explain(x, expected, received): a sentence on a wrong result that no mistake explains
    place      where it stands, and `place.again(mistake)` what to read again; or None
    """

    name: str
    signature: str
    asks: str
    formula: object
    mistakes: tuple
    cases: tuple
    drawn: object = None
    results: tuple = ("y",)
    tracked: tuple = ()
    unordered: bool = False
    explain: object = None
    place: object = None

    def __post_init__(self):
        self.computed = {}  # what truth.py and explanation.py need again
        self.bends = [Bend(mistake.worded(**knobs), knobs) for mistake in self.mistakes for knobs in mistake.variants]
        axes = re.search(r"\(([A-Z](?:, ?[A-Z])*)\)", self.signature)
        self.letters = axes[1].replace(",", "").replace(" ", "") if axes else ""

    def judge(self, attempt):
        """Return the Verdict on an attempt."""
        compared = "values and gradients" if self.tracked else "values"
        right = f"The {compared} agree on every input tried, and the input is left as it was."
        return judged(self, attempt, right, callable(attempt), self.name)

    def examine(self, guard, attempt):
        """Return (mistakes, evidence for a Verdict) of an attempt, no mistakes if it is right. Raises Unanswered."""
        return diagnosed(self, observed(self, guard, attempt))
