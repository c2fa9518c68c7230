"""From what an attempt did on its inputs to the mistakes that a reader is told, and the input that shows them."""

from .answers import SHAPE, observe, with_right_shapes, wrong_shape
from .catalogue import Mistake
from .explanation import explained_slopes, explanation, explanations
from .search import smallest_wrong
from .truth import compatible, is_right, truth, values_agree, weights, wrong_slopes

IN_PLACE, RAISES, ENDLESS = "input modified in place", "raises an error", "does not end"
NO_GRADIENT, WRONG_GRADIENT, UNKNOWN = "no gradient", "wrong gradient", "unknown mistake"
NOT_FINITE = "not finite"


class Unanswered(Exception):
    """A `...` is left in the attempt."""


def observed(exercise, guard, attempt):
    """Return what an attempt does on each case; on one more that it answers wrongly if those are all right."""
    seen = {}
    for case in exercise.cases:
        seen[case] = observe(exercise, guard, attempt, case)
        trouble = seen[case].trouble or seen[case].gradient_trouble
        if trouble and trouble.kind == "unanswered":
            raise Unanswered
        if trouble and trouble.kind == "stopped":
            return seen
    if all(is_right(exercise, seen[case], case) for case in seen):
        case = smallest_wrong(exercise, guard, attempt)
        if case is not None:
            seen[case] = observe(exercise, guard, attempt, case)
    return seen


def diagnosed(exercise, seen):
    """Return the mistakes, none if all is right, and the evidence for a Verdict, given what was seen on each case."""
    for trouble in (either for case in seen for either in (seen[case].trouble, seen[case].gradient_trouble) if either):
        if trouble.kind == "stopped":
            return [Mistake(ENDLESS, f"{exercise.name} {trouble.text}")], {}
    wrong = [case for case in seen if not is_right(exercise, seen[case], case)]
    if not wrong:
        return [], {}
    named = {odd.name: odd for case in reversed(wrong) for odd in seen[case].form}
    changed = next((seen[case].changed for case in wrong if seen[case].changed), ())
    if changed:
        are = f"{' and '.join(changed)} {'is' if len(changed) == 1 else 'are'}"
        cause = (
            f"{are} not the same after the call: `+=`, `x[...] = ` and methods whose names end in _ write into the "
            "tensor they are given; work on a copy, or make a new one"
        )
        named[IN_PLACE] = Mistake(IN_PLACE, cause)
    sets = explanations(exercise, seen)
    values = explained(exercise, seen, sets)
    if values is None:
        mended, odd = with_right_shapes(exercise, seen)
        values = explained(exercise, mended, explanations(exercise, mended)) if odd else None
        if values is not None:
            named[odd.name] = odd
    if values is None:
        values = at_times(exercise, seen, wrong) or in_part(exercise, sets) or unexplained(exercise, seen, wrong, named)
    found = [*named.values(), *values]
    raised = [case for case in wrong if seen[case].trouble]
    if raised and RAISES not in [mistake.name for mistake in found]:
        more = raises(exercise, seen, raised).cause
        found[-1] = Mistake(found[-1].name, f"{found[-1].cause}\non another input it raises {more}")
    case = wrong[0]
    return found, evidence(exercise, case, seen[case]) if seen[case].outputs else {}


def explained(exercise, seen, sets):
    """Return the mistakes that explain everything: values (`sets` has each result's), errors, gradients; or None."""
    if None in sets:
        return None
    bends = united(sets)
    if not compatible(*bends):  # each result has an explanation, and the formula none for both
        return [bend.mistake for bend in bends]
    ill = all(values_agree(exercise, seen[case], case, bends) for case in seen if case.ill and seen[case].outputs)
    of_arithmetic = [] if ill else [entry for entry in exercise.mistakes if not entry.variants and not entry.fit]
    more, all_explained = explained_slopes(exercise, seen, bends)
    calm = [case for case in seen if seen[case].outputs and not case.ill]
    fitting = all(values_agree(exercise, seen[case], case, bends) for case in calm)
    whole = [bend.mistake for bend in bends]
    told = whole if fitting else [in_some_results(exercise, sets, bend) for bend in bends]
    mistakes = [*told, *(bend.mistake for bend in more), *of_arithmetic]
    raised = [case for case in seen if seen[case].trouble and not breaks_down(exercise, case, bends)]
    if raised and (not mistakes or 2 * len(raised) >= len(seen)):
        return None
    if mistakes and not fitting and told == whole:
        mistakes[-1] = Mistake(mistakes[-1].name, f"{mistakes[-1].cause} (an axis of size 1 is treated otherwise)")
    return mistakes if all_explained else [*mistakes, wrong_gradient(exercise, seen, bends)]


def in_some_results(exercise, sets, bend):
    """Return a bend's mistake; where some results, each explained by itself, do not have it, with those that do."""
    having = [
        name for name, found in zip(exercise.results, sets, strict=True) if bend.knobs in [b.knobs for b in found]
    ]
    mistake = bend.mistake
    all_do = len(having) == len(exercise.results)
    return mistake if all_do else Mistake(mistake.name, f"{mistake.cause} (in {' and '.join(having)} alone)")


def breaks_down(exercise, case, bends):
    """Return whether the formula, bent like this, gives no finite answer to a case: Python's numbers raise an error."""
    outputs = truth(exercise, case, bends).values
    return outputs is None or not all(output.isfinite().all() for output in outputs)


def united(sets):
    """Return the bends of several results as one set."""
    return tuple({frozenset(bend.knobs.items()): bend for found in sets for bend in found or ()}.values())


