"""The exercises of lesson 07: `group_norm`, `masked_batch_norm`, `rms_norm`, and the quiz `axes`."""

import torch

from .formula import batch, divided, normalise, scaled
from .judge import Case, Exercise, Mistake, Verdict, drawn, rarely
from .judge.answers import describe
from .judge.verdict import refused, unanswered
from .mistakes import AFFINE, CENTRE, DETACHED, EPSILON, FIXED, SPREAD, SQUARES, UNBIASED, WRONG_AXES, along_wrong_axes
from .normalise import with_affine
from .reading import Place

# ---- group_norm


def group_norm(
    x,
    groups,
    gamma,
    beta,
    eps,
    *,
    members="neighbours",
    over=(2, 3, 4),
    order="γ then β",
    gamma_along=1,
    beta_along=1,
    affine="a channel",
    detached="",
    **knobs,
):
    """Return group norm of x (N, C, H, W), bent by the knobs; those that are not named here are `normalise`'s.

    members  who is in a group: "neighbours", "dealt" (each G-th channel), "swapped" (C / G groups of G)
    over     the averaged axes of (N, G, C / G, H, W)
    affine   "a group" for γ and β of which each group takes one
    """
    each = x.shape[1] // groups
    if members == "dealt":
        parts = x.unflatten(1, (each, groups)).transpose(1, 2)
    else:
        parts = x.unflatten(1, (each, groups) if members == "swapped" else (groups, each))
    y = normalise(parts, eps, over=over, detached=detached, **knobs)
    y = (y.transpose(1, 2) if members == "dealt" else y).flatten(1, 2)
    if affine == "a group":
        gamma, beta = (vector[:groups].repeat_interleave(each) for vector in (gamma, beta))
    return scaled(y, gamma, beta, order, gamma_along, beta_along, detached)


SHARE = "the numbers of one image and one group share them: x.unflatten(1, (groups, -1)), then the mean over (2, 3, 4)"
GROUPS = (
    Mistake(WRONG_AXES, f"they are taken over the images as well, as batch norm does; {SHARE}", over=(0, 2, 3, 4)),
    Mistake(WRONG_AXES, f"each channel has its own, as in instance norm; {SHARE}", over=(3, 4)),
    Mistake(WRONG_AXES, f"all channels of an image share them, as in layer norm; {SHARE}", over=(1, 2, 3, 4)),
    Mistake(WRONG_AXES, f"each pixel has its own; {SHARE}", also=[dict(over=(2,)), dict(over=(1, 2))]),
    Mistake(
        "channels dealt out",
        "channel c went to group c mod G, like cards: groups are neighbours, channels 0 to C / G − 1 the first; "
        "x.unflatten(1, (groups, -1)), not (-1, groups)",
        members="dealt",
    ),
    Mistake(
        "group size for number of groups",
        "there are C / G groups of G channels; `groups` says how many groups there are, each of C / G channels",
        members="swapped",
    ),
    Mistake(
        "gamma and beta for each group",
        "each group takes one γ and one β; they are (C,), one for each channel, and come after the reshape back",
        affine="a group",
    ),
    *rarely(
        Mistake(WRONG_AXES, f"they are taken over the images and each channel alone; {SHARE}", over=(0, 3, 4)),
        Mistake(WRONG_AXES, f"they are taken over the whole tensor; {SHARE}", over=(0, 1, 2, 3, 4)),
        Mistake(WRONG_AXES, f"W is left out; {SHARE}", over=(2, 3)),
        Mistake(WRONG_AXES, f"H is left out; {SHARE}", over=(2, 4)),
        Mistake(WRONG_AXES, f"only W is averaged; {SHARE}", over=(4,)),
        Mistake(WRONG_AXES, f"only H is averaged; {SHARE}", over=(3,)),
    ),
)


def group_case(shape, groups, eps, seed, dtype=torch.float32, trait="", *, scale=1.0, mean=1.0, **flags):
    """Return the case of a batch (N, C, H, W)."""
    arguments = {"x": batch(shape, seed, scale=scale, mean=mean, dtype=dtype), "groups": groups}
    return Case(with_affine(arguments, shape[1], dtype, seed) | {"eps": eps}, trait, **flags)


