"""The exercises that normalise a batch: `standardize`, `batch_norm_loops` and `batch_norm`."""

import math
from dataclasses import replace
from functools import partial
from itertools import combinations

import torch

from .formula import EPSILONS, GRADES, IMAGES, batch, drawn_batches, normalise
from .judge import Case, Exercise
from .judge.answers import telling_digits
from .mistakes import AFFINE, FIXED, INTERTWINED, OF_GRADES, OF_IMAGES, OTHER
from .reading import Place

# ---- inputs


def with_affine(arguments, channels, dtype, seed):
    """Return the arguments and a γ, the third channel's negative, and a β."""
    generator = torch.Generator().manual_seed(seed + 100)
    gamma = torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5
    gamma[2:3] *= -1
    beta = torch.randn(channels, generator=generator, dtype=torch.float64) * 2
    return {**arguments, "gamma": gamma.to(dtype), "beta": beta.to(dtype)}


def image_case(x, eps, seed, trait="", *, affine, **flags):
    """Return the case of images (N, C, H, W), with γ and β if asked for."""
    arguments = with_affine({"x": x}, x.shape[1], x.dtype, seed) if affine else {"x": x}
    return Case(arguments | {"eps": eps}, trait, **flags)


def image_cases(affine):
    """Return the fixed cases for (N, C, H, W): each makes some mistake visible."""
    double = torch.float64

    def case(shape, eps, seed, trait="", *, scale=1.0, mean=1.0, dtype=torch.float32, **flags):
        x = batch(shape, seed, scale=scale, mean=mean, dtype=dtype)
        return image_case(x, eps, seed, trait, affine=affine, **flags)

    by_hand = {"gamma": torch.tensor([2.0, 0.5]), "beta": torch.tensor([1.0, -3.0])} if affine else {}
    constant = batch((2, 3, 2, 2), 9)
    constant[:, 1] = 0.75  # its mean is exact in float32
    plain = case((4, 3, 2, 5), 1e-5, 11, scale=1000.0, dtype=double, plain=True)
    neutral = {"gamma": torch.ones(3, dtype=double), "beta": torch.zeros(3, dtype=double)}
    return (
        Case({"x": IMAGES, **by_hand, "eps": 0.1}),
        case((3, 4, 2, 5), 1e-3, 1),
        case((2, 3, 4, 3), 1.0, 2, dtype=double),
        case((2, 4, 4, 3), 0.1, 3),
        case((3, 3, 1, 2), 1e-5, 4),
        case((1, 3, 4, 2), 0.01, 5, "N is 1"),
        case((4, 3, 1, 1), 0.01, 6, "an image is one pixel"),
        case((3, 1, 2, 2), 0.01, 7, "C is 1"),
        case((2, 3, 2, 3), 1e-5, 8, "a variance is tiny", scale=2e-3, mean=0.01),
        image_case(constant, 1e-5, 1, "a variance is 0", affine=affine, smooth=False),
        case((4, 2, 2, 2), 1e-5, 10, "the mean is large", mean=4000.0, ill=True),
        *[plain, replace(plain, arguments=plain.arguments | neutral)][: 1 + affine],
    )


def drawn_images(affine):
    """Return the strategy for further cases; of two values BN would keep the order alone, so that each has three."""
    few, scales = (1, 2, 3, 4), (1.0, 0.01, 5.0, 100.0)
    return drawn_batches(partial(image_case, affine=affine), *[few] * 4, scales=scales, more=[EPSILONS], least=3)


ALL_THE_SAME = batch((4, 3), 5)
ALL_THE_SAME[:, 1] = 70.0

# ---- what can be said of a result that no mistake explains


def as_a_line(x, expected, received):
    """Say whether y still is, channel by channel, a straight line in x, and then which of its two numbers is off."""
    others = [d for d in range(x.dim()) if d != 1]
    for along in (axes for size in range(len(others)) for axes in combinations(others, size)):
        line = fit(x, received, (1, *along))
        if line and along:
            axes = " and ".join("NCHW"[d] for d in along)
            return f"One channel's values are not treated alike: shift or divisor change along {axes}."
        if line:
            (slope, shift), (wanted_slope, wanted_shift) = line, fit(x, expected, (1,))
            c = int(((slope - wanted_slope).abs() + (shift - wanted_shift).abs()).nan_to_num().argmax())
            return (
                "In each channel y is a straight line in x, as it should be, y = a · x + b; "
                f"in channel {c} a is {told_apart(slope[c], wanted_slope[c])}, and b is "
                f"{told_apart(shift[c], wanted_shift[c])}."
            )
    if x.numel() < 3 * x.shape[1]:
        return "The numbers differ."
    return "Within one channel y is not a straight line in x: each x should only be shifted and scaled."


