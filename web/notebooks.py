"""`make notebooks`: run lessons from top to bottom and save them, and what their explorers were given, for the pages.

An explorer called with a lesson's own variables cannot be made anew from the stored lesson. So, right after its cell,
the kernel stores these arguments; the page's first caption is then the very one that the lesson stores.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from .figures import CALL, RECORDED, call_of

STORE = """import gzip, torch
with gzip.open({path!r}, "wb") as file:
    torch.save(({arguments},), file)"""


class Recording(NotebookClient):
    """Runs a notebook as `jupyter nbconvert --execute` does, and stores the arguments of its explorers."""

    def __init__(self, lesson, name, **options):
        super().__init__(lesson, **options)
        self.lesson, self.stored = name, []

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        """Run a cell, and store what its explorer was given."""
        cell = await super().async_execute_cell(cell, cell_index, **kwargs)
        call = CALL.fullmatch(cell.source.strip())
        if call and call_of(self.lesson, cell.source)[1] is None:
            path = RECORDED / f"{self.lesson}-{call[1]}.pt.gz"
            path.unlink(missing_ok=True)
            self.kc.execute(STORE.format(path=str(path), arguments=call[2]), silent=True)  # done before the next cell
            self.stored.append(path)
        return cell


def run(path):
    """Run the lesson at `path` and save it, without widget state and timings.

    Raises CellExecutionError for a cell that fails; the lesson's file is then as it was.
    """
    lesson = nbformat.read(path, as_version=4)
    options = {"timeout": 900, "store_widget_state": False, "record_timing": False, "coalesce_streams": True}
    client = Recording(lesson, path.stem, resources={"metadata": {"path": str(path.parent)}}, **options)
    client.execute()
    if missing := [str(path) for path in client.stored if not path.exists()]:
        raise RuntimeError(f"not stored by the kernel: {missing}")
    nbformat.write(lesson, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name).resolve())
        print(name, flush=True)
