"""The networks of the lessons."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import bnlib
from bnlib.models import deep_convnet, head_teacher

TABLE = [  # layer, output for a batch of B images
    ("Conv2d", (6, 24, 24)),
    ("BatchNorm2d", (6, 24, 24)),
    ("Sigmoid", (6, 24, 24)),
    ("MaxPool2d", (6, 12, 12)),
    ("Conv2d", (16, 8, 8)),
    ("BatchNorm2d", (16, 8, 8)),
    ("Sigmoid", (16, 8, 8)),
    ("MaxPool2d", (16, 4, 4)),
    ("Flatten", (256,)),
    ("Linear", (120,)),
    ("BatchNorm1d", (120,)),
    ("Sigmoid", (120,)),
    ("Linear", (84,)),
    ("BatchNorm1d", (84,)),
    ("Sigmoid", (84,)),
    ("Linear", (10,)),
]


@pytest.mark.parametrize("norm", ["scratch", "torch"])
def test_lenet_has_the_sixteen_layers_of_the_table(norm):
    model, x = bnlib.lenet(norm), torch.rand(2, 1, 28, 28)
    assert len(model) == 16
    for layer, (name, shape) in zip(model, TABLE, strict=True):
        x = layer(x)
        assert (type(layer).__name__, tuple(x.shape)) == (name, (2, *shape))
    assert isinstance(model[1], nn.BatchNorm2d if norm == "torch" else bnlib.BatchNorm2d)


def test_networks_of_one_seed_differ_in_their_normalization_alone():
    ours, torchs, without = (bnlib.lenet(norm).state_dict() for norm in ("scratch", "torch", "none"))
    assert ours.keys() == torchs.keys()
    assert all(torch.equal(ours[name], torchs[name]) for name in ours)
    kernels = [tensor for tensor in ours.values() if tensor.dim() > 1]
    assert all(map(torch.equal, kernels, (tensor for tensor in without.values() if tensor.dim() > 1)))
    assert not torch.equal(kernels[0], bnlib.lenet(seed=1)[0].weight)


def test_weights_are_xavier_uniform():
    weight = bnlib.lenet()[9].weight  # (120, 256)
    bound = (6 / (120 + 256)) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_those_of_torchs_constructors_and_its_initialization(dtype):
    torch.set_default_dtype(dtype)
    try:
        ours = head_teacher("torch", seed=5)
        torch.manual_seed(5)
        theirs = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    finally:
        torch.set_default_dtype(torch.float32)
    for linear in (theirs[0], theirs[3]):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    for name, tensor in theirs.state_dict().items():
        assert tensor.dtype == ours.state_dict()[name].dtype
        assert torch.equal(tensor, ours.state_dict()[name])


def test_networks_built_in_threads_have_the_weights_of_their_seeds():
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: bnlib.lenet(seed=seed)[9].weight, range(64)))
    assert all(torch.equal(weight, bnlib.lenet(seed=seed)[9].weight) for seed, weight in enumerate(together))


def test_a_network_is_built_on_the_default_device():
    with torch.device("meta"):
        assert {tensor.device.type for tensor in bnlib.lenet().state_dict().values()} == {"meta"}


def test_building_a_network_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    bnlib.lenet()
    assert torch.equal(torch.rand(2), expected)


def test_momentum_reaches_the_layers():
    assert bnlib.lenet(momentum=None)[1].momentum is None
    assert bnlib.lenet("torch", momentum=0.3)[10].momentum == 0.3


@pytest.mark.parametrize(
    ("norm", "layers"),
    [
        ("convolutions", ["BatchNorm2d"] * 2),
        ("group", ["GroupNorm"] * 4),
        ("layer", ["GroupNorm"] * 4),
        ("instance", ["InstanceNorm2d"] * 2),
        ("none", []),
    ],
)
def test_the_norms_of_lesson_07_stand_where_their_names_say(norm, layers):
    model = bnlib.lenet(norm, activation=nn.ReLU)
    found = [layer for layer in model if "Norm" in type(layer).__name__]
    assert [type(layer).__name__ for layer in found] == layers
    assert all(layer.num_groups == {"group": 2, "layer": 1}[norm] for layer in found if isinstance(layer, nn.GroupNorm))
    assert all(layer.weight.numel() in (6, 16, 120, 84) for layer in found)
    assert sum(isinstance(layer, nn.ReLU) for layer in model) == 4
    assert torch.equal(model[0].weight, bnlib.lenet()[0].weight)
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_the_deep_network_has_ten_convolutions_and_the_head_teacher_gives_one_mark():
    model = deep_convnet()
    assert sum(isinstance(layer, nn.Conv2d) for layer in model) == 10
    assert sum(isinstance(layer, bnlib.BatchNorm2d) for layer in model) == 10
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert head_teacher("none")(torch.rand(5, 3)).shape == (5, 1)


@pytest.mark.parametrize("build", [bnlib.lenet, deep_convnet, head_teacher])
def test_an_unknown_norm_is_refused_with_the_known_ones(build):
    with pytest.raises(ValueError, match=r"norm must be one of 'scratch', 'torch', .*, 'none', got 'batch'"):
        build("batch")
