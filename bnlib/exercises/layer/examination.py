"""The exercise `layer`: a class of one's own, used as an `nn.Module`.

Its three formulas are exercises of their own (`modes.py`), with the catalogues of `batch_norm` and `running_stats`; the
rest is book-keeping, looked at piece by piece. So a layer may have any number of mistakes at once, and each is named.
"""

import copy
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from itertools import product

import torch
from torch import nn
from torch.func import functional_call

from ..formula import batch
from ..judge import Case, Mistake
from ..judge import diagnosis as d
from ..judge.answers import NOTHING, TYPE, describe
from ..judge.explanation import explanation
from ..judge.guard import is_stub
from ..judge.truth import is_right
from ..judge.verdict import judged, unanswered
from ..reading import Place
from . import mistakes as m
from .modes import EVALUATES_BATCH, EVALUATION, RUNS, TRAINING, UPDATE, UPDATED_IN_EVAL, without
from .parts import AFFINE, ROLES, RUNNING, parts, roles

FIRST, SECOND = batch((4, 3, 2, 2), 6, mean=2.0), batch((4, 3, 2, 2), 7, scale=3.0)
BESIDE_NONE = {d.UNKNOWN, d.NOT_FINITE, m.EARLIER}  # what may come from the others, and says nothing beside them
RIGHT = "Both modes, gradients, parameters and buffers do what torch.nn's do, over several batches, frozen, copied, "
RIGHT += "moved and reloaded."


class Layer:
    """The exercise: `judge(attempt)` takes a class, or anything that makes an `nn.Module` of a number of channels."""

    name = "layer"
    place = Place(4, "The finished layer")
    signature = "Layer(num_features), an nn.Module for (N, C, H, W)"
    asks = (
        "Write the class: γ and β as parameters (from 1 and 0), running mean and variance as buffers of shape (C,) "
        "(from 0 and 1), momentum 0.1, ε = 1e-5, the mode from self.training; one value per channel in training is a "
        "ValueError."
    )

    def judge(self, attempt):
        """Return the Verdict on a class."""
        forward, called = (getattr(attempt, name, None) for name in ("forward", "__call__"))
        if is_stub(forward) or (forward is nn.Module.forward and (called is nn.Module.__call__ or is_stub(called))):
            return unanswered(self)
        fits = callable(attempt) and not isinstance(attempt, nn.Module)
        verdict = judged(self, attempt, RIGHT, fits, "Layer", "class")
        if verdict.ok:
            with suppress(RuntimeError):  # of names or shapes that are not torch.nn's
                ours, theirs = attempt(3), nn.BatchNorm2d(3)
                theirs.load_state_dict(ours.state_dict())
                ours.load_state_dict(theirs.state_dict())
                return replace(verdict, diagnosis=f"{RIGHT} Its state_dict fits torch.nn's, both ways.")
        return verdict

    def examine(self, guard, attempt):
        """Return (mistakes, evidence) of an attempt. Raises Unanswered."""
        examination = Examination(attempt, guard)
        examination.run()
        found = list(examination.found.values())
        return [mistake for mistake in found if mistake.name not in BESIDE_NONE] or found[:1], examination.evidence


