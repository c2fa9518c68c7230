"""The search for an input that an attempt answers wrongly, and for the smallest such one."""

import time
from contextlib import suppress

from hypothesis import HealthCheck, Phase, Verbosity, given, settings

from .answers import observe
from .truth import is_right

DRAWS = 25  # inputs drawn once the fixed ones are all answered rightly
SHRINKS = 40  # steps spent on making the first wrong one smaller
SECONDS = 2.0  # for both, at most: a slow attempt is judged on fewer inputs


class EnoughDrawn(BaseException):
    """Ends hypothesis' search; not an Exception, which it would take for a failure of the attempt."""


def smallest_wrong(exercise, guard, attempt):
    """Return the smallest case that hypothesis finds the attempt wrong on, or None."""
    if exercise.drawn is None:
        return None
    wrong, left, end = [], SHRINKS, time.monotonic() + SECONDS

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=DRAWS,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(exercise.drawn)
    def right(case):
        nonlocal left
        left -= bool(wrong)
        if left == 0 or time.monotonic() > end:
            raise EnoughDrawn
        if not is_right(exercise, observe(exercise, guard, attempt, case), case):
            wrong.append(case)
            raise AssertionError

    with suppress(EnoughDrawn, AssertionError):
        right()
    return min(wrong, key=lambda case: case.main.numel(), default=None)
