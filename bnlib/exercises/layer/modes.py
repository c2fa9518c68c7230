"""The three formulas of a layer, each an exercise of its own: training output, update, evaluation output."""

from dataclasses import replace
from functools import cache, partial
from itertools import chain

import torch

from ..formula import batch, normalise
from ..judge import Case, Exercise, Mistake
from ..mistakes import OTHER
from ..normalise import BATCH_NORM, drawn_images, image_cases
from ..statistics import RUNNING_STATS, fitted_momentum


def evaluation_output(x, gamma, beta, running_mean, running_var, *, used="both", **knobs):
    """Return the layer's output in evaluation, bent by the knobs of `normalise`, or by which statistics are `used`."""
    n = x.numel() / x.shape[1]
    mean, var = {
        "both": lambda: (running_mean, running_var),
        "swapped": lambda: (running_var, running_mean),
        "batch's mean": lambda: (x.mean((0, 2, 3)), running_var),
        "batch's variance": lambda: (running_mean, x.var((0, 2, 3), correction=0)),
        "corrected": lambda: (running_mean, running_var * n / max(n - 1, 1)),
        "after update": lambda: RUNNING_STATS.formula(x.detach(), running_mean, running_var, 0.1),
    }[used]()
    given = (0, 2, 3), (0, 2, 3), mean.view(1, -1, 1, 1), var.view(1, -1, 1, 1)
    return normalise(x, gamma=gamma, beta=beta, given=given, **knobs)


RUNS = Mistake(
    "training uses running statistics",
    "in training, the running mean and variance normalise; they are for evaluation, in training the batch's own do",
)
EVALUATES_BATCH = Mistake(
    "evaluation uses the batch's statistics",
    "eval() still normalises with the batch's own mean and variance; it has to use the running ones",
)
UPDATED_IN_EVAL = Mistake(
    "running statistics updated in eval",
    "a call in eval() changes the running statistics: data that is only predicted must not enter them; update when "
    "`self.training` is True only",
    used="after update",
)
EVALUATES = (
    UPDATED_IN_EVAL,
    Mistake(
        "evaluation uses the batch's mean",
        "eval() subtracts the batch's own mean, not the running one",
        used="batch's mean",
    ),
    Mistake(
        "evaluation uses the batch's variance",
        "eval() divides by the root of the batch's own variance, not of the running one",
        used="batch's variance",
    ),
    Mistake(
        "correction in evaluation",
        "eval() multiplies the running variance by n / (n − 1), n of the batch at hand: its answer depends on the "
        "batch's size; the correction belongs to the update",
        used="corrected",
    ),
    Mistake(
        "running mean and variance swapped in evaluation",
        "eval() subtracts the running variance and divides by the running mean",
        used="swapped",
    ),
)


def in_evaluation(entry):
    """Yield what an entry of training comes to in evaluation: nothing if it is one of a batch's own statistics."""
    terms = {"centre", "spread"}, {"place", "fixed", "order", "gamma_along", "beta_along", "detached"}
    variants = [
        knobs
        for knobs in entry.variants
        if knobs.keys() <= set.union(*terms)
        and knobs.get("spread") not in ("absolute", "range")
        and not {"mean", "var"} & {*knobs.get("detached", ())}
    ]
    if variants:
        name = entry.name + " in evaluation" * (variants[0].keys() <= terms[0])
        name = name.replace("by the variance in evaluation", "by the running variance")
        yield Mistake(name, f"{entry.cause} (in eval())", also=variants, free=entry.free)


@cache  # a case is known by its identity
def without(case, *names):
    """Return a case without some of its arguments."""
    return replace(case, arguments={key: value for key, value in case.arguments.items() if key not in names})


def evaluation_case(*shape, seed, scale=1.0, dtype=torch.float32):
    """Return the case of a batch, γ, β and running statistics, the running variance times `scale`."""
    generator = torch.Generator().manual_seed(seed)
    gamma, beta, mean, var = torch.rand(4, shape[1], generator=generator, dtype=torch.float64)
    values = dict(gamma=gamma + 0.5, beta=beta * 4 - 2, running_mean=mean * 3, running_var=(var + 0.3) * scale)
    return Case({"x": batch(shape, seed, dtype=dtype)} | {name: value.to(dtype) for name, value in values.items()})


TRAINING = replace(
    BATCH_NORM,
    formula=normalise,
    mistakes=(*[mistake for mistake in BATCH_NORM.mistakes if mistake.name != "epsilon fixed"], OTHER),
    cases=tuple(without(case, "eps") for case in image_cases(affine=True)),
    drawn=drawn_images(affine=True).map(lambda case: without(case, "eps")),
)
UPDATE = replace(
    RUNNING_STATS,
    formula=partial(RUNNING_STATS.formula, momentum=0.1),
    mistakes=(
        *[entry for entry in RUNNING_STATS.mistakes if not entry.name.startswith(("momentum fixed", "plain average"))],
        Mistake(
            "momentum is not 0.1",
            "a batch enters with the share {fixed:g}; the layer's momentum is 0.1",
            also=[dict(fixed=0.01), dict(fixed=0.5)],
            fit=fitted_momentum,
        ),
    ),
    cases=tuple(without(case, "momentum") for case in RUNNING_STATS.cases),
    drawn=None,
)
EVALUATION = Exercise(
    name="layer",
    signature="",
    asks="",
    formula=evaluation_output,
    mistakes=(*EVALUATES, *chain.from_iterable(map(in_evaluation, TRAINING.mistakes))),
    cases=(
        evaluation_case(2, 2, 1, 2, seed=0),
        evaluation_case(3, 4, 2, 5, seed=1),
        evaluation_case(2, 3, 4, 3, seed=2),
        evaluation_case(2, 3, 1, 2, seed=3, dtype=torch.float64),
        evaluation_case(1, 3, 2, 1, seed=4),
        evaluation_case(2, 3, 2, 2, seed=5, scale=1e-5),
    ),
    tracked=("x", "gamma", "beta"),
)
