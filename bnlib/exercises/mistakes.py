"""The catalogue of what goes wrong in a normalization: entries that turn the knobs of `formula.normalise`.

Common ones first; the first three are also tried in triples.
"""

from itertools import combinations

from .judge import Mistake, rarely


def around_either(**knobs):
    """Return the variants of a mistake in the mean: the squares are taken around it, or around the right one."""
    return [knobs, {**knobs, "around": "true mean"}]


def at_any_place(**knobs):
    """Return the variants of a mistake beside which ε stands inside the root, outside, or nowhere."""
    return [{**knobs, "place": place} for place in ("inside", "outside", "missing")]


NOT_CENTRED = Mistake(
    "variance not centred", "the variance is the mean of x², expected the mean of (x − mean)²", around="zero"
)
ONE_TOO_FEW = Mistake(
    "mean divided by n − 1",
    "the mean is the sum ÷ n; n − 1 belongs to the unbiased variance only",
    also=around_either(mean_by="n - 1"),
)
UNBIASED = Mistake(
    "unbiased variance",
    "the variance is divided by n − 1; the one that normalises is the biased one, ÷ n: `var(..., correction=0)`, as "
    "torch's default is ÷ (n − 1)",
    var_by="n - 1",
)
ROOT = "divide by √(var + ε)"
EPSILON = (
    Mistake("epsilon outside the root", "√var + ε divides; ε belongs inside the root, √(var + ε)", place="outside"),
    Mistake("epsilon missing", "there is no ε, and equal values divide by zero; write √(var + ε)", place="missing"),
)
SPREAD = (
    Mistake("divided by the variance", f"a root is missing: {ROOT}, not by var + ε", spread="variance"),
    Mistake("root taken twice", "`std` is the root of the variance already, and is rooted again", spread="double root"),
    Mistake("not divided", "the division by √(var + ε) is missing", spread="nothing"),
    *rarely(
        Mistake("divided by the squared variance", f"{ROOT}, not by (var + ε)²", spread="squared variance"),
        Mistake("multiplied by the standard deviation", f"{ROOT}, do not multiply", spread="multiplied"),
        Mistake(
            "mean absolute deviation",
            "the spread is the mean of |x − mean|; BN divides by the root of the mean of (x − mean)²",
            also=at_any_place(spread="absolute"),
        ),
        Mistake(
            "divided by the range",
            "x − mean is divided by largest − smallest; BN divides by the standard deviation",
            also=at_any_place(spread="range"),
        ),
        Mistake(
            "min–max scaling",
            "(x − smallest) / (largest − smallest) is another normalization; BN is (x − mean) / √(var + ε)",
            also=at_any_place(centre="minus smallest", spread="range"),
        ),
        Mistake("sum instead of mean in the variance", "the squares are summed, not averaged: ÷ n", var_by="1"),
        Mistake("epsilon inside and outside the root", "ε is added twice; once is enough, inside", place="both"),
        Mistake("epsilon as a lower bound", "the variance is clamped at ε; BN adds ε, √(var + ε)", place="clamped"),
        Mistake("epsilon as a lower bound", "the root is clamped at ε; BN adds ε, √(var + ε)", place="root clamped"),
        Mistake("epsilon squared", "ε² is added to the variance; it is ε, √(var + ε)", place="squared"),
        Mistake(
            "epsilon subtracted",
            "ε is taken off the variance, or its root; it is added, √(var + ε)",
            also=[dict(place=place) for place in ("subtracted", "subtracted outside")],
        ),
        Mistake("epsilon in the numerator", "ε is added to x − mean; it belongs in √(var + ε)", place="numerator"),
    ),
)
EPSILON_AFTER = rarely(
    Mistake("epsilon after the division", "ε is added to the quotient; it belongs in √(var + ε)", place="after")
)
UNCHANGED = Mistake(
    "unchanged",
    "x comes back as it was, neither centred nor divided: is the result thrown away, or x returned?",
    centre="none",
    spread="nothing",
    order="neither",
)
CENTRE = (
    Mistake("not centred", "the mean is not subtracted: the numerator is x, expected x − mean", centre="none"),
    NOT_CENTRED,
    Mistake(
        "not centred anywhere",
        "the mean is subtracted neither in the numerator nor before squaring: x / √(mean(x²) + ε)",
        centre="none",
        around="zero",
    ),
    *rarely(
        Mistake("mean added", "the mean is added to x; subtract it", centre="plus mean"),
        Mistake("sign turned", "mean − x instead of x − mean", centre="mean minus x"),
        Mistake("absolute value taken", "the numerator is |x − mean|, without its sign", centre="absolute"),
        Mistake(
            "mean subtracted after the division",
            "x is divided, and the mean of the undivided x subtracted then: x − mean needs its parentheses",
            centre="mean after division",
        ),
        Mistake(
            "median instead of mean",
            "the median is subtracted; BN subtracts the mean",
            centre="minus median",
            also=[dict(centre="minus median", around="median")],
        ),
        Mistake("smallest value instead of mean", "the smallest value is subtracted", centre="minus smallest"),
        Mistake("sum instead of mean", "the mean's sum is never divided by n", also=around_either(mean_by="1")),
        ONE_TOO_FEW,
    ),
)
CUT = "the gradient does not pass through the"
WAYS = "(`detach`, `no_grad`, `.item()`, `float`)"


