import base64
import io

import numpy as np
import pytest
import torch
from explorers import ALONE
from ipywidgets import FloatSlider, IntSlider, SelectionSlider
from ipywidgets.widgets.widget import _instances
from PIL import Image
from torch import nn
from torch.nn import functional

import bnlib
from bnlib import explore
from bnlib.data import school
from bnlib.explore import base
from bnlib.explore.base import Explorer, slider
from bnlib.explore.lesson01 import LARGEST, draw_classes, normalise
from bnlib.explore.lesson02 import share
from bnlib.explore.lesson03 import BATCHES, EPS, stream, walk
from bnlib.explore.lesson06 import EXAMPLE, nudged, paths_of
from bnlib.explore.lesson07 import NORMS, PLACES, UNSEEN, change, company

every_explorer = pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)


def pixels(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.png()))).astype(int)


def alike(picture, other):
    """Return whether two pictures differ by rounding only: where numbers lie in memory changes the order of sums."""
    return abs(picture - other).max() <= 16


@pytest.mark.parametrize("gamma", [1.0, -3.0, 0.0])
@pytest.mark.parametrize("eps", [1e-5, 10.0])
def test_grades_are_scaled_and_shifted_as_torch_does(gamma, eps):
    grades = school(30).double()
    expected = functional.batch_norm(
        grades, None, None, torch.full((3,), gamma).double(), torch.full((3,), 7.0).double(), True, 0.1, eps
    )
    for c in range(3):
        torch.testing.assert_close(normalise(grades[:, c], gamma, 7.0, eps).after, expected[:, c])


def test_giving_the_grades_back_gives_every_subject_back():
    explorer = explore.gamma_beta()
    for subject in range(4):
        explorer.set(subject=subject)
        explorer._give_back()
        values = explorer.values()
        after = normalise(explorer._grades[:, subject], values["gamma"], values["beta"], values["eps"]).after
        torch.testing.assert_close(after, explorer._grades[:, subject].double(), atol=1e-5, rtol=0)
        assert "These are the grades that came in" in explorer.caption


def test_classes_have_the_mean_and_the_spread_that_torch_computes():
    drawn = draw_classes(school(500)[:, 1], seed=3)
    for n in (1, 2, 31, LARGEST):
        some = drawn.grades[:, :n]
        torch.testing.assert_close(drawn.means[:, n - 1], some.mean(1))
        torch.testing.assert_close(drawn.sds[:, n - 1], some.std(1, correction=0), atol=1e-6, rtol=1e-6)


def test_the_mean_of_a_class_strays_by_sigma_over_root_n():
    drawn = draw_classes(school(1000)[:, 0], seed=0)
    law = drawn.sd / torch.arange(1, LARGEST + 1) ** 0.5
    assert ((drawn.mean_error / law - 1).abs() < 0.2).all(), drawn.mean_error / law


@pytest.mark.parametrize(
    ("reading", "shape", "layer"),
    [
        ("2D", (3, 4), nn.BatchNorm1d(4)),
        ("3D", (2, 3, 4), nn.BatchNorm1d(3)),
        ("mistaken", (2, 3, 3), nn.BatchNorm1d(3)),
        ("batch", (3, 4, 2, 2), nn.BatchNorm2d(4)),
        ("layer", (3, 4, 2, 2), nn.LayerNorm([4, 2, 2])),
        ("instance", (3, 4, 2, 2), nn.InstanceNorm2d(4)),
        ("group", (3, 4, 2, 2), nn.GroupNorm(2, 4)),
    ],
)
def test_numbers_that_share_a_mean_are_normalised_as_torch_does(reading, shape, layer):
    result = share(shape, reading, groups=2)
    torch.testing.assert_close(result.y, layer.double()(result.x).detach())
    for group in result.group.unique():
        one = result.x[result.group == group]
        assert (result.mean[result.group == group] == one.mean()).all()
        torch.testing.assert_close(result.variance[result.group == group][0], one.var(correction=0))


def test_the_loops_end_at_what_torch_computes():
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    end = walk(x, 1, 48)
    torch.testing.assert_close(end.means[-1], x[:, 1].mean())
    torch.testing.assert_close(end.variances[-1], x[:, 1].var(correction=0))
    expected = functional.batch_norm(x, None, None, training=True, eps=EPS)[:, 1]
    torch.testing.assert_close(end.y, expected.flatten())


def test_half_way_through_the_loops_half_is_known():
    x = torch.arange(16.0).view(2, 2, 2, 2)
    after = walk(x, 0, 8 + 3)
    assert (len(after.means), len(after.variances), len(after.y), after.visited) == (8, 3, 0, 3)
    torch.testing.assert_close(after.means[2], after.values[:3].mean())


