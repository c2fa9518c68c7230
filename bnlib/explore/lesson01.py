"""The explorers of lesson 01: what γ, β and ε do to grades, and how many students a mean needs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..data import GRADES, SUBJECTS, school
from ..plots import BLUE, GREEN, GREY, VERMILION
from .base import Explorer, Redrawn, button, choice, slider, stops

LARGEST = 128  # students in the largest class
CLASSES = 200  # classes drawn
MANY = 40  # students; with more, lines from ruler to ruler would hide the dots
RULER = (-25, 125)  # points
GAMMAS = [-25.0, -20.0, -15.0, -10.0, -5.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 20.0, 25.0]


@dataclass
class Normalised:
    """One subject on its way through batch normalization; every tensor is (students,)."""

    grades: Tensor
    standard: Tensor  # (grades - mean) / √(variance + ε)
    after: Tensor  # γ · standard + β


def normalise(grades, gamma, beta, eps):
    """Return the `Normalised` of one subject's `grades` (students,), with the biased variance (÷ n)."""
    grades = grades.double()
    standard = (grades - grades.mean()) / (grades.var(correction=0) + eps).sqrt()
    return Normalised(grades, standard, gamma * standard + beta)


class GammaBeta(Explorer):
    """What do γ, β and ε do to the grades of one subject?

    grades  (students, subjects); by default the class of lesson 01, and a subject in which all have the same grade

    Raises ValueError for grades of another shape or with values that are no number.
    """

    name = "gamma_beta"
    size = (6.8, 4.1)
    grid: ClassVar = {"gamma": GAMMAS, "beta": [float(beta) for beta in range(-20, 121, 10)]}

    def __init__(self, grades=None):
        if grades is None:
            self._grades = torch.cat([GRADES, torch.full((len(GRADES), 1), 80.0)], 1)
            self._subjects = [*SUBJECTS, "sport (all the same)"]
        else:
            self._grades, self._subjects = checked(grades)
        back = button("Give the grades back", self._give_back, tooltip="γ = σ and β = μ: what undoes it")
        new = button("New layer", lambda: self.set(gamma=1.0, beta=0.0), tooltip="γ = 1 and β = 0: the start")
        controls = {
            "subject": subject_buttons(self._subjects),
            "gamma": slider("γ, the scale (points)", 10.0, -25.0, 25.0, 0.1, tooltip="The spread after", format=".1f"),
            "beta": slider("β, the shift (points)", 60.0, -20.0, 120.0, 0.5, tooltip="The mean after", format=".1f"),
            "eps": stops(
                "ε (points squared)",
                1e-5,
                [(plain(eps), eps) for eps in (1e-5, 0.1, 1.0, 10.0, 100.0, 1000.0)],
                tooltip="Added to the variance, inside the root",
            ),
        }
        super().__init__(controls, [back, new])

    def _give_back(self):
        grades = self._grades[:, self.controls["subject"].value].double()
        self.set(gamma=grades.std(correction=0).item(), beta=grades.mean().item())

    def still(self, figure):
        """Draw three rulers, the first and the last alike, so that they can be compared."""
        students = len(self._grades)
        self._heights = scattered(students) if students > MANY else torch.linspace(0.85, 0.3, students)
        left, width, marker_size = 0.295, 0.69, 8 if students <= MANY else 4
        whole = figure.add_axes((left, 0, width, 1), xlim=(0, 1), ylim=(0, 1))
        whole.set_axis_off()
        self._links = self.moves(whole.plot([], [], color=GREY, linewidth=1, alpha=0.5)[0])
        self._rulers = []
        for bottom, limits, color, marker, symbol, words in (
            (0.75, RULER, BLUE, "o", "x", "the grades (points)"),
            (0.42, (-4, 4), GREEN, "s", "x̂ = (x − μ) / √(σ² + ε)", "standardised"),
            (0.09, RULER, VERMILION, "D", "y = γ · x̂ + β", "after (points)"),
        ):
            axes = figure.add_axes((left, bottom, width, 0.21), xlim=limits, ylim=(0, 1), yticks=[])
            axes.spines["left"].set_visible(False)
            axes.patch.set_visible(False)
            figure.text(0.01, bottom + 0.17, symbol, color=color, weight="bold")
            figure.text(0.01, bottom + 0.115, words, color=color)
            figure.text(0.01, bottom + 0.05, "mean")
            figure.text(0.01, bottom - 0.005, "spread")
            mean = self.moves(figure.text(0.275, bottom + 0.05, "", ha="right"))
            sd = self.moves(figure.text(0.275, bottom - 0.005, "", ha="right"))
            bar = self.moves(axes.plot([], [], color="black", linewidth=2, marker="|", markersize=11)[0])
            dots = self.moves(axes.plot([], [], marker, color=color, markersize=marker_size, alpha=0.8)[0])
            self._rulers.append((axes, bar, dots, mean, sd))

    def show(self, subject, gamma, beta, eps):
        """Move the students along the rulers."""
        result = normalise(self._grades[:, subject], gamma, beta, eps)
        places, spreads = [], []
        for (axes, bar, dots, mean_text, sd_text), values in zip(
            self._rulers, (result.grades, result.standard, result.after), strict=True
        ):
            mean, sd = round(values.mean().item(), 9) + 0.0, values.std(correction=0).item()
            spreads.append(sd)
            dots.set_data(values, self._heights)
            bar.set_data([mean - sd, mean, mean + sd], [0.05] * 3)
            mean_text.set_text(f"{mean:.2f}")
            sd_text.set_text(f"{sd:.2f}")
            (low, high), box = axes.get_xlim(), axes.get_position()
            places.append(torch.stack([(values - low) / (high - low), box.y0 + self._heights * box.height], 1))
        gap = torch.full_like(places[0], torch.nan)
        if len(gap) <= MANY:
            self._links.set_data(*torch.stack([*places, gap], 1).flatten(0, 1).T)
        out = int(((result.after < RULER[0]) | (result.after > RULER[1])).sum())
        return (
            f"{self._subjects[subject].capitalize()}, {len(gap)} students: mean μ = {result.grades.mean():.2f} and "
            f"spread (standard deviation) σ = {spreads[0]:.2f} points. Standardised, with ε = {plain(eps)}, they have "
            f"mean 0 and spread {spreads[1]:.3f}. After γ = {gamma:.2f} and β = {beta:.2f} the mean is "
            f"{result.after.mean():.2f} and the spread {spreads[2]:.2f}"
            + (": the order is turned round." if gamma < 0 < spreads[2] else ".")
            + (
                " All have the same grade, so the variance is 0; ε keeps 0/0 away, and all get β."
                if not spreads[0]
                else ""
            )
            + (" These are the grades that came in." if torch.allclose(result.after, result.grades, atol=5e-3) else "")
            + (f" {out} of them lie outside the ruler." if out else "")
        )


