"""The exercise `layer`: a class of one's own, used as an `nn.Module`.

Its three formulas are exercises of their own (`modes.py`), with the catalogues of `batch_norm` and `running_stats`; the
rest is book-keeping, looked at piece by piece. So a layer may have any number of mistakes at once, and each is named.
"""

import copy
from dataclasses import replace

import torch
from torch import nn
from torch.func import functional_call

from .answers import NOTHING, TYPE, describe
from .base import ENDLESS, RAISES, UNKNOWN, Unanswered, judged, located, unanswered
from .catalogue import Mistake, batch
from .guard import is_stub
from .modes import EVALUATION, TRAINING, UPDATE, UPDATED_IN_EVAL
from .parts import ROLES, parts, role_of

MODE = Mistake(
    "mode taken from grad mode",
    "whether it trains or evaluates depends on `torch.no_grad()` (`torch.is_grad_enabled()`), not on `train()` and "
    "`eval()`: use `self.training`",
)
ATTRIBUTES = Mistake(
    "plain attributes",
    "the running statistics are plain attributes: `state_dict()` does not save them and `.to(device)` leaves them "
    "behind; use `self.register_buffer(name, tensor)`",
)
NOT_SAVED = Mistake(
    "buffers not saved",
    "the running statistics are registered with persistent=False, so `state_dict()` leaves them out",
)
AS_PARAMETERS = Mistake(
    "running statistics as parameters",
    "the running statistics are `nn.Parameter`s, so they are among `parameters()` for the optimiser to change; use "
    "`self.register_buffer(name, tensor)`",
)
AFFINE_ATTRIBUTES = Mistake(
    "gamma and beta are no parameters",
    "γ and β are not among `parameters()`, so no optimiser finds them; use `nn.Parameter`",
)
NO_AFFINE = Mistake("gamma and beta missing", "the layer has no γ and β; they are `nn.Parameter`s of shape (C,)")
NO_RUNNING = Mistake(
    "running statistics missing",
    "the layer keeps no running mean and variance; eval() needs them: buffers of shape (C,)",
)
SHAPED = Mistake(
    "shaped (1, C, 1, 1)",
    "the {} shaped (1, C, 1, 1); keep (C,), as torch.nn does, and give it that shape in the forward pass, or a "
    "`state_dict` of torch.nn does not fit",
)
GRAPH = Mistake(
    "running statistics carry the graph",
    "the running statistics keep the graph of every batch alive (and cannot be deep-copied): update them under "
    "`torch.no_grad()` or from `mean.detach()`",
)
COPY = Mistake("cannot be copied", "`copy.deepcopy(layer)` fails: {}")
SHARED = Mistake(
    "statistics shared between layers",
    "training one layer changes another one: the tensors belong to the class, or are defaults made once; make them in "
    "`__init__`",
)
ONE_VALUE = Mistake(
    "one value per channel accepted",
    "in training, an input of shape (1, C, 1, 1) has one value per channel and no spread: raise a ValueError, as "
    "torch.nn does",
)
ONE_VALUE_ERROR = Mistake(
    "another error for one value per channel",
    "in training, an input of shape (1, C, 1, 1) has one value per channel: {}; raise a ValueError, as torch.nn does",
)
ONE_VALUE_EVAL = Mistake(
    "one value per channel refused in evaluation",
    "eval() needs no spread, the running statistics give it: an input of shape (1, C, 1, 1) is fine there",
)
RELOAD = Mistake(
    "state_dict does not restore the layer",
    "after load_state_dict a new layer gives other outputs in eval(): something that matters is not saved",
)
MOVES = Mistake(
    "does not move with the layer",
    "after `.to(torch.float64)` a part of the layer is still float32: register it as a parameter or a buffer",
)
CUMULATIVE = Mistake(
    "cumulative average instead of momentum",
    "every batch weighs the same in the running statistics (momentum=None); asked for is momentum 0.1",
)
STARTS = {
    "gamma": Mistake("gamma does not start at 1", "γ starts at {}; a new layer has γ = 1, so that it only normalises"),
    "beta": Mistake("beta does not start at 0", "β starts at {}; a new layer has β = 0, so that it only normalises"),
    "running mean": Mistake(
        "running mean does not start at 0", "the running mean starts at {}; in PyTorch it starts at 0"
    ),
    "running variance": Mistake(
        "running variance does not start at 1", "the running variance starts at {}; in PyTorch it starts at 1"
    ),
}


def worded(mistake, words):
    """Return a mistake with words put into its cause."""
    return Mistake(mistake.name, mistake.cause.format(words))


