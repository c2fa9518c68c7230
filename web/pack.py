"""An explorer for a page without Python: every state of its controls, drawn and put into words by its own code.

`Pack(explorer)` goes through the stops that the explorer declares. `contents()` is what the page's script reads,
`form()` the controls as HTML, with the words of the notebook.
"""

import html
import itertools
import json
import math
import re
import textwrap
from contextlib import contextmanager

import ipywidgets as widgets

from bnlib.explore.base import Redrawn

from .record import Recorder

NUMBER = re.compile(r"(−?-?\d+(?:[.,]\d+)*)")


class Pack:
    """All states of an explorer, new and unmoved.

    Raises ValueError for an explorer that declares no grid, or one that its controls cannot take.
    """

    def __init__(self, explorer):
        self.explorer, self.controls = explorer, explorer.controls
        self.start, self.caption = explorer.values(), explorer.caption
        self.grid = checked(explorer)
        self.draws = explorer.draws if isinstance(explorer, Redrawn) else 1
        self._tops = {name: control.max for name, control in self.controls.items() if hasattr(control, "max")}
        self._recorder = Recorder(explorer.figure)
        self._still, self._lists, self._frames, self._metas = {}, {}, {}, {}  # each with its number
        explorer.paint_with(self._paint)
        self._walk()
        self._press()

    # ---- going through the states

    def _paint(self, stale):
        """Note down the explorer's present state."""
        explorer, recorder = self.explorer, self._recorder
        if stale:
            self._present = self._still.setdefault(packed(recorder.still(explorer.figure)), len(self._still))
        if explorer.failed:  # a message stands in place of all that moves
            parts = [[] for _ in explorer.moving()] + [recorder.message(textwrap.wrap(explorer.caption, 64))]
        else:
            parts = [recorder.moving(artist) for artist in explorer.moving()] + [[]]
        numbers = tuple(self._lists.setdefault(packed(part), len(self._lists)) for part in parts)
        frame = explorer.caption, self._present, numbers
        self._frame = self._frames.setdefault(frame, len(self._frames))

    def _open(self):
        """Let every slider go as far as it ever can."""
        for name, top in self._tops.items():
            self.controls[name].max = top

    def _settle(self, values):
        self._open()
        self.explorer.set(**values)

    def _walk(self):
        """Visit every state; begin anew when a control turns out to go further than at the start."""
        grown = True
        while grown:
            grown = False
            self._open()
            self.stops = {name: self.grid.get(name) or values_of(control) for name, control in self.controls.items()}
            self.index = {}  # (draw, place of each control's stop) -> (frame, what it makes of the controls)
            places = [range(len(stops)) for stops in self.stops.values()]
            for state in itertools.product(range(self.draws), *places):
                if state in self.index:
                    continue
                if self.draws > 1:
                    self.explorer.seed = state[0]
                self._settle(self._values(state[1:]))
                for name, top in self._tops.items():
                    if self.controls[name].max > top:
                        self._tops[name], grown = self.controls[name].max, True
                if grown:
                    break
                self._enter(state)
        if self.draws > 1:
            self.explorer.seed = 0

    def _enter(self, state):
        """Enter the present frame for `state` and for all that look the same: a greyed-out control, one at its end."""
        disabled, ends, same = [], [], [state[:1]]
        for place, stops, control in zip(state[1:], self.stops.values(), self.controls.values(), strict=True):
            last = len(stops) - 1
            end = (
                max((i for i in range(last + 1) if stops[i] <= control.max), default=0)
                if hasattr(control, "max")
                else last
            )
            disabled.append(int(control.disabled))
            ends.append(end)
            same.append(
                range(last + 1) if control.disabled else range(min(place, end), last + 1) if place >= end else [place]
            )
        meta = self._metas.setdefault(packed([disabled, ends]), len(self._metas))
        for other in itertools.product(*same):
            self.index.setdefault(other, (self._frame, meta))

    def _values(self, places):
        return {name: stops[i] for (name, stops), i in zip(self.stops.items(), places, strict=True)}

    def _press(self):
        """Press every button in every state of the first draw, and note where it leads."""
        plain = [each for each in self.explorer.buttons if isinstance(each, widgets.Button)]
        self.buttons = [each for each in plain if each.description != "Draw again"]
        self.leads, self.beside, known = [], [], {}  # a state's number, or -1 - that of a state beside the grid
        for pressed in self.buttons:
            leads = []
            for places in itertools.product(*(range(len(stops)) for stops in self.stops.values())):
                with unseen(self.explorer):
                    self._settle(self._values(places))
                    pressed.click()
                values = self.explorer.values()
                near = self._nearest(values)
                if self._values(near) == values:
                    leads.append(self._flat(near))
                    continue
                if (state := tuple(values.values())) not in known:
                    self.explorer.refresh()
                    known[state] = len(known)
                    said = [readout(control, control.value) for control in self.controls.values()]
                    self.beside.append([self._frame, self._flat(near), said])
                leads.append(-1 - known[state])
            self.leads.append(leads)

    def _nearest(self, values):
        def far(stop, value):
            return abs(stop - value) if isinstance(value, int | float) else stop != value

        return [
            min(range(len(stops)), key=lambda i, stops=stops, value=value: far(stops[i], value))
            for stops, value in zip(self.stops.values(), values.values(), strict=True)
        ]

    def _flat(self, places):
        flat = 0
        for place, stops in zip(places, self.stops.values(), strict=True):
            flat = flat * len(stops) + place
        return flat

    # ---- what the page gets

    def contents(self):
        """Return what the page's script reads, ready for JSON."""
        captions, stills, parts = zip(*self._frames, strict=True)
        patterns, sentences = sentences_of(captions)
        states = [self.index[state] for state in sorted(self.index)]
        recorder = self._recorder
        play = next((each for each in self.explorer.buttons if isinstance(each, widgets.Play)), None)
        return {
            "size": [recorder.width, recorder.height],
            "draws": self.draws,
            "controls": [
                {"name": name, "words": [readout(self.controls[name], stop) for stop in stops]}
                for name, stops in self.stops.items()
            ],
            "start": self._flat(self._nearest(self.start)),
            "index": [frame for frame, _ in states],
            "meta": [meta for _, meta in states],
            "metas": [json.loads(meta) for meta in self._metas],
            "buttons": self.leads,
            "beside": self.beside,
            "interval": play.interval if play else 0,
            "sentence": sentences,
            "sentences": patterns,
            "still": [json.loads(still) for still in self._still],
            "on": list(stills),
            "slots": self._slots(parts),
            "styles": list(recorder.styles),
            "markers": [json.loads(marker) for marker in recorder.markers],
            "fonts": [f'{weight} {size}px "bn {family}", {family}' for weight, size, family in recorder.fonts],
        }

    def _slots(self, parts):
        """Return the moving artists, those that change together as one: their lists, and each frame's among them."""
        lists = [json.loads(text) for text in self._lists]
        slots = []
        for column in zip(*parts, strict=True):
            kinds = [(number,) for number in column]
            if slots:
                pairs = [before + kind for before, kind in zip(slots[-1], kinds, strict=True)]
                if len(set(pairs)) <= 1.1 * min(len(set(slots[-1])), len(set(kinds))):
                    slots[-1] = pairs
                    continue
            slots.append(kinds)
        packed_slots = []
        for slot in slots:
            numbers = {}
            of = [numbers.setdefault(kind, len(numbers)) for kind in slot]
            packed_slots.append({"of": of, "lists": [[op for n in kind for op in lists[n]] for kind in numbers]})
        return packed_slots

    def form(self):
        """Return the controls as HTML, switched off: the page's script switches them on."""
        start = self._nearest(self.start)
        parts = [
            self._knob(name, control, stops, start[i])
            for i, ((name, control), stops) in enumerate(zip(self.controls.items(), self.stops.values(), strict=True))
        ]
        row = []
        plain = iter(range(len(self.buttons)))
        for each in self.explorer.buttons:
            if isinstance(each, widgets.Play):
                row.append('<button type="button" data-play>Play</button>')
            elif isinstance(each, widgets.ToggleButtons):  # how fast it plays
                row.append(
                    radios("speed", each.description, [(str(v), v) for v in each.options], each.tooltips, each.value)
                )
            else:
                kind = "data-again" if each.description == "Draw again" else f'data-to="{next(plain)}"'
                row.append(
                    f'<button type="button" {kind} title="{html.escape(each.tooltip)}">'
                    f"{html.escape(each.description)}</button>"
                )
        row.append('<button type="reset" title="Put every control back to where it started">Reset</button>')
        return (
            f'<form class="controls" hidden autocomplete="off"><fieldset disabled>{"".join(parts)}'
            f'<div class="row">{"".join(row)}</div>'
            f"{self._fewer()}</fieldset></form>"
        )

    def _knob(self, name, control, stops, start):
        words = [readout(control, stop) for stop in stops]
        if control.layout.display == "none" or len(stops) == 1:
            return f'<input type="hidden" name="{name}" value="{start}">'
        if isinstance(control, widgets.ToggleButtons):
            tips = dict(zip(control._options_values, control.tooltips, strict=True))
            options = [(word, i) for i, word in enumerate(words)]
            return radios(name, control.description, options, [tips[stop] for stop in stops], start)
        return (
            f'<label class="slider" title="{html.escape(control.tooltip or "")}">'
            f"<span>{html.escape(control.description)}</span>"
            f'<input type="range" name="{name}" min="0" max="{len(stops) - 1}" value="{start}" '
            f'aria-valuetext="{words[start]}">'
            f'<span class="readout" aria-hidden="true">{words[start]}</span></label>'
        )

    def _fewer(self):
        """Return a line that says what moves more freely in the notebook; nothing if nothing does."""
        fewer = []
        for stops, control in zip(self.stops.values(), self.controls.values(), strict=True):
            every = len(values_of(control))
            if 1 == len(stops) < every:
                fewer.append(f"{control.description} stays at {readout(control, stops[0])}")
            elif len(stops) < every:
                fewer.append(f"{control.description} has {len(stops)} of its {every} stops")
        if self.draws > 1:
            fewer.append(f"Draw again goes round {self.draws} draws")
        return f'<p class="fewer">On this page {html.escape("; ".join(fewer))}.</p>' if fewer else ""


