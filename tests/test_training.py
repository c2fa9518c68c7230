"""The training loop, evaluation, and the statistics estimated anew."""

import contextlib
import copy
import dataclasses
import math
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import bnlib
from bnlib import training
from bnlib.training import find_device

FAST = {"epochs": 2, "batch_size": 64, "lr": 0.5, "progress": False}


def test_fit_does_what_the_plain_loop_does(images):
    model, by_hand = bnlib.lenet(), bnlib.lenet()
    history = bnlib.fit(model, images, **FAST)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.5)
    shuffle = torch.Generator().manual_seed(0)
    for epoch in range(2):
        losses, right = [], 0
        for batch in torch.randperm(320, generator=shuffle).split(64):
            logits = by_hand(images.train_images[batch])
            loss = F.cross_entropy(logits, images.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            right += (logits.argmax(1) == images.train_labels[batch]).sum().item()
        assert history.train_loss[epoch] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert history.train_accuracy[epoch] == pytest.approx(right / 320)
    for ours, theirs in zip(model.state_dict().values(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_same_seed_gives_the_same_history_and_another_seed_another(images):
    first, again, other = (bnlib.fit(bnlib.lenet(), images, **FAST, seed=seed) for seed in (0, 0, 1))
    assert first.points == again.points
    assert first.test_accuracy == again.test_accuracy
    assert first.points != other.points


def test_fit_leaves_the_global_random_state_alone(images):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    bnlib.fit(bnlib.lenet(), images, **FAST)
    assert torch.equal(torch.rand(3), expected)


def test_history_has_five_points_an_epoch_and_one_figure_each(images):
    history = bnlib.fit(bnlib.lenet(), images, **FAST)
    assert len(history.points) == 10
    assert history.points[-1].epoch == 2
    assert len(history.train_loss) == len(history.train_accuracy) == len(history.test_accuracy) == 2
    fifths = [point.loss for point in history.points[:5]]
    assert history.train_loss[0] == pytest.approx(sum(fifths) / 5, rel=1e-5)
    assert history.examples_per_second == pytest.approx(640 / history.seconds)
    bundle, metadata = history._repr_mimebundle_()
    assert bundle["image/png"].startswith("iVBOR")
    assert f"{history.test_accuracy[-1]:.3f}" in metadata["image/png"]["alt"]


def test_cosine_takes_the_learning_rate_to_zero(images):
    seen = []
    model = bnlib.lenet("none")
    before = copy.deepcopy(model.state_dict())

    def watch(step):
        after = step.model.state_dict()
        seen.append(sum((after[name] - before[name]).abs().sum().item() for name in after))
        before.update(copy.deepcopy(after))

    bnlib.fit(model, images, **FAST | {"schedule": "cosine", "batch_size": 32}, on_step=watch)
    assert len(seen) == 20
    assert seen[-1] < 0.1 * seen[0]


def test_on_step_stops_at_once_and_on_epoch_sees_each_epoch(images):
    steps, epochs = [], []
    history = bnlib.fit(
        bnlib.lenet(),
        images,
        **FAST,
        on_step=lambda step: steps.append(step.epoch) or len(steps) == 7,
        on_epoch=lambda history: epochs.append(len(history.test_accuracy)),
    )
    assert steps == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4])
    assert epochs == [1]
    assert len(history.train_loss) == len(history.test_accuracy) == 1
    assert history.points[-1].epoch == pytest.approx(1.4)


def test_a_true_tensor_from_on_step_stops_too(images):
    history = bnlib.fit(bnlib.lenet(), images, **FAST, on_step=lambda step: step.loss < 100)
    assert len(history.points) == 1


def test_an_interrupt_before_the_first_point_returns_a_history_that_can_be_shown(images):
    def interrupt(step):
        raise KeyboardInterrupt

    history = bnlib.fit(bnlib.lenet(), images, **FAST, on_step=interrupt)
    assert not history.points
    assert "image/png" in history._repr_mimebundle_()[0]


class Viewing(nn.Module):
    """It flattens with `view`, which only takes the channels where they come first."""

    def __init__(self):
        super().__init__()
        self.images, self.vectors = nn.Sequential(nn.Conv2d(1, 4, 5), nn.Conv2d(4, 4, 1)), nn.Linear(4 * 24 * 24, 10)

    def forward(self, x):
        return self.vectors(self.images(x).view(len(x), -1))


@pytest.mark.parametrize(
    "make",
    [
        Viewing,
        lambda: nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, (1, 5, 5)), nn.Flatten(), nn.LazyLinear(10)),
        lambda: nn.Sequential(nn.LazyConv2d(4, 5), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10)),
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 10), bnlib.BatchNorm1d(10, affine=False, track_running_stats=False)
        ),
    ],
    ids=["view", "Conv3d", "lazy", "no running statistics"],
)
def test_models_that_a_plain_loop_trains_are_trained(images, make):
    torch.manual_seed(0)
    losses = bnlib.fit(make(), images, **FAST | {"lr": 0.01}).train_loss
    assert losses[-1] < losses[0]


