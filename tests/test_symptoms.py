"""The table of symptoms: every link leads to a heading that is there, every code is one that `examine` gives."""

import re
from pathlib import Path

import nbformat
import pytest

from bnlib.examine import CODES, PAGES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "symptoms.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if re.match(r"\| \d+ \|", line)]


def anchors(path):
    """Return the anchors of a notebook's headings, as JupyterLab makes them: the words, hyphens for spaces."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return {heading.replace("`", "").replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.M)}


def test_all_thirty_five_problems_have_a_row():
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, 36))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_has_five_cells_and_leads_to_a_heading_that_is_there(row):
    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    links = re.findall(r"\]\((\S+?ipynb)#(\S+)\)(?= \||, \[)", row)
    assert len(links) == row.count("](") > 0
    for target, anchor in links:
        assert anchor in anchors(ROOT / "docs" / target), anchor
    assert set(re.findall(r"BN\d{3}", row)) <= CODES.keys()


def test_every_finding_leads_to_a_heading_that_is_there():
    for code, (*_, lesson, heading) in CODES.items():
        page = ROOT / "notebooks" / f"{PAGES[lesson]}.ipynb"
        assert heading.replace(" ", "-") in anchors(page), code
