"""Which mistake is it? Answers as readers write them, four names to choose from, behind each what speaks for it or not.

The answers are those that the tests pin to a mistake; behind the right name stands the verdict.
"""

import html
import inspect
import random
import re
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

import bnlib
from bnlib.examine import CODES
from bnlib.exercises import EXERCISES, bugs, check, patients
from bnlib.exercises.norms import AXES

ATTEMPTS = [Path(__file__).parents[1] / "tests" / file for file in ("attempts.txt", "networks.txt", "readers.txt")]
CALL = re.compile(r"\nreturn attempt\(.*\)$")  # the last line of an answer under another name
NAMESPACE = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "np": np, "bnlib": bnlib}
UNNAMED = re.compile(r"^right$|^not answered|^unknown|raises|returns|does not end| [+|] ")  # says little, or too much
NAMES = 4  # to choose from
MOST, LEAST = 5, 3  # questions an exercise
OFFERED = {  # exercise -> (a key of its answers -> what is shown, the right answer, all that are offered)
    "spot_the_bug": lambda key: (f"# layer {key}, as above", bugs[key].answer, bugs[key].choices),
    "axes": lambda key: (
        f"# {key} norm averages over the axes",
        AXES[key],
        [(1,), (0, 1), (0, 1, 2), *AXES.values()][: 6 + (key == "group")],
    ),
    "what_is_wrong": lambda key: (inspect.getsource(patients), EXERCISES["what_is_wrong"].answers[key], CODES),
}


def attempts():
    """Return {exercise: [(code, name of its mistake), ...]} of all answers, as functions."""
    found = {}
    text = "".join(path.read_text(encoding="utf-8") for path in ATTEMPTS)
    for part in ("\n" + text).split("\n== ")[1:]:
        signature, *entries = part.split("\n-- ")
        for entry in entries:
            name, body = entry.strip().split("\n", 1)
            code = f"def {signature}:\n{textwrap.indent(body, '    ')}"
            found.setdefault(signature.split("(")[0], []).append((code, name))
    return found


def quiz(exercise):
    """Return the questions on an exercise as HTML, at most `MOST`; an empty list where no answers are stored.

    Raises ValueError if there are, and fewer than `LEAST` questions come of them.
    """
    chance, asked, made, written = random.Random(exercise), set(), [], attempts().get(exercise, [])
    ask, most = partial(question, exercise), MOST
    if not hasattr(EXERCISES[exercise], "formula"):
        ask, most = partial(question_of_others, verdicts(exercise, written)), LEAST  # their verdicts are long
    for code, name in written:
        if name in asked or len(made) == most:
            continue
        made_of_it = ask(code, name, chance, f"{exercise}-{len(made) + 1}")
        if made_of_it:
            asked.add(name)
            made.append(made_of_it)
    if written and len(made) < LEAST:
        raise ValueError(f"the exercise {exercise!r} has {len(made)} questions, expected {LEAST} or more")
    return made


def question(exercise, code, name, chance, group):
    """Return a question as HTML; None where the verdict shows no numbers or too few other mistakes differ from it."""
    verdict = verdict_on(exercise, code)
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
    return asked_as(coloured(code), options, chance, group)


def verdict_on(exercise, code):
    """Return what the exercise says of an answer."""
    scope = dict(NAMESPACE)
    exec(code, scope)
    return check(exercise, scope[exercise])


def verdicts(exercise, written):
    """Return {name: (code, verdict)} of answers with one mistake, each with another one, as many as questions need."""
    found = {}
    for code, name in written:
        if name in found or UNNAMED.search(name):
            continue
        verdict = verdict_on(exercise, code)
        if verdict.mistakes == (name,):
            found[name] = code, verdict
        if len(found) == LEAST + NAMES:
            break
    return found


def question_of_others(known, code, name, chance, group):
    """Return a question as HTML: behind a wrong name, what an answer with it is told. None if `known` has another."""
    if known.get(name, ("",))[0] != code:
        return None
    others = chance.sample([other for other in known if other != name], NAMES - 1)
    verdict = known[name][1]  # without its numbers, which for a network are a long table
    options = [(name, f"<p><b>✗ {verdict.exercise}: {html.escape(name)}</b></p><p>{marked(verdict.diagnosis)}</p>")]
    for other in others:
        options.append((other, f"<p>No. That would be: {marked(known[other][1].diagnosis)}</p>"))
    plain = f"<pre>{html.escape(shown(code))}</pre>"  # a page's first load stays small
    return asked_as(plain, options, chance, group)


def choices(exercise, source):
    """Return the questions on an exercise whose answers are chosen, not written, for the keys that its stub holds."""
    chance, made = random.Random(source), []
    for key in re.findall(r'"(\w+)": \.\.\.', source) if exercise in OFFERED else ():
        code, right, offered = OFFERED[exercise](key)
        others = chance.sample([each for each in offered if each != right], NAMES - 1)
        told = {each: check(exercise, {key: each}).diagnosis for each in (right, *others)}
        lines = {each: next(line for line in told[each].splitlines() if line.startswith(key)) for each in told}
        options = [
            (f"{each}: {CODES[each][0]}" if each in CODES else str(each), f"<p>{marked(line)}</p>")
            for each, line in lines.items()
        ]
        made.append(asked_as(coloured(code), options, chance, f"{exercise}-{key}"))
    return made


def asked_as(code, options, chance, group):
    """Return a question as HTML: the code, HTML, and the options, (name, what stands behind it), in any order."""
    chance.shuffle(options)
    choices = "".join(
        f'<details name="{group}"><summary>{html.escape(words)}</summary>{answer}</details>'
        for words, answer in options
    )
    return f'<div class="quiz">{code}{choices}</div>'


def coloured(code):
    """Return code as HTML."""
    return highlight(shown(code), PythonLexer(), HtmlFormatter(wrapcode=True))


def shown(code):
    """Return code; of an answer under another name, what stands before its call."""
    inner, calls = CALL.subn("", textwrap.dedent(code.partition("\n")[2]))
    return inner if calls else code


def marked(words):
    """Return words as HTML, code in them marked."""
    return re.sub("`(.+?)`", r"<code>\1</code>", html.escape(words))


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
    cells = "".join(
        f"<tr><th scope='row'>{words}</th><td><pre>{html.escape(listed(values))}</pre></td></tr>"
        for words, values in (
            ("input", [value for _, value in verdict.example]),
            ("this code returns", verdict.received),
            ("with that mistake", returned),
        )
    )
    return (
        f'<p>No. That would be: {marked(mistake.cause)}.</p><div style="overflow-x: auto"><table>{cells}</table></div>'
    )


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