def detached(what, cause, *terms):
    """Return the entry of terms that the gradient does not pass."""
    return Mistake(f"{what} detached from the gradient", cause, detached=terms)


DETACHED = (
    detached("mean", f"{CUT} mean {WAYS}: it depends on x as well", "mean"),
    detached("variance", f"{CUT} variance {WAYS}: it depends on x as well", "var"),
    detached(
        "mean and variance",
        f"{CUT} mean and the variance {WAYS}: both depend on x; they are no constants in the backward pass",
        *("mean", "var"),
    ),
    detached("input", "no gradient reaches the input (`detach`, `no_grad`, `.data`, NumPy, new numbers)", "x"),
)
SQUARES = Mistake(  # of arithmetic: no knob, it shows on a large mean alone
    "mean of squares minus squared mean",
    "the variance is mean(x²) − mean(x)²: equal on paper, but with a large mean both are huge, and rounding eats their "
    "difference (it may even turn negative); take the mean of (x − mean)²",
)

# ---- axes

AXES_2D = {(1,): "each student for himself", (0, 1): "one mean for the whole table"}
AXES_4D = {
    (0,): "the batch only, each pixel for itself",
    (1,): "the channels of one pixel",
    (2, 3): "each image and channel for itself, as instance norm does",
    (1, 2, 3): "each image as a whole, as layer norm does",
    (0, 1, 2, 3): "the whole tensor, one mean for all channels",
    (0, 1): "batch and channels, each pixel for itself",
    (0, 1, 2): "all but the last axis, as if the channels came last",
    (3,): "the last axis only",
    (2,): "H only",
    (0, 2): "without W",
    (0, 3): "without H",
}
WRONG_AXES = "statistics over the wrong axes"


def axes_mistakes(letters, known, wanted, *beside):
    """Return an entry for each wrong set of axes: of both statistics, of the mean alone, of the variance alone.

    letters of the axes, such as "NCHW"; known: what a set of axes means; wanted: what would be right, in words;
    beside: knobs that may come with both statistics' axes, and are no mistake of their own then
    """
    rank = len(letters)
    right = tuple(d for d in range(rank) if d != 1)
    every = (dims for size in range(1, rank + 1) for dims in combinations(range(rank), size))
    wrong = sorted((dims for dims in every if dims != right), key=lambda dims: dims not in known)

    def over(dims):
        axes = " and ".join(letters[d] for d in dims)
        meaning = f" ({known[dims]})" if dims in known else ""
        return f"over {axes}, dim={dims if len(dims) > 1 else dims[0]}{meaning}; {wanted}"

    of_one = ({}, {"around": "the other mean"})
    entries = [
        Mistake(
            f"{what} over the wrong axes",
            f"{taken} taken {over(dims)}",
            also=[dict.fromkeys(knobs, dims) | more for more in variants],
        )
        for what, taken, knobs, variants in (
            ("statistics", "mean and variance are", ("mean_over", "var_over"), ({}, *beside)),
            ("mean", "the mean is", ("mean_over",), of_one),
            ("variance", "the variance is", ("var_over",), of_one),
        )
        for dims in wrong
    ]
    return (*entries[: len(known)], *rarely(*entries[len(known) :]))


