"""How an attempt at a function is judged, and how its mistake is found.

An exercise is data: the right formula, whose keyword arguments ("knobs") bend it; the catalogue of mistakes, each a
name, a one-line cause and the knobs that make it; the inputs to try. So adding a mistake is adding an entry, and
pairs of mistakes come for nothing: turn the knobs of both.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings

from .answers import SHAPE, TYPE, describe, read, reshaped, wrong_shape
from .catalogue import Mistake
from .guard import Guard, Trouble, holds_dots, is_stub
from .verdict import READ, Verdict

DRAWS = 25  # inputs drawn once the fixed ones are all answered rightly
SHRINKS = 40  # steps spent on making the first wrong one smaller
SECONDS = 2.0  # for both, at most: a slow attempt is judged on fewer inputs
UNIT = torch.finfo(torch.float32).eps

IN_PLACE, RAISES, ENDLESS = "input modified in place", "raises an error", "does not end"
NO_GRADIENT, WRONG_GRADIENT, UNKNOWN = "no gradient", "wrong gradient", "unknown mistake"


@dataclass(frozen=True, eq=False)
class Bend:
    """One way to make a mistake: the knobs it turns."""

    mistake: Mistake
    knobs: dict


@dataclass
class Seen:
    """What came of an attempt on a case: its results, or trouble; the arguments after the call; oddities of form.

    values_only  gradients say nothing more, since something else that was found spoils them
    coarse       how much more slack the numbers need, being of a coarser dtype
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

    def with_outputs(self, outputs):
        """Return the same with other outputs, and no gradients."""
        return replace(self, outputs=outputs, gradients=None, values_only=True)


@dataclass
class Truth:
    """The right answer to a case, in float64, and how far rounding may carry an honest answer from it."""

    outputs: tuple
    gradients: dict
    slack: tuple
    gradient_slack: dict


class Unanswered(Exception):
    """A `...` is left in the attempt."""


class EnoughDrawn(BaseException):
    """Ends hypothesis' search; not an Exception, which it would take for a failure of the attempt."""


