"""The exercises of lesson 09 that are judged by behaviour, and folding."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnlib
from bnlib.exercises import check, patients


def bns(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def good(model):
    for layer in bns(model):
        layer.eval()
        layer.train = lambda mode=True, layer=layer: layer
    return model


def by_the_model(model):
    normal = model.train

    def train(mode=True):
        normal(mode)
        for layer in bns(model):
            layer.eval()
        return model

    model.train = train
    return model.train()


def once(model):
    for layer in bns(model):
        layer.eval()
    return model


def gradients_only(model):
    for layer in bns(model):
        layer.requires_grad_(False)
    return model


def no_momentum(model):
    for layer in bns(model):
        layer.momentum = 0.0
    return model


def everything(model):
    return good(model).requires_grad_(False)


def whole(model):
    model.eval()
    model.train = lambda mode=True: model
    return model


def anew(model):
    for layer in bns(model):
        layer.reset_running_stats()
    return good(model)


@pytest.mark.parametrize(
    ("attempt", "name"),
    [
        (good, "right"),
        (by_the_model, "right"),
        (once, "undone by model.train()"),
        (gradients_only, "frozen, yet moving"),
        (no_momentum, "batch statistics still used"),
        (everything, "too much frozen"),
        (whole, "the whole model frozen"),
        (anew, "statistics reset"),
        (lambda model: 1 / 0, "raises an error"),
    ],
)
def test_freezing_is_judged_by_what_the_network_then_does(attempt, name):
    verdict = check("freeze", attempt)
    assert ("right" if verdict.ok else verdict.mistakes[0]) == name, verdict


def test_a_stub_of_freeze_is_not_answered_yet():
    def freeze(model): ...

    assert not check("freeze", freeze).answered


def test_the_patients_codes_are_what_examine_finds_and_what_the_quiz_takes():
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    right = {"A": "BN207", "B": "bn 106", "C": "BN101"}
    for letter, model in patients().items():
        assert right[letter].upper().replace(" ", "") in bnlib.examine(model, x).codes
    assert check("what_is_wrong", right).ok
    assert check("what_is_wrong", {"A": ["BN207"], "B": {"bn106"}, "C": 101}).ok
    verdict = check("what_is_wrong", right | {"A": "BN104"})
    assert verdict.mistakes == ("another fault in network A",)
    assert not check("what_is_wrong", {"A": ...}).answered
    assert check("what_is_wrong", {"D": "BN101"}).mistakes == ("no such network",)
    assert check("what_is_wrong", 3).mistakes == ("not a dict",)


def lived(model, x):
    for _ in range(3):
        model.train()(x)
    return model.eval()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (bnlib.lenet(), (8, 1, 28, 28)),
        (bnlib.lenet("torch"), (8, 1, 28, 28)),
        (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 4, 5, 5)),
        (
            nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False, padding=1), nn.BatchNorm2d(6, affine=False)),
            (4, 4, 5, 5),
        ),
        (nn.Sequential(nn.Conv1d(2, 3, 3), bnlib.BatchNorm1d(3), nn.ReLU()), (4, 2, 9)),
    ],
)
def test_a_folded_network_answers_the_same_and_holds_no_normalization(model, shape):
    model = lived(
        model.double(), torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 1
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(shape, dtype=torch.float64)
    folded = bnlib.fold(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
    assert not any("Norm" in type(m).__name__ for m in folded.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class Depends(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else F.relu(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "1 cannot be folded: it is in training mode"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)).eval(),
            "no running statistics",
        ),
        (nn.Sequential(nn.BatchNorm2d(2)).eval(), "before it comes the input"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)).eval(), "before it comes ReLU"),
        (Twice().eval(), "used more than once"),
        (Depends().eval(), "depends on its data"),
    ],
)
def test_what_would_not_be_exact_is_refused_with_its_reason(model, reason):
    with pytest.raises(ValueError, match=reason):
        bnlib.fold(model)