def drawn_groups(n, groups, each, h, w, scale, eps, dtype, seed):
    """Return a further case."""
    h = h if each * h * w > 2 else 3  # of two values a norm keeps the order alone: no gradient to compare
    return group_case((n, groups * each, h, w), groups, eps, seed, dtype, scale=scale)


def constant(case):
    """Return the case with one group all the same, whose variance is 0."""
    case.arguments["x"][0, :2] = 0.75  # its mean is exact in float32
    return case


GROUP_NORM = Exercise(
    name="group_norm",
    place=Place(7, "One function, every norm"),
    signature="group_norm(x (N, C, H, W), groups, gamma (C,), beta (C,), eps) -> y (N, C, H, W)",
    asks="Normalise each image's groups of C / groups neighbouring channels with their own mean and biased variance, ε "
    "inside the root; then multiply by γ and add β, one of each a channel.",
    formula=group_norm,
    mistakes=(UNBIASED, *EPSILON, *GROUPS, *SPREAD, *CENTRE, *DETACHED, *AFFINE, FIXED, SQUARES),
    cases=(
        group_case((2, 4, 1, 2), 2, 0.1, 11),
        group_case((3, 6, 2, 5), 2, 1e-3, 1),
        group_case((3, 6, 2, 5), 3, 0.1, 2, torch.float64),
        group_case((2, 6, 6, 6), 2, 0.1, 3),
        group_case((1, 6, 4, 2), 3, 0.01, 4, trait="N is 1"),
        group_case((4, 12, 1, 1), 3, 0.01, 5, trait="an image is one pixel"),
        group_case((2, 4, 3, 2), 1, 0.01, 6, trait="there is one group"),
        group_case((2, 6, 2, 3), 2, 1e-5, 7, trait="a variance is tiny", scale=2e-3, mean=0.01),
        constant(group_case((2, 4, 2, 2), 2, 1e-5, 9, trait="a variance is 0", smooth=False)),
        group_case((2, 4, 2, 2), 2, 1e-5, 8, trait="the mean is large", mean=4000.0, ill=True),
    ),
    drawn=drawn(
        drawn_groups, *[(1, 2, 3, 4)] * 5, (1.0, 5.0), (1e-3, 1e-2, 0.1, 1.0), (torch.float32, torch.float64), range(8)
    ),
    tracked=("x", "gamma", "beta"),
)

# ---- masked_batch_norm


def masked_batch_norm(
    x,
    mask,
    gamma,
    beta,
    eps,
    *,
    counted="real",
    mean_of="real",
    squares="masked",
    over=(0, 2),
    by="real",
    var_by="n",
    padding="zero",
    spread="root",
    place="inside",
    fixed=None,
    order="γ then β",
    gamma_along=1,
    beta_along=1,
    detached="",
):
    """Return BN of x (N, C, L) over the positions of the mask (N, L), bent by the knobs.

    counted   the positions that statistics are taken of: "real", "all", "padding"
    mean_of   "all" for a mean of all positions beside a variance of the counted ones
    squares   "masked": ((x − mean) · mask)², "masked before": (x · mask − mean)², "unmasked": (x − mean)²
    over      the axes of the averages
    by        what both sums are divided by: "real" positions, "N·L", "N"; var_by "n - 1": one less for the variance
    padding   what stands there in the output: "zero", "normalised", the "input", or "β"
    """
    real = (mask != 0)[:, None]  # (N, 1, L)
    used = {"real": real, "all": torch.ones_like(real), "padding": ~real}[counted].to(x.dtype).expand_as(x)
    x = x.detach() if "x" in detached else x

    def total(values):
        return values.sum(over, keepdim=True)

    n = {"real": total(used), "N·L": total(torch.ones_like(x)), "N": x.shape[0]}[by]
    mean = x.mean(over, keepdim=True) if mean_of == "all" else total(x * used) / n
    deviation = {"masked": (x - mean) * used, "masked before": x * used - mean, "unmasked": x - mean}[squares]
    var = total(deviation.square()) / (n - int(var_by == "n - 1"))
    mean, var = (value.detach() if name in detached else value for name, value in (("mean", mean), ("var", var)))
    y = divided(x - mean, var, eps if fixed is None else fixed, spread, place)
    y = scaled(y, gamma, beta, order, gamma_along, beta_along, detached)
    if padding == "normalised":
        return y
    zero = torch.zeros_like(x)
    return torch.where(real, y, {"zero": zero, "input": x, "β": beta.view(1, -1, 1) + zero}[padding])


