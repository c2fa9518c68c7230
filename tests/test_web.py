"""The web edition without a browser: what an explorer must declare, what a page says first, the quiz."""

import json
import re
from pathlib import Path

import pytest

from bnlib import explore
from bnlib.explore.base import Explorer, slider
from web.build import lesson_page
from web.figures import call_of, explorer_of, shows_an_explorer
from web.pack import Pack, checked, sentences_of
from web.quiz import LEAST, NAMES, attempts, choices, quiz
from web.record import Recorder

ROOT = Path(__file__).parents[1]
LESSONS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
CELLS = [
    (lesson, number)
    for lesson, notebook in LESSONS.items()
    for number, cell in enumerate(notebook["cells"])
    if shows_an_explorer(cell)
]
every_cell = pytest.mark.parametrize(("lesson", "number"), CELLS, ids=[f"{name[:2]}, cell {n}" for name, n in CELLS])
STEP = re.compile(r"\bto (\d+(?:\.\d+)?)")


def source_of(lesson, number):
    return "".join(LESSONS[lesson]["cells"][number]["source"])


class Plain(Explorer):
    """One slider, one text."""

    name = "plain"
    grid = {"n": [2, 4]}  # noqa: RUF012

    def __init__(self):
        super().__init__({"n": slider("N", 2, 1, 64, tooltip="How many")})

    def still(self, figure):
        self.text = self.moves(figure.text(0.5, 0.5, ""))

    def show(self, n):
        if n == 4:
            raise ValueError("four is too many")
        self.text.set_text(f"{n}")
        return f"{n} of them."


@every_cell
def test_what_a_page_says_first_is_what_the_lesson_stores(lesson, number):
    stored = LESSONS[lesson]["cells"][number]["outputs"][0]["metadata"]["image/png"]["alt"]
    assert explorer_of(lesson, source_of(lesson, number)).caption == stored


@every_cell
def test_every_explorer_declares_stops_that_its_controls_can_take(lesson, number):
    assert checked(explorer_of(lesson, source_of(lesson, number))) is not None


def test_values_that_the_prose_names_are_among_the_stops():
    found = 0
    for lesson, number in CELLS:
        cells = LESSONS[lesson]["cells"]
        prose = "\n".join("".join(cells[i]["source"]) for i in (number - 1, number + 1))
        explorer = explorer_of(lesson, source_of(lesson, number))
        for sentence in re.split(r"(?<=[.?:)])\s", prose):
            for name, control in explorer.controls.items():
                label = re.escape(control.description.split(" (")[0])
                if not re.search(rf"\*{label}\b[^*]*\*", sentence):
                    continue
                for value in map(float, STEP.findall(sentence)):
                    found += 1
                    stops = explorer.grid.get(name)
                    assert stops is None or value in stops, f"{lesson}, {control.description}: {value} in {sentence!r}"
    assert found >= 8, f"{found} values found: the pattern no longer fits the prose"


def test_an_explorer_without_stops_is_named():
    class Silent(Plain):
        """Declares nothing."""

        grid = None

    with pytest.raises(ValueError, match=r"bnlib\.explore\.plain declares no stops .*give Silent a `grid`"):
        Pack(Silent())


@pytest.mark.parametrize(
    ("grid", "problem"),
    [
        ({"m": [1]}, "its grid names 'm', it has \\['n'\\]"),
        ({"n": [2, 65]}, "\\[65\\] are no values of it"),
        ({"n": [4, 8]}, "its start, 2, is not among them"),
    ],
)
def test_stops_that_a_control_cannot_take_are_named(grid, problem):
    explorer = Plain()
    explorer.grid = grid
    with pytest.raises(ValueError, match=f"bnlib.explore.plain.*{problem}"):
        Pack(explorer)


def test_a_pack_holds_every_state_once_and_what_fails_as_a_message():
    contents = Pack(Plain()).contents()
    assert contents["index"] == [0, 1]
    texts = [[op[-1] for slot in contents["slots"] for op in slot["lists"][slot["of"][frame]]] for frame in (0, 1)]
    assert texts == [["2"], ["This cannot be shown: four is too many"]]
    assert contents["controls"] == [{"name": "n", "words": ["2", "4"]}]


