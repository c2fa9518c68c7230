"""Exercises that name the mistake.

For readers:

    check(name, attempt)    -> Verdict: right, or which mistake it is, a small input on which it shows, where to look
    check(name)             the task in words
    check()                 all exercises, and which are solved in this kernel
    bugs["A"]               the code of a layer with one bug, for check("spot_the_bug", {"A": "name of the bug"})

For authors of lessons: the stub's cell defines a function of the exercise's signature with `...` for its body and ends
with `bnlib.check("standardize", standardize)`; an unanswered stub gives "not answered yet" and raises nothing. A folded
solution defines the same name. For authors of exercises: a mistake is an entry of a catalogue, `Mistake(name, one-line
cause, knobs)`, where the knobs are keyword arguments of the exercise's formula that bend it (`judge/` says how an
attempt is judged, `normalise.py` shows most of the knobs); it is named, alone and beside others, from then on.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from html import escape

import torch

from .backward import BATCH_NORM_BACKWARD, NUMERICAL_GRADIENT, SWALLOWED
from .bugs import BUGS as bugs
from .bugs import SPOT_THE_BUG
from .judge import Exercise, Verdict
from .judge.guard import global_state_kept, nothing_on_stderr
from .layer.examination import LAYER
from .layout import AS_2D, GIVE_BACK
from .lenet import LENET
from .many_machines import SYNC_STATS
from .normalise import BATCH_NORM, BATCH_NORM_LOOPS, STANDARDIZE
from .norms import AXES_QUIZ, GROUP_NORM, MASKED_BATCH_NORM, RMS_NORM
from .production import FOLD, FREEZE, WHAT_IS_WRONG, patients
from .statistics import CHANNEL_STATS, RUNNING_STATS

__all__ = ["EXERCISES", "Verdict", "bugs", "check", "patients"]

EXERCISES = {
    exercise.name: exercise
    for exercise in (
        *(STANDARDIZE, GIVE_BACK, AS_2D, CHANNEL_STATS, BATCH_NORM_LOOPS, RUNNING_STATS),
        *(BATCH_NORM, LAYER, LENET, SPOT_THE_BUG),
        *(BATCH_NORM_BACKWARD, NUMERICAL_GRADIENT, SWALLOWED),
        *(GROUP_NORM, MASKED_BATCH_NORM, RMS_NORM, AXES_QUIZ),
        SYNC_STATS,
        *(FOLD, FREEZE, WHAT_IS_WRONG),
    )
}
_solved = set()
_NO_ATTEMPT = object()


def check(name=None, attempt=_NO_ATTEMPT):
    """Return the Verdict on an attempt at the exercise `name`; without an attempt the task, without a name all of them.

    In the place of a name may stand an exercise of one's own (`judge.Exercise`; CONTRIBUTING.md shows a complete one).
    An attempt is a function of the exercise's signature, for `layer` a class, for `spot_the_bug` a dict from letter to
    name. Whatever it does, nothing is raised, no call of it runs for more than a few seconds, and seeds, default dtype
    and torch's other global settings are as they were afterwards. The same attempt gets the same verdict every time.

    Raises ValueError for a name that is none of the exercises'.
    """
    if name is None:
        return Overview(tuple(EXERCISES.values()), frozenset(_solved))
    exercise = name if isinstance(name, Exercise) else EXERCISES.get(name)
    if exercise is None:
        close = get_close_matches(str(name), EXERCISES, n=1)
        guess = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"there is no exercise {name!r}{guess} The exercises: {', '.join(EXERCISES)}")
    if attempt is _NO_ATTEMPT:
        return Overview((exercise,), frozenset(_solved))
    with global_state_kept(), nothing_on_stderr(), torch.inference_mode(False), torch.enable_grad():
        torch.set_num_threads(1)  # or the thread of each call would start a team of its own, for tensors this small
        verdict = exercise.judge(attempt)
    if verdict.ok:
        _solved.add(exercise.name)
    return verdict


@dataclass(frozen=True)
class Overview:
    """Exercises as a list: lesson, name, whether it is solved, the task; true where all of them are solved."""

    exercises: tuple
    solved: frozenset

    def __bool__(self):
        return all(exercise.name in self.solved for exercise in self.exercises)

    def _rows(self):
        for exercise in self.exercises:
            state = "✓ solved" if exercise.name in self.solved else "· open"
            lesson = f"lesson {exercise.place.lesson:02d}" if exercise.place else ""
            yield lesson, exercise.name, state, exercise.signature, exercise.asks

    def __repr__(self):
        if len(self.exercises) == 1:
            return "\n".join([self.exercises[0].name, self.exercises[0].signature, self.exercises[0].asks])
        return "\n".join(f"{lesson}  {state:<9} {name:<17} {asks}" for lesson, name, state, _, asks in self._rows())

    def _repr_html_(self):
        left = 'style="text-align: left"'
        html = "".join(f'<th scope="col" {left}>{head}</th>' for head in ("lesson", "exercise", "state", "task"))
        for lesson, _, state, signature, asks in self._rows():
            cells = lesson, f"<code>{escape(signature)}</code>", state, escape(asks)
            html += "</tr><tr>" + "".join(f"<td {left}>{cell}</td>" for cell in cells)
        return f"<table><tr>{html}</tr></table>"