COUNT = "divide by the number of real positions, mask.sum()"
MASKED = (
    Mistake(
        "mask ignored in the statistics",
        "mean and variance are those of all positions, padding included; the output alone is masked: " + COUNT,
        counted="all",
    ),
    Mistake(
        "mask ignored",
        "the mask is not used at all: mean and variance are those of all positions, and padding is left in the output",
        counted="all",
        padding="normalised",
    ),
    Mistake(
        "sums divided by N·L", f"padding is left out of the sums, but not of the count; {COUNT}, not N · L", by="N·L"
    ),
    Mistake(
        "mask missing in the variance",
        "padding is left out of the mean, but its (x − mean)² are in the variance: ((x − mean) · mask)²",
        squares="unmasked",
    ),
    Mistake(
        "mask missing in the mean",
        "the mean is that of all positions, padding included; only the variance is masked",
        mean_of="all",
    ),
    Mistake("mask inverted", "the statistics are those of the padding; True marks what is real", counted="padding"),
    Mistake(WRONG_AXES, "each sequence has its own mean and variance; a channel shares them over N and L", over=(2,)),
    Mistake(
        WRONG_AXES, "all channels share one mean and variance; each channel has its own, dim=(0, 2)", over=(0, 1, 2)
    ),
    Mistake(WRONG_AXES, "each position has its own mean and variance; they are taken over N and L", over=(0,)),
    Mistake("sums divided by N", f"both sums are divided by the number of sequences; {COUNT}", by="N"),
    Mistake(
        "masked before subtracting",
        "x · mask − mean is −mean where there is padding, and each pad adds mean² to the variance: subtract first, "
        "(x − mean) · mask",
        squares="masked before",
    ),
    Mistake(
        "padding averaged as zeros",
        f"x · mask sets padding to 0, and the zeros are averaged with the rest: subtract first, and {COUNT}",
        by="N·L",
        squares="masked before",
    ),
    Mistake("padding left in the output", "the statistics are right; at last set padding to 0", padding="normalised"),
    *rarely(
        Mistake(
            "beta left in the padding",
            "the output is masked before β is added, which puts β where there is padding: mask at last",
            padding="β",
        ),
        Mistake("padding not zeroed", "padding keeps its input; it has to be 0 in the output", padding="input"),
        Mistake(
            "mask ignored", "the statistics are of all positions, and padding is not 0", counted="all", padding="input"
        ),
    ),
)
# of γ and β those that fit three axes: L is axis 2 here
AFFINE_3D = (
    *(mistake for mistake in AFFINE if "along" not in mistake.name),
    *rarely(*along_wrong_axes({"L": 2}, "use `.view(1, -1, 1)`")),
)
SPREAD_OF_SUMS = tuple(  # those that `divided` makes alone
    mistake
    for mistake in (*EPSILON, *SPREAD)
    if all(knobs.keys() <= {"spread", "place"} for knobs in mistake.variants)
    and not any(
        knobs.get("spread") in ("absolute", "range") or knobs.get("place") == "numerator" for knobs in mistake.variants
    )
)


def masked_case(shape, pad, eps, seed, dtype=torch.float32, trait="", *, scale=1.0, mean=1.0, **flags):
    """Return the case of sequences (N, C, L), each with two real positions and more, padded with `pad`."""
    n, c, length = shape
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, length + 1, (n,), generator=generator)
    lengths[0], lengths[-1] = (length, length) if pad is None else (length, max(2, length - 2))
    lengths = torch.full((n,), length) if pad is None else lengths
    mask = torch.arange(length) < lengths[:, None]
    x = batch(shape, seed, scale=scale, mean=mean, dtype=dtype)
    x = x if pad is None else x.masked_fill(~mask[:, None], pad)
    return Case(with_affine({"x": x, "mask": mask}, c, dtype, seed) | {"eps": eps}, trait, **flags)


def drawn_sequences(n, c, length, pad, scale, eps, dtype, seed):
    """Return a further case."""
    return masked_case((n, c, length), pad, eps, seed, dtype, scale=scale)