@dataclass(eq=False)
class FunctionExercise:
    """An exercise whose answer is a function.

    lesson, section   where it stands in the course, and what to read again
    asks       the task in words
    formula    formula(**arguments, **knobs): the right answer without knobs, a mistaken one with
    mistakes   the catalogue, common ones first
    cases      inputs to try, the one to show first; the second has sizes that all differ
    drawn      hypothesis strategy for further cases, or None
    results    the names of what is returned
    tracked    the arguments whose gradients are compared
    unordered  whether the rows of the result may come in any order
    explain    explain(x, expected, received): a sentence on a wrong result that no mistake explains
    """

    name: str
    lesson: int
    section: str
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

    def __post_init__(self):
        self.bends = [Bend(mistake, knobs) for mistake in self.mistakes for knobs in mistake.variants]
        self._computed = {}  # truths and sketches, by case and bends

    # ---- the attempt on one case

    def observe(self, guard, attempt, case):
        """Return what an attempt does on a case: its values, then in a second call its gradients."""
        arguments, _ = case.fresh()
        value, trouble = guard.call(attempt, *arguments.values())
        if holds_dots(value):
            trouble = Trouble("unanswered", "a `...` is left")
        if trouble:
            return Seen(trouble=trouble)
        dtype, wanted = case.main.dtype, self.truth(case).outputs
        outputs, form = read(value, self.results, wanted, dtype)
        changed = tuple(name for name, before in case.tensors.items() if not identical(arguments[name], before))
        seen = Seen(tuple(output.detach() for output in outputs), None, arguments, changed, form)
        seen.values_only = bool(changed) or TYPE in [odd.name for odd in form]
        seen.coarse = max([1.0, *(torch.finfo(output.dtype).eps / UNIT for output in outputs)])
        if self.tracked and case.smooth and outputs:
            arguments, leaves = case.fresh(self.tracked)

            def forward_and_backward():
                return gradients(read(attempt(*arguments.values()), self.results, wanted, dtype)[0], leaves)

            seen.gradients, trouble = guard.call(forward_and_backward)
            if trouble and "modified by an inplace operation" in trouble.text:
                seen.values_only = True  # on a copy of one's own that is a matter of autograd, not of BN
            else:
                seen.gradient_trouble = trouble
        return seen

    # ---- the right answer, and wrong ones

    def solve(self, case, knobs, change=torch.clone):
        """Return outputs and gradients of the formula under knobs; (None, {}) where its shapes do not fit."""
        arguments, leaves = case.fresh(self.tracked if case.smooth else (), change)
        try:
            value = self.formula(**arguments, **knobs)
        except (RuntimeError, IndexError):
            return None, {}
        outputs = value if isinstance(value, tuple) else (value,)
        return tuple(output.detach() for output in outputs), gradients(outputs, leaves, change) if leaves else {}

    def truth(self, case, bends=()):
        """Return the right answer to a case, or a bent one, and the slack that float32 deserves.

        The slack is 32 times what rounding the input, and computing in float32, does to the answer: a large mean earns
        an honest answer its large rounding error, and nothing else does.
        """
        key = (case, bends)
        if key not in self._computed:
            generator = torch.Generator().manual_seed(0)

            def shaken(tensor):
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                return tensor.double() * (1 + UNIT * noise)

            changes = (torch.Tensor.double, shaken, lambda tensor: tensor.float())
            (outputs, slopes), *others = (self.solve(case, together(bends), change) for change in changes)

            def slack(right, *moved):
                return 32 * (max(gap(right, other) for other in moved) + UNIT * gap(right, 0 * right))

            slacks = tuple(map(slack, outputs, *(other for other, _ in others))) if outputs else ()
            slope_slacks = {name: slack(slopes[name], *(moved[name] for _, moved in others)) for name in slopes}
            self._computed[key] = Truth(outputs, slopes, slacks, slope_slacks)
        return self._computed[key]

    def sketch(self, bends):
        """Return the bent formula's outputs on the second case, in one array; computed once."""
        if bends not in self._computed:
            try:
                with torch.no_grad():
                    value = self.formula(**self.cases[1].arguments, **together(bends))
                self._computed[bends] = flat(value if isinstance(value, tuple) else (value,))
            except (RuntimeError, IndexError):
                self._computed[bends] = None
        return self._computed[bends]

    # ---- comparing

    def agrees(self, seen, case, bends=()):
        """Return whether what was seen is the right answer, or the one bent like this."""
        truth = self.truth(case, bends)
        if truth.outputs is None or seen.trouble:
            return truth.outputs is None and seen.trouble is not None
        if len(seen.outputs) != len(truth.outputs):
            return False
        for received, expected, slack in zip(seen.outputs, truth.outputs, truth.slack, strict=True):
            if not self.close(received, expected, slack * seen.coarse):
                return False
        if seen.values_only or not truth.gradients or not all(output.isfinite().all() for output in truth.outputs):
            return True
        return seen.gradients is not None and not self.wrong_slopes(seen, truth)

    def wrong_slopes(self, seen, truth):
        """Return the names of the arguments whose gradient differs."""
        return [
            name
            for name, slope in truth.gradients.items()
            if not self.close(seen.gradients[name], slope, truth.gradient_slack[name] * seen.coarse)
        ]

    def close(self, received, expected, slack):
        """Return whether two tensors agree within `slack`; numbers that are not finite agree with each other."""
        if received.shape != expected.shape:
            return False
        received, expected = self.ordered(received.double()), self.ordered(expected.double())
        finite = expected.isfinite()
        if not torch.equal(finite, received.isfinite()):
            return False
        off = (received - expected)[finite].abs()
        return bool((off <= slack + 32 * UNIT * expected[finite].abs()).all())

    def ordered(self, tensor):
        """Return the tensor, its rows sorted where their order is free."""
        if self.unordered and tensor.dim() == 2:
            return torch.tensor(sorted(tensor.tolist()), dtype=tensor.dtype).reshape(tensor.shape)
        return tensor

    def right(self, seen, case):
        """Return whether an attempt is right on a case in every respect."""
        odd = seen.trouble or seen.gradient_trouble or seen.changed or seen.form
        return not odd and self.agrees(seen, case)

    # ---- judging

    def judge(self, attempt):
        """Return the Verdict on an attempt."""
        compared = "values and gradients" if self.tracked else "values"
        right = f"The {compared} agree on every input tried, and the input is left as it was."
        return judged(self, attempt, right, callable(attempt), self.name)

    def examine(self, guard, attempt):
        """Return (mistakes, evidence for a Verdict) of an attempt, no mistakes if it is right. Raises Unanswered."""
        seen = {}
        for case in self.cases:
            seen[case] = self.observe(guard, attempt, case)
            trouble = seen[case].trouble or seen[case].gradient_trouble
            if trouble and trouble.kind == "unanswered":
                raise Unanswered
            if trouble and trouble.kind == "stopped":
                return [Mistake(ENDLESS, f"{self.name} {trouble.text}")], {}
        if all(self.right(seen[case], case) for case in self.cases):
            case = self.search(guard, attempt)
            if case is None:
                return [], {}
            seen[case] = self.observe(guard, attempt, case)
        return self.diagnose(seen)

    def search(self, guard, attempt):
        """Return the smallest case that hypothesis finds the attempt wrong on, or None."""
        if self.drawn is None:
            return None
        wrong, left, end = [], SHRINKS, time.monotonic() + SECONDS

        @settings(
            derandomize=True,
            database=None,
            deadline=None,
            max_examples=DRAWS,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
        )
        @given(self.drawn)
        def is_right(case):
            nonlocal left
            left -= bool(wrong)
            if left == 0 or time.monotonic() > end:
                raise EnoughDrawn
            if not self.right(self.observe(guard, attempt, case), case):
                wrong.append(case)
                raise AssertionError

        with suppress(EnoughDrawn, AssertionError):
            is_right()
        return min(wrong, key=lambda case: case.main.numel(), default=None)

    def diagnose(self, seen):
        """Return the mistakes of a wrong attempt and the evidence, given what was seen on each case."""
        wrong = [case for case in seen if not self.right(seen[case], case)]
        named = {odd.name: odd for case in reversed(wrong) for odd in seen[case].form}
        changed = next((seen[case].changed for case in wrong if seen[case].changed), ())
        if changed:
            cause = (
                f"{' and '.join(changed)} is not the same after the call: work on a copy; "
                "`x -= mean` writes into x, `x = x - mean` does not"
            )
            named[IN_PLACE] = Mistake(IN_PLACE, cause)
        values = self.explanation(seen)
        if values is None:
            mended, odd = self.with_right_shapes(seen)
            values = self.explanation(mended) if odd else None
            if values is not None:
                named[odd.name] = odd
        if values is None:
            values = self.unexplained(seen, wrong, bool(named))
        case = wrong[0]
        return [*named.values(), *values], self.evidence(case, seen[case]) if seen[case].outputs else {}

    def explanation(self, seen):
        """Return the fewest mistakes of the catalogue that give what was seen; None if there are none."""
        if not any(observed.outputs for observed in seen.values()):
            return None
        raised = [case for case in seen if seen[case].trouble and not case.ill]
        calm = [case for case in seen if not seen[case].trouble and not case.ill]
        target = self.target(seen)
        for tier in self.tiers():
            but_for_raising = None
            for bends in tier:
                if self.alike(target, self.sketch(bends)) and all(
                    self.agrees(seen[case], case, bends) for case in calm
                ):
                    if all(self.agrees(seen[case], case, bends) for case in raised):
                        return [*(bend.mistake for bend in bends), *self.arithmetic(seen, bends)]
                    but_for_raising = but_for_raising or bends
            if but_for_raising and len(calm) > len(seen) / 2:
                return [bend.mistake for bend in but_for_raising]
        return None

    def tiers(self):
        """Yield what may have been done wrong, the simplest first: nothing, each mistake, pairs, and some triples.

        A triple holds two of the first three mistakes: `std()` for the root of the variance plus ε makes two at once.
        """
        everyday = self.bends[:3]
        common = [bend for bend in self.bends if not bend.mistake.rare]
        rare = [bend for bend in self.bends if bend.mistake.rare]
        yield [()]
        yield ((bend,) for bend in self.bends)
        yield (pair for pair in (*combinations(common, 2), *product(everyday, rare)) if compatible(*pair))
        pairs = (pair for pair in combinations(everyday, 2) if compatible(*pair))
        yield ((*pair, bend) for pair in pairs for bend in self.bends if compatible(*pair, bend))

    def target(self, seen):
        """Return what `sketch` has to be like."""
        observed = seen[self.cases[1]]
        return None if observed.trouble else flat(observed.outputs)

    def alike(self, target, sketch):
        """Return whether a sketch is worth a closer look."""
        if target is None or sketch is None or self.unordered:
            return (target is None) == (sketch is None)
        return target.shape == sketch.shape and np.allclose(target, sketch, rtol=1e-3, atol=1e-4, equal_nan=True)

    def arithmetic(self, seen, bends):
        """Return the mistake of arithmetic if it shows on the ill-conditioned cases beside these bends."""
        fine = all(self.agrees(seen[case], case, bends) for case in seen if case.ill)
        return [] if fine else [mistake for mistake in self.mistakes if not mistake.variants]

    def with_right_shapes(self, seen):
        """Return what was seen with the shapes mended, gradients left out, and the mistake of shape, None if none."""
        rank = max(output.dim() for observed in seen.values() for output in observed.outputs or [torch.zeros(0)])
        turns = (
            [order for order in permutations(range(rank)) if order != tuple(range(rank))]
            if len(self.results) == 1
            else []
        )
        for order in turns:
            mended = {case: observed.with_outputs(turned(observed.outputs, order)) for case, observed in seen.items()}
            if all(self.agrees(observed, case) for case, observed in mended.items()):
                return mended, Mistake(
                    SHAPE, f"the axes of {self.results[0]} are in another order: .permute{order} would mend it"
                )
        mended, first = {}, None
        for case, observed in seen.items():
            outputs, mistake = reshaped(observed.outputs, self.results, self.truth(case).outputs)
            first = first or mistake
            mended[case] = observed.with_outputs(outputs)
        return mended, first

    # ---- what can be said when the catalogue does not explain it

    def unexplained(self, seen, wrong, named):
        """Return a Mistake that says which term, which axis, and on what input: none if `named` ones say it all."""
        case, observed, truth = wrong[0], seen[wrong[0]], self.truth(wrong[0])
        only = self.only(seen, wrong)
        if observed.trouble:
            sizes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in case.tensors.items())
            return [Mistake(RAISES, f"{located(observed.trouble)}\ncalled with {sizes}.{only}")]
        if named or not observed.outputs:  # one thing at a time: what has a name may well explain the rest
            return []
        triples = list(zip(self.results, observed.outputs, truth.outputs, strict=True))
        for name, output, target in triples:
            if output.shape != target.shape:
                mistake = wrong_shape(name, output, target)
                return [Mistake(mistake.name, f"{mistake.cause}.{only}")]
        bad = [
            triple
            for triple, slack in zip(triples, truth.slack, strict=True)
            if not self.close(*triple[1:], slack * observed.coarse)
        ]
        if bad:
            fine = [name for name, *_ in triples if name not in [triple[0] for triple in bad]]
            words = f"{' and '.join(fine)} is right; {bad[0][0]} is not. " if fine else ""
            words += self.explain(case.main.double(), bad[0][2], bad[0][1].double()) if self.explain else ""
            raised = next((seen[other].trouble for other in wrong if seen[other].trouble), None)
            more = [Mistake(RAISES, f"on another input, {located(raised)}")] if raised else []
            return [Mistake(UNKNOWN, (words or "The numbers differ.") + only), *more]
        if observed.gradient_trouble:
            cause = f"the values are right, but no gradient can flow: {located(observed.gradient_trouble)}"
            return [Mistake(NO_GRADIENT, cause)]
        names = self.wrong_slopes(observed, truth)
        cause = (
            f"the values are right, the gradient with respect to {' and '.join(names)} is not: "
            "is a part of the formula detached?"
        )
        return [Mistake(WRONG_GRADIENT, cause + only)]

    def only(self, seen, wrong):
        """Return a sentence on what the wrongly answered inputs have in common and no other has, or nothing."""

        def traits(case):
            sizes = {f"{letter} > 1" for letter, size in zip("NCHW", case.main.shape, strict=False) if size > 1}
            return sizes | {f"the dtype is {str(case.main.dtype)[6:]}"} | ({case.trait} if case.trait else set())

        others = set().union(*(traits(case) for case in seen if case not in wrong))
        common = sorted(set.intersection(*map(traits, wrong)) - others) if others else []
        return f" It shows only when {' and '.join(common)}." if common else ""

    def evidence(self, case, seen):
        """Return what shows the mistake on a case: values, else gradients, else the changed input."""
        truth, given = self.truth(case), dict(case.arguments)
        what, expected, received = ", ".join(self.results), truth.outputs, seen.outputs
        if all(map(self.close, received, expected, truth.slack)):
            slopes = self.wrong_slopes(seen, truth) if seen.gradients and not seen.values_only else ()
            for name in slopes[:1]:
                what = f"gradient for {name}"
                given["w"] = weights(truth.outputs[0])
                given["loss"] = f"(w · {self.results[0]}).sum()"
                expected, received = (truth.gradients[name],), (seen.gradients[name],)
            for name in seen.changed[:1]:
                what, expected, received = f"{name} after the call", (case.arguments[name],), (seen.after[name],)
        return dict(example=tuple(given.items()), expected=expected, received=received, shown=what)


