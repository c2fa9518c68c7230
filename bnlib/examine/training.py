"""The model in training: what moves, what runs twice, what gets no gradient, what stands where."""

import contextlib
from collections import Counter
from operator import methodcaller

import torch

from .copies import changed, held, output, outputs, state
from .data import floats, size, take
from .watch import Watch, mark, moments, owner

FEW = 16  # examples where only the order of things is looked at, in float64 and with gradients


def graph(p):
    """See whether tensors that stay hold the graph of a batch."""
    k, lengths = p.copy(True), []
    for _ in range(3):
        output(k, p.few)
        lengths.append(sum(_nodes(value.grad_fn) for *_, value in held(k)))
    severity, words = "note", "not detached: `deepcopy` refuses it"
    if lengths[2] > lengths[1]:
        severity, words = "wrong", f"{words}; its graph grows with every batch, {lengths}"
    for name, _, key, _ in held(p.original) or held(k):
        p.say("BN115", severity, f"{name}.{key}", words)


def _nodes(fn):
    """Return how many nodes a gradient graph has."""
    seen, todo = set(), [fn]
    while todo:
        f = todo.pop()
        if f is not None and f not in seen:
            seen.add(f)
            todo += [g for g, _ in f.next_functions]
    return len(seen)


def training(p):
    """See what moves in training; then, if it can be trained at all, what stands where."""
    if p.n < 2:
        p.say("BN302", "note", "training", "one example has no batch statistics: what needs train() was left out")
    elif p.names and _moving(p, take(p.x, slice(0, p.batch))):
        _structure(p, take(p.x, slice(0, min(p.batch, FEW))))


def _moving(p, x):
    """See what moves that was to be frozen; return whether the model can be trained at all."""
    k = p.given(True)
    before = state(k)
    try:
        _, calls = p.watched(k, x, grad=True)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        p.say("BN113", "wrong", "model", f"at batch size {p.batch} a mean has one value, and train() raises")
        return False
    moving = {name.rpartition(".")[0] for name in changed(before, state(k))}
    trains = any(q.requires_grad for q in p.original.parameters())
    severity = "wrong" if p.original.training else "doubtful"
    for c in {c.name: c for c in calls}.values():
        affine = p.original.get_submodule(c.name).parameters() if c.name in p.own else (c.gamma, c.beta)
        grads = [q.requires_grad for q in affine if q is not None]
        moves = owner(c.name) in moving or (c.mean is not None and c.momentum > 0)
        if trains and grads and not any(grads) and c.training and moves:
            words = "γ and β have requires_grad=False, but in train() the running statistics move"
            p.say("BN106", severity, c.name, words)
    return True


def _structure(p, few):
    """Look at the order of things, in training steps of few examples: in float64, if the model can."""
    for precision in "double", "float":
        cast = methodcaller(precision)
        k, x = cast(p.copy(True)).requires_grad_(), floats(few, cast)
        try:
            calls, last, *runs = _step(p, k, x)
            break
        except Exception:
            if precision == "float":
                raise
    _order(p, calls, last)
    _repeats(p, *runs)
    put = {c.name: moments(c.x)[:2] for c in calls if c.name in p.names}
    gradients = _gradients(p, k)
    k = calls = None  # a copy in float64, with its gradients, is as large as four of the model
    other = cast(p.copy(False)).requires_grad_()
    with contextlib.suppress(Exception):  # where there is no gradient, nothing is said of it
        _step(p, other, x, put)
    rounding = 1e-7 if precision == "double" else 1e-4
    for name, (of_bias, of_weight) in gradients.items():
        fixed = other.get_submodule(name).bias.grad
        if of_bias < rounding * of_weight and fixed is not None and fixed.norm() > 1e3 * of_bias:
            words = "in training it gets no gradient, and the batch normalization behind it takes it off again"
            p.say("BN201", "note", name, words)


def _step(p, k, x, put=None):
    """Return the calls of a forward pass, the output's mark, and how often modules ran by its end, and in all."""
    with torch.enable_grad(), Watch(k, p.own, put) as watch:
        leaves = [t for t in outputs(k, x) if t.is_floating_point()]
        main = next((t for t in leaves if t.dim() and t.shape[0] == size(x)), leaves[0])
        calls, last, passed = list(watch.calls), mark(main), Counter(watch.entered)
        g = torch.Generator().manual_seed(2)
        loss = sum((t * torch.randn(t.shape, generator=g).to(t)).sum() for t in leaves if t.requires_grad)
        loss.backward()
    return calls, last, passed, watch.entered


def _gradients(p, k):
    """Return the size of the bias's gradient, and of the weight's for each of its rows, by layer that has both."""
    found = {}
    for name, m in k.named_modules():
        own = {key: q.grad for key, q in m.named_parameters(recurse=False)}
        w, b = own.get("weight"), own.get("bias")
        if name not in p.names and w is not None and b is not None:
            found[name] = b.norm(), w.norm() * (len(b) / w.numel()) ** 0.5
    return found


def _order(p, calls, last):
    """See which normalization takes what another made, or makes the output."""
    made = {}
    for c in calls:
        if c.came in made and c.came[0]:
            p.say("BN202", "note", c.name, f"normalises what {made[c.came]} has just normalised")
        made[c.went] = c.name
    if last in made:
        p.say("BN203", "note", made[last], "the model's output is its output: mean β and spread γ in each batch")


def _repeats(p, passed, total):
    """See which layers run at several places, or once more in the backward pass."""
    once = Counter(c.name for c in p.calls)
    for n in p.names:
        forward, both = passed[owner(n)], total[owner(n)]
        if once[n] > 1:
            words = f"runs {once[n]} times in a forward pass, and keeps one set of running statistics"
            p.say("BN108", "note", n, words)
        if both > forward:
            words = f"runs {both} times in a training step, {forward} of them in the forward pass"
            p.say("BN107", "doubtful", n, f"{words}; its momentum acts each time")


def decay(p):
    """See whether the optimizer decays γ and β."""
    layers = {}
    for n in p.names if p.optimizer is not None else ():
        for q in p.original.get_submodule(owner(n)).parameters(recurse=False):
            fits = q.numel() == p.first[n].x.shape[1] and q.dim() == 1
            if fits and (n in p.own or p.first[n].gamma is not None):
                layers[id(q)] = n
    for group in p.optimizer.param_groups if layers else ():
        for q in group["params"]:
            if id(q) in layers and group.get("weight_decay", 0):
                words = f"weight_decay {group['weight_decay']:g} pulls γ and β towards 0"
                p.say("BN208", "note", layers[id(q)], words)
