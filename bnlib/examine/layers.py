"""Where the batch normalizations are, what they are like, and in which mode."""

from .copies import clone
from .data import size
from .probe import normalises, vitals
from .watch import overhear, owner


def find(p):
    """Find the batch normalizations: calls of torch's, and modules of the model's own that behave like one."""
    shapes, k = {}, p.copy(False)

    def note(name, _, x, out):
        if x.shape == out.shape and x.is_floating_point():
            shapes.setdefault(name, tuple(x.shape))

    overhear(k, note)
    torchs = {owner(call.name) for call in p.watched(k, p.few)[1]}
    like = [
        name
        for name, shape in shapes.items()
        if name
        and not type(p.model.get_submodule(name)).__module__.startswith("torch.nn.")
        and not any(t == name or t.startswith(name + ".") for t in torchs)
        and normalises(p.model.get_submodule(name), shape)
    ]
    inner = [n for n in like if not any(o.startswith(n + ".") for o in like)]
    p.own = {n: vitals(p.model.get_submodule(n), shapes[n]) for n in inner}
    _, calls = p.watched(p.evaluated(), p.few)
    # a weight standardisation sees weights, not examples
    weights = {id(c.x) for c in calls if c.mean is None and c.x.shape[0] != size(p.few)}
    p.calls = [c for c in calls if id(c.x) not in weights]
    p.first = {c.name: c for c in reversed(p.calls)}
    p.names = list(dict.fromkeys(c.name for c in p.calls))
    if not p.names:
        p.say("BN209", "note", "model", "nothing in it normalises over the batch as a step of its own")
    for n, own in p.own.items():
        if own.biased and own.momentum > 1e-4:
            p.say("BN210", "note", n, "the running variance is too small by 1/n")
        if own.apart > 0.1 and not own.leaks:
            words = f"settled on one batch, its eval() output is {own.apart:.0%} of the spread from train()'s"
            p.say("BN114", "wrong", n, words)


def modes(p):
    """See which layers are in another mode than the model."""
    if not p.names:
        return
    on = [n for n in p.names if p.model.get_submodule(owner(n)).training]
    if not p.original.training:
        for n in on:
            p.say("BN109", "wrong", n, f"in train() inside a model in eval(); {len(on)} of {len(p.names)}")
        return
    again = clone(p.model).train()
    still = [n for n in p.names if not again.get_submodule(owner(n)).training]
    off = [n for n in p.names if n not in on and n not in still]
    severity = "note" if len(off) + len(still) == len(p.names) else "doubtful"
    words = f"in eval() inside a model in train(): frozen on purpose? model.train() undoes it; {len(off)} of them"
    for n in off:
        p.say("BN109", severity, n, words)
