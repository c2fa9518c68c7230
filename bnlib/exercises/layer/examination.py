"""The exercise `layer`: a class of one's own, used as an `nn.Module`.

Its three formulas are exercises of their own (`modes.py`), with the catalogues of `batch_norm` and `running_stats`; the
rest is book-keeping, looked at piece by piece. So a layer may have any number of mistakes at once, and each is named.
"""

import copy
from dataclasses import replace
from functools import cache

import torch
from torch import nn
from torch.func import functional_call

from ..formula import batch
from ..judge import Case, Mistake
from ..judge.answers import NOTHING, TYPE, describe
from ..judge.diagnosis import (
    ENDLESS,
    NOT_FINITE,
    RAISES,
    UNKNOWN,
    Unanswered,
    diagnosed,
    evidence,
    observed,
    only,
)
from ..judge.explanation import explanation
from ..judge.guard import is_stub
from ..judge.truth import is_right
from ..judge.verdict import judged, unanswered
from ..reading import Place
from . import mistakes as m
from .modes import EVALUATES_BATCH, EVALUATION, RUNS, TRAINING, UPDATE, UPDATED_IN_EVAL, without
from .parts import AFFINE, ROLES, RUNNING, parts, roles, told_by_training

TORCHS = "weight", "bias", "running_mean", "running_var", "num_batches_tracked"
PAST = batch((4, 3, 2, 2), 6, mean=2.0), batch((4, 3, 2, 2), 7, scale=3.0)
BESIDE_NONE = {UNKNOWN, NOT_FINITE, m.EARLIER.name}  # what may well come from the others, and says nothing beside them


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
        bare = forward is nn.Module.forward and called is nn.Module.__call__
        if is_stub(forward) or bare or (forward is nn.Module.forward and is_stub(called)):
            return unanswered(self)
        right = (
            "Both modes, gradients, parameters and buffers do what torch.nn's do, over several batches, frozen, "
            "copied, moved and reloaded."
        )
        fits = callable(attempt) and not isinstance(attempt, nn.Module)
        verdict = judged(self, attempt, right, fits, "Layer", "class")
        if verdict.ok and fits_torch(attempt):
            return replace(verdict, diagnosis=f"{right} Its state_dict fits torch.nn's, both ways.")
        return verdict

    def examine(self, guard, attempt):
        """Return (mistakes, evidence) of an attempt. Raises Unanswered."""
        examination = Examination(attempt, guard)
        examination.run()
        return examination.found.values(), examination.evidence