MASKED_BATCH_NORM = Exercise(
    name="masked_batch_norm",
    place=Place(7, "Padding"),
    signature="masked_batch_norm(x (N, C, L), mask (N, L), gamma (C,), beta (C,), eps) -> y (N, C, L)",
    asks="Batch norm in training of the positions where the mask is True: mean and biased variance per channel of them "
    "alone, ε inside the root, γ and β; the other positions become 0.",
    formula=masked_batch_norm,
    mistakes=(UNBIASED, *MASKED, *SPREAD_OF_SUMS, *DETACHED, *AFFINE_3D, FIXED),
    cases=(
        Case(
            {
                "x": torch.tensor([[[5.0, 7, 5, 7]], [[5, 7, 9, 9]]]),
                "mask": torch.tensor([[True] * 4, [True, True, False, False]]),
                "gamma": torch.tensor([2.0]),
                "beta": torch.tensor([1.0]),
                "eps": 0.1,
            }
        ),
        masked_case((3, 4, 6), 7.0, 1e-3, 2),
        masked_case((4, 3, 5), 7.0, 0.1, 3, torch.float64),
        masked_case((3, 3, 3), -4.0, 1.0, 4),
        masked_case((4, 2, 6), 0.0, 0.01, 5, trait="padding is 0"),
        masked_case((1, 3, 5), None, 0.01, 6, trait="N is 1"),
        masked_case((3, 2, 4), None, 0.01, 7, trait="there is no padding"),
        masked_case((3, 1, 5), 7.0, 0.01, 8, trait="C is 1"),
        masked_case((3, 2, 5), 0.02, 1e-5, 9, trait="a variance is tiny", scale=2e-3, mean=0.01),
    ),
    drawn=drawn(
        drawn_sequences,
        (2, 3, 4, 5),
        (1, 2, 3, 4),
        (3, 4, 5, 7),
        (0.0, 7.0, -3.0, 1.0),
        (1.0, 5.0),
        (1e-3, 1e-2, 0.1, 1.0),
        (torch.float32, torch.float64),
        range(8),
    ),
    tracked=("x", "gamma", "beta"),
)

# ---- rms_norm


def rms_norm(x, gamma, eps, *, over=(2,), centre="none", around="zero", scale="γ", gamma_along=2, detached="", **knobs):
    """Return RMS norm of x (N, L, C), bent by the knobs; those that are not named here are `normalise`'s."""
    y = normalise(x, eps, over=over, centre=centre, around=around, detached=detached, **knobs)
    gamma = gamma.view([-1 if axis == gamma_along else 1 for axis in range(3)])
    gamma = gamma.detach() if "gamma" in detached else gamma
    if scale == "γ added":
        return y + gamma
    return y * {"γ": gamma, "none": 1.0, "1 + γ": 1 + gamma, "1 / γ": 1 / gamma, "γ²": gamma**2}[scale]


