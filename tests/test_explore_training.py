"""The explorers of lessons 04 and 05: what they draw is what torch computes."""

import time

import pytest
import torch
from torch import nn

from bnlib import explore, fit, lenet
from bnlib.data import Images, digits
from bnlib.explore.lesson04 import BATCHES, SIDE, train_against_eval
from bnlib.explore.lesson05 import BINS, Run, frequencies, train

torch.set_num_threads(1)
SETTINGS = {"norm": "scratch", "schedule": "constant", "lr": 1.0, "batch_size": 64, "momentum": 0.1, "epochs": 2}


@pytest.fixture(scope="module")
def images():
    """A quarter of the digits."""
    all_ = digits()
    parts = all_.train_images[:360], all_.train_labels[:360], all_.test_images[:90], all_.test_labels[:90]
    return Images(*parts, all_.class_names, "a few digits")


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("size", [1, 8])
def test_the_gap_between_train_and_eval_is_that_of_torchs_layer(size, momentum):
    layer = nn.BatchNorm2d(1, momentum=momentum, dtype=torch.float64)
    result = train_against_eval(size, momentum, seed=3)
    for k in range(BATCHES + 1):
        x = result.x[k].view(size, 1, SIDE, SIDE)
        torch.testing.assert_close(result.running_mean[k], layer.running_mean[0])
        torch.testing.assert_close(result.running_var[k], layer.running_var[0])
        evaluated = layer.eval()(x)
        trained = layer.train()(x)  # and takes the batch into its running statistics
        torch.testing.assert_close(result.gap[k], (trained - evaluated).square().mean().sqrt())


def test_a_run_is_what_fit_makes_of_its_settings(images):
    run, news = Run(SETTINGS), []
    train(run, images, lambda: news.append(run.state))
    history = fit(lenet(momentum=0.1), images, epochs=2, batch_size=64, lr=1.0, progress=False)
    assert run.test_accuracy == history.test_accuracy
    assert run.train_accuracy == history.train_accuracy
    steps = [epoch for epoch, _ in run.losses]
    assert steps == sorted(steps)
    assert steps[-1] == 2
    assert set(news) == {"training", "finished"}


def test_stop_takes_effect_after_the_step_under_way(images):
    run = Run(SETTINGS)

    def stop_at_the_third_step():
        if len(run.losses) == 3:
            run.stop.set()

    train(run, images, stop_at_the_third_step)
    assert len(run.losses) == 3
    assert run.state == "stopped in epoch 1"


def test_an_error_in_a_training_stands_in_the_caption(images):
    explorer = explore.train_it_yourself(images)
    images = Images(images.train_images * float("nan"), *list(vars(images).values())[1:])
    explorer._images = images
    explorer.start().join()
    assert "failed: the loss is nan in epoch 1" in explorer.caption
    explorer._images = "not images"
    explorer.start().join()
    assert "failed: 'str' object has no attribute" in explorer.caption


def test_nothing_trains_before_start_and_two_runs_are_compared(images):
    explorer = explore.train_it_yourself(images)
    time.sleep(0.3)
    assert explorer.caption.startswith("No training yet. Start trains LeNet on a few digits with our layer")
    still = explorer.png()
    explorer.set(epochs=1)
    thread = explorer.start()
    assert explorer.start() is thread  # while it goes on, no second one
    thread.join()
    assert "our layer (momentum 0.1), constant learning rate 1, batches of 64, 1 epoch: finished;" in explorer.caption
    assert "The run before" not in explorer.caption
    assert explorer.png() != still
    explorer.set(norm="none")
    explorer.start().join()
    assert explorer.caption.startswith("This run, no normalization")
    assert "The run before, our layer (momentum 0.1)" in explorer.caption
    explorer.reset()
    assert explorer.png() == still


def test_controls_answer_while_it_trains(images):
    explorer = explore.train_it_yourself(images)
    thread = explorer.start()
    start = time.monotonic()
    explorer.set(lr=0.3)
    assert "Start would train our layer (momentum 0.1), constant learning rate 0.3" in explorer.caption
    assert time.monotonic() - start < 1
    explorer.stop()
    thread.join()
    assert "stopped in epoch" in explorer.caption


def test_closing_it_ends_its_training(images):
    explorer = explore.train_it_yourself(images)
    thread = explorer.start()
    explorer.close()
    thread.join()
    assert explorer._runs[-1].state == "stopped in epoch 1"


@pytest.mark.parametrize("norm", ["scratch", "torch"])
def test_what_is_recorded_is_what_goes_through_the_layers_in_eval(norm, images):
    model, x = lenet(norm), images.test_images
    model(x)  # running statistics other than 0 and 1
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recording = explore.inside_the_layers.record(model, x, values=50)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert list(recording) == [2, 6, 11, 14]
    model.eval()
    with torch.no_grad():
        for number, (_, taken, given) in recording.items():
            inputs, outputs = (model[:end](x).transpose(0, 1).flatten(1) for end in (number - 1, number))
            every = -(-inputs.shape[1] // 50)
            torch.testing.assert_close(taken, inputs[:, ::every], rtol=2**-11, atol=0)  # 11 binary digits
            torch.testing.assert_close(given, outputs[:, ::every], rtol=2**-11, atol=0)
            assert taken.shape[1] <= 50
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_normalization_cannot_be_recorded(images):
    with pytest.raises(ValueError, match="no batch normalization layer"):
        explore.inside_the_layers.record(lenet("none"), images.test_images)


def test_frequencies_are_those_of_a_histogram():
    values, edges = torch.randn(1000, generator=torch.Generator().manual_seed(0)), torch.linspace(-5, 5, BINS + 1)
    counts = torch.histogram(values, edges).hist
    torch.testing.assert_close(frequencies(values, edges), counts / counts.max())


def test_layers_and_epochs_are_told_apart(images):
    model, recordings = lenet(), []
    record = explore.inside_the_layers.record
    on_epoch = lambda history: recordings.append(record(model, images.test_images))  # noqa: E731
    fit(model, images, epochs=2, batch_size=64, progress=False, on_epoch=on_epoch)
    explorer = explore.inside_the_layers(recordings)
    after = recordings[1][2].after
    assert (
        f"together have mean {after.mean():.3f} and standard deviation {after.std(correction=0):.3f}"
        in explorer.caption
    )
    explorer.set(layer=11, epoch=1)
    explorer.set(channel=119)
    assert explorer.caption.startswith("Layer 11, BatchNorm1d, after epoch 1")
    assert f"channel 119 has {recordings[0][11].before[119].mean():.3f}" in explorer.caption
    explorer.set(layer=2)
    assert "channel 5 has" in explorer.caption  # the layer has six
    recordings[0][2].before[0, 0] = float("nan")
    explorer.refresh()
    assert "after epoch 1, 1 activations of layer 2 are no number" in explorer.caption
    explorer.set(epoch=2)
    assert explorer.caption.startswith("Layer 2, BatchNorm2d, after epoch 2")


def test_recordings_that_cannot_be_shown_are_refused(images):
    with pytest.raises(ValueError, match="no recordings"):
        explore.inside_the_layers([])
    record = explore.inside_the_layers.record(lenet(), images.test_images)
    with pytest.raises(ValueError, match="different layers"):
        explore.inside_the_layers([record, {2: record[2]}])