def checked(explorer):
    """Return the explorer's grid; raise ValueError where its controls cannot take it."""
    if explorer.grid is None:
        raise ValueError(
            f"bnlib.explore.{explorer.name} declares no stops for a page: give {type(explorer).__name__} a `grid`"
        )
    for name, stops in explorer.grid.items():
        if name not in explorer.controls:
            raise ValueError(
                f"bnlib.explore.{explorer.name}: its grid names {name!r}, it has {list(explorer.controls)}"
            )
        control = explorer.controls[name]
        able = values_of(control)
        odd = [
            stop
            for stop in stops
            if all(not math.isclose(stop, v) if isinstance(v, float) else stop != v for v in able)
        ]
        if odd or control.value not in stops:
            problem = f"{odd} are no values of it" if odd else f"its start, {control.value}, is not among them"
            raise ValueError(f"bnlib.explore.{explorer.name}, the stops of {name!r}: {problem}")
    return explorer.grid


def values_of(control):
    """Return every value that a control can take."""
    if hasattr(control, "_options_values"):
        return list(control._options_values)
    count = round((control.max - control.min) / control.step)
    return [type(control.value)(round(control.min + i * control.step, 9)) for i in range(count + 1)]


def readout(control, value):
    """Return the words that stand beside a control at `value`."""
    if hasattr(control, "_options_values"):
        return control._options_labels[control._options_values.index(value)]
    return format(value, control.readout_format)