@pytest.mark.parametrize(("share", "right_a"), [(0.5, 0.977), (0.75, 0.841), (0.9, 0.655), (1.0, 0.5)])
def test_the_more_of_a_class_are_in_the_batch_the_fewer_of_it_are_recognised(share, right_a):
    batches = [company(64, share, "train", 4.0, seed) for seed in range(200)]
    measured = sum(batch.right_a for batch in batches) / len(batches)
    assert batches[0].formula_a == pytest.approx(right_a, abs=1e-3)
    assert measured == pytest.approx(right_a, abs=0.02)
    evaluated = [company(64, share, "eval", 4.0, seed).right_a for seed in range(200)]
    assert sum(evaluated) / 200 == pytest.approx(0.977, abs=0.01)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_company_is_normalised_as_torch_does(mode):
    result = company(9, 0.7, mode, 3.0, seed=2)
    assert result.is_a.sum() == 6
    layer = nn.BatchNorm1d(1).double().train(mode == "train")
    layer.running_var.fill_(1 + 1.5**2)
    torch.testing.assert_close(result.y, layer(result.x[:, None])[:, 0].detach())
    assert result.threshold == pytest.approx(result.x.mean().item() if mode == "train" else 0.0)


def test_a_norm_sees_what_the_table_of_lesson_07_says():
    seen = {  # + and × on everything, channel 0 and image 0; and whether image 1 changes with image 0
        "batch": "0 0 0 0 1 1 1",
        "layer": "0 0 1 1 0 0 0",
        "group": "0 0 1 1 0 0 0",
        "instance": "0 0 0 0 0 0 0",
        "RMS": "1 0 1 1 1 0 0",
    }
    for norm in NORMS:
        changes = [change(norm, place, how, 3.0) for place in PLACES for how in "+×"]
        marks = [max(each.largest) >= UNSEEN for each in changes] + [changes[4].largest[1] >= UNSEEN]
        assert " ".join(str(int(mark)) for mark in marks) == seen[norm], norm


def test_what_is_changed_and_shown_is_what_torch_computes():
    result = change("group", "channel 0", "×", 2.0)
    torch.testing.assert_close(result.after, functional.group_norm(result.changed, 2))
    x = result.changed.clone()
    x[:, 0] /= 2
    torch.testing.assert_close(result.before, functional.group_norm(x, 2))
    assert result.largest == (result.after - result.before).abs().amax((1, 2, 3)).tolist()


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_the_stream_leaves_the_running_statistics_that_torch_has(momentum):
    result = stream(torch.randn(500), 6, momentum, unbiased=True, seed=1)
    layer = nn.BatchNorm1d(1, momentum=momentum).double()
    for k, batch in enumerate(result.batches):
        layer(batch[:, None])
        torch.testing.assert_close(result.running_mean[k], layer.running_mean[0])
        torch.testing.assert_close(result.running_var[k], layer.running_var[0])
    assert len(result.batches) == BATCHES == 200


def test_the_biased_stream_aims_at_less():
    population = torch.randn(5000)
    biased, unbiased = (stream(population, 4, None, kind, seed=0).running_var[-1] for kind in (False, True))
    torch.testing.assert_close(biased, 0.75 * unbiased)


@every_explorer
def test_every_control_moves_picture_and_caption_and_reset_brings_them_back(make):
    explorer = make()
    picture, caption = pixels(explorer), explorer.caption
    for name, control in explorer.controls.items():
        if control.disabled:
            continue
        if isinstance(control, IntSlider | FloatSlider):
            control.value += control.step if control.value < control.max else -control.step
        elif isinstance(control, SelectionSlider):
            control.index += 1
        else:
            control.value = next(value for _, value in control._options_full if value != control.value)
        assert explorer.caption != caption, name
        assert not alike(pixels(explorer), picture), name
        explorer.reset()
        assert explorer.caption == caption, name
        assert alike(pixels(explorer), picture), name


@every_explorer
def test_what_moves_is_drawn_as_if_all_were_drawn_anew(make):
    explorer = make()
    explorer.set(**{name: getattr(c, "max", c.value) for name, c in explorer.controls.items() if hasattr(c, "max")})
    before = pixels(explorer)
    explorer.axes_moved()
    explorer.refresh()
    assert alike(pixels(explorer), before)


@every_explorer
def test_a_page_without_widgets_gets_the_picture_and_its_words(make):
    explorer = make()
    data, metadata = explorer._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == explorer.png()
    assert metadata["image/png"]["alt"] == explorer.caption
    assert data["text/plain"] == repr(explorer) == repr(make())
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "\n" not in repr(explorer)
    assert len(repr(explorer)) < 80