ROOT = "x / √(mean(x²) + ε) · γ"
OF_RMS = (
    Mistake(
        "layer norm",
        f"the mean is subtracted, and the variance divides: that is layer norm; RMS norm leaves the mean, {ROOT}",
        centre="minus mean",
        around="own mean",
    ),
    Mistake(
        "divided by the standard deviation",
        f"the variance about the mean divides; it is the mean square about 0, {ROOT}",
        around="own mean",
    ),
    Mistake(
        "sum instead of mean of the squares", f"the squares are summed, not averaged (an l2 norm); {ROOT}", var_by="1"
    ),
    Mistake("root missing", f"the mean square divides, not its root; {ROOT}", spread="variance"),
    Mistake(
        "epsilon outside the root", f"√(mean square) + ε divides; ε belongs inside the root, {ROOT}", place="outside"
    ),
    Mistake("epsilon missing", f"there is no ε, and a token of zeros divides by zero; {ROOT}", place="missing"),
    Mistake(
        WRONG_AXES, "the mean is taken over the positions; over the channels, dim=-1, each token has its own", over=(1,)
    ),
    Mistake(
        WRONG_AXES, "the mean is taken over the samples; over the channels, dim=-1, each token has its own", over=(0,)
    ),
    Mistake(
        WRONG_AXES,
        "the mean is taken over positions and channels; over the channels alone, dim=-1, each token has its own",
        over=(1, 2),
    ),
    Mistake("gamma forgotten", f"γ is never used; {ROOT}", scale="none"),
    Mistake(
        "one plus gamma",
        f"1 + γ multiplies, as in networks whose γ starts at 0; here it starts at 1: {ROOT}",
        scale="1 + γ",
    ),
    Mistake(
        "squares divided by n − 1", f"the mean of the squares is their sum ÷ C, not ÷ (C − 1); {ROOT}", var_by="n - 1"
    ),
    Mistake(
        "gamma along the wrong axis",
        "γ (C,) goes along the positions; it lies along the last axis, where it broadcasts by itself",
        gamma_along=1,
    ),
    Mistake(
        "mean subtracted", f"the mean is subtracted above the line; RMS norm leaves it, {ROOT}", centre="minus mean"
    ),
    *DETACHED[-1:],
    Mistake("gamma detached from the gradient", "no gradient reaches γ, it cannot be learned", detached=("gamma",)),
    Mistake(
        "mean square detached from the gradient",
        "the values are right, but the gradient does not pass through the mean square, which depends on x as well",
        detached=("var",),
    ),
    FIXED,
    *rarely(
        Mistake(WRONG_AXES, "the mean is taken over the whole tensor; each token has its own, dim=-1", over=(0, 1, 2)),
        Mistake(
            WRONG_AXES,
            "the mean is taken over samples and positions, as in batch norm; each token has its own",
            over=(0, 1),
        ),
        Mistake("root taken twice", f"the root of the root divides; {ROOT}", spread="double root"),
        Mistake("not divided", f"the division is missing; {ROOT}", spread="nothing"),
        Mistake("multiplied by the root mean square", f"divide by it, do not multiply; {ROOT}", spread="multiplied"),
        Mistake(
            "mean of absolute values",
            f"the mean of |x| divides; it is the root of the mean square, {ROOT}",
            also=[dict(spread="absolute", place=place) for place in ("inside", "outside", "missing")],
        ),
        Mistake(
            "epsilon as a lower bound",
            f"the mean square is clamped at ε; add it, {ROOT}",
            also=[dict(place="clamped"), dict(place="root clamped")],
        ),
        Mistake("epsilon squared", f"ε² is added to the mean square; it is ε, {ROOT}", place="squared"),
        Mistake("divided by gamma", f"γ divides; it multiplies, {ROOT}", scale="1 / γ"),
        Mistake("gamma twice", f"γ multiplies twice; {ROOT}", scale="γ²"),
        Mistake("gamma added", f"γ is added; it multiplies, {ROOT}", scale="γ added"),
    ),
)


