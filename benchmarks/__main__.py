"""What `make bench` runs: every claim about speed as a ratio, both sides measured alternately in one run.

Prints a Markdown table, and writes it to benchmarks/RESULTS.md and its numbers to benchmarks/results.json.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from . import explorers, layers, training

HERE = Path(__file__).parent


def seconds(*command):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=HERE.parent)
    return time.perf_counter() - start


def imports(rounds=7):
    """Return one row: how long a fresh Python takes for `import bnlib` after torch, against torch alone."""
    ratios, extra = [], []
    for _ in range(rounds):
        alone = seconds(sys.executable, "-c", "import torch")
        both = seconds(sys.executable, "-c", "import torch, bnlib; bnlib.batch_norm, bnlib.BatchNorm2d")
        ratios.append(both / alone)
        extra.append(both - alone)
    return [
        {
            "what": "import bnlib and its layers, time over import torch alone",
            "ratio": statistics.median(ratios),
            "spread": (min(ratios), max(ratios)),
            "note": f"{statistics.median(extra):+.2f} s",
        }
    ]


def validation():
    """Return a row a lesson: what comparing its stored outputs takes, against a fresh Python that imports torch."""
    rows = []
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env")
    floor = seconds(sys.executable, "-c", "import torch")
    for lesson in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        took = seconds(*command, "--nbval-cell-timeout=900", str(lesson))
        rows.append(
            {
                "what": f"validate {lesson.stem}, time over import torch",
                "ratio": took / floor,
                "spread": (took / floor, took / floor),
                "note": f"{took:.0f} s",
            }
        )
    return rows


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
    rows = [
        *imports(),
        *training.measure(),
        *layers.measure(),
        *explorers.measure(),
        *validation(),
    ]
    table = ["| what | ratio, median | spread | note |", "|---|---|---|---|"]
    for row in rows:
        low, high = row["spread"]
        table.append(f"| {row['what']} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} | {row['note']} |")
    text = f"# Measured\n\n`make bench`, {machine()}.\n\n" + "\n".join(table) + "\n"
    print(text)
    (HERE / "RESULTS.md").write_text(text, encoding="utf-8")
    (HERE / "results.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
