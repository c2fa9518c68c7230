"""`make site`: the lessons, as they are stored, as static pages on which the explorers move, in build/site.

Nothing is executed but the explorers' own code, once a state. What a page asks for lies beside it: a folder is enough.
"""

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
import torch

from .figures import ROOT, Figures, shows_an_explorer, small
from .quiz import choices, quiz

HERE = Path(__file__).parent
BUILD = ROOT / "build"
REPOSITORY = os.environ.get("SITE_REPOSITORY", "")  # owner/name on GitHub, for links to Colab
REWORDED = {  # what only fits a notebook -> what fits a page; each must be found
    "00_start_here": (
        ("Run the cell and move the slider", "Move the slider"),
        (" If you see the picture but no sliders, this page is a stored copy; open it in JupyterLab to move them.", ""),
        ("Fill it in and run the cell:", "In a notebook, fill it in and run the cell:"),
    ),
    "05_lenet_gpu": (
        (
            "It trains on the digits, in the background, so the notebook stays yours.",
            "In the notebook it trains on the digits, in the background. On this page *Start* shows trainings that "
            "were recorded, each beside the same one with or without BN.",
        ),
    ),
}
AGAIN = re.compile(r"(?<=[ ,])(and )?run the cell again")
STUB = re.compile(r'bnlib\.check\("(\w+)",')


def build(out):
    """Build the site into the folder `out`.

    Raises ValueError for an explorer that cannot go on a page, a wording that is not there any more; CalledProcessError
    if Sphinx finds a fault, a link that leads nowhere among them.
    """
    work = BUILD / "web"
    book, static, extra = (work / name for name in ("book", "static", "extra"))
    for folder in (book, static, extra):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    figures = Figures(static, work / "packs")
    lessons = {
        path: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    }
    make_anew(figures, lessons)
    for path, lesson in lessons.items():
        page = lesson_page(path.stem, lesson, figures)
        (book / path.name).write_text(json.dumps(page), encoding="utf-8")
        (extra / "notebooks").mkdir(exist_ok=True)
        shutil.copy(path, extra / "notebooks")
    figures.write_fonts()
    shutil.copy(HERE / "conf.py", book)
    for name in ("explorer.js", "site.css"):
        shutil.copy(HERE / name, static)
    shutil.copytree(ROOT / "docs" / "gallery", extra / "docs" / "gallery")
    documents = [path for path in (ROOT / "docs" / "symptoms.md", ROOT / "docs" / "comparison.md") if path.exists()]
    for path in documents:
        (book / path.name).write_text(linked(path, documents, extra), encoding="utf-8")
    contents = {"Lessons": lessons, "Beside them": documents}
    trees = "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(path.stem for path in paths) + "\n```\n"
        for caption, paths in contents.items()
    )
    (book / "index.md").write_text(linked(ROOT / "README.md", documents, extra) + trees, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-b", "html", "-d", work / "trees"]
    subprocess.run([*sphinx, book, out], check=True)


def make_anew(figures, lessons):
    """Have the figures of the lessons, {path: notebook}, that are not kept made, on all processors at once."""
    shown = [
        (path.stem, "".join(cell["source"]))
        for path, lesson in lessons.items()
        for cell in lesson["cells"]
        if shows_an_explorer(cell)
    ]
    if todo := [each for each in shown if not figures.place(*each).exists()]:
        with ProcessPoolExecutor(None, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            list(pool.map(figures.made, *zip(*todo, strict=True)))


def lesson_page(name, lesson, figures):
    """Return a lesson, a notebook as JSON has it, for a page: explorers alive, a quiz after an exercise's solution."""
    text = "".join(line for cell in lesson["cells"] for line in cell["source"])
    missing = [old for old, _ in REWORDED.get(name, ()) if old not in text]
    if missing:
        raise ValueError(f"{name} no longer says {missing}; see REWORDED in web/build.py")
    cells, asked = [], None
    for cell in lesson["cells"]:
        source = "".join(cell["source"])
        cells.append(cell)
        if cell["cell_type"] == "code":
            if shows_an_explorer(cell):
                markup, _ = figures.figure(name, source)
                cell["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": {"text/html": markup}}]
            shrink(cell["outputs"])
            if (stub := STUB.search(source)) and "..." in source:
                asked, stub_source = stub[1], source
                cells.append(markdown(where_it_runs(name)))
            continue
        for old, new in REWORDED.get(name, ()):
            source = source.replace(old, new)
        source = source.replace("](../docs/", "](")  # the pages lie in one folder
        cell["source"] = AGAIN.sub(r"\1run the cell again in a notebook", source)
        if asked and "Solution</summary>" in source:
            if questions := quiz(asked) or choices(asked, stub_source):
                cells.append(markdown(f"**Which mistake is it?**\n\n```{{raw}} html\n{''.join(questions)}\n```"))
            asked = None
    return lesson | {"cells": cells}


def where_it_runs(name):
    """Return a line that says where an exercise's stub runs."""
    notebook = f'<a href="notebooks/{name}.ipynb" download>this lesson’s notebook</a>'
    colab = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{name}.ipynb"
    elsewhere = f", or [on Colab]({colab})" if REPOSITORY else ""
    return f"*This page runs no Python. To have an answer judged, open {notebook} with `make lab`{elsewhere}.*"


def markdown(text):
    """Return a cell of text."""
    return nbformat.v4.new_markdown_cell(text)


def shrink(outputs):
    """Store the outputs' pictures in fewer bytes."""
    for output in outputs:
        if png := output.get("data", {}).get("image/png"):
            output["data"]["image/png"] = base64.b64encode(small(base64.b64decode("".join(png)))).decode()


def linked(path, documents, extra):
    """Return a page of text whose links lead to pages where there are some, else to copies of the files, in `extra`."""

    def lead(match):
        words, (target, _, place) = match[1], match[2].partition("#")
        file = (path.parent / target).resolve()
        if file.parent == ROOT / "notebooks" or file in documents:
            slug = re.sub(r"[^\w-]", "", place.lower())  # JupyterLab's name of a heading -> Sphinx's
            return f"[{words}]({file.name}{'#' * bool(slug)}{slug})"
        if not file.is_file():
            raise ValueError(f"{path.name} links to {target}, which is no file")
        copy = extra / "files" / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
        return f'<a href="files/{file.relative_to(ROOT)}">{words}</a>'

    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^.*\]\(\.\./\.\./actions.*\n", "", text, flags=re.M)  # badges live on the repository's own host
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)((?:[^()\s]|\([^()\s]*\))+)\)", lead, text)


def main():
    """Build the site."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUILD / "site", help="the folder to build it in")
    out = parser.parse_args().out
    try:
        build(out)
    except ValueError as error:
        sys.exit(f"The site is not built. {error}")
    except subprocess.CalledProcessError:
        sys.exit("The site is not built. Sphinx found the faults above.")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.1f} MB; open index.html")


if __name__ == "__main__":
    main()
