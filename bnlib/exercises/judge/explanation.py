"""Which mistakes explain what an attempt returned.

First the values: nothing, each mistake of the catalogue, common pairs; then more at once, by adding to the sets that
come closest whatever brings them closer still. A number that is in no list is solved for. Then the gradients, given
what explains the values. A set of mistakes counts only if the formula bent by it gives the values on every input.
"""

from functools import cache
from itertools import combinations, product

import numpy as np
import torch

from .catalogue import Bend
from .truth import compatible, ordered, outputs_of, together, values_agree, wrong_slopes

BEAM = 6  # sets of mistakes to which another one is added
MOST = 4  # mistakes at once, that in a list come first and those solved for
EVERYDAY = 3  # the catalogue's first entries, tried together with the rare ones too
FAR = 30.0  # the distance of what cannot be compared
PRECISION = 1e-6
NEAR = np.log1p(1e-3 / PRECISION)  # worth a closer look


def explanations(exercise, seen):
    """Return for each result the fewest bends that give its values, None where none do.

    Few bends that give all at once come first; else each result is explained by itself.
    """
    count = len(exercise.results)
    most = MOST if count == 1 else MOST - 1
    found = explanation(exercise, seen, most=most)
    return [found] * count if found or count == 1 else [explanation(exercise, seen, (k,), most) for k in range(count)]


def explanation(exercise, seen, picks=None, most=MOST, pairs=True):
    """Return the fewest bends that give the values seen on every calm case (of the results picked); None if none do.

    most, pairs  how many bends at once; whether all common pairs are tried, too
    """
    calm = {case: observed for case, observed in seen.items() if observed.outputs and not case.ill}
    return Explainer(exercise, calm, picks, most, pairs).run() if calm else None


