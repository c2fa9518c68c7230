"""The lessons on a bad day: run again, out of order, restarted, and where nothing can be written or fetched."""

import os
import random
import re
import shutil
from itertools import chain
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CUT_OFF = '''"""No network: whatever leaves this machine fails, as without a cable."""
import errno, sys

def refuse(event, args):
    host = args[0] if event == "socket.getaddrinfo" else args[1][0] if event == "socket.connect" else None
    if host not in (None, "", "localhost", "127.0.0.1", "::1") and not str(host).startswith("/"):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

sys.addaudithook(refuse)
'''
MATPLOTLIB = r"^(mkdir -p failed for path|Matplotlib (created a temporary cache|is building the font)).*\n"
FORBIDDEN = """
import os, socket, locale, time
for path in (os.path.expanduser("~/x"), bnlib.__file__, "x"):
    try:
        open(path, "a").close()
        print("written:", path)
    except OSError:
        pass
for use in (lambda: socket.create_connection(("192.0.2.1", 80), 1), lambda: socket.getaddrinfo("example.org", 80)):
    try:
        use()
        print("network")
    except OSError as error:
        assert error.strerror == "Network is unreachable"
print(locale.getencoding(), time.tzname[0])
"""


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def sections(request):
    """The lesson's code cells as a list of sections, each from one heading to the next; lesson 05 with few epochs."""
    sections = [[]]
    for cell in nbformat.read(request.param, as_version=4).cells:
        if cell.cell_type == "markdown" and re.match("## ", cell.source):
            sections.append([])
        elif cell.cell_type == "code":
            cell.source = re.sub("^EPOCHS = 10$", "EPOCHS = 2", cell.source, flags=re.M)
            sections[-1].append(cell)
    return [section for section in sections if section]


@pytest.fixture
def bad_day(tmp_path):
    """A folder away from the project, and an environment: nothing can be written, no network, odd locale and time."""
    ignore = shutil.ignore_patterns(".*", "__pycache__")
    for folder in ("bnlib", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / "project" / folder, ignore=ignore)
    (tmp_path / "cut off").mkdir()
    (tmp_path / "cut off" / "sitecustomize.py").write_text(CUT_OFF)
    for folder in ("home", "elsewhere"):
        (tmp_path / folder).mkdir()
    paths = [tmp_path, *tmp_path.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield (
        tmp_path / "elsewhere",
        {
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "cut off"), str(tmp_path / "project")]),
            "HOME": str(tmp_path / "home"),
            "LC_ALL": "POSIX",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONUTF8": "0",
            "TZ": "Pacific/Chatham",
            "BNLIB_OFFLINE": "0",  # it has to find out
            **dict.fromkeys(("BNLIB_DATA", "BNLIB_CACHE", "MPLCONFIGDIR", "XDG_CACHE_HOME"), ""),
        },
    )
    for path in paths:
        path.chmod(0o755)


def unbound():
    """Return the command under which permissions bind root too."""
    if os.name == "posix" and os.geteuid() == 0:
        return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    return []


def stored(cell):
    """Return the text of a cell's stored outputs."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def test_no_cell_warns_each_can_be_run_twice_and_a_reader_can_go_back_to_any_section(sections, start_kernel):
    cells = chain.from_iterable((cell, cell) for cell in chain(*sections))
    again = chain(*random.Random(0).sample(sections, len(sections)))
    with start_kernel(ROOT / "notebooks", {"PYTHONWARNINGS": "error"}) as kernel:
        for cell in chain(cells, again):
            _, complaint = kernel.run(cell.source)
            assert not complaint, complaint + cell.source


def test_restarted_half_way_where_nothing_can_be_written_or_fetched(sections, bad_day, start_kernel):
    cells = list(chain(*sections))
    folder, environment = bad_day
    with start_kernel(folder, environment, unbound()) as kernel:
        for cell in cells[: len(cells) // 2]:
            kernel.run(cell.source)
        kernel.restart()
        for cell in cells:
            said, complaint = kernel.run(cell.source)
            assert not re.sub(MATPLOTLIB, "", complaint, flags=re.M), complaint + cell.source
            if "nbval-ignore-output" not in cell.metadata.get("tags", []):
                assert said == stored(cell), cell.source
        assert kernel.run(FORBIDDEN) == ("ANSI_X3.4-1968 +1245\n", "")