@every_explorer
def test_the_caption_is_announced_and_every_control_explains_itself(make):
    explorer = make()
    assert 'role="status" aria-live="polite"' in explorer._words.value
    for control in explorer.controls.values():
        assert control.description
        assert all(control.tooltips) if hasattr(control, "tooltips") else control.tooltip


class Fussy(Explorer):
    name = "fussy"

    def __init__(self):
        super().__init__({"n": slider("Number", 1, 1, 9, tooltip="Up to 3 will do")})

    def still(self, figure):
        self.bar = self.moves(figure.subplots().bar([0], [1])[0])

    def show(self, n):
        if n > 3:
            raise ValueError(f"{n} is <too> much, 3 is the most")
        self.bar.set_height(n / 9)
        return f"n is {n}"


def test_what_cannot_be_shown_stands_in_the_caption_and_the_explorer_goes_on():
    explorer = Fussy()
    first = explorer.png()
    explorer.controls["n"].value = 4
    assert explorer.caption == "This cannot be shown: 4 is <too> much, 3 is the most"
    assert "&lt;too&gt;" in explorer._words.value
    assert explorer.png() != first
    explorer.controls["n"].value = 1
    assert (explorer.caption, explorer.png()) == ("n is 1", first)


def test_values_out_of_a_controls_range_become_its_ends():
    explorer = explore.class_size()
    explorer.set(students=10**6)
    assert explorer.caption.startswith(f"200 classes of {LARGEST} ")
    explorer.set(students=-1)
    assert explorer.caption.startswith("200 classes of 1 ")


def test_a_cell_run_again_closes_what_its_last_run_made(monkeypatch):
    class Shell:
        def get_parent(self):
            return {"metadata": {"cellId": self.cell}, "header": {"msg_id": self.run}}

    shell = Shell()
    monkeypatch.setattr(base, "get_ipython", lambda: shell)
    shell.cell, shell.run = "a", 1
    one, other = Fussy(), Fussy()
    shell.cell, shell.run = "b", 2
    elsewhere = Fussy()
    widgets = len(_instances)
    for shell.run in (3, 4, 5):
        shell.cell = "b"
        elsewhere = Fussy()
        assert len(_instances) == widgets
    assert one.comm is not None
    assert other.comm is not None
    shell.cell, shell.run = "a", 6
    Fussy()
    assert one.comm is None
    assert other.comm is None
    assert elsewhere.comm is not None
    one.refresh()  # says nothing, as from a thread that has not heard of it


def test_two_explorers_of_a_kind_move_apart():
    one, other = explore.loops(), explore.loops()
    before = other.png()
    one.controls["step"].value = 20
    assert other.png() == before != one.png()


def test_a_batch_of_one_has_no_unbiased_variance_and_the_caption_says_so():
    explorer = explore.running_statistics()
    explorer.set(size=1)
    assert "no unbiased variance" in explorer.caption
    explorer.set(unbiased=False)
    assert "biased variance of one value is 0" in explorer.caption
    layouts = explore.who_shares_a_mean()
    layouts.set(reading="2D", samples=1)
    assert "BatchNorm1d refuses to train on it" in layouts.caption
    classes = explore.class_size()
    classes.set(students=1)
    assert "does not exist" in classes.caption


def test_the_mistaken_layout_is_accepted_only_where_l_is_c():
    explorer = explore.who_shares_a_mean()
    explorer.set(reading="mistaken", channels=3, length=3)
    assert "accepts it without a word" in explorer.caption
    explorer.set(length=2)
    assert "BatchNorm1d(3) refuses it" in explorer.caption
    with pytest.raises(RuntimeError):
        nn.BatchNorm1d(3)(torch.randn(2, 2, 3))


def test_channels_that_cannot_be_grouped_are_named():
    explorer = explore.who_shares_a_mean("norms")
    explorer.set(reading="group", channels=4, groups=3)
    assert "4 channels cannot be divided into 3 groups" in explorer.caption
    explorer.set(groups=4)
    assert "instance norm" in explorer.caption


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (explore.gamma_beta, bnlib.GRADES * torch.tensor([1, float("nan"), 1])),
        (explore.class_size, bnlib.GRADES / 0),
        (explore.loops, torch.full((1, 1, 2, 2), float("nan"))),
        (explore.running_statistics, torch.tensor([1.0, float("inf")])),
    ],
)
def test_data_that_are_no_number_are_refused_with_their_count(make, data):
    with pytest.raises(ValueError, match=f"{int((~data.isfinite()).sum())} .* no number"):
        make(data)


