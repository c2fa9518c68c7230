"""The running statistics: what they are, how they compare with the data's, and what the difference does to answers."""

import torch

from .copies import apart, output, set_mode
from .data import size, take
from .patient import HALF
from .watch import owner


def hidden(p):
    """Look at modules that normalise inside of more (a convolution with BN written out): by their buffers."""
    known = set(map(owner, p.names))
    for name, part in p.model.named_modules():
        rows = [t for t in part._buffers.values() if t is not None and t.is_floating_point() and t.dim() == 1]
        like = len(rows) > 1 and len({len(t) for t in rows}) == 1
        if name in known or not like or type(part).__module__.startswith("torch.nn."):
            continue
        where = name or "model"
        if any(t.isnan().any() for t in rows):
            p.say("BN111", "wrong", where, "NaN in its buffers")
        elif any((t == 0).all() for t in rows) and any((t == 1).all() for t in rows):
            words = "buffers of 0 and of 1: no training batch has passed, or nothing moves them"
            p.say("BN110", "note" if p.original.training else "doubtful", where, words)
        elif p.n >= 2 * p.batch and (change := _settled(p, name)) > 0.3:
            words = f"after 60 batches with weights as they are, outputs move by {change:.2g} of their spread"
            p.say("BN104", "doubtful", where, words)


def _settled(p, name):
    """Return how far the outputs move where one module sees many batches in training."""
    k = p.copy(False)
    set_mode(k.get_submodule(name), True)
    with torch.no_grad():
        for i in range(60):
            start = i * p.batch % (p.n - p.batch)
            output(k, take(p.x, slice(start, start + p.batch)))
        return apart(output(p.copy(False), p.x), output(set_mode(k, False), p.x))


def statistics(p):
    """Look at the running statistics layer by layer: alone, and beside the data's."""
    for call in p.first.values():
        if call.mean is not None:
            _alone(p, call)
    if p.n < 2 or not p.names:
        return
    p.data = p.measured(p.x, p.batch)
    few = take(p.x, slice(0, 4 * p.batch))
    noisy, quiet = (p.measured(few, p.batch, stochastic) for stochastic in (True, False))
    for n, (_mean, var, count) in p.data.items():
        _beside(p, p.first[n], var, count)
        ratio = (noisy[n][1] / quiet[n][1].clamp(min=1e-20)).median().item() if n in noisy and n in quiet else 1.0
        if not 0.9 < ratio < 1.1:
            words = f"the variance of its input in training is {ratio:.2f} times that in evaluation"
            p.say("BN204", "doubtful", n, words)


def _alone(p, call):
    """Look at the running statistics and the momentum of a layer."""
    n, own, mean, var = call.name, call.name in p.own, call.mean.float(), call.var.float()
    home = p.model.get_submodule(owner(n))
    kept = [t for t in home._buffers.values() if t is not None and t.is_floating_point()] or [call.mean]
    half = [t.dtype for t in kept if t.dtype in HALF]
    if half:
        p.say("BN112", "doubtful", n, f"kept in {str(half[0]).removeprefix('torch.')}")
    bad = not (mean.isfinite() & var.isfinite()).all()
    negative = (var < -(call.eps / 2 if own else max(call.eps / 2, 1e-9))).any()
    huge = mean.abs().max() > 1e8 or var.max() > 1e16
    if call.leaks:
        p.well = False
    elif bad or negative or huge:
        what = "NaN or infinite" if bad else "negative variances" if negative else "huge"
        words = f"mean {mean.min():.3g} to {mean.max():.3g}, variance {var.min():.3g} to {var.max():.3g}"
        p.say("BN111", "wrong", n, f"{what}: {words}")
        p.well = False
    elif mean.abs().max() < 1e-5 and (var - 1).abs().max() < 1e-4:
        p.new.append(n)
    constant = own or getattr(home, "momentum", 0.0) is not None  # a cumulative average starts at 1, too
    if constant and call.momentum is not None and call.momentum > 0.5:
        p.say("BN207", "doubtful", n, f"momentum {call.momentum:.2f}: the newest batch gets that share")