def fits_torch(make):
    """Return whether a right layer's state_dict loads into torch.nn's layer, and the other way round."""
    ours, theirs = make(3), nn.BatchNorm2d(3)
    if not set(ours.state_dict()) <= set(TORCHS):
        return False
    try:
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(theirs.state_dict())
    except RuntimeError:
        return False
    return True


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
        if m.CUMULATIVE.name not in fresh and self.changes_later():
            once = self.make
            self.make = lambda channels: trained_once(once, channels)
            later, self.make = self.look_at_formulas(), once
            for name in fresh.keys() ^ later.keys():
                when = m.FIRST if name in fresh else m.LATER
                fresh[name] = Mistake(name, {**later, **fresh}[name].cause + when)
            self.note([] if fresh else [m.EARLIER])
        self.note(fresh.values())
        if self.has(*RUNNING):
            self.look_at_evaluation_between()
        self.look_at_copies()

    def note(self, mistakes, evidence=None):
        """Add mistakes, each name once, and keep the first evidence; what says nothing beside others, only alone."""
        for mistake in mistakes:
            if mistake.name not in BESIDE_NONE or not self.found:
                self.found.setdefault(mistake.name, mistake)
        for name in BESIDE_NONE & self.found.keys() if len(self.found) > 1 else ():
            del self.found[name]
        self.evidence = self.evidence or evidence or {}

    def has(self, *roles):
        """Return whether the layer keeps something in each of these roles."""
        return all(role in self.names for role in roles)

    def tried(self, function, *args, where=""):
        """Return the result of a call; where it fails, note why, and in which mode, and return None."""
        value, trouble = self.guard.call(function, *args)
        if trouble:
            if trouble.kind == "unanswered":
                raise Unanswered
            self.note([Mistake(ENDLESS if trouble.kind == "stopped" else RAISES, f"{where}{trouble.located}")])
        return value

    def call(self, x, training, **values):
        """Return the output of a new layer for x in a mode, its parts set to `values`, and the parts after the call.

        Each keyword is a role, its blank an underscore.
        """
        layer = self.make(x.shape[1]).to(x.dtype).train(training)
        return called(layer, x, {role.replace("_", " "): value for role, value in values.items()}, self)

    def can_be_used(self):
        """Return whether a layer can be made and called; find its parts."""
        layer = self.tried(self.make, 3, where="Layer(3): ")
        if self.found:
            return False
        if not isinstance(layer, nn.Module):
            cause = f"Layer(3) is {describe(layer)}; inherit from nn.Module: class Layer(nn.Module)"
            self.note([Mistake("not an nn.Module", cause)])
            return False
        lazy = any(map(nn.parameter.is_lazy, (*layer.parameters(), *layer.buffers())))
        new = {name: replace(part, tensor=part.tensor.detach().clone()) for name, part in parts(layer).items()}
        far_below = batch((4, 3, 2, 2), 0, mean=-50.0).requires_grad_()
        y = self.tried(lambda: layer.train()(far_below * 1), where="in train(), ")
        if self.found:
            return False
        if not isinstance(y, torch.Tensor):
            self.note([Mistake(NOTHING if y is None else TYPE, f"`forward` returns {describe(y)}; expected y")])
            return False
        if type(layer).forward is nn.Module.forward or type(layer).__call__ is not nn.Module.__call__:
            self.note([m.NOT_FORWARD])
        self.used, self.parts = layer, parts(layer) | new
        self.names = roles(self.parts, 3)
        self.names |= told_by_training(new, parts(layer), self.names, 3)
        late = [name for name in self.names.values() if name not in new and self.parts[name].kind != "attribute"]
        if late:
            once = self.make
            self.make = lambda channels: started(once, channels, self.names)
            self.note([] if lazy else [m.FIRST_CALL.worded(", ".join(late) + (" is" if len(late) == 1 else " are"))])
        self.starts = {role: new[name].tensor for role, name in self.names.items() if name in new}
        return True

    def look_at_parts(self):
        """Name what is missing, kept in the wrong place, wrongly shaped, or starts elsewhere."""
        kinds = {role: self.parts[name].kind for role, name in self.names.items()}
        if not self.has(*RUNNING):
            new, trained = (self.after(*past, (PAST[1], False)) for past in ((), [(PAST[0], True)]))
            hidden = None not in (new, trained) and not alike(new[:1], trained[:1])
            self.note([m.ATTRIBUTES if hidden else m.NO_RUNNING])
        for kind, mistake in (
            ("attribute", m.ATTRIBUTES),
            ("unsaved buffer", m.NOT_SAVED),
            ("parameter", m.AS_PARAMETERS),
        ):
            if kind in (kinds.get(role) for role in RUNNING):
                self.note([mistake])
        if not self.has("gamma") and not self.has("beta"):
            self.note([m.NO_AFFINE])
        elif any(kinds.get(role, "parameter") != "parameter" for role in AFFINE):
            self.note([m.AFFINE_ATTRIBUTES])
        shapes = {role: self.parts[name].shape for role, name in self.names.items()}
        for shape in dict.fromkeys(shapes.values()):
            shaped = [role for role in shapes if shapes[role] == shape]
            if shape != "(C,)":
                words = f"{' and '.join(shaped)} {'is' if len(shaped) == 1 else 'are'}"
                self.note([Mistake(m.SHAPED.name.format(shape), m.SHAPED.cause.format(words, shape))])
        for role, value in self.starts.items():
            if not (value == ROLES[role][1]).all():
                self.note([m.STARTS[role].worded(f"{value.flatten()[0].item():.4g}")])

    def look_at_one_value(self):
        """Name a layer that trains on one value per channel, or refuses it in evaluation; or refuses one image."""
        x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)

        def trouble(x, training):
            return self.guard.call(lambda: self.make(3).train(training)(x.clone()))[1]

        image = trouble(batch((1, 3, 2, 2), 4), True)
        self.single = not image
        if image:
            self.note([m.ONE_IMAGE.worded(image.located)])
        value = trouble(x, True)
        if not value:
            self.note([m.ONE_VALUE])
        elif not value.text.startswith("ValueError") and not image:
            self.note([m.ONE_VALUE_ERROR.worded(value.text)])
        self.untrained = trouble(batch((2, 3, 2, 2), 4), False)
        self.value_in_evaluation = trouble(x, False)

    def look_at_formulas(self):
        """Return what is wrong with the three formulas and what decides between the modes, by name."""
        before, self.found = self.found, {}
        self.look_at_training()
        if self.has(*RUNNING):
            self.look_at_modes()
        found, self.found = self.found, before
        return found

    def observed(self, exercise, attempt):
        """Return an exercise, and what an attempt does on its cases but for those of an error that has a name."""
        exercise = exercise if self.single else without_single_images(exercise)
        if not self.has("gamma") and not self.has("beta") and "gamma" in exercise.cases[0].arguments:
            exercise = without_affine(exercise)
        return exercise, observed(exercise, self.guard, attempt)

    def look_at_training(self):
        """Name the mistakes in the training output and its gradients."""
        after = {}

        def training(x, gamma, beta):
            y, after[x.shape] = self.call(x, True, gamma=gamma, beta=beta)
            return y

        exercise, seen = self.observed(TRAINING, training)
        wrong = {case: observation for case, observation in seen.items() if not is_right(exercise, observation, case)}
        if wrong and self.has(*RUNNING) and explanation(exercise, seen, most=1, pairs=False) is None:
            start = {role: torch.full((8,), ROLES[role][1]) for role in RUNNING}
            for source in (after, dict.fromkeys(after, start)):
                found = self.as_evaluation(wrong, source)
                if found is not None:
                    when = only(exercise, seen, list(wrong))
                    found[0] = Mistake(found[0].name, f"{found[0].cause}.{when}")
                    return self.note(found, evidence(exercise, *next(iter(wrong.items()))))
        return self.note(*diagnosed(exercise, seen))

    def as_evaluation(self, seen, statistics):
        """Return the mistakes if outputs seen in training are those of evaluation with these statistics, else None."""
        cases = {}
        for case, observation in seen.items():
            if observation.outputs and case.main.shape in statistics:
                c = case.main.shape[1]
                mean, var = (statistics[case.main.shape][role].detach().flatten()[:c].double() for role in RUNNING)
                if len(mean) == c:
                    arguments = case.arguments | {"running_mean": mean, "running_var": var}
                    cases[Case(arguments)] = observation.with_outputs(observation.outputs)
        bends = (
            explanation(replace(EVALUATION, cases=tuple(cases), tracked=()), cases, most=2, pairs=False)
            if cases
            else None
        )
        return None if bends is None else [RUNS, *(bend.mistake for bend in bends)]

    def look_at_modes(self):
        """Name the mistakes in the update, in the evaluation output, and in what decides between them."""
        mean, var = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 3.0])

        def look(training, grad, learns=True, input_learns=False):
            with torch.set_grad_enabled(grad):
                layer = self.make(3).train(training).requires_grad_(learns)
                x = batch((4, 3, 2, 2), 1).requires_grad_(input_learns)
                kept = {"running mean": mean.clone(), "running variance": var.clone()}
                y, after = called(layer, x * 1 if input_learns else x, kept, self)
            return [tensor.detach().flatten() for tensor in (y, *(after[role] for role in RUNNING))]

        seen = {
            (training, grad): self.tried(look, training, grad, where=f"in {'train' if training else 'eval'}(), ")
            for training in (True, False)
            for grad in (True, False)
        }
        if any(value is None for value in seen.values()):
            return
        by_grad = not all(alike(seen[training, True], seen[training, False]) for training in (True, False))
        if by_grad:
            self.note([m.MODE])
        else:
            for learns, input_learns, when in (
                (False, False, "γ and β are frozen"),
                (True, True, "x needs a gradient"),
            ):
                other = self.tried(look, True, True, learns, input_learns, where=f"in train(), when {when}, ")
                if other and not alike(other, seen[True, True]):
                    self.note([m.HANGS.worded(when)])
        if not alike(seen[False, not by_grad][1:], [mean, var]):
            self.note([UPDATED_IN_EVAL])

        def update(x, running_mean, running_var):
            after = self.call(x, True, running_mean=running_mean.clone(), running_variance=running_var.clone())[1]
            return tuple(after[role].detach().flatten() for role in RUNNING)

        after_evaluation = {}

        def evaluation(x, gamma, beta, running_mean, running_var):
            values = dict(running_mean=running_mean.clone(), running_variance=running_var.clone())
            with torch.set_grad_enabled(not by_grad):
                y, after_evaluation[x.shape] = self.call(x, False, gamma=gamma, beta=beta, **values)
            return y

        exercise, seen = self.observed(UPDATE, update)
        found, shown = diagnosed(exercise, seen)
        if found and self.averages_all():
            found = [m.CUMULATIVE]
        self.note(found, shown)
        exercise, seen = self.observed(evaluating(by_grad), evaluation)
        if explanation(exercise, seen, most=1, pairs=False) is None:
            first = evidence(exercise, *next(iter(seen.items())))
            updated = self.as_evaluation(seen, after_evaluation)
            if updated is not None:
                return self.note([UPDATED_IN_EVAL, *updated[1:]], first)
            of_batch = {without(case, "running_mean", "running_var"): seen[case] for case in seen}
            bends = explanation(replace(TRAINING, cases=tuple(of_batch)), of_batch, most=3, pairs=False)
            if bends is not None:
                return self.note([EVALUATES_BATCH, *(bend.mistake for bend in bends)], first)
        return self.note(*diagnosed(exercise, seen))

    def averages_all(self):
        """Return whether two batches weigh the same in a new layer's running mean."""

        def after_two():
            layer, batches = self.make(3).train(), [batch((4, 3, 2, 2), seed) for seed in (1, 2)]
            for x in batches:
                layer(x)
            running = parts(layer)[self.names["running mean"]].tensor
            return alike([running.flatten()], [torch.cat(batches).mean((0, 2, 3))])

        return self.guard.call(after_two)[0]

    def after(self, *calls):
        """Return the output and the parts, by role, of a new layer after calls (x, training); None if one fails."""

        def past():
            layer = self.make(3)
            for x, training in calls:
                y = layer.train(training)(x.clone())
            return [y.detach(), *(parts(layer)[name].tensor.detach().clone() for name in self.names.values())]

        return self.guard.call(past)[0]

    def changes_later(self):
        """Return whether a layer does otherwise from its second training batch on."""
        before, after = self.after((PAST[0], True)), self.after((PAST[0], True), (PAST[1], True))
        if before is None or after is None:
            return False
        state = dict(zip(self.names, before[1:], strict=True))

        def fresh():
            y, parts_after = called(self.make(3).train(), PAST[1].clone(), state, self)
            return [y.detach(), *(parts_after[role].detach() for role in self.names)]

        expected, trouble = self.guard.call(fresh)
        if trouble or alike(after, expected):
            return False
        mean, var = PAST[0].mean((0, 2, 3), keepdim=True), PAST[0].var((0, 2, 3), correction=0, keepdim=True)
        self.note([m.FIRST_FOR_EVER] if alike([after[0]], [(PAST[1] - mean) / (var + 1e-5).sqrt()]) else [])
        return True

    def changes_first(self):
        """Return whether the first training batch enters otherwise than it would from a mean 0 and variance 1."""

        def from_start():
            state = {role: torch.full((3,), ROLES[role][1]) for role in RUNNING}
            after = called(self.make(3).train(), PAST[0].clone(), state, self)[1]
            return [after[role].detach().flatten() for role in RUNNING]

        first = self.after((PAST[0], True))
        expected, trouble = self.guard.call(from_start)
        places = [list(self.names).index(role) + 1 for role in RUNNING]
        return first is not None and not trouble and not alike([first[k].flatten() for k in places], expected)

    def look_at_evaluation_between(self):
        """Name a layer that evaluation spoils: for training, for one value per channel, before it was trained."""
        late = [role for role in RUNNING if role not in self.starts]
        if late and self.changes_first():
            self.note([m.FIRST_BATCH])
        if self.untrained:
            self.note([m.UNTRAINED.worded(self.untrained.located)])
        elif self.value_in_evaluation and not {m.MODE.name, RAISES} & self.found.keys():
            self.note([m.ONE_VALUE_EVAL])
        if not {m.MODE.name, UPDATED_IN_EVAL.name, RAISES} & self.found.keys():
            without, between = (
                self.after((PAST[0], True), *evaluation, (PAST[1], True)) for evaluation in ((), [(PAST[1], False)])
            )
            if without is not None and between is not None and not alike(without, between):
                self.note([m.BETWEEN])

    def look_at_copies(self):
        """Name what goes wrong when the layer is saved, moved, copied, or stands beside another."""
        x = batch((4, 3, 2, 2), 2, mean=3.0)
        kept = [parts(self.used)[self.names[role]] for role in RUNNING if self.has(role)]
        if any(part.tensor.requires_grad for part in kept if part.kind != "parameter"):
            self.note([m.GRAPH])
        else:
            _, trouble = self.guard.call(copy.deepcopy, self.used)
            self.note([m.COPY.worded(trouble.located)] if trouble else [])

        def values(layer):
            return [parts(layer)[self.names[role]].tensor.detach().clone() for role in self.starts]

        def beside():
            first, second = self.make(3), self.make(3)
            before = values(second)
            first.train()(x.clone())
            return alike(values(second), before)

        def reloaded():
            first, second = self.make(3), self.make(3)
            first.train()(x.clone())
            second.load_state_dict(first.state_dict())
            outputs = [layer.eval()(x.clone()).detach() for layer in (first, second)]
            outputs += [layer.train()(2 * x).detach() for layer in (first, second)]
            return alike(outputs[::2], outputs[1::2]) and alike(values(first), values(second))

        def moved():
            layer = self.make(3).double()
            layer.train()(x.double())
            return all(parts(layer)[name].tensor.dtype == torch.float64 for name in self.names.values())

        self.note([m.SHARED] if self.tried(beside) is False else [])
        if (
            self.has(*RUNNING)
            and not {
                *(
                    m.ATTRIBUTES.name,
                    m.NOT_SAVED.name,
                    m.AFFINE_ATTRIBUTES.name,
                    m.SHARED.name,
                    m.MODE.name,
                    m.UNTRAINED.name,
                )
            }
            & self.found.keys()
        ):
            again, trouble = self.guard.call(reloaded)
            if trouble:
                self.note([Mistake(m.RELOAD.name, f"after training, {trouble.located}")])
            self.note([] if again or trouble else [m.RELOAD])
            self.note([m.MOVES] if self.tried(moved, where="after .double(), ") is False else [])


