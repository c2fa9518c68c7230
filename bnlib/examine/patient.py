"""The model under examination: copies of it, the data, what was found so far."""

import contextlib
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from .copies import clone, lazy, output, set_mode
from .data import floats, size, take, tensors
from .report import Finding
from .watch import Watch, moments

HALF = torch.float16, torch.bfloat16


class Patient:
    """A model, its data, and what the checks find; each check takes one, and calls its `say`."""

    def __init__(self, model, x, y, target, target_y, optimizer, batch_size):
        model = getattr(model, "_orig_mod", model)  # compiled
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        self.original, self.optimizer = model, optimizer
        self.x, self.target = (tree_map_only(torch.Tensor, lambda t: t.to(device), each) for each in (x, target))
        self.y, self.target_y = y, target_y
        self.n = size(x)
        self.batch = min(batch_size or 64, self.n)
        self.table, self.lags = {}, {}
        self.names, self.calls, self.first = [], [], {}  # normalizations; their calls in evaluation; the first of each
        self.own = {}  # the model's own modules that normalise: name -> Vitals
        self.data, self.new, self.well = {}, [], True  # measured statistics; layers with new ones; all can be used

    def say(self, code, severity, where, measured):
        """Note a finding; layers with the same words up to a semicolon share one."""
        finding = self.table.setdefault((code, severity, measured.split(";")[0]), Finding(code, severity, [], measured))
        if where not in finding.layers:
            finding.layers.append(where)

    def said(self, code):
        """Return whether there is such a finding."""
        return any(code == key[0] for key in self.table)

    def failed(self, code, severity, where, error, when=""):
        """Note a finding that an error is."""
        self.say(code, severity, where, f"{when}{type(error).__name__}: {str(error).partition(chr(10))[0]}")

    def start(self):
        """Make the copy from which all others come, lazy layers made, and return whether it runs."""
        self.model, failures = clone(self.original), []
        for dtype in (None, torch.float64, torch.float16, torch.bfloat16, torch.float32):
            cast = partial(floats, change=lambda t, dtype=dtype: t.to(dtype or t.dtype))
            try:
                trial, few = clone(self.model), cast(take(self.x, slice(0, 8)))
                with torch.no_grad():
                    with contextlib.suppress(NotImplementedError):
                        trial.eval()
                    result = output(trial, few)
                break
            except Exception as error:
                failures.append(error)
        else:  # the first is of the data as they came
            self.failed("BN301", "wrong", "model", failures[0], "in eval(), ")
            return False
        self.few, self.x, self.target = few, cast(self.x), cast(self.target)
        if lazy(self.model):
            modes = {part: part.training for part in self.model.modules()}
            with torch.no_grad():  # they take their shapes, in a mode that remembers nothing of the batch
                output(set_mode(self.model, False), few)
            for part, mode in modes.items():
                part.training = mode
        half = any(t.dtype in HALF for t in (*tensors(self.x), *self.model.parameters()))
        self.bound = 0.05 if half else 1e-3  # of what is no rounding error, in standard deviations of the output
        if not result.isfinite().all():
            self.say("BN116", "wrong", "model", "its outputs in eval() hold NaN or inf")
        return True

    def copy(self, training):
        """Return a copy, all of it in a mode."""
        return set_mode(clone(self.model), training)

    def given(self, training):
        """Return a copy in a mode, by the model's own `train` or `eval`, or as it was given, if in this mode."""
        k = clone(self.model)
        if self.original.training == training:
            return k
        return k.train() if training else k.eval()

    def watched(self, k, x, grad=False, **how):
        """Return (output, calls) of the copy `k`."""
        with torch.set_grad_enabled(grad), Watch(k, self.own, **how) as watch:
            return output(k, x), watch.calls

    def answers(self, x, put=None):
        """Return the outputs in evaluation, with other statistics if they are given."""
        k, starts = self.copy(False), range(0, size(x), 128)
        outs = [self.watched(k, take(x, slice(i, i + 128)), put=put, see=lambda _: None)[0] for i in starts]
        return torch.cat(outs) if outs[0].dim() else torch.stack(outs)

    def measured(self, x, batch, stochastic=False):
        """Return {name: (mean, variance, values that share one)} of what reaches each, over batches (precise BN)."""
        rows, k = {}, self.copy(stochastic)

        def see(call):
            if call.mean is not None:
                rows.setdefault(call.name, []).append(moments(call.x))

        for start in range(0, max(size(x) - batch, 0) + 1, batch):
            self.watched(k, take(x, slice(start, start + batch)), own=True, see=see)
        return {
            name: (*(torch.stack([row[i] for row in found]).mean(0) for i in (0, 1)), found[0][2])
            for name, found in rows.items()
        }
