"""What `make bench` runs: every claim about speed as a ratio, both sides measured alternately in one run.

Prints a page, and writes it to benchmarks/RESULTS.md.
"""

import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from . import among, explorers, layers, table, training

HERE = Path(__file__).parent


def seconds(*command):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=HERE.parent)
    return time.perf_counter() - start


def imports(rounds=7):
    """Return as a section of a page how long a fresh Python takes to import bnlib after torch, against torch."""
    ratios, extra = [], []
    for _ in range(rounds):
        alone = seconds(sys.executable, "-c", "import torch")
        both = seconds(sys.executable, "-c", "import torch, bnlib; bnlib.batch_norm, bnlib.BatchNorm2d")
        ratios.append(both / alone)
        extra.append(both - alone)
    return (
        f"## Import\n\n`import torch, bnlib` with its layers: {statistics.median(ratios):.2f} times the time of "
        f"`import torch` alone ({among(min(ratios), max(ratios))}), {statistics.median(extra):+.2f} s."
    )


def validation():
    """Return as a section of a page what comparing each lesson's stored outputs takes."""
    lines = []
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env")
    floor = seconds(sys.executable, "-c", "import torch")
    for lesson in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        took = seconds(*command, "--nbval-cell-timeout=900", str(lesson))
        lines.append([lesson.stem, f"{took:.0f}", f"{took / floor:.1f}"])
    return "## `make validate`, lesson by lesson\n\n" + table(["lesson", "seconds", "over `import torch`"], lines)


def machine():
    """Return in words what was measured on."""
    processor = platform.processor() or platform.machine()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")] or [
        f": {processor}"
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: GPU figures not measured"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ipywidgets", "jupyterlab", "matplotlib"))
    return (
        f"{date.today()}, {names[0].split(':')[1].strip()}, {torch.get_num_threads()} threads; {gpu}; "
        f"Python {platform.python_version()}, {packages}"
    )


def main():
    sections = [
        f"# Measured\n\nBy `make bench`, on {machine()}. A ratio is the median over rounds in which both sides ran in "
        "turn; in brackets the lowest and the highest round.",
        *(subject.tell(subject.measure()) for subject in (training, layers, explorers)),
        imports(),
        validation(),
    ]
    text = "\n\n".join(sections) + "\n"
    print(text)
    (HERE / "RESULTS.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