class Examination:
    """One attempt at a layer, and what is found wrong with it: `found` by name, `evidence` for the Verdict."""

    def __init__(self, make, guard):
        self.make, self.guard, self.found, self.evidence = make, guard, {}, {}

    def run(self):
        """Look at everything. Raises Unanswered."""
        if not self.can_be_used():
            return
        self.look_at_parts()
        self.look_at_one_value()
        fresh = self.look_at_formulas()
        if m.CUMULATIVE not in fresh and self.changes_later():
            once, self.make = self.make, partial(trained, self.make)
            later, self.make = self.look_at_formulas(), once
            for name, mistake in (later | fresh).items():
                if (name in fresh) != (name in later):
                    when = "in the first training batch" if name in fresh else "from the second training batch on"
                    fresh[name] = Mistake(name, f"{mistake.cause} ({when})")
            if not fresh:
                self.note(m.EARLIER)
        self.add(fresh.values())
        if self.tracks:
            self.look_at_evaluation_between()
        self.look_at_copies()

    def note(self, name, *words):
        """Add the mistake of this name, with words put into its cause."""
        self.add([Mistake(name, m.CAUSES[name].format(*words))])

    def add(self, mistakes, evidence=None):
        """Add mistakes, each name once, and keep the first evidence."""
        for mistake in mistakes:
            self.found.setdefault(mistake.name, mistake)
        self.evidence = self.evidence or evidence or {}

    def tried(self, function, *args, where):
        """Return the result of a call; where it fails, note why, and in which mode, and return None."""
        value, trouble = self.guard.call(function, *args)
        if trouble:
            if trouble.kind == "unanswered":
                raise d.Unanswered
            self.add([Mistake(d.ENDLESS if trouble.kind == "stopped" else d.RAISES, f"{where}{trouble.located}")])
        return value

    def call(self, x, training, values, learns=True):
        """Return what a new layer gives for x in a mode as "y", and by role its parts, which were `values` before."""
        layer, lent = self.make(x.shape[1]).to(x.dtype).train(training), {}
        if not learns:
            layer.requires_grad_(False)
        for role, value in values.items():
            if role in self.names:
                lent |= self.parts[self.names[role]].put(layer, value.clone() if role in RUNNING else value)
        y = functional_call(layer, lent, (x,)) if lent else layer(x)
        after = parts(layer) | {name: replace(self.parts[name], tensor=tensor) for name, tensor in lent.items()}
        return {"y": y} | {role: after[name].tensor for role, name in self.names.items() if name in after}

    def after(self, *calls):
        """Return the last output, "y", and the parts of a new layer after calls (x, training); None if one fails."""

        def past():
            layer = self.make(3)
            for x, training in calls:
                y = layer.train(training)(x.clone())
            return {"y": y} | self.values(layer)

        return self.guard.call(past)[0]

    def values(self, layer):
        """Return copies of a layer's parts, by role."""
        own = parts(layer)
        return {role: own[name].tensor.detach().clone() for role, name in self.names.items() if name in own}

    def can_be_used(self):
        """Return whether a layer can be made and called; find its parts."""
        layer = self.tried(self.make, 3, where="Layer(3): ")
        if self.found:
            return False
        if not isinstance(layer, nn.Module):
            cause = f"Layer(3) is {describe(layer)}; inherit from nn.Module: class Layer(nn.Module)"
            return self.add([Mistake("not an nn.Module", cause)])
        lazy = any(map(nn.parameter.is_lazy, (*layer.parameters(), *layer.buffers())))
        new = {name: replace(part, tensor=part.tensor.detach().clone()) for name, part in parts(layer).items()}
        far_below = batch((4, 3, 2, 2), 0, mean=-50.0).requires_grad_()
        y = self.tried(lambda: layer.train()(far_below * 1), where="in train(), ")
        if self.found:
            return False
        if not isinstance(y, torch.Tensor):
            return self.add([Mistake(NOTHING if y is None else TYPE, f"`forward` returns {describe(y)}; expected y")])
        if type(layer).forward is nn.Module.forward or type(layer).__call__ is not nn.Module.__call__:
            self.note("__call__ instead of forward")
        self.used, self.parts = layer, parts(layer) | new
        self.names = roles(new, parts(layer), 3)
        self.tracks, self.scales = {*RUNNING} <= self.names.keys(), not self.names.keys().isdisjoint(AFFINE)
        late = [name for name in self.names.values() if name not in new and self.parts[name].kind != "attribute"]
        if late:
            self.make = partial(trained, self.make, set_back=self.names)
            if not lazy:
                self.note("made in the first call", ", ".join(late) + (" is" if len(late) == 1 else " are"))
        self.starts = {role: new[name].tensor for role, name in self.names.items() if name in new}
        return True

    def look_at_parts(self):
        """Name what is missing, kept in the wrong place, wrongly shaped, or starts elsewhere."""
        if not self.tracks:
            hidden = differ(self.after((SECOND, False)), self.after((FIRST, True), (SECOND, False)))
            self.note(m.ATTRIBUTES if hidden else "running statistics missing")
        kinds = {role: self.parts[name].kind for role, name in self.names.items()}
        for kind, mistake in m.KEPT_AS.items():
            if kind in map(kinds.get, RUNNING):
                self.note(mistake)
        if not self.scales:
            self.note("gamma and beta missing")
        elif {kinds.get(role, "parameter") for role in AFFINE} != {"parameter"}:
            self.note(m.NO_PARAMETERS)
        shapes = {role: self.parts[name].shape for role, name in self.names.items()}
        for shape in dict.fromkeys(shapes.values()):
            if shape != "(C,)":
                shaped = [role for role in shapes if shapes[role] == shape]
                words = f"{' and '.join(shaped)} {'is' if len(shaped) == 1 else 'are'}"
                self.add([Mistake(f"shaped {shape}", m.CAUSES["shaped"].format(words, shape))])
        for role, value in self.starts.items():
            if not (value == ROLES[role][1]).all():
                self.note(f"{role} does not start at {ROLES[role][1]:g}", f"{value.flatten()[0].item():.4g}")

    def refused(self, *shape, training):
        """Return the Trouble of a new layer with noise of this shape, None if it takes it."""
        return self.guard.call(lambda: self.make(3).train(training)(batch(shape, 4)))[1]

    def look_at_one_value(self):
        """Name a layer that refuses one image in training, or does not refuse one value per channel."""
        image, value = self.refused(1, 3, 2, 2, training=True), self.refused(1, 3, 1, 1, training=True)
        self.single = not image
        if image:
            self.note("one image refused", image.located)
        if not value:
            self.note("one value per channel accepted")
        elif not value.text.startswith("ValueError") and not image:
            self.note("another error for one value per channel", value.text)

    def look_at_formulas(self):
        """Return what is wrong with the three formulas and what decides between the modes, by name."""
        before, self.found = self.found, {}
        self.look_at_training()
        if self.tracks:
            self.look_at_modes()
        found, self.found = self.found, before
        return found

    def observed(self, exercise, attempt, slopes=True):
        """Return an exercise, and what an attempt does on its cases but for those of an error that has a name."""
        exercise = adapted(exercise, self.single, self.scales, slopes)
        return exercise, d.observed(exercise, self.guard, attempt)

    def look_at_training(self):
        """Name the mistakes in the training output and its gradients."""
        after = {}

        def training(x, *affine):
            after[x.shape] = self.call(x, True, dict(zip(AFFINE, affine, strict=True)))
            return after[x.shape]["y"]

        exercise, seen = self.observed(TRAINING, training)
        if self.tracks and explanation(exercise, seen, most=1, pairs=False) is None:
            wrong = [case for case in seen if not is_right(exercise, seen[case], case)]
            start = {shape: {role: torch.full(shape[1:2], ROLES[role][1]) for role in RUNNING} for shape in after}
            for statistics in (after, start):
                found = explained(EVALUATION, with_statistics(statistics, {c: seen[c] for c in wrong}), 2)
                if found is not None:
                    runs = Mistake(RUNS.name, f"{RUNS.cause}.{d.only(exercise, seen, wrong)}")
                    return self.add([runs, *found], d.evidence(exercise, wrong[0], seen[wrong[0]]))
        return self.add(*d.diagnosed(exercise, seen))

    def look_at_modes(self):
        """Name the mistakes in the update, in the evaluation output, and in what decides between them."""
        kept = dict(zip(RUNNING, torch.tensor([[1.0, 2.0, 3.0], [0.5, 2.0, 3.0]]), strict=True))

        def look(training, grad, learns=True, input_learns=False):
            with torch.set_grad_enabled(grad):
                return self.call(batch((4, 3, 2, 2), 1).requires_grad_(input_learns) * 1, training, kept, learns)

        seen = {
            (training, grad): self.tried(look, training, grad, where=f"in {'train' if training else 'eval'}(), ")
            for training, grad in product((True, False), repeat=2)
        }
        if None in seen.values():
            return
        by_grad = any(differ(seen[training, True], seen[training, False]) for training in (True, False))
        if by_grad:
            self.note(m.MODE)
        else:
            for *learn, when in ((False, False, "γ and β are frozen"), (True, True, "x needs a gradient")):
                other = self.tried(look, True, True, *learn, where=f"in train(), when {when}, ")
                if differ(other, seen[True, True]):
                    self.note("update hangs on requires_grad", when)
        if differ(kept, seen[False, not by_grad]):
            self.add([UPDATED_IN_EVAL])

        def update(x, *running):
            after = self.call(x, True, dict(zip(RUNNING, running, strict=True)))
            return tuple(after[role].detach().flatten() for role in RUNNING)

        exercise, seen = self.observed(UPDATE, update)
        found, shown = d.diagnosed(exercise, seen)
        two = self.after((FIRST, True), (SECOND, True)) if found else None
        if two and not differ({"running mean": torch.cat((FIRST, SECOND)).mean((0, 2, 3))}, two):  # both weigh the same
            found = [Mistake(m.CUMULATIVE, m.CAUSES[m.CUMULATIVE])]
        self.add(found, shown)
        after = {}

        def evaluation(x, *values):
            with torch.set_grad_enabled(not by_grad):
                after[x.shape] = self.call(x, False, dict(zip(ROLES, values, strict=True)))
            return after[x.shape]["y"]

        exercise, seen = self.observed(EVALUATION, evaluation, slopes=not by_grad)
        if explanation(exercise, seen, most=1, pairs=False) is None:
            of_batch = {without(case, "running_mean", "running_var"): seen[case] for case in seen}
            for mistake, other, cases, most in (
                (UPDATED_IN_EVAL, EVALUATION, with_statistics(after, seen), 2),
                (EVALUATES_BATCH, TRAINING, of_batch, 3),
            ):
                if (found := explained(other, cases, most)) is not None:
                    return self.add([mistake, *found], d.evidence(exercise, *next(iter(seen.items()))))
        return self.add(*d.diagnosed(exercise, seen))

    def changes_later(self):
        """Return whether a layer does otherwise from its second training batch on."""
        first, second = self.after((FIRST, True)), self.after((FIRST, True), (SECOND, True))
        if first is None or not differ(second, self.guard.call(self.call, SECOND.clone(), True, first)[0]):
            return False
        var, mean = torch.var_mean(FIRST, (0, 2, 3), correction=0, keepdim=True)
        if not differ({"y": (SECOND - mean) / (var + 1e-5).sqrt()}, second):
            self.note("the first batch's statistics for ever")
        return True

    def look_at_evaluation_between(self):
        """Name a layer that evaluation spoils: for training, for one value per channel, before it was trained."""
        if not self.starts.keys() >= {*RUNNING}:  # does the first batch enter as from a mean 0 and variance 1?
            start = {role: torch.full((3,), ROLES[role][1]) for role in RUNNING}
            expected = self.guard.call(self.call, FIRST.clone(), True, start)[0]
            running = {role: value for role, value in (expected or {}).items() if role in RUNNING}
            if differ(running, self.after((FIRST, True))):
                self.note("first batch enters otherwise")
        untrained = self.refused(2, 3, 2, 2, training=False)
        if untrained:
            self.note(m.UNTRAINED, untrained.located)
        elif not {m.MODE, d.RAISES} & self.found.keys() and self.refused(1, 3, 1, 1, training=False):
            self.note("one value per channel refused in evaluation")
        if not {m.MODE, UPDATED_IN_EVAL.name, d.RAISES} & self.found.keys():
            train, evaluate, again = (FIRST, True), (SECOND, False), (SECOND, True)
            if differ(self.after(train, again), self.after(train, evaluate, again)):
                self.note("evaluation changes training")

    def look_at_copies(self):
        """Name what goes wrong when the layer is saved, moved, copied, or stands beside another."""
        kept = [parts(self.used)[self.names[role]] for role in RUNNING if role in self.names]
        if any(part.tensor.requires_grad for part in kept if part.kind != "parameter"):
            self.note("running statistics carry the graph")
        elif trouble := self.guard.call(copy.deepcopy, self.used)[1]:
            self.note("cannot be copied", trouble.located)
        x = batch((4, 3, 2, 2), 2, mean=3.0)

        def beside():
            first, second = self.make(3), self.make(3)
            before = self.values(second)
            first.train()(x.clone())
            return not differ(before, self.values(second))

        def reloaded():
            layers = self.make(3), self.make(3)
            layers[0].train()(x.clone())
            layers[1].load_state_dict(layers[0].state_dict())
            first, second = (
                {"evaluated": layer.eval()(x.clone()), "trained": layer.train()(2 * x)} | self.values(layer)
                for layer in layers
            )
            return not differ(first, second)

        def moved():
            layer = self.make(3).double()
            layer.train()(x.double())
            return all(value.dtype == torch.float64 for value in self.values(layer).values())

        if self.tried(beside, where="") is False:
            self.note(m.SHARED)
        known = {m.ATTRIBUTES, m.NOT_SAVED, m.NO_PARAMETERS, m.SHARED, m.MODE, m.UNTRAINED}
        if self.tracks and not known & self.found.keys():
            again, trouble = self.guard.call(reloaded)
            if trouble:
                self.add([Mistake(m.RELOAD, f"after training, {trouble.located}")])
            elif not again:
                self.note(m.RELOAD)
            if self.tried(moved, where="after .double(), ") is False:
                self.note("does not move with the layer")


