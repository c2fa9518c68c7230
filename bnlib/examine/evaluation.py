"""The model in evaluation: does an answer hang on its companions, does anything move, is everything saved?"""

import contextlib

import torch

from .copies import changed, largest, output, set_mode, state
from .data import floats, size, take
from .watch import overhear, owner


def company(p):
    """See whether an answer hangs on its companions, and whether anything moves."""
    if p.n < 3:
        return
    few = take(p.x, torch.arange(min(8, p.n)))
    later = take(p.x, torch.cat([torch.zeros(1).long(), torch.arange(p.n - size(few) + 1, p.n)]))
    for grad in (False, True):
        k = p.given(False)
        with torch.set_grad_enabled(grad):
            output(k, few)
            before = state(k)
            output(k, few)
            moved = changed(before, state(k))
            alone = output(p.given(False), few).detach()
            among, calls = p.watched(p.given(False), later, grad=grad)
            for _ in range(3):
                output(k, later)
            again = output(k, few).detach()
        tail = "; only where gradients are on" if grad else ""
        first, other = alone[:1], among.detach()[:1]
        gap = largest(first, other, of=alone) if first.shape == other.shape else 0.0
        if gap > p.bound and not p.said("BN101"):
            words = f"one example's answer moves by {gap:.2g} of the outputs' spread when its companions change{tail}"
            _blame(p, words, few, later, calls, grad)
        drift = largest(alone, again)
        statistics = [name for name in moved if _is_statistic(p, k, name)]
        if (statistics or (moved and drift > p.bound)) and not p.said("BN102"):
            words = f"{len(moved)} tensors change in eval(), and answers by {drift:.2g} of their spread{tail}"
            for name in sorted({name.rpartition(".")[0] or "model" for name in statistics or moved}):
                p.say("BN102", "wrong", name, words)


def _is_statistic(p, k, name):
    """Return whether a tensor that moved is a normalization's own, or a buffer of theirs, one number a channel."""
    home, _, key = name.rpartition(".")
    if home in p.own or home not in map(owner, p.names):
        return home in p.own
    value = k.get_submodule(home)._buffers.get(key.partition("[")[0])
    channels = {c.x.shape[1] for c in p.calls if c.x.dim() > 1}
    return value is not None and value.is_floating_point() and value.numel() in channels


def _blame(p, words, few, later, calls, grad):
    """Say which normalization lets an answer hang on its companions, or that another layer does."""
    own = [c for c in calls if c.training or c.leaks]
    if grad and not own:
        own = [c for c in calls if c.name in p.own]
    for call in own:
        if call.mean is not None:
            p.say("BN101", "wrong", call.name, words)
        else:
            p.say("BN101", "doubtful", call.name, f"{words} (no running statistics: track_running_stats=False)")
    if own:
        return
    name, part, x = _culprit(p, few, later)
    severity = "doubtful"
    if part is not None:
        with contextlib.suppress(Exception), torch.no_grad():
            once, twice = (part(x * s).float() for s in (1, 2))
            if (once - twice).abs().max() < 0.02 * once.std():  # it normalises, somewhere inside
                severity = "wrong"
    p.say("BN101", severity, name, words)


def _culprit(p, few, later):
    """Return name, module and input of the first whose input agrees on example 0, and whose output does not."""
    runs = []
    for x in (few, later):
        k, seen = p.given(False), []
        overhear(k, lambda name, m, x, y, seen=seen: seen.append((name, m, x.detach(), y.detach())))
        output(k, x)
        runs.append(seen)
    for (name, m, x, y), (_, _, x2, y2) in zip(*runs, strict=False):
        fits = x.shape == x2.shape and y.shape == y2.shape and x.dim() and y.dim() and x.is_floating_point()
        if fits and torch.equal(x[:1], x2[:1]) and (y[:1] - y2[:1]).abs().max() > 1e-3 * (y.float().std() + 1e-12):
            return name or "model", m, x
    return "model", None, None


def saved(p):
    """See whether what evaluation uses travels with state_dict()."""
    if p.n < 3:
        return
    k, x = p.copy(True), floats(take(p.x, slice(p.n - p.batch, p.n)), lambda t: t * 3 + 1)
    with torch.no_grad():
        for _ in range(2):
            output(k, x)
        k.load_state_dict(p.model.state_dict(), strict=False)
        before, after = output(p.copy(False), p.few), output(set_mode(k, False), p.few)
    moved = largest(before, after)
    if moved > p.bound and before.isfinite().all():
        kept = p.model.state_dict().keys()
        lost = [name.lstrip(".") for name in changed(state(p.model), state(k)) if name.lstrip(".") not in kept]
        for name in lost or ["model"]:
            words = f"saved and loaded, the answers move by {moved:.2g} of their spread"
            p.say("BN103", "wrong", name, words)