def told_apart(number, wanted):
    """Return a number and the one that was wanted as text, with as many digits as tell them apart."""
    digits = telling_digits(number.item(), wanted.item())
    same = f"{number:.{digits}g}" == f"{wanted:.{digits}g}"
    return f"{number:.{digits}g}" + (", as it should be" if same else f", expected {wanted:.{digits}g}")


def fit(x, y, group):
    """Return slope and shift of y as a line in x for each index of the `group` axes, or None if y is no such line.

    Through fewer than three points there is always one, which says nothing: None, too.
    """
    dims = tuple(d for d in range(x.dim()) if d not in group)
    if math.prod(x.shape[d] for d in dims) < 3:
        return None
    cx, cy = x - x.mean(dims, keepdim=True), y - y.mean(dims, keepdim=True)
    slope = (cx * cy).sum(dims, keepdim=True) / (cx * cx).sum(dims, keepdim=True).clamp_min(1e-30)
    if not ((cy - slope * cx).abs() <= 1e-4 * (1e-3 + y.abs().max())).all():
        return None
    shift = y.mean(dims, keepdim=True) - slope * x.mean(dims, keepdim=True)
    return slope.flatten(), shift.flatten()


STANDARDIZE = Exercise(
    name="standardize",
    place=Place(1, "Standardise"),
    signature="standardize(scores (N, C)) -> (N, C)",
    asks="From each subject's grades subtract their mean, and divide by the root of their biased variance plus ε = "
    "1e-5.",
    formula=lambda scores, **knobs: normalise(scores, **knobs),
    mistakes=(*OF_GRADES, OTHER),
    cases=(
        Case({"scores": GRADES}),
        Case({"scores": batch((5, 2), 1, scale=5.0, mean=60.0)}),
        Case({"scores": batch((4, 4), 2, dtype=torch.float64)}),
        Case({"scores": batch((3, 4), 3, scale=0.3)}),
        Case({"scores": batch((6, 1), 4, scale=2.0, mean=10.0)}, "C is 1"),
        Case({"scores": ALL_THE_SAME}, "a subject in which all have the same grade", smooth=False),
        Case({"scores": batch((4, 3), 6, scale=3e-3)}, "a variance is tiny"),
        Case({"scores": batch((5, 3), 8, scale=1e-4, dtype=torch.float64)}, "a variance is tiny"),
        Case({"scores": batch((8, 3), 7, mean=4000.0)}, "the mean is large", ill=True),
        Case({"scores": batch((5, 3), 9, scale=1000.0, mean=500.0, dtype=torch.float64)}, plain=True),
    ),
    drawn=drawn_batches(lambda x, _: Case({"scores": x}), (3, 4, 5, 8), (1, 2, 3, 4), means=(0.0, 60.0, -20.0, 300.0)),
    tracked=("scores",),
    explain=as_a_line,
)
BATCH_NORM_LOOPS = Exercise(
    name="batch_norm_loops",
    place=Place(3, "All channels"),
    signature="batch_norm_loops(x (N, C, H, W), eps) -> y (N, C, H, W)",
    asks="Normalise each channel with the mean and the biased variance of its N·H·W numbers, ε inside the root; loops "
    "or not.",
    formula=normalise,
    mistakes=(*OF_IMAGES, FIXED),
    cases=image_cases(affine=False),
    drawn=drawn_images(affine=False),
    tracked=("x",),
    explain=as_a_line,
)
BATCH_NORM = Exercise(
    name="batch_norm",
    place=Place(4, "The loops in one line"),
    signature="batch_norm(x (N, C, H, W), gamma (C,), beta (C,), eps) -> y (N, C, H, W)",
    asks="Normalise each channel with its mean and biased variance, ε inside the root; then multiply by γ and add β.",
    formula=lambda x, gamma, beta, eps, **knobs: normalise(x, eps, gamma, beta, **knobs),
    mistakes=(*OF_IMAGES, *INTERTWINED, *AFFINE, FIXED),
    cases=image_cases(affine=True),
    drawn=drawn_images(affine=True),
    tracked=("x", "gamma", "beta"),
    explain=as_a_line,
)