class Explainer:
    """The search for the mistakes behind one attempt's values."""

    def __init__(self, exercise, calm, picks, most, pairs):
        self.exercise, self.calm, self.most, self.pairs = exercise, calm, most, pairs
        self.picks = tuple(range(len(exercise.results))) if picks is None else picks
        self.bends = value_bends(exercise)
        self.known = frozenset(self.bends)
        fixed = [case for case in exercise.cases[1:] if case in calm] or list(calm)
        wrong = [case for case in calm if not self.agrees((), case)]
        self.case, other = fixed[0], next((case for case in wrong if case is not fixed[0]), fixed[-1])
        self.telling = [*(case for case in reversed(calm) if case.plain), self.case]  # the plainest first
        self.looked_at = [*self.telling, other]
        self.targets = {case: [self.flat(calm[case].outputs[k]) for k in self.picks] for case in self.looked_at}
        small = {case for case in calm if min(case.main.shape) == 1}
        self.small = small if 2 * len(small) <= len(calm) else set()
        self.ordered = sorted(calm, key=lambda case: case in self.small)

    def run(self):
        """Return the fewest bends, or None."""
        with np.errstate(all="ignore"):
            for bends in self.attempts():
                simplest = bends and self.simplest(bends)
                if simplest or bends == ():  # else it shows on small inputs alone, where it does not fit
                    return simplest
        return None

    def simplest(self, bends):
        """Return the bends without those that change nothing beside the others, and each with no knob too many."""
        everywhere = all(self.agrees(bends, case) for case in self.ordered)
        cases = [case for case in self.ordered if everywhere or case not in self.small]
        for bend in bends:
            rest = tuple(other for other in bends if other is not bend)
            fewer = [(), *((less,) for less in self.bends if less.knobs.items() < bend.knobs.items())]
            simpler = ((*rest, *less) for less in fewer)
            bends = next((each for each in simpler if all(self.agrees(each, case) for case in cases)), bends)
        return bends

    def attempts(self):
        """Yield what each step of the search finds, sets of bends or None, the simplest first."""
        beam = [(), *((bend,) for bend in self.bends)]
        yield self.first(beam)
        yield self.fitted([()])
        if self.pairs:
            yield self.first(common_pairs(self.bends))
        plain = self.sketch((), self.case)
        self.bends = [bend for bend in self.bends if self.matters(bend, plain)]
        beam = [(), *((bend,) for bend in self.bends)]
        if self.most > 1:
            yield self.fitted(beam, numbers=False)
        for _ in range(1, self.most):
            beam = self.promising(beam)
            grown = self.grown(beam)
            yield self.first(grown)
            yield self.fitted(beam)
            beam = grown

    def matters(self, bend, plain):
        """Return whether a bend changes the results picked on the case looked at first."""
        bent = self.sketch((bend,), self.case)
        return bent is None or any(not np.array_equal(bent[k], plain[k], equal_nan=True) for k in self.picks)

    def promising(self, sets):
        """Return the sets that come closest: on the plainest input, where the most mistakes show alone, then on all."""
        closest = sorted(sets, key=lambda bends: self.distance(bends, self.telling[0]))[: 8 * BEAM]
        return sorted(closest, key=lambda bends: sum(self.distance(bends, case) for case in self.telling))[:BEAM]

    def first(self, sets):
        """Return the first of the sets of bends that gives every value, None if none does."""
        return self.match(bends for bends in sets if all(self.distance(bends, case) <= NEAR for case in self.looked_at))

    def match(self, sets):
        """Return the first of the sets that gives what was seen on every calm case, None if none does.

        Many treat an axis of size 1 otherwise: what is wrong there alone is taken where nothing better is found.
        """
        almost = None
        for bends in sets:
            wrong = next((case for case in self.ordered if not self.agrees(bends, case)), None)
            if wrong is None:
                return bends
            if wrong in self.small:
                almost = almost or bends
        return almost

    def agrees(self, bends, case):
        """Return whether the bent formula gives the values seen on a case."""
        return values_agree(self.exercise, self.calm[case], case, bends, self.picks)

    def distance(self, bends, case):
        """Return how far the bent formula's results are from what was seen on a case."""
        sketch = self.sketch(bends, case)
        if sketch is None:
            return FAR
        gaps = [apart(sketch[k], target) for k, target in zip(self.picks, self.targets[case], strict=True)]
        return sum(gaps) / len(gaps)

    def sketch(self, bends, case):
        """Return the bent formula's results on a case as flat arrays, None where its shapes do not fit."""
        kept = self.exercise.computed if len(bends) < 3 and self.known.issuperset(bends) else {}
        key = "sketch", case, bends
        if key not in kept:
            outputs = self.solve(case, together(bends))
            kept[key] = outputs and [self.flat(output) for output in outputs]
        return kept[key]

    def solve(self, case, knobs):
        """Return what the formula gives on a case under knobs, None where its shapes do not fit."""
        with torch.no_grad():
            return outputs_of(self.exercise, case.arguments, knobs)

    def flat(self, output):
        """Return a tensor as a flat array, its rows sorted where their order is free."""
        return ordered(self.exercise, output.detach().double()).flatten().numpy()

    def grown(self, beam):
        """Return the sets of the beam with each compatible bend added, each set once."""
        sets = {}
        for bends, extra in product(beam, self.bends):
            if extra not in bends and compatible(*bends, extra):
                sets.setdefault(frozenset((*bends, extra)), (*bends, extra))
        return list(sets.values())

    def fitted(self, beam, numbers=True):
        """Return the first set of the beam to which knobs can be found that give every value; None if there is none.

        numbers  whether to solve for numbers, too, which takes longer than what an exercise fits by itself
        """
        fits = [mistake for mistake in self.exercise.mistakes if mistake.fit or (numbers and mistake.free)]
        fewest_rare = sorted(beam, key=lambda bends: sum(bend.mistake.rare for bend in bends))
        return self.match(more for bends in fewest_rare for more in self.with_found_knobs(bends, fits))

    def with_found_knobs(self, bends, fits):
        """Return the bends with the knobs that can be found for these mistakes, for each of them and for several."""
        answers = [(case, [self.calm[case].outputs[k] for k in self.picks]) for case in self.calm]
        grown, solve = [bends], cache(lambda case, knobs: self.solve(case, dict(knobs)))
        for mistake in fits:
            for so_far in list(grown):
                if mistake.fit:
                    knobs = mistake.fit(solve, answers, together(so_far), self.picks)
                else:
                    knobs = self.solved(mistake, so_far)
                if knobs:
                    grown.append((*so_far, Bend(mistake.worded(**knobs), knobs)))
        return grown[1:]

    def solved(self, mistake, bends):
        """Return the knob that may hold any number with the number that comes closest, None where none comes close.

        On the input on which the number matters most: a grid of powers of ten, then Newton's steps in its logarithm.
        """
        if mistake.free in together(bends):
            return None
        case = self.where_it_matters(mistake)
        target = np.concatenate([self.flat(self.calm[case].outputs[k]) for k in self.picks])

        def bent(number):
            return (*bends, Bend(mistake, {mistake.free: number}))

        def off(number):
            sketch = self.sketch(bent(number), case)
            found = np.concatenate([sketch[k] for k in self.picks]) if sketch else target * np.inf
            return found - target if found.shape == target.shape else target * np.inf

        number = min(10.0 ** np.arange(-14, 3), key=lambda number: np.nan_to_num(np.abs(off(number)), nan=np.inf).sum())
        for _ in range(6):
            rest = off(number)
            slope = (off(number * 1.0001) - rest) / np.log(1.0001)
            if not slope @ slope > 0 or not np.isfinite(slope @ rest):
                return None
            number *= float(np.exp(np.clip(-(slope @ rest) / (slope @ slope), -2.0, 2.0)))
        rounded = self.match(bent(float(f"{number:.{digits}e}")) for digits in range(3))  # as a reader would write it
        return rounded[-1].knobs if rounded else {mistake.free: number}

    def where_it_matters(self, mistake):
        """Return the calm case on which two numbers that a knob may hold differ most."""

        def moved(case):
            one, two = (self.sketch((Bend(mistake, knobs),), case) for knobs in mistake.variants[:2])
            gaps = [np.abs(one[k] - two[k]).max() for k in self.picks] if one and two and case.smooth else [0.0]
            return float(np.nan_to_num(max(gaps), posinf=0.0))

        return max(self.calm, key=moved)


