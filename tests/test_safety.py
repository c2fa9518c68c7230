"""What SECURITY.md promises of code and pages; what it promises of downloads is in test_data and test_data_faults."""

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import torch

import bnlib
from bnlib.compare import Comparison
from bnlib.exercises import Verdict
from bnlib.exercises.reading import Place
from bnlib.explore.base import Explorer, slider
from bnlib.selfcheck import SelfCheck

ROOT = Path(__file__).parents[1]
SCRIPT = "<img src=x onerror=alert(1)>\"'</pre></p><script>alert(2)</script>&amp;"


def sources():
    """Yield the name and the code of every module of the library and every lesson."""
    for path in (ROOT / "bnlib").rglob("*.py"):
        yield path.name, path.read_text(encoding="utf-8")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        yield path.name, "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def reads_code(call):
    """Return whether a call may run code that a file, a string or a command line holds."""
    arguments = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
    match ast.unparse(call.func).split("."):
        case ["eval" | "exec"] | ["os", "system" | "popen"] | ["subprocess", *_]:
            return True
        case ["torch", "load"]:
            return arguments.get("weights_only") is not True
        case ["np" | "numpy", "load"]:
            return bool(arguments.get("allow_pickle"))
        case ["pickle" | "joblib" | "dill" | "cloudpickle" | "shelve" | "marshal", name]:
            return name in ("load", "loads", "Unpickler", "open")
    return "shell" in arguments


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "pickle.load(f)",
        "np.load(f, allow_pickle=True)",
        "eval(s)",
    ],
)
def test_code_in_a_file_would_be_noticed(line):
    assert reads_code(ast.parse(line, mode="eval").body)


def test_no_file_and_no_text_is_ever_run():
    for name, source in sources():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module in (
                "pickle",
                "joblib",
                "subprocess",
                "torch.serialization",
            ):
                pytest.fail(f"{name} hides the calls of {node.module}")
            assert not (isinstance(node, ast.Call) and reads_code(node)), f"{name}: {ast.unparse(node)}"


def test_nothing_is_fetched_without_tls_and_a_checked_certificate():
    for name, source in sources():
        assert not re.search(r"verify\s*=\s*False|CERT_NONE|_create_unverified|http://", source), name


class Elements(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.seen = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen |= {tag, *(name for name, _ in attributes)}

    def handle_data(self, data):
        self.text += data


class Hostile(Explorer):
    name = "hostile"

    def __init__(self):
        super().__init__({"n": slider("Number", 1, 1, 2, tooltip="2 raises")})

    def still(self, figure):
        figure.text(0.5, 0.5, "")

    def show(self, n):
        if n > 1:
            raise ValueError(SCRIPT)
        return SCRIPT


def explorer(n):
    hostile = Hostile()
    hostile.set(n=n)
    return hostile._words.value


class Layer(torch.nn.Module):
    """A layer whose buffer and parameter have names that no one escaped."""

    def __init__(self, value):
        super().__init__()
        name = SCRIPT.replace(".", "")
        self.register_buffer(name, torch.tensor(value))
        self.register_parameter(f"{name} too", torch.nn.Parameter(torch.tensor(value)))

    def forward(self, x):
        return x * sum(self.buffers()) * sum(self.parameters())


def raising(x):
    raise ValueError(SCRIPT)


def texts():
    return {
        "comparison": bnlib.compare(Layer(1.0), Layer(2.0), torch.ones(2, 3)),
        "comparison by hand": Comparison(1.0, {SCRIPT: 1.0}, {SCRIPT: 1.0}, (0, 0), {SCRIPT: SCRIPT}),
        "self-check": SelfCheck({SCRIPT: SCRIPT}),
        "verdict": Verdict(
            *(SCRIPT, False, SCRIPT, (SCRIPT,)),
            read=Place(2, SCRIPT),
            example=((SCRIPT, SCRIPT),),
            expected=(SCRIPT,),
            received=(SCRIPT,),
            shown=SCRIPT,
        ),
        "what an attempt raises": bnlib.check("standardize", raising),
        "what is no attempt": bnlib.check("standardize", SCRIPT),
        "the name of a bug": bnlib.check("spot_the_bug", {"A": SCRIPT, SCRIPT: "x"}),
    }


@pytest.mark.parametrize("name", texts())
def test_what_stands_on_a_page_is_text_whatever_it_says(name):
    page = Elements(texts()[name]._repr_html_())
    assert not page.seen & {"img", "script", "onerror", "src"}


@pytest.mark.parametrize("n", [1, 2])
def test_an_explorers_caption_is_text_whatever_it_says(n):
    page = Elements(explorer(n))
    assert page.seen <= {"p", "role", "aria-live", "style"}
    assert SCRIPT in page.text