@dataclass
class Classes:
    """Many classes drawn from one school, at every size: row d, column n - 1 is the first n students of class d."""

    grades: Tensor  # (CLASSES, LARGEST)
    mean: float  # of the school
    sd: float  # of the school, root of the biased variance (÷ students), as all here
    means: Tensor  # (CLASSES, LARGEST): a class's mean
    sds: Tensor  # (CLASSES, LARGEST): a class's standard deviation
    mean_error: Tensor  # (LARGEST,): how far a class's mean is from the school's, root mean square over the classes
    sd_error: Tensor  # (LARGEST,): the same for the standard deviation


def draw_classes(school, seed):
    """Return the `Classes` drawn, with replacement, from the grades `school` (students,)."""
    generator = torch.Generator().manual_seed(seed)
    school = school.double()
    mean, sd = school.mean(), school.std(correction=0)
    n = torch.arange(1, LARGEST + 1)
    # counted from the school's mean, so that the difference of squares below loses no digits
    grades = school[torch.randint(len(school), (CLASSES, LARGEST), generator=generator)]
    off = grades - mean
    means = off.cumsum(1) / n
    sds = (off.square().cumsum(1) / n - means.square()).clamp(min=0).sqrt()
    mean_error, sd_error = means.square().mean(0).sqrt(), (sds - sd).square().mean(0).sqrt()
    return Classes(grades, mean.item(), sd.item(), means + mean, sds, mean_error, sd_error)


