"""What an examination says: a `Finding` for each thing found, and the `Examination` that shows them."""

from collections import Counter
from dataclasses import dataclass, field
from html import escape

from .catalogue import CODES, PAGES

SEVERITIES = "wrong", "doubtful", "note"


@dataclass
class Finding:
    """One thing found: its `code`, a key of `CODES`; severity; the names of the layers; in words what was measured."""

    code: str
    severity: str  # "wrong": answers are or will be; "doubtful": look at it; "note": good to know
    layers: list[str]
    measured: str

    @property
    def title(self) -> str:
        """What the code stands for."""
        return CODES[self.code][0]

    @property
    def advice(self) -> str:
        """What to do."""
        return CODES[self.code][1]

    @property
    def read(self) -> tuple[int, str]:
        """The lesson and the heading that explain it."""
        return CODES[self.code][2:]

    def __str__(self):
        lesson, heading = self.read
        return (
            f"{self.code} {self.severity}: {self.title}\n    {self._where()}: {self.measured}\n"
            f"    do: {self.advice}\n    read: lesson {lesson:02d}, “{heading}”"
        )

    def _where(self):
        return ", ".join(self.layers[:3]) + (f" and {len(self.layers) - 3} more" if len(self.layers) > 3 else "")


@dataclass
class Examination:
    """What `examine` found, the worst first. `lags` holds each layer's (mean's lag in σ, variance's factor)."""

    findings: list[Finding]
    layers: list[str]
    lags: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; doubts and notes there may be."""
        return all(finding.severity != "wrong" for finding in self.findings)

    @property
    def codes(self) -> set[str]:
        """The codes of all findings."""
        return {finding.code for finding in self.findings}

    def picture(self):
        """Return a picture of each layer's lag: how far its running statistics are from the data's."""
        from ..plots import lag_bars  # pictures load slowly

        return lag_bars(self.lags)

    def _headline(self):
        counts = Counter(finding.severity for finding in self.findings)
        said = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity])
        return f"{len(self.layers)} batch normalizations examined: {said or 'nothing to report'}"

    def __repr__(self):
        return "\n".join([self._headline(), *map(str, self.findings)])

    def _repr_html_(self):
        heads = "".join(
            f'<th scope="col" style="text-align: left">{head}</th>'
            for head in ("code", "severity", "what", "where", "measured", "what to do", "read")
        )
        rows = ""
        for finding in self.findings:
            lesson, heading = finding.read
            anchor = heading.replace(" ", "-")
            link = f'<a href="{PAGES[lesson]}.ipynb#{escape(anchor)}">lesson {lesson:02d}, {escape(heading)}</a>'
            words = finding.title, finding._where(), finding.measured, finding.advice
            cells = [finding.code, f"<b>{finding.severity}</b>", *map(escape, words), link]
            rows += "<tr>" + "".join(f'<td style="text-align: left">{cell}</td>' for cell in cells) + "</tr>"
        table = f"<table><tr>{heads}</tr>{rows}</table>" if rows else ""
        return f'<div style="overflow-x: auto"><p><strong>{escape(self._headline())}</strong></p>{table}</div>'