def test_the_form_says_where_it_stops_more_seldom_than_the_notebook():
    assert "On this page N has 2 of its 64 stops." in Pack(Plain()).form()


def test_captions_come_back_from_patterns_and_numbers():
    captions = ["a mean of −1.5, 20%", "a mean of 1,000, 3%", "nothing", "a mean of 0, 7%"]
    patterns, of = sentences_of(captions)
    seen, again = [0] * len(patterns), []
    for number in of:
        text, columns = patterns[number]["text"], [column.split(" ") for column in patterns[number]["numbers"]]
        again.append(text[0] + "".join(c[seen[number]] + part for c, part in zip(columns, text[1:], strict=True)))
        seen[number] += 1
    assert again == captions
    assert len(patterns) == 2


def test_what_a_page_cannot_show_is_refused():
    class Mathematical(Plain):
        """Sets a text as mathematics."""

        def still(self, figure):
            super().still(figure)
            figure.text(0.1, 0.1, "$x^2$")

    explorer = Mathematical()
    with pytest.raises(NotImplementedError, match=r"the text '\$x\^2\$' is set as mathematics"):
        Recorder(explorer.figure).still(explorer.figure)


@pytest.mark.parametrize("source", ["x = bnlib.explore.loops()", "bnlib.explore.unknown()", "explore.loops()"])
def test_a_cell_that_is_no_plain_call_is_shown(source):
    with pytest.raises(ValueError, match="03_x: expected a cell with one call"):
        call_of("03_x", source)


def test_arguments_that_nobody_recorded_are_asked_for():
    with pytest.raises(ValueError, match=r"03_x: the arguments of bnlib\.explore\.loops\(y\) are not recorded"):
        explorer_of("03_x", "bnlib.explore.loops(y)")


def test_a_lesson_that_no_longer_says_what_a_page_rewords_is_named():
    with pytest.raises(ValueError, match="00_start_here no longer says"):
        lesson_page("00_start_here", {"cells": []}, None)


@pytest.mark.parametrize("exercise", attempts())
def test_a_quiz_asks_three_questions_or_more_with_four_names_and_one_right(exercise):
    questions = quiz(exercise)
    assert len(questions) >= LEAST
    for question in questions:
        names = re.findall(r"<summary>(.*?)</summary>", question)
        assert len(set(names)) == len(names) == NAMES
        right = re.findall(r"<b>✗ \w+: (.*?)</b>", question)
        assert len(right) == 1
        assert right[0] in names
        assert question.count("No. That would be") == NAMES - 1
        assert ".ipynb" not in question


@pytest.mark.parametrize(
    ("exercise", "stub"),
    [
        ("spot_the_bug", 'answers = {"A": ..., "H": ...}'),
        ("axes", 'axes = {"batch": ..., "group": ...}'),
        ("what_is_wrong", 'answers = {"B": ..., "C": ...}'),
    ],
)
def test_answers_that_are_chosen_are_asked_for_with_one_right_among_four(exercise, stub):
    first, second = choices(exercise, stub)
    for question in (first, second):
        assert len(set(re.findall(r"<summary>(.*?)</summary>", question))) == NAMES
        assert len(re.findall(r"<p>\w+: right", question)) == 1


def test_the_pages_script_is_short():
    assert len((ROOT / "web" / "explorer.js").read_text(encoding="utf-8").splitlines()) <= 180


def test_nothing_of_explore_needs_the_sites_packages():
    needed = re.findall(r"^([\w-]+)==", (ROOT / "web" / "requirements-site.txt").read_text(), re.M)
    assert needed
    for path in (ROOT / "web").glob("*.py"):
        if path.name != "conf.py":
            imported = re.findall(r"^(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.M)
            assert not set(imported) & {"sphinx", "myst_nb", "furo"}, path.name
    assert explore.__all__