def of_parts(image, pixel, m):
    """Return the entries of a variance put together from each image's own, in an exercise's words for the two.

    m: how many values of a channel an image has.
    """
    lost = f"so what the {image}s' means differ by is lost"
    return rarely(
        Mistake(
            f"average of the {image}s' variances",
            f"each {image}'s own variance is taken and then averaged, {lost}",
            also=[dict(around="image's mean", **by) for by in ({}, {"var_by": "n"}, {"var_by": "n - N"})],
        ),
        Mistake(
            f"average of the {image}s' standard deviations",
            f"each {image}'s own standard deviation is taken and then averaged, {lost}",
            also=[dict(parts="roots"), dict(parts="roots ÷ (m − 1)")],
        ),
        Mistake(
            f"variance of the {image}s' means",
            f"the variance is that of the {image}s' means alone; take it over all values, not over their averages",
            also=[dict(parts="between"), dict(parts="between ÷ (N − 1)")],
        ),
        Mistake(
            f"unbiased variance within each {image}",
            f"within each {image} the squares are divided by {m} − 1, and the spread of the {image}s' means is added; "
            "divide the sum of all squares by n",
            parts="within ÷ (m − 1), between",
        ),
        Mistake(
            f"average of the {pixel}s' variances",
            f"each {pixel}'s variance over N is taken and then averaged, so what the {pixel}s' means differ by is lost",
            also=[dict(around="pixel's mean", **by) for by in ({}, {"var_by": "n"}, {"var_by": "n - H·W"})],
        ),
    )


SUBJECT = "all students of one subject share them: average over N, dim=0"
PIXELS = "all values of one channel share them: average over N, H and W, dim=(0, 2, 3)"
ROWS = (
    *axes_mistakes("NC", AXES_2D, SUBJECT),
    Mistake(WRONG_AXES, f"mean and variance of each row are laid along the columns; {SUBJECT}", over=(1,), laid="last"),
)
RESHAPED = Mistake(
    "reshaped without permute",
    "`reshape` moves no number, it cuts the same sequence elsewhere, so channels are mixed: bring them to the last "
    "axis first, x.movedim(1, -1)",
    also=[dict(over="reshape(-1, C)"), dict(over="reshape(C, -1)")],
)
IMAGES = (
    *axes_mistakes("NCHW", AXES_4D, PIXELS),
    Mistake(
        "statistics along the wrong axis",
        "mean and variance have lost the averaged axes, so broadcasting lays them along the last one, not along the "
        "channels: use `keepdim=True`, or `.view(1, -1, 1, 1)`",
        laid="last",
    ),
    RESHAPED,
    Mistake(
        "permuted in, reshaped out",
        "the channels are brought to one side on the way in, but on the way back the result is only reshaped, so they "
        "are mixed: undo the permute",
        also=[dict(over="rows, reshaped back"), dict(over="(C, -1), reshaped back")],
    ),
    *rarely(
        Mistake(WRONG_AXES, f"both are taken over groups of channels, as group norm does; {PIXELS}", over="groups"),
        Mistake(
            "each half of the batch for itself",
            f"a batch of an even number of images is cut into two halves, each with statistics of its own; {PIXELS}",
            over="halves",
        ),
    ),
    *of_parts("image", "pixel", "H·W"),
)

# ---- ε, when it is an argument and when it is not

FIXED = Mistake(
    "epsilon fixed",
    "ε is always {fixed:g}, whatever is passed: use `eps`",
    also=[dict(fixed=1e-5), dict(fixed=1e-8), dict(fixed=1e-3)],
    free="fixed",
)
OTHER = Mistake(
    "another epsilon", "ε is {fixed:g}; asked for is 1e-5", also=[dict(fixed=1e-8), dict(fixed=1e-3)], free="fixed"
)

# ---- γ and β

FORMULA, OWN = "y = x̂ · γ + β", "each has its own"


def affine(name, cause, order, rule=FORMULA):
    """Return the entry of another use of γ and β."""
    return Mistake(name, f"{cause}; {rule}", order=order)


def along_wrong_axes(axes, hint):
    """Return the entries of γ and β that lie along one of these axes, by their letters."""
    return tuple(
        Mistake(
            f"{what} along the wrong axis",
            f"{what} of shape (C,) go along the axis {letter}, not along the channels: {hint}",
            **{f"{name}_along": axis for name in what.split(" and ")},
        )
        for letter, axis in axes.items()
        for what in ("gamma and beta", "gamma", "beta")
    )


