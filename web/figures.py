"""The explorers of the lessons as figures of a page: made anew, packed, and kept until what they come from changes."""

import ast
import base64
import gzip
import hashlib
import html
import io
import json
import re
from functools import cache
from pathlib import Path

import matplotlib as mpl
import torch
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image

from bnlib import explore

from .pack import Pack, packed
from .trainings import STORED, RecordedTrainings

ROOT = Path(__file__).parents[1]
RECORDED = Path(__file__).parent / "recorded"
CALL = re.compile(r"bnlib\.explore\.(\w+)\((.*)\)", re.S)
SHOWN = "move its controls in a live notebook"  # what an explorer is as plain text, in a stored output
STAND_INS = {"train_it_yourself": RecordedTrainings}
FACES = {"sans-normal": "DejaVuSans", "sans-bold": "DejaVuSans-Bold", "mono-normal": "DejaVuSansMono"}


class Figures:
    """The figures of a site whose static files are in `static`; packs are kept in the folder `kept`."""

    def __init__(self, static, kept):
        self.static, self.kept = Path(static), Path(kept)
        self._letters = {face: set("0123456789 ") for face in FACES}
        for folder in (self.static / "packs", self.static / "stills", self.static / "fonts", self.kept):
            folder.mkdir(parents=True, exist_ok=True)

    def figure(self, lesson, source):
        """Return an explorer as HTML, and its first caption; `source` is the cell of `lesson` that calls it.

        Raises ValueError, naming cell or explorer, if it is no plain call, if its arguments were not recorded, or if it
        cannot be packed.
        """
        made = self.made(lesson, source)
        name = f"{made['name']}-{hashlib.sha256(made['pack'].encode()).hexdigest()[:8]}"
        (self.static / "packs" / f"{name}.js").write_text(f'explorerPack("{made["pack"]}")', encoding="utf-8")
        (self.static / "stills" / f"{name}.png").write_bytes(base64.b64decode(made["still"]))
        for face, letters in made["letters"].items():
            self._letters[face].update(letters)
        width, height = made["size"]
        return (
            f'<figure class="explorer" data-pack="_static/packs/{name}.js">{made["form"]}'
            f'<img src="_static/stills/{name}.png" width="{width}" height="{height}" loading="lazy" '
            f'alt="The picture that the caption describes">'
            f"<figcaption>{html.escape(made['caption'])}</figcaption></figure>"
        ), made["caption"]

    def made(self, lesson, source):
        """Return what `figure` is made of, a dict: from the folder of what is kept, or made now and kept there."""
        kept = self.place(lesson, source)
        if kept.exists():
            return json.loads(kept.read_text(encoding="utf-8"))
        explorer = explorer_of(lesson, source)
        still = small(explorer.png())
        try:
            pack = Pack(explorer)
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"{lesson}, {source.strip()}: {error}") from error
        contents = pack.contents()
        letters = {face: "" for face in FACES}
        for op in texts_of([contents["still"], contents["slots"]]):
            letters[face_of(contents["fonts"][op[1]])] += op[-1]
        made = {
            "name": explorer.name,
            "pack": base64.b64encode(gzip.compress(packed(contents).encode(), 9, mtime=0)).decode(),
            "still": base64.b64encode(still).decode(),
            "form": pack.form(),
            "caption": pack.caption,
            "size": contents["size"],
            "stops": pack.stops,
            "letters": {face: "".join(sorted(set(text))) for face, text in letters.items()},
        }
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(made), encoding="utf-8")
        part.replace(kept)
        return made

    def place(self, lesson, source):
        """Return where what `made` returns is kept."""
        return self.kept / f"{depends_on(lesson, source)}.json"

    def write_fonts(self):
        """Write matplotlib's own fonts with the letters that the figures need."""
        folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
        for face, file in FACES.items():
            font = TTFont(folder / f"{file}.ttf")
            subsetter = subset.Subsetter(subset.Options(layout_features=["kern"], hinting=False, drop_tables=["FFTM"]))
            subsetter.populate(text="".join(sorted(self._letters[face])))
            subsetter.subset(font)
            font.flavor = "woff"
            font.save(self.static / "fonts" / f"{face}.woff")


def explorer_of(lesson, source):
    """Return the explorer that a lesson's cell shows, made anew; raise ValueError as `Figures.figure` says."""
    name, arguments = call_of(lesson, source)
    make = STAND_INS.get(name) or getattr(explore, name)
    if arguments is not None:
        return make(*arguments)
    recorded = RECORDED / f"{lesson}-{name}.pt.gz"
    if not recorded.exists():
        raise ValueError(f"{lesson}: the arguments of {source.strip()} are not recorded; `make notebooks` does it")
    with gzip.open(recorded) as file:
        return make(*torch.load(io.BytesIO(file.read()), weights_only=False))


def call_of(lesson, source):
    """Return name and arguments of the call in a cell: None where they are the lesson's own variables."""
    call = CALL.fullmatch(source.strip())
    if not call or call[1] not in explore.__all__:
        raise ValueError(f"{lesson}: expected a cell with one call, bnlib.explore.name(...), got\n{source}")
    try:
        return call[1], ast.literal_eval(f"({call[2]},)" if call[2] else "()")
    except ValueError:
        return call[1], None


def shows_an_explorer(cell):
    """Return whether a cell's stored outputs are an explorer."""
    return any(SHOWN in str(output.get("data", {}).get("text/plain", "")) for output in cell.get("outputs", ()))


def depends_on(lesson, source):
    """Return a number that changes with all that a figure is made from: the call, what was recorded, the code."""
    name, arguments = call_of(lesson, source)
    files = [STORED] if name in STAND_INS else []
    if arguments is None:
        files.append(RECORDED / f"{lesson}-{name}.pt.gz")
    ingredients = [source.strip().encode(), code(), *(file.read_bytes() for file in files if file.exists())]
    return hashlib.sha256(b"\0".join(ingredients)).hexdigest()[:16]


@cache
def code():
    """Return the code that explorers are made with, and the versions of what it stands on, in bytes."""
    files = [
        ROOT / "requirements.txt",
        Path(__file__),
        *(Path(__file__).with_name(f"{name}.py") for name in ("pack", "record")),
    ]
    files += [path for path in sorted((ROOT / "bnlib").rglob("*.py")) if "exercises" not in path.parts]
    return b"\0".join(path.read_bytes() for path in files)


def texts_of(lists):
    """Yield the operations that write a text, from lists in lists."""
    if isinstance(lists, dict):
        lists = list(lists.values())
    if isinstance(lists, list):
        if lists[:1] == ["t"]:
            yield lists
        else:
            for each in lists:
                yield from texts_of(each)


def face_of(font):
    """Return which of `FACES` a font in CSS's words is."""
    return "mono-normal" if "monospace" in font else "sans-bold" if font.startswith("bold") else "sans-normal"


def small(png):
    """Return a PNG with fewer colours, if that makes it smaller."""
    page, out = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    page.quantize(128, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(out.getvalue(), png, key=len)