def token_case(shape, eps, seed, dtype=torch.float32, trait="", *, scale=1.0, **flags):
    """Return the case of tokens (N, L, C), their means not 0."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) + 0.7) * scale
    gamma = torch.rand(shape[2], generator=generator, dtype=torch.float64) + 0.5
    gamma[1:2] *= -1
    return Case({"x": x.to(dtype), "gamma": gamma.to(dtype), "eps": eps}, trait, **flags)


def drawn_tokens(n, length, c, scale, eps, dtype, seed):
    """Return a further case."""
    return token_case((n, length, c), eps, seed, dtype, scale=scale)


RMS_NORM = Exercise(
    name="rms_norm",
    place=Place(7, "In transformers: layer norm and RMS norm"),
    signature="rms_norm(x (N, L, C), gamma (C,), eps) -> y (N, L, C)",
    asks="Divide each token, the C numbers of one position, by the root of its mean square plus ε; then multiply by γ.",
    formula=rms_norm,
    mistakes=OF_RMS,
    cases=(
        Case({"x": torch.tensor([[[3.0, 4, 0], [1, 1, 2]]]), "gamma": torch.tensor([2.0, 1, -1]), "eps": 0.1}),
        token_case((3, 4, 6), 1e-3, 1),
        token_case((2, 3, 5), 0.1, 2, torch.float64),
        token_case((3, 3, 3), 1.0, 3),
        token_case((1, 4, 3), 0.01, 4, trait="N is 1"),
        token_case((3, 1, 4), 0.01, 5, trait="L is 1"),
        token_case((2, 3, 4), 1e-5, 6, trait="a mean square is tiny", scale=2e-3),
    ),
    drawn=drawn(
        drawn_tokens,
        (1, 2, 3, 4),
        (1, 2, 3, 4),
        (2, 3, 4, 6),
        (1.0, 0.01, 5.0, 100.0),
        (1e-3, 1e-2, 0.1, 1.0),
        (torch.float32, torch.float64),
        range(8),
    ),
    tracked=("x", "gamma"),
)

# ---- axes

AXES = {"batch": (0, 2, 3), "layer": (1, 2, 3), "instance": (2, 3), "group": (2, 3, 4)}
WHY = {
    "batch": "all images and pixels of one channel share a mean",
    "layer": "all channels and pixels of one image share a mean",
    "instance": "the pixels of one channel of one image share a mean",
    "group": "the channels and pixels of one group of one image share a mean: of (N, G, C / G, H, W) the last three",
}
LETTERS = {4: ("N", "C", "H", "W"), 5: ("N", "G", "C / G", "H", "W")}


class Axes:
    """The exercise: `judge(answers)` takes {name of the norm: the axes it averages over} for some or all norms."""

    name = "axes"
    place = Place(7, "One function, every norm")
    signature = 'axes = {"batch": (...), "layer": (...), "instance": (...), "group": (...)}'
    asks = (
        "Over which axes of (N, C, H, W) do batch, layer and instance norm average, and group norm over which of "
        "(N, G, C / G, H, W)? A dict from the norm's name to a tuple."
    )

    def judge(self, answers):
        """Return the Verdict on a dict of answers."""
        if answers is None or answers is ...:
            return unanswered(self)
        if not isinstance(answers, dict):
            cause = f'it is {describe(answers)}; expected a dict such as {{"batch": (0, 1)}}'
            return refused(self, [Mistake("not a dict", cause)])
        given = {str(name).strip().lower(): answer for name, answer in answers.items()}
        if unknown := given.keys() - AXES.keys():
            cause = f"there is no {', '.join(sorted(unknown))}; there are {', '.join(AXES)}"
            return refused(self, [Mistake("no such norm", cause)])
        judged = {name: self.look(name, answer) for name, answer in given.items()}
        lines = "\n".join(f"{name}: {words}" for name, (_, words) in judged.items())
        wrong = [mistake for mistake, _ in judged.values() if mistake]
        if wrong:
            return Verdict(self.name, False, lines, tuple(dict.fromkeys(wrong)), read=self.place)
        answered = len(given) == len(AXES) and None not in [mistake for mistake, _ in judged.values()]
        return Verdict(self.name, answered, lines or self.asks, answered=answered)

    def look(self, name, answer):
        """Return (the mistake's name, "" if right, None if not answered; what to say) of one answer."""
        if answer is None or answer is ... or answer == "":
            return None, "not answered yet"
        rank = 5 if name == "group" else 4
        try:
            dims = (answer,) if isinstance(answer, int) else tuple(int(dim) for dim in answer)
        except (TypeError, ValueError):
            return f"{name}: not axes", f"{answer!r} is no tuple of axes, such as (0, 1)"
        if not all(-rank <= dim < rank for dim in dims):
            return f"{name}: no such axis", f"{dims}: the axes are {', '.join(LETTERS[rank])}, 0 to {rank - 1}"
        dims = tuple(sorted({dim % rank for dim in dims}))
        if dims == AXES[name]:
            return "", f"right, {dims}: {WHY[name]}"
        letters = LETTERS[rank]
        kept = [letter for axis, letter in enumerate(letters) if axis not in dims]
        other = next((norm for norm, axes in AXES.items() if rank == 4 and norm != "group" and axes == dims), None)
        if other:
            return f"{name}: the axes of {other} norm", f"{dims} are {other} norm's, where {WHY[other]}"
        kept_axes = tuple(axis for axis in range(rank) if axis not in dims)
        if kept_axes == AXES[name]:
            return f"{name}: the axes that stay", f"{dims} are those that are kept; asked for are those averaged away"
        means = f"a mean for each {' and '.join(kept)}" if kept else "one mean for all"
        give = "give" if len(dims) > 1 else "gives"
        return f"{name}: other axes", f"{dims} {give} {means}; in {name} norm {WHY[name]}"


AXES_QUIZ = Axes()
