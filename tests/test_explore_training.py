"""The explorers of lessons 04 and 05: what they draw is what torch computes."""

import pytest
import torch
from torch import nn

from bnlib.explore.lesson04 import BATCHES, SIDE, train_against_eval

torch.set_num_threads(1)


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