class Layer:
    """The exercise: `judge(attempt)` takes a class, or anything that makes an `nn.Module` of a number of channels."""

    name = "layer"
    lesson = 4
    section = "The finished layer"
    signature = "Layer(num_features), an nn.Module for (N, C, H, W)"
    asks = (
        "Write the class: γ and β as parameters (from 1 and 0), running mean and variance as buffers of shape (C,) "
        "(from 0 and 1), momentum 0.1, ε = 1e-5, the mode from self.training; one value per channel in training is a "
        "ValueError."
    )

    def judge(self, attempt):
        """Return the Verdict on a class."""
        forward = getattr(attempt, "forward", None)
        if is_stub(forward) or forward is nn.Module.forward:
            return unanswered(self)
        right = "Both modes, gradients, parameters, buffers, state_dict, .to() and deepcopy do what torch.nn's do."
        fits = callable(attempt) and not isinstance(attempt, nn.Module)
        return judged(self, attempt, right, fits, "Layer", "class")

    def examine(self, guard, attempt):
        """Return (mistakes, evidence) of an attempt. Raises Unanswered."""
        examination = Examination(attempt, guard)
        examination.run()
        return examination.found.values(), examination.evidence


RUNNING = ("running mean", "running variance")
AFFINE = ("gamma", "beta")