def called(layer, x, values, examination):
    """Return a layer's output for x with its parts set to values, by role, and its parts after the call, by role."""
    lent, found, names = {}, examination.parts, examination.names
    for role, value in values.items():
        if role in names:
            lent |= found[names[role]].put(layer, value)
    y = functional_call(layer, lent, (x,)) if lent else layer(x)
    after = parts(layer) | {name: replace(found[name], tensor=tensor) for name, tensor in lent.items()}
    return y, {role: after[name].tensor for role, name in names.items() if name in after}


def started(make, channels, names):
    """Return a layer that makes parts in its first call, after that call, its parts as a new layer's should be."""
    layer = make(channels)
    layer.train()(batch((4, channels, 2, 2), 5))
    with torch.no_grad():
        for role, name in names.items():
            parts(layer)[name].tensor.fill_(ROLES[role][1])
    return layer


def trained_once(make, channels):
    """Return a layer that has seen a training batch."""
    layer = make(channels)
    layer.train()(batch((4, channels, 2, 2), 5))
    return layer


@cache
def without_single_images(exercise):
    """Return an exercise without its cases of one image, and without drawn ones, which may be of one."""
    return replace(exercise, cases=tuple(case for case in exercise.cases if len(case.main) > 1), drawn=None)


@cache
def without_affine(exercise):
    """Return an exercise whose answers leave γ and β out."""
    formula = exercise.formula
    return replace(
        exercise,
        formula=lambda x, gamma, beta, *rest, **knobs: formula(x, gamma * 0 + 1, beta * 0, *rest, **knobs),
    )


@cache
def evaluating(by_grad):
    """Return the exercise of evaluation, without gradients where there can be none."""
    return replace(EVALUATION, tracked=()) if by_grad else EVALUATION


def alike(these, those):
    """Return whether two lists of tensors agree to float32's precision."""
    return all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), 1e-4, 1e-5, equal_nan=True)
        for a, b in zip(these, those, strict=True)
    )


LAYER = Layer()