@pytest.mark.parametrize("make", [explore.gamma_beta, explore.class_size, explore.loops, explore.running_statistics])
def test_data_of_another_shape_are_refused_with_the_shape_expected(make):
    with pytest.raises(ValueError, match=r"expected .* got \(1, 1, 1\)"):
        make(torch.ones(1, 1, 1))


def test_a_school_where_all_have_the_same_grade_is_told_apart():
    assert "no class can stray" in explore.class_size(torch.full((5, 1), 80.0)).caption
    explorer = explore.gamma_beta()
    explorer.set(subject=3)
    assert "All have the same grade" in explorer.caption


def test_play_goes_on_from_the_step_and_reset_stops_it():
    explorer = explore.loops()
    explorer._play.playing = True
    explorer._play.value = 7
    assert "step 7 of 48" in explorer.caption
    explorer.controls["step"].value = 20
    assert explorer._play.value == 20
    explorer._speed.value = 8
    assert explorer._play.interval == 125
    explorer.reset()
    assert not explorer._play.playing
    assert explorer._play.interval == 250


@pytest.mark.parametrize("dy", [(4, 0, -1, 2, 0), (1, 1, 1, 1, 1), (1, -1, 0, -1, 1), (-1.5, -0.5, 0, 0.5, 1.5)])
@pytest.mark.parametrize("eps", [1e-5, 1.0])
@pytest.mark.parametrize("gamma", [4.0, -2.5, 0.0])
def test_the_three_paths_add_up_to_autograds_gradient(dy, gamma, eps):
    x, dy = EXAMPLE.clone().requires_grad_(), torch.tensor(dy, dtype=torch.float64)
    y = functional.batch_norm(x[:, None], None, None, torch.tensor([gamma]).double(), None, True, 0.1, eps)
    (expected,) = torch.autograd.grad(y, x, dy[:, None])
    paths = paths_of(EXAMPLE, dy, gamma, eps)
    torch.testing.assert_close(paths.dx, expected, rtol=0, atol=1e-12)
    gain = gamma**2 / (EXAMPLE.var(correction=0) + eps)
    torch.testing.assert_close(gain * paths.budget[-1], expected.square().sum(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("i", range(5))
@pytest.mark.parametrize("eps", [1e-5, 1.0])
def test_a_nudge_is_predicted_by_the_jacobians_column(i, eps):
    def normalised(x):
        return functional.batch_norm(x[:, None], None, None, training=True, eps=eps)[:, 0]

    jacobian = torch.autograd.functional.jacobian(normalised, EXAMPLE)
    result = nudged(EXAMPLE, i, 2.0, eps)
    torch.testing.assert_close(result.column, jacobian[:, i], rtol=0, atol=1e-12)
    moved = EXAMPLE + 2.0 * torch.eye(5, dtype=torch.float64)[i]
    torch.testing.assert_close(result.after, normalised(moved), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.predicted, result.before + 2.0 * jacobian[:, i], rtol=0, atol=1e-12)


def test_the_captions_of_lesson_06_say_what_is_taken_away():
    explorer = explore.three_paths()
    assert "dx = 3, -3, -4, 3, 1" in explorer.caption
    assert "5 lay along (1, …, 1) and 5 along x̂: 11 are left" in explorer.caption
    for upstream, dx in (("all equal", "0, 0, 0, 0, 0"), ("alternating", "2, -2, 0, -2, 2")):
        explorer.set(upstream=upstream)
        assert f"dx = {dx}: direct" in explorer.caption
    explorer = explore.nudge()
    explorer.set(step=1000)
    assert "-0.506, -0.501, -0.498, -0.496, 2;" in explorer.caption
    assert "5 of the 5 predictions cannot be shown" in explorer.caption


def test_with_the_targets_own_statistics_darkness_is_undone_and_a_single_class_is_not_told_apart():
    from bnlib.explore.lesson09 import other_data

    bright, dark = other_data(0.0, 1.0, 0.0, 0.0, 256), other_data(0.0, 0.25, 0.0, 0.0, 256)
    assert bright.accuracy["training images"] > 0.9
    assert dark.accuracy["training images"] < 0.6
    assert dark.accuracy["target batch"] > 0.9
    assert max(dark.lags["training images"]) > 0.3
    assert max(dark.lags["target batch"]) == 0
    zeros = other_data(0.0, 1.0, 0.0, 1.0, 256)
    assert zeros.accuracy["target batch"] < zeros.accuracy["training images"] - 0.3