def in_part(exercise, sets):
    """Return the mistakes that explain some results, and which are left; None where that says nothing."""
    known = united(sets)
    unknown = [name for name, found in zip(exercise.results, sets, strict=True) if found is None]
    if not known or not unknown:
        return None
    return [*(bend.mistake for bend in known), Mistake(UNKNOWN, f"{' and '.join(unknown)} is not right")]


def at_times(exercise, seen, wrong):
    """Return the mistakes that explain the wrong cases alone, the others being right; None if there are none."""
    some = {case: seen[case] for case in wrong if seen[case].outputs}
    found = explanation(exercise, some, most=2, pairs=False) if 0 < len(wrong) < len(seen) else None
    if not found:
        return None
    when = only(exercise, seen, wrong)
    return [Mistake(bend.mistake.name, f"{bend.mistake.cause}.{when}") for bend in found]


# ---- what can be said when the catalogue does not explain it


def unexplained(exercise, seen, wrong, named):
    """Return Mistakes that say which term, which axis, and on what input: none if `named` ones say it all."""
    case = wrong[0]
    observed = seen[case]
    raised = [case for case in wrong if seen[case].trouble]
    found = [raises(exercise, seen, raised)] if raised else []
    if observed.trouble:
        return found
    if named or not observed.outputs:  # one thing at a time: what has a name may well explain the rest
        return []
    when = only(exercise, seen, wrong)
    triples = list(zip(exercise.results, observed.outputs, truth(exercise, case).values, strict=True))
    bad = [triple for k, triple in enumerate(triples) if not values_agree(exercise, observed, case, picks=[k])]
    if not bad:
        return found or [wrong_gradient(exercise, seen, ())]
    name, output, target = next((triple for triple in bad if triple[1].shape != triple[2].shape), bad[0])
    if output.shape != target.shape:
        return [Mistake(SHAPE, f"{wrong_shape(name, output, target).cause}.{when}")]
    if not output.isfinite().all() and target.isfinite().all():
        cause = (
            f"{name} holds inf or nan (not a number) where the right answer is finite: something is divided by 0, or a "
            "root is taken of a negative number"
        )
        return [Mistake(NOT_FINITE, f"{cause}.{when}"), *found]
    fine = [other for other in exercise.results if other not in [triple[0] for triple in bad]]
    words = f"{' and '.join(fine)} is right; {name} is not. " if fine else ""
    words += exercise.explain(case.main.double(), target, output.double()) if exercise.explain else ""
    return [Mistake(UNKNOWN, (words or "The numbers differ.") + when), *found]


def raises(exercise, seen, raised):
    """Return the Mistake of the cases on which an error was raised."""
    case = raised[0]
    sizes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in case.tensors.items())
    when = only(exercise, seen, raised) if len(raised) < len(seen) else ""
    return Mistake(RAISES, f"{seen[case].trouble.located}\ncalled with {sizes}.{when}")


def wrong_gradient(exercise, seen, bends):
    """Return the Mistake of a gradient that no mistake explains."""
    case = next(case for case in seen if seen[case].gradient_trouble or wrong_slopes(exercise, seen[case], case, bends))
    values = "" if bends else "the values are right, but "
    if seen[case].gradient_trouble:
        return Mistake(NO_GRADIENT, f"{values}no gradient can flow: {seen[case].gradient_trouble.located}")
    names = " and ".join(wrong_slopes(exercise, seen[case], case, bends))
    if seen[case].function:
        why = f"the `backward` of {seen[case].function}, written by hand, does not give the forward pass's derivative"
    else:
        why = "is a part of the formula detached (`detach`, `no_grad`, `.item()`, `.data`)?"
    return Mistake(WRONG_GRADIENT, f"{values}the gradient with respect to {names} is not the formula's: {why}")


def only(exercise, seen, wrong):
    """Return a sentence on what the wrongly answered inputs have in common and no other has, or nothing."""
    right = [case for case in seen if case not in wrong]

    def traits(case):
        yield from filter(None, (case.trait, f"the dtype is {str(case.main.dtype)[6:]}"))
        sizes = list(zip(exercise.letters, case.main.shape, strict=False))
        yield from (f"{letter} > 1" for letter, size in sizes if size > 1)
        if min(len(wrong), len(right)) > 1:  # of a single one too much could be said
            for letter, size in sizes:
                yield f"{letter} is {size}"
                yield from (f"{letter} is not {other}" for other in range(1, 9) if other != size)
                yield from [f"{letter} is even"] * (size % 2 == 0)

    others = {trait for case in right for trait in traits(case)}
    shared = set.intersection(*(set(traits(case)) for case in wrong)) - others if right else ()
    first = next((trait for trait in traits(wrong[0]) if trait in shared), None)
    return f" It shows only when {first}." if first else ""


def evidence(exercise, case, seen):
    """Return what shows the mistake on a case: values, else gradients, else the changed input."""
    right, given = truth(exercise, case).values, dict(case.arguments)
    what, expected, received = ", ".join(exercise.results), right, seen.outputs
    if values_agree(exercise, seen, case):
        for name in wrong_slopes(exercise, seen, case)[:1] if seen.gradients else ():
            what = f"gradient for {name}"
            given["w"] = weights(right[0])
            given["loss"] = f"(w · {exercise.results[0]}).sum()"
            slope = truth(exercise, case, slopes=True).values[exercise.tracked.index(name)]
            expected, received = (slope,), (seen.gradients[name],)
        for name in seen.changed[:1]:
            what, expected, received = f"{name} after the call", (case.arguments[name],), (seen.after[name],)
    return dict(example=tuple(given.items()), expected=expected, received=received, shown=what)