def radios(name, legend, options, tips, chosen):
    """Return buttons of which one is down as HTML; options are pairs of words and value."""
    inner = "".join(
        f'<label title="{html.escape(tip)}">'
        f'<input type="radio" name="{name}" value="{value}"{" checked" * (value == chosen)}>'
        f"<span>{html.escape(words)}</span></label>"
        for (words, value), tip in zip(options, tips, strict=True)
    )
    return f'<fieldset class="choice"><legend>{html.escape(legend)}</legend>{inner}</fieldset>'


def sentences_of(captions):
    """Return captions as patterns with gaps, each with its numbers by column, and the pattern of each caption."""
    patterns, of, rows = {}, [], []
    for caption in captions:
        parts = NUMBER.split(caption)
        number = patterns.setdefault(tuple(parts[::2]), len(patterns))
        of.append(number)
        if number == len(rows):
            rows.append([])
        rows[number].append(parts[1::2])
    said = [
        {"text": text, "numbers": [" ".join(column) for column in zip(*row, strict=True)]}
        for text, row in zip(patterns, rows, strict=True)
    ]
    return said, of


@contextmanager
def unseen(explorer):
    """Move an explorer without showing it: where a button leads needs no picture."""
    explorer.refresh = lambda: None
    try:
        yield
    finally:
        del explorer.refresh


def packed(data):
    """Return data as JSON without a blank."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)
