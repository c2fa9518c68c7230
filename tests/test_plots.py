"""The pictures: what they draw is what they were given, and their words say it with the same numbers."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bnlib import plots
from bnlib.data import Images
from bnlib.history import History, Point


def images():
    pixels = torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3
    return Images(pixels, labels, pixels[:3], labels[:3], ("shirt", "bag", "shoe"), "a few")


def history(epochs):
    made = History()
    for k in range(1, epochs + 1):
        made.points.append(Point(float(k), 1 / k, 1 - 1 / (k + 1)))
        made.train_loss.append(1 / k)
        made.train_accuracy.append(1 - 1 / (k + 1))
        made.test_accuracy.append(1 - 1 / (k + 2))
    return made


GRADES = torch.tensor([[60.0, 8.0], [70.0, 9.0], [80.0, 4.0]])
PICTURES = {
    "curves": lambda: plots.curves([1, 2, 3], {"a": [1.0, 2.0, 4.0], "b": [3.0, 2.0, 1.0]}, "epoch", "loss"),
    "before_after": lambda: plots.before_after(GRADES, (GRADES - GRADES.mean(0)) / GRADES.std(0), ["sum", "art"]),
    "training_curves": lambda: plots.training_curves({"with BN": history(3), "without": history(2)}),
    "planes": lambda: plots.planes(torch.arange(24.0).view(2, 3, 2, 2), 1),
    "pixels_as_rows": lambda: plots.pixels_as_rows(torch.arange(12.0).view(3, 2, 2)),
    "image_grid": lambda: plots.image_grid(images(), rows=2),
    "gamma_beta": lambda: plots.gamma_beta({"layer 2": (torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 1.0]))}),
}


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
def test_a_picture_shows_something_and_carries_its_words(make):
    picture = make()
    bundle, metadata = picture._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == bundle["text/plain"] == repr(picture) == picture.caption
    pixels = np.asarray(Image.open(io.BytesIO(picture.png())).convert("L"))
    assert pixels.min() < 128 < pixels.max()
    for axes in picture.figure.axes:  # no label is cut off
        box = axes.get_tightbbox()
        if box is not None:
            assert min(box.x0, box.y0) >= -1
            assert box.x1 <= picture.figure.bbox.x1 + 1
            assert box.y1 <= picture.figure.bbox.y1 + 1


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_curves_draw_the_points_they_are_given():
    picture = plots.curves([1, 10, 100], {"a": [1.0, 2.0, 4.0]}, "rate", "loss", log=True, log_x=True)
    (axes,) = picture.figure.axes
    assert lines(axes)["a"] == [[1, 1], [10, 2], [100, 4]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert picture.caption == "loss against rate. a: 1 at the left, 4 at the right."


def test_before_after_gives_the_ends_of_each_feature():
    picture = PICTURES["before_after"]()
    assert "sum from 60.0 to 80.0 before, from -1.00 to 1.00 after" in picture.caption
    assert "art from 4.0 to 9.0 before" in picture.caption


def test_training_curves_draw_loss_accuracy_and_test():
    losses, accuracies = PICTURES["training_curves"]().figure.axes
    drawn = [line.get_xydata().tolist() for line in losses.get_lines()]
    assert [[1, 1], [2, 1 / 2], [3, 1 / 3]] in [[[x, pytest.approx(y)] for x, y in line] for line in drawn]
    test = [line.get_ydata().tolist() for line in accuracies.get_lines() if line.get_linestyle() == "None"]
    assert test == [pytest.approx([2 / 3, 3 / 4, 4 / 5]), pytest.approx([2 / 3, 3 / 4])]


def test_live_curves_draw_a_training_over_those_before(monkeypatch):
    shown = []

    class Handle:
        def update(self, picture):
            shown.append(picture)

    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: Handle())
    live = plots.LiveCurves()
    live.follow("with BN")(history(2))
    live.follow("without")(history(1))
    assert "with BN" in shown[0].caption
    assert "without" not in shown[0].caption
    assert "with BN" in shown[1].caption
    assert "without" in shown[1].caption


def test_planes_fill_the_channel_asked_for():
    picture = PICTURES["planes"]()
    filled = [axes.patches[0].get_facecolor()[:3] != (1, 1, 1) for axes in picture.figure.axes]
    assert filled == [False, True, False] * 2
    assert "Channel 1 is filled: 8 numbers, 4 from each image, share one mean." in picture.caption
    assert sorted(text.get_text() for text in picture.figure.axes[1].texts) == ["4", "5", "6", "7"]


def test_a_channel_of_pixels_as_rows_is_a_column():
    *channels, table = PICTURES["pixels_as_rows"]().figure.axes
    first = [text.get_text() for text in channels[1].texts]
    column = [text.get_text() for text in table.texts if text.get_position()[0] == 1]
    assert sorted(first) == sorted(column) == ["4", "5", "6", "7"]


def test_image_grid_has_a_column_of_its_images_for_each_class():
    given, picture = images(), PICTURES["image_grid"]()
    shown = [np.asarray(axes.get_images()[0].get_array()) for axes in picture.figure.axes]
    assert len(shown) == 6
    assert (shown[3] == given.train_images[4, 0].numpy()).all()  # the second row of the second class
    assert picture.caption == "2 training images of each of 3 classes: shirt, bag, shoe."


def test_gamma_beta_has_a_dot_for_each_channel():
    picture = PICTURES["gamma_beta"]()
    assert lines(picture.figure.axes[0])["layer 2"] == [[0.5, -1], [2, 1]]
    assert "layer 2: γ from 0.50 to 2.00, β from -1.00 to 1.00" in picture.caption
