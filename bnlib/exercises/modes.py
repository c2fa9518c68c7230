"""The three formulas of a layer, each an exercise of its own: training output, update, evaluation output."""

from dataclasses import replace
from functools import cache

import torch

from .base import FunctionExercise
from .catalogue import Case, Mistake, batch
from .formula import divided, normalise, scaled
from .mistakes import OTHER
from .normalise import BATCH_NORM, drawn_images, image_cases
from .statistics import RUNNING_STATS


def training_output(x, gamma, beta, *, running="", **knobs):
    """Return the layer's output in training, bent by the knobs of `normalise`."""
    if running:
        mean, var = torch.zeros_like(gamma), torch.ones_like(gamma)
        if running != "old":
            mean, var = updated(x if running == "updated, in the graph" else x.detach(), mean, var)
        return evaluation_output(x, gamma, beta, mean, var)
    return normalise(x, gamma=gamma, beta=beta, **knobs)


def updated(x, running_mean, running_var):
    """Return the running statistics after a batch."""
    return RUNNING_STATS.formula(x, running_mean, running_var, 0.1)


def evaluation_output(
    x,
    gamma,
    beta,
    running_mean,
    running_var,
    *,
    batch=False,
    stored="var",
    eps=1e-5,
    fixed=None,
    place="inside",
    spread="root",
    centre="mean",
    order="γ then β",
    gamma_along=1,
    beta_along=1,
    detached=(),
    **knobs,
):
    """Return the layer's output in evaluation, bent by the knobs of `normalise`, or of its own: `batch`, `stored`."""
    eps = eps if fixed is None else fixed
    if batch:
        knobs |= dict(place=place, spread=spread, order=order, gamma_along=gamma_along, beta_along=beta_along)
        return normalise(x, eps, gamma, beta, **knobs)
    if stored == "after update":
        running_mean, running_var = updated(x.detach(), running_mean, running_var)
    mean, var = (part.view(1, -1, 1, 1) for part in (running_mean, running_var))
    if stored == "swapped":
        mean, var = var, mean
    x = x.detach() if "x" in detached else x
    y = x - mean if centre == "mean" else x
    y = divided(y, var, eps, spread, place)
    return scaled(y, gamma, beta, order, gamma_along, beta_along, detached)


RUNS = Mistake(
    "training uses running statistics",
    "in training, the running mean and variance normalise; they are for evaluation, in training the batch's own do",
    also=[dict(running=running) for running in ("old", "updated", "updated, in the graph")],
)
UPDATED_IN_EVAL = Mistake(
    "running statistics updated in eval",
    "a call in eval() changes the running statistics: data that is only predicted must not enter them; update when "
    "`self.training` is True only",
    stored="after update",
)
EVALUATES = (
    UPDATED_IN_EVAL,
    Mistake(
        "evaluation uses the batch's statistics",
        "eval() still normalises with the batch's own mean and variance; it has to use the running ones",
        also=[dict(batch=True, var_by=by) for by in ("n", "n - 1")],
    ),
    Mistake("not centred in evaluation", "eval() does not subtract the running mean", centre="none"),
    Mistake(
        "divided by the running variance",
        "eval() divides by the running variance, not by its root",
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
        stored="swapped",
    ),
)


def is_of_both_modes(knobs):
    """Return whether the knobs bend what training and evaluation have in common: ε, the root, γ and β, gradients."""
    common = {"place", "fixed", "order", "gamma_along", "beta_along"}
    if "detached" in knobs:
        return set(knobs["detached"]) <= {"x", "gamma", "beta"}
    return knobs.keys() <= common or knobs == {"spread": "double root"} or knobs == {"spread": "multiplied"}


@cache
def without(case, name):
    """Return a case without one of its arguments."""
    return replace(case, arguments={key: value for key, value in case.arguments.items() if key != name})


def evaluation_case(*shape, seed, scale=1.0, dtype=torch.float32):
    """Return the case of a batch, γ, β and running statistics, the running variance times `scale`."""
    generator = torch.Generator().manual_seed(seed)
    c = shape[1]
    draws = torch.rand(4, c, generator=generator, dtype=torch.float64)
    values = dict(
        gamma=draws[0] + 0.5, beta=draws[1] * 4 - 2, running_mean=draws[2] * 3, running_var=(draws[3] + 0.3) * scale
    )
    return Case({"x": batch(shape, seed, dtype=dtype), **{name: value.to(dtype) for name, value in values.items()}})


TRAINING = replace(
    BATCH_NORM,
    formula=training_output,
    mistakes=(*[m for m in BATCH_NORM.mistakes if m.name != "epsilon fixed"], *OTHER, RUNS),
    cases=tuple(without(case, "eps") for case in image_cases(affine=True)),
    drawn=drawn_images(affine=True).map(lambda case: without(case, "eps")),
)
UPDATE = replace(
    RUNNING_STATS,
    formula=lambda x, running_mean, running_var, **knobs: RUNNING_STATS.formula(
        x, running_mean, running_var, 0.1, **knobs
    ),
    mistakes=(
        *(mistake for mistake in RUNNING_STATS.mistakes if mistake.name != "momentum fixed"),
        *(
            Mistake(
                "momentum is not 0.1",
                f"a batch enters with the share {share:g}; the layer's momentum is 0.1",
                fixed=share,
            )
            for share in (0.01, 0.99, 0.001, 0.2, 0.5)
        ),
    ),
    cases=tuple(without(case, "momentum") for case in RUNNING_STATS.cases),
    drawn=None,
)
EVALUATION = FunctionExercise(
    name="layer",
    lesson=4,
    section="The finished layer",
    signature="",
    asks="",
    formula=evaluation_output,
    mistakes=(
        *EVALUATES,
        *(
            Mistake(mistake.name, mistake.cause + (" (in eval())" if "detached" in shared[0] else ""), also=shared)
            for mistake in TRAINING.mistakes
            if (shared := [knobs for knobs in mistake.variants if is_of_both_modes(knobs)])
        ),
    ),
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
