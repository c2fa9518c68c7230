"""The exercises that normalise a batch: `standardize`, `batch_norm_loops` and `batch_norm`."""

import math
from functools import cache
from itertools import combinations

import torch
from hypothesis import strategies as st

from .formula import batch, normalise
from .judge import Case, Exercise, one_of
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


def image_cases(affine):
    """Return the fixed cases for (N, C, H, W): each makes some mistake visible."""
    double, single = torch.float64, torch.float32

    def case(trait="", *, shape, eps, dtype=single, seed=1, x=None, **flags):
        scale, mean, neutral = flags.pop("scale", 1.0), flags.pop("mean", 1.0), flags.pop("neutral", False)
        arguments = {"x": batch(shape, seed, scale=scale, mean=mean, dtype=dtype) if x is None else x}
        if neutral:
            arguments |= {"gamma": torch.ones(shape[1], dtype=dtype), "beta": torch.zeros(shape[1], dtype=dtype)}
        elif affine:
            arguments = with_affine(arguments, shape[1], dtype, seed)
        return Case(arguments | {"eps": eps}, trait, **flags)

    constant = batch((2, 3, 2, 2), 9)
    constant[:, 1] = 0.75  # its mean is exact in float32
    first = {"x": torch.tensor([[[[6.0, 8]], [[0, 5]]], [[[1, 9]], [[5, 2]]]])}  # (2, 2, 1, 2), easy to follow by hand
    if affine:
        first |= {"gamma": torch.tensor([2.0, 0.5]), "beta": torch.tensor([1.0, -3.0])}
    return (
        Case(first | {"eps": 0.1}),
        case(shape=(3, 4, 2, 5), eps=1e-3),
        case(shape=(2, 3, 4, 3), eps=1.0, dtype=double, seed=2),
        case(shape=(2, 4, 4, 3), eps=0.1, seed=3),
        case(shape=(3, 3, 1, 2), eps=1e-5, seed=4),
        case("N is 1", shape=(1, 3, 4, 2), eps=0.01, seed=5),
        case("an image is one pixel", shape=(4, 3, 1, 1), eps=0.01, seed=6),
        case("C is 1", shape=(3, 1, 2, 2), eps=0.01, seed=7),
        case("a variance is tiny", shape=(2, 3, 2, 3), eps=1e-5, scale=2e-3, mean=0.01, seed=8),
        case("a variance is 0", shape=(2, 3, 2, 2), eps=1e-5, x=constant, smooth=False),
        case("the mean is large", shape=(4, 2, 2, 2), eps=1e-5, mean=4000.0, seed=10, ill=True),
        *(
            case(shape=(4, 3, 2, 5), eps=1e-5, scale=1000.0, dtype=double, seed=11, plain=True, neutral=neutral)
            for neutral in (False, True)[: 1 + affine]
        ),
    )


def drawn_images(affine):
    """Return the strategy for further cases: sizes, scales, means, ε, dtype and numbers."""

    @cache  # the same draws each time: what is right for them is computed once
    def build(n, c, h, w, scale, mean, eps, dtype, seed):
        n = n if n * h * w > 2 else 3  # of two values BN keeps the order alone: no gradient to compare
        arguments = {"x": batch((n, c, h, w), seed, scale=scale, mean=mean, dtype=dtype)}
        if affine:
            arguments = with_affine(arguments, c, dtype, seed)
        return Case(arguments | {"eps": eps})

    size = one_of(1, 2, 3, 4)
    return st.builds(
        build,
        size,
        size,
        size,
        size,
        one_of(1.0, 0.01, 5.0, 100.0),
        one_of(0.0, 1.0, -20.0, 300.0),
        one_of(1e-5, 1e-3, 0.1, 1.0),
        one_of(torch.float32, torch.float64),
        one_of(*range(8)),
    )


def grade_cases():
    """Return the fixed cases for (N, C)."""
    same = batch((4, 3), 5)
    same[:, 1] = 70.0
    return (
        Case({"scores": torch.tensor([[85.0, 60, 70], [90, 80, 75], [95, 50, 80], [88, 70, 85]])}),
        Case({"scores": batch((5, 2), 1, scale=5.0, mean=60.0)}),
        Case({"scores": batch((4, 4), 2, dtype=torch.float64)}),
        Case({"scores": batch((3, 4), 3, scale=0.3)}),
        Case({"scores": batch((6, 1), 4, scale=2.0, mean=10.0)}, "C is 1"),
        Case({"scores": same}, "a subject in which all have the same grade", smooth=False),
        Case({"scores": batch((4, 3), 6, scale=3e-3)}, "a variance is tiny"),
        Case({"scores": batch((5, 3), 8, scale=1e-4, dtype=torch.float64)}, "a variance is tiny"),
        Case({"scores": batch((8, 3), 7, mean=4000.0)}, "the mean is large", ill=True),
        Case({"scores": batch((5, 3), 9, scale=1000.0, mean=500.0, dtype=torch.float64)}, plain=True),
    )


def drawn_grades():
    """Return the strategy for further cases."""

    @cache  # the same draws each time: what is right for them is computed once
    def build(n, c, scale, mean, dtype, seed):
        return Case({"scores": batch((n, c), seed, scale=scale, mean=mean, dtype=dtype)})

    return st.builds(
        build,
        one_of(3, 4, 5, 8),
        one_of(1, 2, 3, 4),
        one_of(1.0, 0.01, 10.0, 100.0),
        one_of(0.0, 60.0, -20.0, 300.0),
        one_of(torch.float32, torch.float64),
        one_of(*range(8)),
    )


# ---- what can be said of a result that no mistake explains


def as_a_line(x, expected, received):
    """Say whether y still is, channel by channel, a straight line in x, and then which of its two numbers is off."""
    letters = "NCHW"[: x.dim()]
    for size in range(1, x.dim()):
        for group in combinations(range(x.dim()), size):
            if 1 not in group:
                continue
            line = fit(x, received, group)
            if line is None:
                continue
            if group != (1,):
                others = " and ".join(letters[d] for d in group if d != 1)
                return f"One channel's values are not treated alike: shift or divisor change along {others}."
            (slope, shift), (wanted_slope, wanted_shift) = line, fit(x, expected, group)
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
    cases=grade_cases(),
    drawn=drawn_grades(),
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