def judged(exercise, attempt, right, fits, call, kind="function"):
    """Return the Verdict on an attempt, by `exercise.examine`; in the words of `right` if no mistake is found.

    fits, call, kind  whether it is of the kind the exercise takes, a function or a class; how one would be named
    """
    if attempt is None or attempt is ... or is_stub(attempt):
        return unanswered(exercise)
    if not fits:
        cause = f"it is {describe(attempt)}; give the {kind} itself: check({exercise.name!r}, {call})"
        return refused(exercise, [Mistake(f"not a {kind}", cause)])
    try:
        mistakes, evidence = exercise.examine(Guard(), attempt)
    except Unanswered:
        return unanswered(exercise)
    return refused(exercise, mistakes, **evidence) if mistakes else Verdict(exercise.name, True, right)


def unanswered(exercise):
    """Return the Verdict on a stub."""
    todo = f"{exercise.asks}\nReplace the `...` by your answer and run the cell again."
    return Verdict(exercise.name, False, todo, answered=False)


def refused(exercise, mistakes, **evidence):
    """Return the Verdict that names these mistakes."""
    diagnosis = "\n".join(f"{mistake.name}: {mistake.cause}" for mistake in mistakes)
    names = tuple(mistake.name for mistake in mistakes)
    places = ((lesson, section) for word, lesson, section in READ if word in names[0] and lesson <= exercise.lesson)
    read = next(places, (exercise.lesson, exercise.section))  # never a lesson that is still to come
    return Verdict(exercise.name, False, diagnosis, names, read=read, **evidence)


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
    """Return the fixed weights w of the loss (w · y).sum(): the plain sum of BN's output has no gradient at all."""
    generator = torch.Generator().manual_seed(output.numel())
    return torch.randint(-3, 4, output.shape, generator=generator).to(output.dtype)


def compatible(*bends):
    """Return whether no two bends turn the same knob."""
    return len(together(bends)) == sum(len(bend.knobs) for bend in bends)


def together(bends):
    """Return the knobs of several bends."""
    return {name: value for bend in bends for name, value in bend.knobs.items()}


def turned(outputs, order):
    """Return tensors of this rank with their axes in another order, others as they are."""
    return tuple(output.permute(order) if output.dim() == len(order) else output for output in outputs)


def gap(right, other):
    """Return the largest difference between two tensors, where both are finite."""
    return (right - other).nan_to_num(0.0, 0.0, 0.0).abs().max().item()


def flat(outputs):
    """Return several tensors as one array."""
    return (
        np.concatenate([output.detach().double().flatten().numpy() for output in outputs]) if outputs else np.zeros(0)
    )


def identical(after, before):
    """Return whether a tensor is as it was."""
    return after.shape == before.shape and torch.equal(after, before)


def located(trouble):
    """Return what was raised and on which of the reader's lines."""
    return f"{trouble.text}, at {trouble.line}" if trouble.line else trouble.text