def common_pairs(bends):
    """Yield the pairs of common bends, and those of everyday ones with rare ones."""
    rare = [bend for bend in bends if bend.mistake.rare]
    common = [bend for bend in bends if not bend.mistake.rare]
    both = (*combinations(common, 2), *product(bends[:EVERYDAY], rare))
    yield from (pair for pair in both if compatible(*pair))


def value_bends(exercise):
    """Return the bends that change a value on some fixed input; the others change gradients alone."""

    def shows(bend, case):
        plain, bent = (outputs_of(exercise, case.arguments, knobs) for knobs in ({}, bend.knobs))
        return bent is None or not all(map(torch.equal, map(torch.nan_to_num, plain), map(torch.nan_to_num, bent)))

    if "bends" not in exercise.computed:
        tried = exercise.cases if exercise.tracked else ()
        exercise.computed["bends"] = [
            bend for bend in exercise.bends if not tried or any(shows(bend, case) for case in tried)
        ]
    return exercise.computed["bends"]


def explained_slopes(exercise, seen, bends):
    """Return (bends that give the gradients seen beside those of the values, whether that leaves none unexplained).

    They change gradients alone; or values, too, but none of those seen: a mistake that only its gradient tells.
    """
    calm = [case for case, observed in seen.items() if observed.outputs and not case.ill]

    def wrong(*more):
        return any(wrong_slopes(exercise, seen[case], case, (*bends, *more)) for case in calm)

    if not wrong():
        return (), True
    values = value_bends(exercise)
    cut = [bend for bend in exercise.bends if bend not in values]
    for more in (*combinations(cut, 1), *combinations(cut, 2), *combinations(values, 1)):
        if compatible(*bends, *more) and not wrong(*more):
            both = (*bends, *more)
            if more[0] in cut or all(values_agree(exercise, seen[case], case, both) for case in calm):
                return more, True
    return (), False


def apart(values, target):
    """Return the average order of magnitude by which numbers differ from the target."""
    if values.shape != target.shape:
        return FAR
    off = np.abs(values - target) / (1 + np.abs(target))
    same = np.isnan(values) & np.isnan(target) | (values == target)
    orders = np.where(same, 0.0, np.fmin(np.log1p(off / PRECISION), FAR))
    return orders.sum() / max(target.size, 1)
