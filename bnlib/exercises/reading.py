"""Where an exercise stands in the course, and which section explains a mistake."""

import re
from typing import NamedTuple

from ..examine.catalogue import PAGES

READ_BACKWARD = (  # for the exercises of lesson 6, before all others
    ("dgamma|dbeta", 6, "dβ and dγ"),
    ("gamma", 6, "Three paths to x"),
    ("epsilon", 6, "What BN lets through"),
    ("n − 1", 6, "Three paths to x"),
)
READ = (  # (pattern of a mistake's name, the lesson and section that explain it); where none fits, the exercise's own
    ("padding", 7, "Padding"),
    ("epsilon", 4, "ε inside the root"),
    ("epsilon", 1, "Standardise"),
    ("gradient", 2, "The gradient goes through the mean and the variance"),
    ("squares minus", 3, "Why two trips for the variance?"),
    ("biased|n − 1|correction", 3, "Two variances"),
    ("biased|n − 1", 1, "The mean and the spread of each subject"),
    ("share(?!s of old)", 8, "The cure: one mean for all"),
    (r"momentum|share|replaced|\bold\b", 3, "Momentum"),
    ("grad mode", 4, "Bug 1: the mode is read off the gradients"),
    ("attributes|saved", 4, "Bug 2: the moving statistics are plain attributes"),
    ("shaped", 4, "Bug 4: statistics shaped (1, C, 1, 1)"),
    ("one value", 2, "What it refuses, and what the message means"),
    ("does not start", 1, "What the layer remembers"),
    ("training uses|evaluation|in eval", 4, "Two modes, and three ways not to freeze"),
    ("reshaped", 4, "A pixel is a sample, a channel is a feature"),
    ("wrong axis", 4, "The loops in one line"),
    ("gamma|beta", 1, "γ and β: what the head teacher wishes"),
)


class Place(NamedTuple):
    """A section of a lesson."""

    lesson: int
    section: str

    @property
    def page(self):
        """The name of the lesson's notebook."""
        return PAGES[self.lesson]

    def again(self, mistake):
        """Return the place that explains the mistake of this name: never in a lesson that is still to come."""
        rows = READ_BACKWARD * (self.lesson == 6) + READ
        told = (Place(lesson, section) for name, lesson, section in rows if re.search(name, mistake))
        return next((place for place in told if place.lesson <= self.lesson), self)

    def __str__(self):
        return f"lesson {self.lesson:02d}, “{self.section}”"
