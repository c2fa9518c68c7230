"""Two layers side by side."""

import copy

import pytest
import torch
from torch import nn

import bnlib

X = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_our_layer_equals_torchs(dtype, training):
    ours, theirs = bnlib.BatchNorm2d(3, dtype=dtype).train(training), nn.BatchNorm2d(3, dtype=dtype).train(training)
    result = bnlib.compare(ours, theirs, X.to(dtype))
    assert result.equal, result
    assert result.gradients.keys() == {"input", "weight", "bias"}
    assert result.buffers.keys() == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_compared_wherever_it_is_called(mode):
    with mode():
        result = bnlib.compare(bnlib.BatchNorm2d(3), nn.BatchNorm2d(3), X)
    assert result.equal, result
    assert result.gradients.keys() == {"input", "weight", "bias"}


def test_a_layer_that_no_gradient_passes_is_told_from_one_that_it_does():
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach()

    assert bnlib.compare(Detached(), nn.Identity(), X).apart == {"gradient of input": "only one of the two has it"}
    assert bnlib.compare(Detached(), Detached(), X).equal


def test_layers_and_input_are_left_as_they_were():
    a, b, x = bnlib.BatchNorm2d(3), nn.BatchNorm2d(3), X.clone()
    before = copy.deepcopy((a.state_dict(), b.state_dict()))
    bnlib.compare(a, b, x)
    for layer, state in zip((a, b), before, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in layer.state_dict().items())
        assert layer.weight.grad is None
    assert torch.equal(x, X)


def test_a_difference_is_named_where_it_is():
    a, b = bnlib.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=0.2)
    result = bnlib.compare(a, b, X)
    assert not result.equal
    assert set(result.apart) == {"running_mean", "running_var"}
    assert result.buffers["running_mean"] == pytest.approx(0.1 * X.mean((0, 2, 3)).abs().max().item(), rel=1e-4)
    assert "running_mean" in repr(result)
    assert "✗ not equal" in result._repr_html_()


def test_a_wrong_gradient_is_found_behind_a_right_output():
    class Detached(bnlib.BatchNorm2d):
        def forward(self, input):
            mean, var = input.detach().mean((0, 2, 3)), input.detach().var((0, 2, 3), correction=0)
            super().forward(input.detach())
            return (input - mean[:, None, None]) / torch.sqrt(var[:, None, None] + self.eps) + 0 * self.weight.sum()

    result = bnlib.compare(Detached(3), nn.BatchNorm2d(3), X)
    assert "output" not in result.apart
    assert "gradient of input" in result.apart


def test_layers_whose_memories_differ_by_rounding_are_equal_in_evaluation_too():
    ours, theirs = bnlib.BatchNorm2d(3), nn.BatchNorm2d(3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        batch = torch.randn(10, 3, 50, 50, generator=generator) * 3 + 2
        ours(batch), theirs(batch)
    theirs.running_mean.mul_(1 + 2e-7)
    result = bnlib.compare(ours.eval(), theirs.eval(), batch)
    assert result.equal, result
    theirs.running_mean.mul_(1.01)
    assert "gradient of weight" in bnlib.compare(ours, theirs, batch).apart


def test_a_missing_part_or_another_shape_is_said():
    result = bnlib.compare(bnlib.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3), X)
    assert result.apart["gradient of weight"] == "only one of the two has it"
    with pytest.raises(ValueError, match="outputs differ in shape"):
        bnlib.compare(nn.Flatten(), nn.Identity(), X)
    with pytest.raises(TypeError, match=r"x must be a tensor of .*got torch\.int64"):
        bnlib.compare(nn.Identity(), nn.Identity(), torch.arange(3))
