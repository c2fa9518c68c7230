"""What a training leaves behind."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Point(NamedTuple):
    """One point of a curve: averages over the fifth of an epoch that ends at `epoch`, in training mode."""

    epoch: float
    loss: float
    accuracy: float


@dataclass
class History:
    """The figures of one training, one entry an epoch unless said otherwise.

    train_loss           mean cross-entropy over the epoch, in nats, as the weights moved, in training mode
    train_accuracy       share of right answers over the same examples, 0 to 1
    test_accuracy        share of right answers on the test images after the epoch, in evaluation mode
    points               five `Point`s an epoch, for curves
    seconds              spent in training steps, evaluation left out
    examples_per_second  training examples seen per second of those
    device               where it ran, as torch names it
    """

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    seconds: float = 0.0
    examples_per_second: float = 0.0
    device: str = "cpu"

    def __repr__(self):
        if not self.train_loss:
            return f"no finished epoch, on {self.device}"
        return (
            f"epoch {len(self.train_loss)}: train loss {self.train_loss[-1]:.3f}, "
            f"train accuracy {self.train_accuracy[-1]:.3f}, test accuracy {self.test_accuracy[-1]:.3f}; "
            f"{self.examples_per_second:,.0f} examples/s on {self.device}"
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        from .plots import training_curves  # drawn only where somebody looks

        return training_curves({"this training": self})._repr_mimebundle_()
