"""The trainings that `train_it_yourself` plays back on a page: `python -m web.trainings` trains what is missing.

Every setting of the explorer's grid is trained once, on the digits, by the very function that the notebook's button
calls; an hour or less on one core. What is done stays done: each training is stored when it is over.
"""

import itertools
import json
import os
from pathlib import Path

import torch

from bnlib.explore.base import button, choice
from bnlib.explore.lesson05 import Run, TrainItYourself, train

from .pack import values_of

STORED = Path(__file__).parent / "recorded" / "trainings.json"
CURVES = "losses", "train_accuracy", "test_accuracy"


class RecordedTrainings(TrainItYourself):
    """The explorer `train_it_yourself` with recorded trainings: Start shows one, beside the same with or without BN.

    Raises ValueError if settings of the grid were not recorded.
    """

    def __init__(self):
        self._recorded = {key(run.settings): run for run in recorded()}
        super().__init__()
        missing = [settings for settings in every(self.controls) if key(settings) not in self._recorded]
        if missing:
            raise ValueError(
                f"{len(missing)} trainings are not recorded, {missing[0]}; `python -m web.trainings` does it"
            )
        shown = choice("Training", False, [("not started", False), ("recorded", True)], tooltips=["", ""])
        shown.layout.display = "none"  # Start moves it
        shown.observe(self._changed, "value")
        self.controls["started"] = shown
        tooltip = "Show the recorded training with these settings"
        self.buttons = [button("Start", lambda: self.set(started=True), icon="play", tooltip=tooltip)]

    def reset(self):
        """Put the controls back, to where no training is shown."""
        self.set(**self._start, started=False)

    def show(self, started=False, **settings):
        """Draw the recorded training of the settings, and the one that it is to be compared with."""
        bare = settings["norm"] == "none"  # then momentum is greyed out, and must not matter
        other = settings | ({"norm": "scratch", "momentum": self._start["momentum"]} if bare else {"norm": "none"})
        self._runs = [self._recorded[key(each)] for each in (other, settings)] if started else []
        caption = super().show(**settings)
        return f"Recorded on another day. {caption.split(' Start would')[0]}" if started else caption


def key(settings):
    """Return what tells a training from others: without normalization there is no momentum."""
    return tuple(value for name, value in settings.items() if name != "momentum" or settings["norm"] != "none")


def every(controls):
    """Return the settings of all trainings of the grid."""
    stops = [TrainItYourself.grid.get(name) or values_of(control) for name, control in controls.items()]
    return [dict(zip(controls, values, strict=True)) for values in itertools.product(*stops)]


def recorded():
    """Return the stored trainings, a list of `Run`."""
    if not STORED.exists():
        return []
    runs = json.loads(STORED.read_text(encoding="utf-8"))
    return [Run(**run, over=True) for run in runs]


def main():
    """Train what is missing of the grid, and store it."""
    torch.set_num_threads(1)
    done = recorded()
    for settings in every(TrainItYourself().controls):
        if any(key(settings) == key(run.settings) for run in done):
            continue
        run = Run(settings)
        train(run, None, lambda: None)
        if run.state != "finished":
            raise RuntimeError(f"{run}")
        run.losses = [(round(epoch, 3), float(f"{loss:.4g}")) for epoch, loss in run.losses]
        done.append(run)
        text = ",\n".join(
            json.dumps({name: getattr(run, name) for name in ("settings", *CURVES, "state")}) for run in done
        )
        STORED.with_suffix(".part").write_text(f"[{text}]\n", encoding="utf-8")
        os.replace(STORED.with_suffix(".part"), STORED)
        print(run, flush=True)


if __name__ == "__main__":
    main()