class Examination:
    """One attempt at a layer, and what is found wrong with it: `found` by name, `evidence` for the Verdict."""

    def __init__(self, make, guard):
        self.make, self.guard, self.found, self.evidence = make, guard, {}, {}

    def run(self):
        """Look at everything. Raises Unanswered."""
        if not self.can_be_used():
            return
        self.look_at_parts()
        self.look_at_training()
        if self.has(*RUNNING):
            self.look_at_modes()
            self.look_at_copies()
        self.look_at_one_value()

    def note(self, mistakes, evidence=None):
        """Add mistakes, each name once, and keep the first evidence.

        One that has no name says nothing beside others, which it may well come from.
        """
        for mistake in mistakes:
            if mistake.name != UNKNOWN or not self.found:
                self.found.setdefault(mistake.name, mistake)
        self.evidence = self.evidence or evidence or {}

    def has(self, *roles):
        """Return whether the layer keeps something in each of these roles."""
        return all(role in self.names for role in roles)

    def tried(self, function, *args):
        """Return the result of a call; where it fails, note why and return None."""
        value, trouble = self.guard.call(function, *args)
        if trouble:
            if trouble.kind == "unanswered":
                raise Unanswered
            self.note([Mistake(ENDLESS if trouble.kind == "stopped" else RAISES, located(trouble))])
        return value

    def call(self, x, training, **values):
        """Return the output of a new layer for x in a mode, its parts set to `values`, and the parts after the call.

        Each keyword is a role, its blank an underscore.
        """
        layer = self.make(x.shape[1]).to(x.dtype).train(training)
        lent = {}
        for role, value in values.items():
            name = self.names.get(role.replace("_", " "))
            if name:
                lent |= self.parts[name].put(layer, value)
        y = functional_call(layer, lent, (x,)) if lent else layer(x)
        after = parts(layer) | {name: replace(self.parts[name], tensor=tensor) for name, tensor in lent.items()}
        return y, {role: after[name].tensor for role, name in self.names.items()}

    def can_be_used(self):
        """Return whether a layer can be made and called; find its parts."""
        layer = self.tried(self.make, 3)
        if self.found:
            return False
        if not isinstance(layer, nn.Module):
            cause = f"Layer(3) is {describe(layer)}; inherit from nn.Module: class Layer(nn.Module)"
            self.note([Mistake("not an nn.Module", cause)])
            return False
        new = {name: replace(part, tensor=part.tensor.detach().clone()) for name, part in parts(layer).items()}
        x = batch((4, 3, 2, 2), 0).requires_grad_()
        y = self.tried(lambda: layer.train()(x * 1))
        if self.found:
            return False
        if not isinstance(y, torch.Tensor):
            self.note([Mistake(NOTHING if y is None else TYPE, f"`forward` returns {describe(y)}; expected y")])
            return False
        self.used, self.parts, self.names = layer, parts(layer) | new, {}
        for part in self.parts.values():  # a statistic may be made in the first call only
            self.names.setdefault(role_of(part), part.name)
        self.names.pop(None, None)
        self.starts = {role: new[name].tensor for role, name in self.names.items() if name in new}
        return True

    def look_at_parts(self):
        """Name what is missing, kept in the wrong place, wrongly shaped, or starts elsewhere."""
        kinds = {role: self.parts[name].kind for role, name in self.names.items()}
        if not self.has(*RUNNING):
            self.note([NO_RUNNING])
        for kind, mistake in (("attribute", ATTRIBUTES), ("unsaved buffer", NOT_SAVED), ("parameter", AS_PARAMETERS)):
            if kind in (kinds.get(role) for role in RUNNING):
                self.note([mistake])
        if not self.has("gamma") and not self.has("beta"):
            self.note([NO_AFFINE])
        elif any(kinds.get(role, "parameter") != "parameter" for role in AFFINE):
            self.note([AFFINE_ATTRIBUTES])
        shaped = [role for role in RUNNING if self.has(role) and self.parts[self.names[role]].tensor.dim() == 4]
        if shaped:
            self.note([worded(SHAPED, f"{' and '.join(shaped)} {'is' if len(shaped) == 1 else 'are'}")])
        for role, value in self.starts.items():
            if not (value == ROLES[role][1]).all():
                self.note([worded(STARTS[role], f"{value.flatten()[0].item():.4g}")])

    def judged(self, exercise, attempt):
        """Note what an exercise finds, leaving out γ and β where they are known to be missing."""
        if not self.has("gamma") and not self.has("beta") and "gamma" in exercise.cases[0].arguments:
            formula = exercise.formula
            exercise = replace(
                exercise,
                formula=lambda x, gamma, beta, *rest, **knobs: formula(x, gamma * 0 + 1, beta * 0, *rest, **knobs),
            )
        self.note(*exercise.examine(self.guard, attempt))

    def look_at_training(self):
        """Name the mistakes in the training output and its gradients."""
        self.judged(TRAINING, lambda x, gamma, beta: self.call(x, True, gamma=gamma, beta=beta)[0])

    def look_at_modes(self):
        """Name the mistakes in the update, in the evaluation output, and in what decides between them."""
        mean, var = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 3.0])

        def look(training, grad):
            with torch.set_grad_enabled(grad):
                y, after = self.call(
                    batch((4, 3, 2, 2), 1), training, running_mean=mean.clone(), running_variance=var.clone()
                )
            return [tensor.detach().flatten() for tensor in (y, *(after[role] for role in RUNNING))]

        seen = {
            (training, grad): self.tried(look, training, grad) for training in (True, False) for grad in (True, False)
        }
        if any(value is None for value in seen.values()):
            return
        by_grad = not all(alike(seen[training, True], seen[training, False]) for training in (True, False))
        if by_grad:
            self.note([MODE])
        if not alike(seen[False, not by_grad][1:], [mean, var]):
            self.note([UPDATED_IN_EVAL])

        def update(x, running_mean, running_var):
            after = self.call(x, True, running_mean=running_mean.clone(), running_variance=running_var.clone())[1]
            return tuple(after[role].detach().flatten() for role in RUNNING)

        def evaluation(x, gamma, beta, running_mean, running_var):
            values = dict(running_mean=running_mean.clone(), running_variance=running_var.clone())
            with torch.set_grad_enabled(not by_grad):
                return self.call(x, False, gamma=gamma, beta=beta, **values)[0]

        self.judged(UPDATE, update)
        if "running statistics replaced" in self.found and self.averages_all():
            del self.found["running statistics replaced"]
            self.note([CUMULATIVE])
        self.judged(replace(EVALUATION, tracked=()) if by_grad else EVALUATION, evaluation)

    def averages_all(self):
        """Return whether two batches weigh the same in a new layer's running mean."""

        def after_two():
            layer, batches = self.make(3).train(), [batch((4, 3, 2, 2), seed) for seed in (1, 2)]
            for x in batches:
                layer(x)
            running = parts(layer)[self.names["running mean"]].tensor
            return alike([running.flatten()], [torch.cat(batches).mean((0, 2, 3))])

        return self.tried(after_two)

    def look_at_copies(self):
        """Name what goes wrong when the layer is saved, moved, copied, or stands beside another."""
        x = batch((4, 3, 2, 2), 2, mean=3.0)
        kept = [parts(self.used)[self.names[role]] for role in RUNNING]
        if any(part.tensor.requires_grad for part in kept if part.kind != "parameter"):
            self.note([GRAPH])
        else:
            _, trouble = self.guard.call(copy.deepcopy, self.used)
            self.note([worded(COPY, located(trouble))] if trouble else [])

        def beside():
            first, second = self.make(3), self.make(3)
            first.train()(x.clone())
            values = parts(second)
            return alike([values[self.names[role]].tensor for role in self.starts], self.starts.values())

        def reloaded():
            first, second = self.make(3), self.make(3)
            first.train()(x.clone())
            second.load_state_dict(first.state_dict())
            return alike(*([layer.eval()(x.clone()).detach()] for layer in (first, second)))

        def moved():
            layer = self.make(3).double()
            layer.train()(x.double())
            return all(parts(layer)[name].tensor.dtype == torch.float64 for name in self.names.values())

        self.note([SHARED] if self.tried(beside) is False else [])
        told = {mistake.name for mistake in (ATTRIBUTES, NOT_SAVED, AFFINE_ATTRIBUTES, SHARED, MODE)}
        if not told & self.found.keys():
            self.note([RELOAD] if self.tried(reloaded) is False else [])
            self.note([MOVES] if self.tried(moved) is False else [])

    def look_at_one_value(self):
        """Name a layer that trains on one value per channel, or refuses it in evaluation."""
        x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
        _, trouble = self.guard.call(lambda: self.make(3).train()(x.clone()))
        if not trouble:
            self.note([ONE_VALUE])
        elif not trouble.text.startswith("ValueError") and RAISES not in self.found:
            self.note([worded(ONE_VALUE_ERROR, trouble.text)])
        _, trouble = self.guard.call(lambda: self.make(3).eval()(x.clone()))
        self.note([ONE_VALUE_EVAL] if trouble and not {MODE.name, NO_RUNNING.name, RAISES} & self.found.keys() else [])


def alike(these, those):
    """Return whether two lists of tensors agree to float32's precision."""
    return all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), 1e-4, 1e-5, equal_nan=True)
        for a, b in zip(these, those, strict=True)
    )


LAYER = Layer()
