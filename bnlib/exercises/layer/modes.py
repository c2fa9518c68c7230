"""The three formulas of a layer, each an exercise of its own: training output, update, evaluation output."""

from dataclasses import replace
from functools import cache, partial

import torch

from ..formula import batch, divided, normalise, scaled
from ..judge import Case, Exercise, Mistake
from ..mistakes import OTHER, UNCHANGED
from ..normalise import BATCH_NORM, drawn_images, image_cases
from ..statistics import RUNNING_STATS, fitted_momentum

USUAL = dict(
    centre="minus mean", spread="root", place="inside", order="γ then β", gamma_along=1, beta_along=1, detached=""
)


def evaluation_output(x, gamma, beta, running_mean, running_var, *, used="both", fixed=1e-5, **knobs):
    """Return the layer's output in evaluation, bent by the knobs of `normalise`, or by which statistics are `used`."""
    centre, spread, place, order, gamma_along, beta_along, detached = (USUAL | knobs).values()
    if order == "before":
        x, order = scaled(x, gamma, beta, "γ then β", gamma_along, beta_along, detached), "neither"
    n = x.numel() / x.shape[1]
    mean, var = {
        "both": lambda: (running_mean, running_var),
        "swapped": lambda: (running_var, running_mean),
        "batch's mean": lambda: (x.mean((0, 2, 3)), running_var),
        "batch's variance": lambda: (running_mean, x.var((0, 2, 3), correction=0)),
        "corrected": lambda: (running_mean, running_var * n / max(n - 1, 1)),
        "after update": lambda: RUNNING_STATS.formula(x.detach(), running_mean, running_var, 0.1),
    }[used]()
    mean, var = mean.view(1, -1, 1, 1), var.view(1, -1, 1, 1)
    x = x.detach() if "x" in detached else x
    y = {"minus mean": x - mean, "plus mean": x + mean, "mean minus x": mean - x, "none": x}[centre]
    return scaled(divided(y, var, fixed, spread, place), gamma, beta, order, gamma_along, beta_along, detached)


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
    UNCHANGED,
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
    Mistake("running mean added in evaluation", "eval() adds the running mean; it is subtracted", centre="plus mean"),
    Mistake("sign turned in evaluation", "eval() takes mean − x instead of x − mean", centre="mean minus x"),
    Mistake("not centred in evaluation", "eval() does not subtract the running mean", centre="none"),
    Mistake(
        "divided by the running variance",
        "eval() divides by the running variance, a root is missing: divide by √(running_var + ε)",
        spread="variance",
    ),
    Mistake(
        "not divided in evaluation", "eval() does not divide by the root of the running variance", spread="nothing"
    ),
    Mistake(
        "not normalised in evaluation",
        "eval() only applies γ and β; subtract the running mean and divide by the root of the running variance first",
        spread="nothing",
        centre="none",
    ),
    Mistake(
        "running mean and variance swapped in evaluation",
        "eval() subtracts the running variance and divides by the running mean",
        used="swapped",
    ),
)


def is_of_both_modes(knobs):
    """Return whether the knobs bend what training and evaluation have in common: ε, the root, γ and β, gradients."""
    common = {"place", "fixed", "order", "gamma_along", "beta_along"}
    if knobs.get("order") in ("γ on x", "β divided"):
        return False
    if "detached" in knobs:
        return set(knobs["detached"]) <= {"x", "gamma", "beta"}
    return knobs.keys() <= common or knobs == {"spread": "double root"} or knobs == {"spread": "multiplied"}


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
        *[mistake for mistake in RUNNING_STATS.mistakes if mistake.name != "momentum fixed"],
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
OF_BOTH_MODES = [
    Mistake(entry.name, entry.cause + " (in eval())" * ("detached" in variants[0]), also=variants, free=entry.free)
    for entry in TRAINING.mistakes
    if (variants := [knobs for knobs in entry.variants if is_of_both_modes(knobs)])
]
EVALUATION = Exercise(
    name="layer",
    signature="",
    asks="",
    formula=evaluation_output,
    mistakes=(*EVALUATES, *OF_BOTH_MODES),
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