def trained(make, channels, set_back=()):
    """Return a layer that has seen a training batch, its parts in the roles to set back as a new layer's should be."""
    layer = make(channels)
    layer.train()(batch((4, channels, 2, 2), 5))
    with torch.no_grad():
        for role in set_back:
            parts(layer)[set_back[role]].tensor.fill_(ROLES[role][1])
    return layer


@cache  # so that what is right for it is computed once
def adapted(exercise, single, scales, slopes):
    """Return an exercise for a layer that may refuse a single image, have no γ and β, or let no gradient through."""

    def unscaled(gamma, beta, **rest):
        return exercise.formula(gamma=gamma * 0 + 1, beta=beta * 0, **rest)

    changes = {} if slopes else {"tracked": ()}
    if not single:
        changes |= {"cases": tuple(case for case in exercise.cases if len(case.main) > 1), "drawn": None}
    if not scales and "gamma" in exercise.cases[0].arguments:
        changes["formula"] = unscaled
    return replace(exercise, **changes)


def with_statistics(statistics, seen):
    """Return what was seen as of cases with the running statistics {shape of x: {role: tensor}}."""
    found = {}
    for case in (case for case in seen if case.main.shape in statistics):
        mean, var = (statistics[case.main.shape][role].detach().flatten().double() for role in RUNNING)
        found[Case(case.arguments | {"running_mean": mean, "running_var": var})] = seen[case]
    return found


def explained(exercise, seen, most):
    """Return the mistakes, up to `most`, that make what was seen on cases an exercise's answers, None if none do."""
    bends = explanation(replace(exercise, cases=tuple(seen), tracked=()), seen, most=most, pairs=False)
    return None if bends is None else [bend.mistake for bend in bends]


def differ(these, those):
    """Return whether tensors, by name, are not those of the same names, to float32's precision; no if one is None."""
    return None not in (these, those) and not all(
        a.numel() == b.numel() and torch.allclose(a.flatten().float(), b.flatten().float(), 1e-4, 1e-5, equal_nan=True)
        for a, b in ((these[name], those[name]) for name in these.keys() & those.keys())
    )


LAYER = Layer()
