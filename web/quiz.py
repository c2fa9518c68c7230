"""Which mistake is it? Answers as readers write them, four names to choose from, behind each what speaks for it or not.

The answers are those that the tests pin to a mistake, tests/attempts.txt; behind the right name stands the verdict.
"""

import html
import random
import re
import textwrap
from pathlib import Path

import numpy as np
import torch
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

import bnlib
from bnlib.exercises import EXERCISES, check

ATTEMPTS = Path(__file__).parents[1] / "tests" / "attempts.txt"
NAMESPACE = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "np": np, "bnlib": bnlib}
NAMES = 4  # to choose from
MOST, LEAST = 5, 3  # questions an exercise


def attempts():
    """Return {exercise: [(code, name of its mistake), ...]}, of answers with one mistake."""
    found = {}
    for part in ("\n" + ATTEMPTS.read_text(encoding="utf-8")).split("\n== ")[1:]:
        signature, *entries = part.split("\n-- ")
        for entry in entries:
            name, body = entry.strip().split("\n", 1)
            code = f"def {signature}:\n{textwrap.indent(body, '    ')}"
            found.setdefault(signature.split("(")[0], []).append((code, name))
    return found


def quiz(exercise):
    """Return the questions on an exercise as HTML, at most `MOST`; an empty list where none can be asked.

    A question needs attempts at it, and a formula that can be bent into other mistakes. Raises ValueError if there are
    both, and fewer than `LEAST` questions come of them.
    """
    chance, asked, made = random.Random(exercise), set(), []
    written = attempts().get(exercise, []) if hasattr(EXERCISES[exercise], "formula") else []
    for code, name in written:
        if name in asked or len(made) == MOST:
            continue
        made_of_it = question(exercise, code, name, chance, f"{exercise}-{len(made) + 1}")
        if made_of_it:
            asked.add(name)
            made.append(made_of_it)
    if written and len(made) < LEAST:
        raise ValueError(f"the exercise {exercise!r} has {len(made)} questions, expected {LEAST} or more")
    return made


def question(exercise, code, name, chance, group):
    """Return a question as HTML; None where the verdict shows no numbers or too few other mistakes differ from it."""
    scope = dict(NAMESPACE)
    exec(code, scope)
    verdict = check(exercise, scope[exercise])
    if verdict.mistakes != (name,) or not verdict.example or not all(map(tensor, verdict.received)):
        return None
    options, told = [(name, localised(verdict._repr_html_()))], [verdict.received]
    others = {mistake.name: mistake for mistake in EXERCISES[exercise].mistakes if mistake.variants}
    others.pop(name, None)
    for mistake in chance.sample(list(others.values()), len(others)):
        mistake = mistake.worded(**mistake.variants[0])
        returned = bent(exercise, verdict, mistake)
        if returned is None or any(alike(returned, seen) for seen in (*told, verdict.expected)):
            continue
        told.append(returned)
        options.append((mistake.name, against(mistake, returned, verdict)))
        if len(options) == NAMES:
            break
    else:
        return None
    chance.shuffle(options)
    choices = "".join(
        f'<details name="{group}"><summary>{html.escape(words)}</summary>{answer}</details>'
        for words, answer in options
    )
    return f'<div class="quiz">{highlight(code, PythonLexer(), HtmlFormatter(wrapcode=True))}{choices}</div>'


def bent(exercise, verdict, mistake):
    """Return what code with `mistake` returns on the verdict's input, a tuple of tensors; None if it fails on it."""
    arguments = {name: value.clone() if tensor(value) else value for name, value in verdict.example}
    try:
        returned = EXERCISES[exercise].formula(*arguments.values(), **mistake.variants[0])
    except (RuntimeError, IndexError, TypeError):  # its shapes do not fit, or it takes a knob that an answer would set
        return None
    returned = returned if isinstance(returned, tuple) else (returned,)
    return returned if all(map(tensor, returned)) else None


def against(mistake, returned, verdict):
    """Return what speaks against a mistake, as HTML: what code with it would have returned."""
    cause = re.sub("`(.+?)`", r"<code>\1</code>", html.escape(mistake.cause))
    cells = "".join(
        f"<tr><th scope='row'>{words}</th><td><pre>{html.escape(listed(values))}</pre></td></tr>"
        for words, values in (
            ("input", [value for _, value in verdict.example]),
            ("this code returns", verdict.received),
            ("with that mistake", returned),
        )
    )
    return f'<p>No. That would be: {cause}.</p><div style="overflow-x: auto"><table>{cells}</table></div>'


def listed(values):
    """Return values as text, four significant digits, a line for each row."""
    lines = []
    for value in values:
        if not tensor(value):
            lines.append(f"{value:.4g}" if isinstance(value, float) else str(value))
        elif value.numel() > 40:
            lines.append(f"shape {tuple(value.shape)}")
        else:
            rows = value.detach().reshape(-1, value.shape[-1] if value.dim() else 1).tolist()
            lines += ["  ".join(f"{number:.4g}" for number in row) for row in rows]
    return "\n".join(lines)


def alike(some, others):
    """Return whether two tuples of tensors would read the same."""
    return listed(some) == listed(others)


def tensor(value):
    """Return whether a value is a tensor."""
    return isinstance(value, torch.Tensor)


def localised(verdict):
    """Return a verdict's HTML for a page: its links lead to pages, and nothing is announced."""
    return re.sub(r'href="([^"]+)\.ipynb"', r'href="\1.html"', verdict).replace(' role="status"', "")