def test_an_interrupt_returns_the_history_so_far(images):
    model = bnlib.lenet()

    def interrupt(step):
        if step.epoch > 1.5:
            raise KeyboardInterrupt

    history = bnlib.fit(model, images, **FAST, on_step=interrupt)
    assert len(history.test_accuracy) == len(history.train_loss) == 1
    assert 0 <= bnlib.evaluate(model, images) <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_on_as_many_images_as_fashion_mnist_has_it_takes_less_than_500_megabytes_above_torch():
    code = """
import re, torch
def peak():  # not getrusage, which counts the parent's, too
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024 / 1e6
before = peak()
import bnlib
from bnlib.data import Images
arrays = [t for n in (60_000, 10_000) for t in (torch.rand(n, 1, 28, 28), torch.randint(0, 10, (n,)))]
images, steps = Images(*arrays, tuple("abcdefghij"), "noise"), []
model = bnlib.lenet()
bnlib.fit(model, images, device="cpu", on_step=lambda step: steps.append(step.loss) or len(steps) == 5)
bnlib.evaluate(model, images)
print(peak() - before)
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 220 < float(out) < 500  # the images alone take 220


def test_a_last_batch_of_one_image_is_left_out(images):
    odd = dataclasses.replace(images, train_images=images.train_images[:129], train_labels=images.train_labels[:129])
    steps = []
    bnlib.fit(bnlib.lenet(), odd, **FAST | {"epochs": 1}, on_step=lambda step: steps.append(step.epoch))
    assert len(steps) == 2


def test_a_loss_that_is_not_finite_stops_the_training_with_its_place(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch 1, step 2: .*below 1e\+38"):
        bnlib.fit(model, images, **FAST | {"lr": 1e38})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number, 1 or more, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number, 1 or more, got 1.5"),
        ({"batch_size": -1}, "batch_size must be a whole number, 1 or more, got -1"),
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"lr": math.inf}, "lr must be a positive number, got inf"),
        ({"schedule": "warm"}, "schedule must be one of 'constant', 'cosine', got 'warm'"),
        ({"precision": "float8"}, "precision must be one of .*, got 'float8'"),
        ({"device": "abacus"}, "device 'abacus' is not there; this machine has .*cpu"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
    ],
)
def test_an_argument_out_of_range_is_named(images, argument, message):
    with pytest.raises(ValueError, match=message):
        bnlib.fit(bnlib.lenet(), images, **FAST | argument)


def test_labels_and_outputs_must_fit_the_classes(images):
    bad = dataclasses.replace(images, train_labels=images.train_labels + 1)
    with pytest.raises(ValueError, match=r"train labels must lie in 0 to 9.*got 1 to 10"):
        bnlib.fit(bnlib.lenet(), bad, **FAST)
    fewer = dataclasses.replace(images, test_labels=images.test_labels[1:])
    with pytest.raises(ValueError, match="one label for each test image, got 100 images and 99 labels"):
        bnlib.fit(bnlib.lenet(), fewer, **FAST)
    with pytest.raises(ValueError, match=r"must return \(B, 10\).* it gave \(2, 3\)"):
        bnlib.fit(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), images, **FAST)


def test_auto_finds_a_device_and_a_device_passes_through():
    assert find_device().type in ("cuda", "mps", "cpu")
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")


def test_evaluation_uses_running_statistics_and_leaves_mode_and_model_as_they_were(images):
    model = bnlib.lenet().train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    share = bnlib.evaluate(model, images, batch_size=7)
    assert [module.training for module in model[:3]] == [True, False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()
    expected = (model(images.test_images).argmax(1) == images.test_labels).float().mean().item()
    assert share == pytest.approx(expected)


def test_what_fails_leaves_modes_and_statistics_as_they_were(images):
    model = bnlib.lenet().train()
    before = copy.deepcopy(model.state_dict())
    small = dataclasses.replace(
        images, test_images=images.test_images[..., :20], train_images=images.train_images[..., :20]
    )
    for function in (bnlib.evaluate, bnlib.reestimate_statistics):
        with pytest.raises(RuntimeError):
            function(model, small)
        assert all(module.training for module in model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model[1].momentum == 0.1


@pytest.mark.parametrize("norm", ["scratch", "torch"])
def test_reestimated_statistics_are_the_mean_over_batches_under_frozen_weights(images, norm):
    model = bnlib.lenet(norm)
    bnlib.fit(model, images, **FAST)
    weights = copy.deepcopy(dict(model.named_parameters()))
    assert bnlib.reestimate_statistics(model, images, batch_size=100) is model
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    first = model[0](images.train_images)[:300]  # (300, 6, 24, 24): three whole batches of 100; the last 20 stay out
    torch.testing.assert_close(model[1].running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    batch_variances = torch.stack([batch.var((0, 2, 3)) for batch in first.split(100)])  # unbiased
    torch.testing.assert_close(model[1].running_var, batch_variances.mean(0), rtol=1e-4, atol=1e-5)
    assert model[1].num_batches_tracked == 3
    assert model[1].momentum == 0.1
    assert model.training


def test_reestimating_over_some_batches_or_one_short_one(images):
    model = bnlib.lenet()
    bnlib.reestimate_statistics(model, images, batch_size=100, batches=2)
    assert model[1].num_batches_tracked == 2
    bnlib.reestimate_statistics(model, images, batch_size=1000)
    assert model[1].num_batches_tracked == 1
    with pytest.raises(ValueError, match="batches must be a whole number, 1 or more, got 0"):
        bnlib.reestimate_statistics(model, images, batches=0)


def test_statistics_are_reestimated_from_ones_own_data_as_well(images):
    x, y = images.train_images, images.train_labels
    pairs = torch.utils.data.TensorDataset(x, y)
    expected = bnlib.reestimate_statistics(bnlib.lenet(), images, batch_size=100).state_dict()
    for data in (x, torch.utils.data.DataLoader(pairs, 100, drop_last=True), x.split(100)[: len(x) // 100]):
        found = bnlib.reestimate_statistics(bnlib.lenet(), data, batch_size=100).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "there is no batch to take statistics from"),
        ([{"pixels": torch.zeros(2, 1, 28, 28)}], TypeError, "tensors, or begin with one; got dict"),
        (7, TypeError, "expected what load_images returns, a tensor or a loader, got int"),
    ],
)
def test_data_without_images_leave_the_statistics_as_they_were(data, error, message):
    model = bnlib.lenet()
    model[1].running_mean += 3
    with pytest.raises(error, match=message):
        bnlib.reestimate_statistics(model, data)
    assert (model[1].running_mean == 3).all()


class Recorder(TorchDispatchMode):
    """A CUDA graph's stand-in: notes each kernel with its very tensors, refuses to wait for the host, replays."""

    def __init__(self):
        super().__init__()
        self.kernels, self.replays = [], 0

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        if kernel is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("called a synchronizing CUDA operation\nand more lines")
        out = kernel(*args, **(kwargs or {}))
        self.kernels.append((kernel, *tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}, out))))
        return out

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for kernel, args, kwargs, out in self.kernels:
            again = kernel(*args, **kwargs)
            for old, new in zip(*((t if isinstance(t, tuple | list) else [t]) for t in (out, again)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that `fit` records on the CPU, through stand-ins for the part of torch.cuda that it uses."""
    recorded = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    modes = ["warn"]
    stand_ins = {
        "get_sync_debug_mode": lambda: modes[-1],
        "set_sync_debug_mode": modes.append,
        "synchronize": lambda device: None,
        "device": lambda device: contextlib.nullcontext(),
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: Recorder() if modes[-1] == "error" else contextlib.nullcontext(),
        "CUDAGraph": lambda: recorded.append(Recorder()) or recorded[-1],
        "graph": lambda graph, stream: graph,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(training, "RECORDING", ("cpu",))
    yield recorded
    assert modes[-1] == "warn"


def assert_same_training(model, history, expected_model, expected):
    for (name, found), tensor in zip(model.state_dict().items(), expected_model.state_dict().values(), strict=True):
        torch.testing.assert_close(found, tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(torch.tensor(history.points), torch.tensor(expected.points), rtol=1e-4, atol=1e-5)
    assert history.test_accuracy == pytest.approx(expected.test_accuracy, abs=0.011)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_recorded_steps_train_as_plain_ones(images, graphs, monkeypatch, schedule):
    settings = FAST | {"batch_size": 60, "schedule": schedule}  # five batches of 60, then one of 20, by a plain step
    model, plain = bnlib.lenet(), bnlib.lenet()
    losses = []
    history = bnlib.fit(model, images, **settings, on_step=lambda step: losses.append(step.loss))
    assert [graph.replays for graph in graphs] == [10]
    monkeypatch.setattr(training, "RECORDING", ())
    expected_losses = []
    expected = bnlib.fit(plain, images, **settings, on_step=lambda step: expected_losses.append(step.loss))
    assert_same_training(model, history, plain, expected)
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected_losses), rtol=1e-4, atol=1e-5)


def test_a_step_that_waits_for_the_host_is_taken_plainly_and_said_in_a_line(images, graphs, monkeypatch, capsys):
    model, plain = bnlib.lenet(momentum=None), bnlib.lenet(momentum=None)
    history = bnlib.fit(model, images, **FAST)
    out = capsys.readouterr().out
    assert out == "Plain steps, because no CUDA graph could be recorded: called a synchronizing CUDA operation\n"
    monkeypatch.setattr(training, "RECORDING", ())
    assert history.points == bnlib.fit(plain, images, **FAST).points
    assert torch.equal(model[1].running_var, plain[1].running_var)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_on_a_gpu_recorded_steps_train_as_plain_ones(images, monkeypatch, capsys, schedule):
    settings = FAST | {"batch_size": 60, "schedule": schedule, "device": "cuda"}
    model, plain = bnlib.lenet(), bnlib.lenet()
    history = bnlib.fit(model, images, **settings)
    assert "Plain steps" not in capsys.readouterr().out
    monkeypatch.setattr(training, "RECORDING", ())
    assert_same_training(model, history, plain, bnlib.fit(plain, images, **settings))


def test_bfloat16_computes_roughly_and_keeps_weights_and_statistics_in_float32(images):
    seen = []
    model, exact = bnlib.lenet(), bnlib.lenet()
    model[0].register_forward_hook(lambda layer, args, y: seen.append(y.dtype) if layer.training else None)
    rough = bnlib.fit(model, images, **FAST, precision="bfloat16")
    assert set(seen) == {torch.bfloat16}
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}
    expected = bnlib.fit(exact, images, **FAST)
    assert rough.train_loss == pytest.approx(expected.train_loss, rel=0.05)
    assert rough.train_loss != expected.train_loss


@pytest.mark.parametrize(("precision", "allowed"), [("tf32", True), ("float32", False)])
def test_tf32_is_allowed_when_asked_for_and_only_while_training(images, precision, allowed):
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    during = []

    def note(step):
        during.append([place.allow_tf32 for place in places])

    try:
        for place in places:
            place.allow_tf32 = not allowed
        bnlib.fit(bnlib.lenet(), images, **FAST, precision=precision, on_step=note)
        assert during == [[allowed, allowed]] * 10
        assert [place.allow_tf32 for place in places] == [not allowed] * 2
    finally:
        for place, was in zip(places, before, strict=True):
            place.allow_tf32 = was


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), bnlib.BatchNorm1d(10))


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
def test_a_compiled_model_trains_as_the_model_itself(images):
    settings = FAST | {"batch_size": 160}
    compiled, plain = small(), small()
    plain.load_state_dict(compiled.state_dict())
    history = bnlib.fit(compiled, images, **settings, compile=True)
    assert_same_training(compiled, history, plain, bnlib.fit(plain, images, **settings))


def test_without_a_compiler_the_error_says_what_is_missing(tmp_path):
    code = """
import bnlib
from small_images import rows
from test_training import FAST, small
try:
    bnlib.fit(small(), rows(), **FAST, compile=True)
except RuntimeError as error:
    print(error)
"""
    nothing = {
        "CXX": "no-such-compiler",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.path.dirname(__file__),
    }
    out = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | nothing, check=True, capture_output=True, text=True
    ).stdout
    assert "needs what torch.compile needs: a C++ compiler such as g++" in out
    assert "leave compile out" in out
