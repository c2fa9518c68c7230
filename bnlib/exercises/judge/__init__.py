"""The judge of exercises: it calls an attempt, compares, and says which mistakes explain what it returned.

An exercise is data (`Exercise`): a formula with knobs, a catalogue of `Mistake`s that turn them, `Case`s to try. The
rooms, from the ground floor up: `catalogue` (what an exercise is written in), `guard` (calling safely), `truth` (the
right answer, and how far rounding may carry an honest one), `answers` (what came back), `search` (the smallest input),
`explanation` (which mistakes), `diagnosis` (what is said of them), `verdict` (how it looks).
"""

from .catalogue import Bend, Case, Mistake, drawn, rarely
from .exercise import Exercise
from .verdict import Verdict

__all__ = ["Bend", "Case", "Exercise", "Mistake", "Verdict", "drawn", "rarely"]