def _beside(p, call, var, count):
    """Look at a layer's statistics, γ and ε beside the variance of the data, of `count` values."""
    n = call.name
    if count < 16:
        words = f"{count} values share a mean at batch size {p.batch}"
        p.say("BN113", "doubtful" if count < 4 else "note", n, words)
    gamma = torch.ones_like(var) if call.gamma is None else call.gamma.detach().float()
    dead = {
        "a constant input": (var < 1e-10) | (var < 1e-6 * var.median()),
        "γ is 0": gamma.abs() < 1e-3 * gamma.abs().max().clamp(min=1e-3),
    }
    for what, mask in dead.items():
        if mask.any():
            p.say("BN205", "note", n, f"{what}; {mask.sum()} of {len(mask)} channels")
    if call.eps > 0.5 * var.median():
        p.say("BN206", "doubtful", n, f"ε is {call.eps:.1g}, the median variance {var.median():.1g}")
    zeros = int(((call.var.float().abs() < 1e-12) & (var > 1e-4)).sum())
    if zeros and n not in p.new:
        p.say("BN111", "wrong", n, f"a running variance of 0 where the data's is not; {zeros} channels")


def lag(p):
    """See how far the running statistics are from the data's, and from the target's, and what that does to answers."""
    if not p.data or not p.well:
        return
    p.lags, worst, severity, words = _judged(p, p.x, p.y, p.data)
    every = len(p.new) == len(p.lags)
    calm = every and (p.original.training or not severity)
    for n in p.new:
        new = f"running mean 0 and variance 1: no training batch has passed, or they were not loaded; {words}"
        p.say("BN110", "wrong" if severity == "wrong" else "note" if calm else "doubtful", n, new)
    if severity and not every:
        p.say("BN104", severity, worst, words)
    if p.target is not None and size(p.target) > 1:
        data = p.measured(p.target, min(p.batch, size(p.target)))
        _, worst, severity, words = _judged(p, p.target, p.target_y, data, elsewhere=True)
        if severity:
            p.say("BN105", "doubtful", worst, words)
    if not p.new:
        _same_batch(p)


def _judged(p, x, y, data, elsewhere=False):
    """Return how far each layer's statistics are off, the worst layer, how severe it is (None: it is not), in words."""
    off = {n: _distance(p.first[n], mean, var) for n, (mean, var, _) in data.items()}
    worst = max(off, key=lambda n: max(off[n][0], abs(off[n][1] - 1)))
    far = any(shift > 0.1 or factor > 1.5 for shift, factor in off.values())
    now, then = p.answers(x), p.answers(x, {n: stats[:2] for n, stats in data.items()})
    classes = now.dim() >= 2 and 1 < now.shape[1] <= 1000
    change = (now.argmax(1) != then.argmax(1)).float().mean().item() if classes else 0.0
    severity, words = None, "running mean off by {:.2f} σ, variance by a factor of {:.2f}".format(*off[worst])
    words += " (median channels)"
    if classes and y is not None and tuple(y.shape) == (now.shape[0], *now.shape[2:]):
        was, could = ((out.argmax(1) == y.to(out.device)).float().mean().item() for out in (now, then))
        words += f"; with the data's own, {change:.1%} of the answers change, accuracy {was:.3f} becomes {could:.3f}"
        chance = 1 / max(int(y.max()) + 1, 2)
        if could - was > max(0.02, (1 / y.numel()) ** 0.5):
            sound = could > chance + 0.25 * (1 - chance)
            severity = "wrong" if could - was > 0.1 and sound and far else "doubtful"
        elif change > 0.2 and far and elsewhere:
            severity = "doubtful"
    elif far and (change > 0.05 if classes and now.dim() == 2 else apart(now, then) > 0.2):
        moved = apart(now, then)
        moves = f"{change:.1%} of the answers change" if classes else f"outputs move by {moved:.2g} of their spread"
        severity, words = "doubtful", f"{words}; with the data's own, {moves}"
    return off, worst, severity, words


def _distance(call, mean, var):
    """Return a layer's (mean's lag in σ, variance's factor), each the median over channels."""
    shift = (call.mean.float() - mean).abs() / (var + call.eps).sqrt()
    factor = ((call.var.float() + call.eps) / (var + call.eps)).clamp(min=1e-12).log().abs()
    return shift.median().item(), factor.median().exp().item()


def _same_batch(p):
    """See whether a batch gets other answers with its own statistics than with the running ones."""
    x = take(p.x, slice(0, p.batch))
    own, _ = p.watched(p.copy(False), x, own=True, see=lambda _: None)
    now = p.answers(x)
    if now.dim() != 2 or own.shape != now.shape or now.shape[1] < 2:
        return
    change = (now.argmax(1) != own.argmax(1)).float().mean().item()
    if change > 0.1 and change * len(now) >= 3:
        words = "answer otherwise with its own statistics than with the running ones"
        p.say("BN114", "doubtful", "model", f"{change:.1%} of a batch of {len(now)} {words}")
