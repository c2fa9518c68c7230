"""What `check` answers: in words for a terminal, side by side for a notebook."""

import math
import re
from dataclasses import dataclass
from html import escape
from itertools import zip_longest

import torch

from .answers import describe, telling_digits
from .catalogue import Mistake
from .diagnosis import Unanswered
from .guard import Guard, is_stub

GREEN, VERMILION, GREY = "#009E73", "#D55E00", "#666666"  # as in plots.py, which would load matplotlib


@dataclass(frozen=True)
class Verdict:
    """The answer to an attempt; in an `assert` or `if` it is true where the attempt is right, unanswered it is false.

    ok         whether the attempt is right
    diagnosis  plain text: what is wrong, in the field's words, then what to look at
    mistakes   the names of the mistakes that explain the attempt
    answered   False for a stub that still holds its `...`
    read       what to read again: in words, its `page` a notebook's name; or None
    example    (name, value) pairs: a small input on which it shows; with it
    expected, received, shown  tuples of tensors, and what they are
    """

    exercise: str
    ok: bool
    diagnosis: str
    mistakes: tuple[str, ...] = ()
    answered: bool = True
    read: object = None
    example: tuple = ()
    expected: tuple = ()
    received: tuple = ()
    shown: str = ""

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        if not self.answered:
            return f"… {self.exercise}: not answered yet"
        if self.ok:
            return f"✓ {self.exercise}: right"
        return f"✗ {self.exercise}: {', '.join(self.mistakes)}"

    @property
    def difference(self) -> float | None:
        """The largest difference between expected and received, None where there is none to take."""
        expected, received = self._furthest() or (None, None)
        return None if expected is None else abs(expected - received)

    def _furthest(self):
        """Return the two numbers, one expected and one received, that differ most; None where there are none."""
        sides = self.expected, self.received
        shapes = [[value.shape if isinstance(value, torch.Tensor) else None for value in side] for side in sides]
        if shapes[0] != shapes[1] or not shapes[0] or None in shapes[0] or not all(map(math.prod, shapes[0])):
            return None
        expected, received = (torch.cat([value.double().flatten() for value in side]) for side in sides)
        at = (expected - received).abs().argmax()
        return expected[at].item(), received[at].item()

    def __bool__(self):
        return self.ok

    def _columns(self):
        """Return (heading, text) of input, expected and received."""
        if not self.example:
            return []
        given = "\n".join(f"{name} = {numbers(value, indent=len(name) + 3)}" for name, value in self.example)
        digits = telling_digits(*self._furthest()) if self.difference else 4
        return [("input", given)] + [
            (f"{word} {self.shown}", "\n".join(numbers(value, digits) for value in values))
            for word, values in (("expected", self.expected), ("received", self.received))
        ]

    def _closing(self):
        """Return the lines below the numbers."""
        gap = self.difference
        lines = [] if not gap else [f"largest difference: {'not a number' if gap != gap else format(gap, '.3g')}"]
        if self.read:
            lines.append(f"Read {self.read} ({self.read.page}).")
        return lines

    def __repr__(self):
        columns = [[head, *text.split("\n")] for head, text in self._columns()]
        widths = [max(map(len, column)) for column in columns]
        table = [
            "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in zip_longest(*columns, fillvalue="")
        ]
        return "\n".join([self.headline, self.diagnosis, *table, *self._closing()])

    def _repr_html_(self):
        colour = VERMILION if self.answered else GREY
        box = f"border-left: 4px solid {GREEN if self.ok else colour}; padding: 0.2em 0.9em; max-width: 60em"
        line = '<p style="margin: 0.2em 0">{}</p>'
        html = [f'<div role="status" style="{box}">', line.format(f"<b>{escape(self.headline)}</b>")]
        for text in self.diagnosis.split("\n"):  # what stands between backticks is set as code
            html.append(line.format(re.sub("`(.+?)`", r"<code>\1</code>", escape(text))))
        if columns := self._columns():
            style = 'style="text-align: left; vertical-align: top; padding: 0.2em 0.9em"'
            heads = "".join(f'<th scope="col" {style}>{escape(head)}</th>' for head, _ in columns)
            plain = 'style="margin: 0; background: none; font-family: monospace; white-space: pre"'
            cells = "".join(f"<td {style}><pre {plain}>{escape(text)}</pre></td>" for _, text in columns)
            html.append(f'<div style="overflow-x: auto"><table><tr>{heads}</tr><tr>{cells}</tr></table></div>')
        html += [line.format(escape(text)) for text in self._closing()]
        if self.read:
            page = self.read.page
            html[-1] = html[-1].replace(page, f'<a href="{page}.ipynb">{page}</a>')
        return "\n".join([*html, "</div>"])


def numbers(value, digits=4, indent=0):
    """Return a value as text without rounding noise: some significant digits, a line for each index but the last."""
    if not isinstance(value, torch.Tensor):
        return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
    if value.numel() > 40:
        return f"shape {tuple(value.shape)}"
    rows = value.reshape(-1, value.shape[-1]) if value.dim() > 1 else value.reshape(1, -1)
    cells = [[f"{number:.{digits}g}" for number in row] for row in (rows + 0.0).tolist()]
    width = max((len(cell) for row in cells for cell in row), default=0)
    texts = [" ".join(cell.rjust(width) for cell in row) for row in cells]
    if value.dim() > 2:  # one line for each index of the leading axes
        leading = torch.cartesian_prod(*[torch.arange(size) for size in value.shape[:-1]]).tolist()
        texts = [f"[{','.join(map(str, index))}] {text}" for index, text in zip(leading, texts, strict=True)]
    return ("\n" + " " * indent).join(texts)


def judged(exercise, attempt, right, fits, call, kind="function"):
    """Return the Verdict on an attempt, by `exercise.examine`; in the words of `right` if no mistake is found.

    fits, call, kind  whether it is of the kind the exercise takes, a function or a class; how one would be named
    """
    if attempt is None or attempt is ... or is_stub(attempt):
        return unanswered(exercise)
    if not fits:
        cause = f"it is {describe(attempt)}; give the {kind} itself: check({exercise.name!r}, {call})"
        return refused(exercise, [Mistake(f"not a {kind}", cause)])
    try:
        mistakes, evidence = exercise.examine(Guard(), attempt)
    except Unanswered:
        return unanswered(exercise)
    return refused(exercise, mistakes, **evidence) if mistakes else Verdict(exercise.name, True, right)


def unanswered(exercise):
    """Return the Verdict on a stub."""
    todo = f"{exercise.asks}\nReplace the `...` by your answer and run the cell again."
    return Verdict(exercise.name, False, todo, answered=False)


def refused(exercise, mistakes, **evidence):
    """Return the Verdict that names these mistakes."""
    diagnosis = "\n".join(f"{mistake.name}: {mistake.cause}" for mistake in mistakes)
    names = tuple(mistake.name for mistake in mistakes)
    read = exercise.place.again(names[0]) if exercise.place else None
    return Verdict(exercise.name, False, diagnosis, names, read=read, **evidence)
