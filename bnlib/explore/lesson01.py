"""The explorers of lesson 01: γ and β for one subject, and how many students a mean needs."""

from dataclasses import dataclass

import torch
from ipywidgets import Button
from torch import Tensor

from ..plots import BLUE, GREY, VERMILION
from .base import Explorer, choice, slider

LARGEST = 128  # students in the largest class
CLASSES = 200  # classes drawn


@dataclass
class Classes:
    """Many classes drawn from one school, at every class size: row d, column n - 1 is class d's first n students."""

    mean: float  # of the school
    sd: float  # of the school, biased
    means: Tensor  # (CLASSES, LARGEST): the class's mean
    sds: Tensor  # (CLASSES, LARGEST): the class's standard deviation, root of the biased variance (÷ n)
    error: Tensor  # (LARGEST,): how far a class's mean is from the school's, root mean square over the classes


def draw_classes(school, seed):
    """Return the `Classes` drawn, with replacement, from the grades `school` (students,)."""
    generator = torch.Generator().manual_seed(seed)
    school = school.double()
    picked = school[torch.randint(len(school), (CLASSES, LARGEST), generator=generator)]
    mean = school.mean()
    n = torch.arange(1, LARGEST + 1)
    off = (picked - mean).cumsum(1) / n  # from the school's mean, so that the squares below lose no digits
    variances = (picked - mean).square().cumsum(1) / n - off.square()
    return Classes(
        mean.item(),
        school.std(correction=0).item(),
        off + mean,
        variances.clamp(min=0).sqrt(),
        off.square().mean(0).sqrt(),
    )


class ClassSize(Explorer):
    """How far do a class's mean and spread stray from the school's, and how fast does that shrink as classes grow?

    grades  (students, subjects), the school to draw classes from; by default `bnlib.data.school(1000)`

    Each mark on the left is one class of `students` students. The standard deviation of a mean of n grades is σ/√n.
    Raises ValueError for grades of another shape or with values that are no number.
    """

    name = "class_size"
    size = (7.6, 3.8)

    def __init__(self, grades=None):
        if grades is None:
            from ..data import school

            grades = school(1000)
        self.grades = torch.as_tensor(grades)
        subjects = check_grades(self.grades)
        self._seed = 0
        again = Button(
            description="Draw other classes", icon="refresh", tooltip=f"Draw {CLASSES} new classes by chance"
        )
        again.on_click(self._draw_again)
        controls = {
            "students": slider("Class size (students)", 8, 1, LARGEST, tooltip="How many students share one mean: N"),
            "subject": choice(
                "Subject",
                0,
                [(name, c) for c, name in enumerate(subjects)],
                tooltips=[f"Grades in {name}" for name in subjects],
            ),
        }
        super().__init__(controls, [again])

    def _draw_again(self, _):
        self._seed += 1
        self.refresh()

    def reset(self):
        """Put the controls back, and the first classes."""
        self._seed = 0
        super().reset()

    def still(self, figure):
        """Draw the axes: one dot plot of classes, one law."""
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        figure.subplots_adjust(left=0.1, right=0.985, top=0.9, bottom=0.16, wspace=0.3)
        self._strip, self._law = left, right
        spread = torch.linspace(-1, 1, CLASSES)[torch.randperm(CLASSES, generator=torch.Generator().manual_seed(0))]
        self._heights = 0.32 * spread.numpy()
        left.set(ylim=(-0.55, 1.6), yticks=[1, 0], xlabel="standard deviations σ of the school", xlim=(-2.6, 2.6))
        left.set_yticklabels(["mean", "spread"], rotation=90, va="center")
        left.set_title(f"{CLASSES} classes against the school")
        dots = {"linestyle": "", "markersize": 4, "alpha": 0.55}
        self._means = self.moves(left.plot([], [], "o", color=BLUE, **dots)[0])
        self._sds = self.moves(left.plot([], [], "^", color=VERMILION, **dots)[0])
        right.set(xscale="log", yscale="log", xlim=(0.85, 150), ylim=(0.05, 1.6), xlabel="class size N (students)")
        right.set_title("Error of a class's mean")
        n = torch.arange(1, LARGEST + 1)
        right.plot(n, n**-0.5, color=GREY, linestyle="--", label="law: σ/√N")
        self._measured = self.moves(right.plot([], [], "o", markersize=3, color=BLUE, label="measured")[0])
        self._now = self.moves(right.plot([], [], "D", markersize=9, color=VERMILION, markeredgecolor="white")[0])

    def show(self, students, subject):
        """Move the dots to classes of `students`."""
        classes = draw_classes(self.grades[:, subject], self._seed)
        column = students - 1
        self._means.set_data((classes.means[:, column] - classes.mean) / classes.sd, 1 + self._heights)
        self._sds.set_data(classes.sds[:, column] / classes.sd - 1, self._heights)
        n = torch.arange(1, LARGEST + 1)
        self._measured.set_data(n, classes.error / classes.sd)
        self._now.set_data([students], [classes.error[column] / classes.sd])
        return f"{students} students a class."


def check_grades(grades):
    """Return the names of the subjects of `grades` (students, subjects); raise ValueError if they cannot be used."""
    if grades.dim() != 2 or len(grades) < 2:
        raise ValueError(
            f"expected grades of shape (students, subjects), two students at least, got {tuple(grades.shape)}"
        )
    if not grades.isfinite().all():
        raise ValueError(f"{(~grades.isfinite()).sum()} grades are not a number; leave those students out first")
    from ..data import SUBJECTS

    return SUBJECTS if grades.shape[1] == len(SUBJECTS) else [f"subject {c}" for c in range(grades.shape[1])]
