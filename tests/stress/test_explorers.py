"""The explorers under more than a reader's two hands can do."""

import gc
import json
import random
import sys
import time
from pathlib import Path

import pytest
from explorers import EXPLORERS
from ipywidgets import Button, FloatSlider, IntSlider
from ipywidgets.widgets.widget import _instances

HERE = Path(__file__).parent
every_explorer = pytest.mark.parametrize("name", EXPLORERS)


def draw_state(control, chance):
    """Return what the browser sends when a control is moved to a place drawn at random, both ends included."""
    if isinstance(control, IntSlider):
        return {"value": chance.randint(control.min, control.max)}
    if isinstance(control, FloatSlider):
        steps = round((control.max - control.min) / control.step)
        return {"value": control.min + chance.randint(0, steps) * control.step}
    return {"index": chance.randrange(len(control._options_labels))}


def move(explorer, chance):
    """Move one control, and see that the explorer can show it, or says why that cannot be shown."""
    control = chance.choice(list(explorer.controls.values()))
    control.set_state(draw_state(control, chance))
    failed = explorer.caption.startswith("This cannot be shown")
    assert not failed or "cannot be divided into" in explorer.caption, explorer.caption


def buttons(widget):
    """Return the buttons in a widget."""
    return [widget] * isinstance(widget, Button) + [b for c in getattr(widget, "children", ()) for b in buttons(c)]


def assert_shows_its_values(explorer, name):
    """Caption and picture are those that a new explorer has at the same values."""
    new = EXPLORERS[name]()
    for _ in range(2):  # a control may limit another, which then can take its value
        new.set(**explorer.values())
    assert (explorer.values(), explorer.caption) == (new.values(), new.caption)
    assert explorer.png() == new.png()
    new.close()


def resident():
    """Return the memory that this process holds, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@every_explorer
def test_a_thousand_changes_leave_nothing_behind_and_the_last_is_shown(name):
    explorer, chance = EXPLORERS[name](), random.Random(name)
    for _ in range(300):  # caches fill
        move(explorer, chance)
    before = resident()
    for _ in range(1000):
        move(explorer, chance)
    assert resident() - before < 5e6
    assert_shows_its_values(explorer, name)
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []
    explorer.close()


@every_explorer
def test_after_any_buttons_and_changes_reset_brings_the_start_back(name):
    explorer, chance = EXPLORERS[name](), random.Random(name)
    for _ in range(100):
        if chance.random() < 0.5:
            chance.choice(buttons(explorer)).click()
        move(explorer, chance)
    explorer.reset()
    assert_shows_its_values(explorer, name)
    assert explorer.values() == EXPLORERS[name]().values()
    explorer.close()


@every_explorer
def test_ten_copies_move_apart_and_close_without_a_trace(name):
    def ten_copies():
        copies, chance = [EXPLORERS[name]() for _ in range(10)], random.Random(name)
        for _ in range(50):
            move(chance.choice(copies), chance)
        return copies

    sizes = []
    for _ in range(6):  # caches fill, and the allocator settles
        for copy in ten_copies():
            copy.close()
        sizes.append((len(_instances), resident()))
    (widgets, memory), *_, (widgets_later, memory_later) = sizes[3:]
    assert widgets == widgets_later
    assert memory_later - memory < 5e6
    copies = ten_copies()
    for copy in copies:
        assert_shows_its_values(copy, name)
    for copy in copies:
        copy.close()


@every_explorer
def test_of_a_burst_of_five_hundred_messages_in_a_second_the_last_is_shown(name, start_kernel):
    with start_kernel(HERE, {"PYTHONPATH": str(HERE.parent)}) as kernel:
        printed, complaint = kernel.run(
            "import json, random\n"
            "from test_explorers import EXPLORERS, assert_shows_its_values, draw_state\n"
            f"explorer, chance = EXPLORERS[{name!r}](), random.Random(0)\n"
            "control = next(iter(explorer.controls.values()))\n"
            "print(json.dumps([control.model_id, *(draw_state(control, chance) for _ in range(500))]))"
        )
        assert not complaint
        model, *states = json.loads(printed)
        start = time.monotonic()
        for state in states:
            data = {"method": "update", "state": state, "buffer_paths": []}
            message = kernel.client.session.msg("comm_msg", {"comm_id": model, "data": data})
            kernel.client.shell_channel.send(message)
        assert time.monotonic() - start < 1
        ((attribute, last),) = states[-1].items()
        assert kernel.run(f"assert_shows_its_values(explorer, {name!r})\nprint(control.{attribute} == {last})") == (
            "True\n",
            "",
        )
