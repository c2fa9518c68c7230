"""What `check` answers: in words for a terminal, side by side for a notebook."""

import re
from dataclasses import dataclass
from html import escape
from itertools import zip_longest

import torch

LESSONS = {
    1: "01_class_grades",
    2: "02_batchnorm1d",
    3: "03_batchnorm2d_loops",
    4: "04_batchnorm2d_vectorized",
    5: "05_lenet_gpu",
    9: "09_in_production",
}
READ = (  # (a word in a mistake's name, the lesson and section that explain it); where none fits, the exercise's own
    ("epsilon", 4, "ε inside the root"),
    ("epsilon", 1, "Standardise"),
    ("gradient", 2, "The gradient goes through the mean and the variance"),
    ("squares minus", 3, "Why two trips for the variance?"),
    ("biased", 3, "Two variances"),
    ("n − 1", 3, "Two variances"),
    ("correction", 3, "Two variances"),
    ("biased", 1, "The mean and the spread of each subject"),
    ("n − 1", 1, "The mean and the spread of each subject"),
    ("momentum", 3, "Momentum"),
    ("share", 3, "Momentum"),
    ("grad mode", 4, "Bug 1: the mode is read off the gradients"),
    ("attributes", 4, "Bug 2: the moving statistics are plain attributes"),
    ("saved", 4, "Bug 2: the moving statistics are plain attributes"),
    ("(1, C, 1, 1)", 4, "Bug 4: statistics shaped (1, C, 1, 1)"),
    ("one value", 2, "What it refuses, and what the message means"),
    ("does not start", 1, "What the layer remembers"),
    ("training uses", 4, "Two modes, and three ways not to freeze"),
    ("evaluation", 4, "Two modes, and three ways not to freeze"),
    ("in eval", 4, "Two modes, and three ways not to freeze"),
    ("reshaped", 4, "A pixel is a sample, a channel is a feature"),
    ("wrong axis", 4, "The loops in one line"),
    ("gamma", 1, "γ and β: what the head teacher wishes"),
    ("beta", 1, "γ and β: what the head teacher wishes"),
)
GREEN, VERMILION, GREY = "#009E73", "#D55E00", "#666666"  # as in plots.py, which would load matplotlib


@dataclass(frozen=True)
class Verdict:
    """The answer to an attempt.

    ok         whether the attempt is right
    diagnosis  plain text: what is wrong, in the field's words, then what to look at
    mistakes   the names of the mistakes that explain the attempt
    answered   False for a stub that still holds its `...`
    read       the lesson and the section that explain it
    example    (name, value) pairs: a small input on which it shows; with it
    expected, received, shown  tuples of tensors, and what they are
    """

    exercise: str
    ok: bool
    diagnosis: str
    mistakes: tuple[str, ...] = ()
    answered: bool = True
    read: tuple[int, str] | None = None
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
        pairs = list(zip_longest(self.expected, self.received))
        comparable = all(
            isinstance(e, torch.Tensor) and isinstance(r, torch.Tensor) and e.shape == r.shape for e, r in pairs
        )
        if not pairs or not comparable or not all(e.numel() for e in self.expected):
            return None
        return max((e.double() - r.double()).abs().max().item() for e, r in pairs)

    def _columns(self):
        """Return (heading, text) of input, expected and received."""
        if not self.example:
            return []
        given = "\n".join(f"{name} = {numbers(value, len(name) + 3)}" for name, value in self.example)
        answers = (("expected", self.expected), ("received", self.received))
        return [("input", given)] + [
            (f"{word} {self.shown}", "\n".join(map(numbers, values))) for word, values in answers
        ]

    def _closing(self):
        """Return the lines below the numbers."""
        gap = self.difference
        lines = [] if not gap else [f"largest difference: {'not a number' if gap != gap else format(gap, '.3g')}"]
        if self.read:
            lesson, section = self.read
            lines.append(f"Read lesson {lesson:02d}, “{section}” ({LESSONS[lesson]}).")
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
        html += [line.format(code_set(text)) for text in self.diagnosis.split("\n")]
        if columns := self._columns():
            style = 'style="text-align: left; vertical-align: top; padding: 0.2em 0.9em"'
            heads = "".join(f'<th scope="col" {style}>{escape(head)}</th>' for head, _ in columns)
            plain = 'style="margin: 0; background: none; font-family: monospace; white-space: pre"'
            cells = "".join(f"<td {style}><pre {plain}>{escape(text)}</pre></td>" for _, text in columns)
            html.append(f'<div style="overflow-x: auto"><table><tr>{heads}</tr><tr>{cells}</tr></table></div>')
        html += [line.format(escape(text)) for text in self._closing()]
        if self.read:
            page = LESSONS[self.read[0]]
            html[-1] = html[-1].replace(page, f'<a href="{page}.ipynb">{page}</a>')
        return "\n".join([*html, "</div>"])


def code_set(text):
    """Return `text` as HTML, with what stands between backticks set as code."""
    return re.sub("`(.+?)`", r"<code>\1</code>", escape(text))


def numbers(value, indent=0):
    """Return a value as text without rounding noise: four significant digits, a line for each row of a channel."""
    if not isinstance(value, torch.Tensor):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    if value.numel() > 40:
        return f"shape {tuple(value.shape)}"
    rows = value.reshape(-1, value.shape[-1]) if value.dim() > 1 else value.reshape(1, -1)
    cells = [[f"{number:.4g}" for number in row] for row in (rows + 0.0).tolist()]
    width = max((len(cell) for row in cells for cell in row), default=0)
    texts = [" ".join(cell.rjust(width) for cell in row) for row in cells]
    if value.dim() > 2:  # one line for each index of the leading axes
        leading = torch.cartesian_prod(*[torch.arange(size) for size in value.shape[:-1]]).tolist()
        texts = [f"[{','.join(map(str, index))}] {text}" for index, text in zip(leading, texts, strict=True)]
    return ("\n" + " " * indent).join(texts)