AFFINE = (
    affine("gamma and beta swapped", "γ shifts and β scales", lambda y, g, b: y * b + g),
    affine("gamma forgotten", "γ is never used", lambda y, g, b: y + b),
    affine("beta forgotten", "β is never used", lambda y, g, b: y * g),
    affine("gamma and beta forgotten", "neither γ nor β is used", "neither"),
    affine("beta before gamma", "β is added first, (x̂ + β) · γ, so that γ scales β too", lambda y, g, b: (y + b) * g),
    *along_wrong_axes({"W": 3, "H": 2, "N": 0}, "broadcasting lines up the last axes; use `.view(1, -1, 1, 1)`"),
    *rarely(
        affine("beta subtracted", "β is subtracted", lambda y, g, b: y * g - b),
        affine("divided by gamma", "x̂ is divided by γ", lambda y, g, b: y / g + b),
        affine("one plus gamma", "1 + γ multiplies", lambda y, g, b: y + y * g + b, f"{FORMULA}, where γ starts at 1"),
        affine("gamma added", "γ is added", lambda y, g, b: y + g + b),
        affine("gamma twice", "γ multiplies twice", lambda y, g, b: y * g**2 + b),
        Mistake("one gamma for all channels", f"the first channel's γ scales all; {OWN}", gamma_along="none"),
        Mistake("one beta for all channels", f"the first channel's β shifts all; {OWN}", beta_along="none"),
        Mistake(
            "one gamma and beta for all channels",
            f"γ and β are the first channel's; {OWN}",
            **dict.fromkeys(("gamma_along", "beta_along"), "none"),
        ),
    ),
    detached("gamma", "no gradient reaches γ, it cannot be learned", "gamma"),
    detached("beta", "no gradient reaches β, it cannot be learned", "beta"),
    *rarely(
        detached(
            "gamma and beta", "no gradient reaches γ and β (`detach`, `.data`), they cannot be learned", "gamma", "beta"
        ),
        detached(
            "output", "no gradient flows back from y at all (`detach`, `no_grad`, `.data`, NumPy)", "x", "gamma", "beta"
        ),
    ),
)

INTERTWINED = (  # γ and β within what is normalised
    Mistake(
        "not normalised",
        f"x is neither centred nor divided before γ and β are applied; {FORMULA}",
        centre="none",
        spread="nothing",
    ),
    affine("gamma and beta before the normalization", "x · γ + β is normalised, which takes both off again", "before"),
    *rarely(
        affine("gamma on x alone", "γ multiplies x before the mean is subtracted, and not the mean", "γ on x"),
        affine("beta divided", "β is added inside the fraction, so that it is divided, too", "β divided"),
    ),
)

# ---- loops

ADDED, CARRIED_ON = "N·H·W numbers were added", "on from channel to channel: set"
LOOPS = rarely(
    Mistake(
        "loop over N instead of C",
        "the loop over channels runs to the number of images: later channels are left out, or there are too few",
        looped="N",
    ),
    *(
        Mistake(f"{name} not reset for each channel", f"the {sums} to 0 inside the loop over channels", also=variants)
        for name, sums, variants in (
            ("sums", f"sums of mean and variance go {CARRIED_ON} them", [dict(carried=("mean", "var"))]),
            ("sum", f"mean's sum goes {CARRIED_ON} it", around_either(carried=("mean",))),
            ("sum of squares", f"variance's sum goes {CARRIED_ON} it", [dict(carried=("var",))]),
        )
    ),
    Mistake(
        "last channel's statistics for all",
        "every channel gets the last one's mean and variance: normalise inside the loop over channels",
        kept="last",
    ),
    Mistake("first channel's statistics for all", "every channel gets the first one's mean and variance", kept="first"),
    Mistake("statistics of the first image only", f"the other images are left out; {PIXELS}", sample="first image"),
    Mistake(
        "mean of the first image only",
        f"the mean is the first image's, for all images; {PIXELS}",
        also=around_either(mean_sample="first image"),
    ),
    Mistake("statistics of the last image only", f"the other images are left out; {PIXELS}", sample="last image"),
    Mistake("divided by N", f"both sums are divided by N; {ADDED}", mean_by="N", var_by="N"),
    Mistake("divided by H·W", f"both sums are divided by H·W; {ADDED}", mean_by="H·W", var_by="H·W"),
    Mistake("mean divided by N", f"its sum is divided by N; {ADDED}", also=around_either(mean_by="N")),
    Mistake("mean divided by H·W", f"its sum is divided by H·W; {ADDED}", also=around_either(mean_by="H·W")),
    Mistake("variance divided by N", f"its sum is divided by N; {ADDED}", var_by="N"),
    Mistake("variance divided by H·W", f"its sum is divided by H·W; {ADDED}", var_by="H·W"),
)

OF_GRADES = (UNBIASED, *EPSILON, *SPREAD, UNCHANGED, *ROWS, *CENTRE, *DETACHED, SQUARES)
OF_IMAGES = (UNBIASED, *EPSILON, *SPREAD, UNCHANGED, *IMAGES, *CENTRE, *DETACHED, *EPSILON_AFTER, *LOOPS, SQUARES)
