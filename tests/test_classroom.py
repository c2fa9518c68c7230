"""The exercises in a teacher's notebook, run and scored by nbgrader: the marks are those of the answers.

nbgrader gives a test cell no points for an error or for anything on standard error, the number that the cell ends in as
partial credit, and full marks otherwise.
"""

import nbformat
import pytest
from nbgrader.preprocessors import Execute
from nbgrader.utils import determine_grade
from torch import nn

import bnlib

SETUP = """\
import ctypes, faulthandler, logging, os, sys, threading, time, traceback, warnings
import numpy as np, torch, tqdm
from torch import nn
import bnlib
held = sys.stderr
logger = logging.getLogger("reader")
logger.addHandler(logging.StreamHandler())
libc = ctypes.CDLL(None)
"""
STANDARDIZE = "(scores - scores.mean(0)) / torch.sqrt(scores.var(0, correction=0) + 1e-5)"
NOISES = {  # what writes on standard error
    "a print": "print('x', file=sys.stderr)",
    "a print to the stream it started with": "print('x', file=sys.__stderr__)",
    "a print to a stream that was kept": "print('x', file=held)",
    "bytes": "sys.__stderr__.buffer.write(b'x')",
    "a warning": "warnings.warn('x')",
    "a warning made visible": "warnings.simplefilter('always'); warnings.warn('x')",
    "logging": "logging.warning('x')",
    "a logger with a handler": "logger.warning('x')",
    "logging set up anew": "logging.basicConfig(force=True); logging.error('x')",
    "a progress bar": "[i for i in tqdm.tqdm(range(2))]",
    "a stack": "traceback.print_stack()",
    "a thread that fails": "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()",
    "a destructor that fails": "type('D', (), {'__del__': lambda self: 1 / 0})()",
    "the descriptor": "os.write(2, b'x')",
    "a child process": "os.system('echo x >&2')",
    "C": "libc.perror(b'x')",
    "a dump of the threads": "faulthandler.dump_traceback(sys.__stderr__)",
    "torch": "torch.ones(3, 2, 1).T",
    "numpy": "np.array([1.0]) / 0",
}
RIGHT = {
    "standardize": f"def standardize(scores):\n    return {STANDARDIZE}",
    "batch_norm": "def batch_norm(x, gamma, beta, eps):\n"
    "    return nn.functional.batch_norm(x, None, None, gamma, beta, True, 0.1, eps)",
    "layer": "layer = nn.BatchNorm2d",
    "spot_the_bug": "spot_the_bug = {letter: bug.answer for letter, bug in bnlib.exercises.bugs.items()}",
}
WRONG = {
    "the wrong axis": "return (scores - scores.mean(1, True)) / scores.std(1, keepdim=True)",
    "the unbiased variance": "return (scores - scores.mean(0)) / scores.std(0)",
    "an error": "return scores @ scores",
    "an exit": "sys.exit()",
    "noise beside it": "print('x', file=sys.stderr); return scores",
}
UNANSWERED = {
    "a stub": "...",
    "a part": "mean = ...\n    return scores - mean",
    "not implemented": "raise NotImplementedError",
}


def standardize(body):
    return f"def standardize(scores):\n    {body}"


CASES = {  # (answer's cell, test's cell, points, mark)
    **{f"right: {name}": (code, f"assert bnlib.check({name!r}, {name})", 1, 1) for name, code in RIGHT.items()},
    **{
        f"right, and {name} on stderr": (standardize(f"{noise}; return {STANDARDIZE}"), None, 1, 1)
        for name, noise in NOISES.items()
    },
    **{f"wrong: {name}": (standardize(body), None, 1, 0) for name, body in WRONG.items()},
    **{f"unanswered: {name}": (standardize(body), None, 1, 0) for name, body in UNANSWERED.items()},
    "unanswered: dots for a function": ("standardize = ...", None, 1, 0),
    "wrong: layer": ("layer = nn.InstanceNorm2d", "assert bnlib.check('layer', layer)", 1, 0),
    "unanswered: layer": (
        "class layer(nn.Module):\n    def __init__(self, num_features): ...\n    def forward(self, x): ...",
        "assert bnlib.check('layer', layer)",
        1,
        0,
    ),
    "half: one answer of two": (
        standardize(f"return {STANDARDIZE}"),
        "3 * bool(bnlib.check('standardize', standardize)) + 3 * bool(bnlib.check('batch_norm', standardize))",
        6,
        3,
    ),
    "after them all, a noise outside": ("", "logging.warning('x')", 1, 0),
    "after them all, C outside": ("", "libc.perror(b'x'); time.sleep(0.5)", 1, 0),
    "after them all, nothing": ("", "", 1, 1),
}


@pytest.fixture(scope="module")
def marks():
    """Return mark and outputs of each case's test cell, from one notebook that nbgrader ran."""
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
    )
    notebook.cells.append(nbformat.v4.new_code_cell(SETUP))
    graded = {}
    for case, (answer, test, points, _) in CASES.items():
        test = "assert bnlib.check('standardize', standardize)" if test is None else test
        metadata = {"nbgrader": {"grade": True, "solution": False, "points": points, "grade_id": case, "locked": True}}
        graded[case] = nbformat.v4.new_code_cell(test, metadata=metadata)
        notebook.cells += [nbformat.v4.new_code_cell(answer), graded[case]]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_CURRENT_TEST", raising=False)  # with it a kernel does not publish what C code writes
        Execute(timeout=60).preprocess(notebook, {"metadata": {}})
    return {case: (determine_grade(cell)[0], cell.outputs) for case, cell in graded.items()}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_gets_the_mark_it_deserves(case, marks):
    mark, outputs = marks[case]
    said = [output.get("ename") or output.get("text") or output.get("data") for output in outputs]
    assert mark == CASES[case][3], said
    if case.startswith(("wrong", "unanswered")):
        assert said[-1] == "AssertionError"


@pytest.mark.parametrize("noise", ["a print", "a warning made visible", "logging", "logging set up anew"])
def test_what_the_first_call_writes_on_stderr_is_shown_once_on_stdout(noise, marks):
    (output,) = marks[f"right, and {noise} on stderr"][1]
    assert (output.name, len(output.text.splitlines())) == ("stdout", 2 if "visible" in noise else 1)


def test_a_verdict_is_true_only_where_the_attempt_is_right():
    for attempt, right in ((nn.BatchNorm2d, True), (nn.InstanceNorm2d, False), (..., False)):
        assert bool(bnlib.check("layer", attempt)) is right
