import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """A page of Chromium that shows JupyterLab, on copies of the lessons."""
    needed = {"Chromium": shutil.which("chromium"), "the Python package playwright": find_spec("playwright")}
    missing = " and ".join(name for name, found in needed.items() if not found)
    if missing:
        give_up = pytest.fail if os.environ.get("BNLIB_REQUIRE_BROWSER") == "1" else pytest.skip
        give_up(f"a browser test needs {missing}")
    from lab import chromium, jupyter_lab

    home = tmp_path_factory.mktemp("lab")
    lessons = shutil.copytree(NOTEBOOKS, home / "project" / "notebooks")
    lesson_05 = lessons / "05_lenet_gpu.ipynb"  # what ten epochs give is nbval's matter; here, what a browser shows
    lesson_05.write_text(lesson_05.read_text().replace('"EPOCHS = 10', '"EPOCHS = 2'))
    with jupyter_lab(home / "project", home) as address, chromium(address) as page:
        yield page


@pytest.fixture(scope="module")
def notebook(page, request):
    """The lesson named by the test's parameter, open, all its cells run."""
    from lab import Notebook

    notebook = Notebook(page, request.param)
    notebook.run_all(seconds=300)
    yield notebook
    notebook.close()