class ClassSize(Redrawn):
    """How far do a class's mean and spread stray from the school's, and how does that shrink as classes grow?

    grades  (students, subjects), the school to draw classes from; by default `bnlib.data.school(1000)`

    The mean of N grades strays by σ/√N; the standard deviation, of normal grades, by about σ/√(2N).
    Raises ValueError for grades of another shape or with values that are no number.
    """

    name = "class_size"
    size = (6.8, 4.2)
    grid: ClassVar = {"students": [*range(1, 17), *range(18, 33, 2), *range(36, 65, 4), *range(72, 129, 8)]}

    def __init__(self, grades=None):
        self._grades, self._subjects = checked(school(1000) if grades is None else grades)
        self._drawn = None, None
        size = slider("Class size N (students)", 8, 1, LARGEST, tooltip="How many students share one mean")
        super().__init__(
            {"subject": subject_buttons(self._subjects), "students": size}, f"Draw {CLASSES} other classes"
        )

    def still(self, figure):
        """Draw the axes: two strips of classes, and the law."""
        means = figure.add_axes((0.02, 0.61, 0.39, 0.31))
        sds = figure.add_axes((0.02, 0.15, 0.39, 0.31))
        law = figure.add_axes((0.635, 0.15, 0.35, 0.77))
        self._axes = means, sds, law
        self._heights = scattered(CLASSES)
        for axes, title in ((means, f"Means of {CLASSES} classes"), (sds, f"Spreads of {CLASSES} classes")):
            axes.set(ylim=(0, 1), yticks=[], title=title)
            axes.spines["left"].set_visible(False)
        sds.set_xlabel("points")
        n = torch.arange(1, LARGEST + 1)
        law.set(xscale="log", yscale="log", xlim=(0.8, 160), ylim=(0.022, 1.7), xlabel="class size N")
        law.set_title("How far they stray")
        law.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
        law.minorticks_off()
        law.grid(color="#dddddd")
        law.plot(n, n**-0.5, color=BLUE, linestyle="--", label="mean: σ/√N")
        law.plot(n, (2 * n) ** -0.5, color=VERMILION, linestyle=":", label="spread: σ/√(2N)")
        law.legend(loc="lower left", borderaxespad=0.1, handlelength=1.6)
        self._school, self._band, self._dots, self._measured, self._here = [], [], [], [], []
        for axes, color, marker in ((means, BLUE, "o"), (sds, VERMILION, "^")):
            self._band.append(self.moves(axes.axvspan(0, 1, color=color, alpha=0.15, linewidth=0)))
            self._school.append(self.moves(axes.axvline(0, color="black", linewidth=1.5)))
            style = {"marker": marker, "color": color, "linestyle": ""}
            self._dots.append(self.moves(axes.plot([], [], **style, markersize=4, alpha=0.6)[0]))
            self._measured.append(self.moves(law.plot([], [], **style, markersize=4)[0]))
            self._here.append(self.moves(law.plot([], [], **style, markersize=11, markeredgecolor="black")[0]))

    def show(self, students, subject):
        """Move the dots to classes of `students`."""
        if (subject, self.seed) != self._drawn[:2]:
            school = draw_classes(self._grades[:, subject], self.seed)
            if school.sd == 0:
                raise ValueError(f"all grades in {self._subjects[subject]} are {school.mean:g}, so no class can stray")
            self._scale(school)
            self._drawn = subject, self.seed, school
        school = self._drawn[2]
        column = students - 1
        powers = [2**k - 1 for k in range(LARGEST.bit_length())]  # columns of 1, 2, 4 … students
        for i, (centre, law, values, error) in enumerate(
            (
                (school.mean, school.sd / students**0.5, school.means, school.mean_error),
                (school.sd, school.sd / (2 * students) ** 0.5, school.sds, school.sd_error),
            )
        ):
            self._band[i].set(x=centre - law, width=2 * law)
            self._school[i].set_xdata([centre, centre])
            self._dots[i].set_data(values[:, column], self._heights)
            self._measured[i].set_data([p + 1 for p in powers], error[powers] / school.sd)
            self._here[i].set_data([students], [error[column] / school.sd])
        sds = school.sds[:, column]
        return (
            f"{CLASSES} classes of {students} from a school whose grades in {self._subjects[subject]} have mean "
            f"{school.mean:.2f} and standard deviation σ = {school.sd:.2f} points (black lines). A class's mean strays "
            f"from the school's by {school.mean_error[column]:.2f} points, root mean square; σ/√N says "
            f"{school.sd / students**0.5:.2f} (shaded). "
            + (
                "One student has no spread: the biased variance (÷ N) is 0, the unbiased one (÷ N − 1) does not exist."
                if students == 1
                else f"A class's standard deviation (biased, ÷ N) is {sds.mean():.2f} on average and strays by "
                f"{school.sd_error[column]:.2f}."
            )
        )

    def _scale(self, school):
        means, sds, law = self._axes
        means.set_xlim(school.mean - 3.5 * school.sd, school.mean + 3.5 * school.sd)
        sds.set_xlim(-0.1 * school.sd, 2.4 * school.sd)
        parts = (1, 2, 4, 8, 16)
        names = [f"{'σ' if part == 1 else f'σ/{part}'} = {school.sd / part:.3g}" for part in parts]
        law.set_yticks([1 / part for part in parts], names)
        law.minorticks_off()
        self.axes_moved()


def plain(eps):
    """Return ε in words without an exponent."""
    return f"{eps:.5f}".rstrip("0").rstrip(".")


def scattered(n):
    """Return heights (n,) between 0.2 and 0.9 in an order without order, so that dots of one value stand apart."""
    return torch.linspace(0.2, 0.9, n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]


def subject_buttons(subjects):
    """Return the buttons that choose one of `subjects`, by number."""
    options = [(name, c) for c, name in enumerate(subjects)]
    return choice("Subject", 0, options, tooltips=[f"The grades in {name}" for name in subjects])


def checked(grades):
    """Return `grades` (students, subjects) as a tensor and the subjects' names; raise ValueError if they do not do."""
    grades = torch.as_tensor(grades)
    if grades.dim() != 2 or len(grades) < 2:
        raise ValueError(f"expected grades (students, subjects), of two students or more, got {tuple(grades.shape)}")
    if not grades.isfinite().all():
        raise ValueError(f"{(~grades.isfinite()).sum()} grades are no number; leave those students out")
    names = SUBJECTS if grades.shape[1] == len(SUBJECTS) else [f"subject {c}" for c in range(grades.shape[1])]
    return grades, list(names)
