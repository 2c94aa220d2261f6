"""What holds the weights of a model that is trained, a policy or a critic: where their gradients come together, and how they are updated."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch

from rl.trainer.batch.packing import MicroBatch

__all__ = ["Forward", "HFTensors", "TrainedWeights"]

T = TypeVar("T")

Forward = Callable[[MicroBatch], T]
HFTensors = Callable[[], Iterator[tuple[str, torch.Tensor]]]


class TrainedWeights(Protocol):
    """Weights that are trained: a copy on every rank (`ReplicatedWeights`), or shards (`FSDPWeights`, `DeepSpeedWeights`).

    With several ranks all of these are collective: every rank makes the same calls in the same order, and forwards
    equally many micro-batches.
    """

    def forward(self, function: Forward[T], micro_batch: MicroBatch) -> T:
        """`function(micro_batch)`, with the weights at hand wherever it reads them."""
        ...

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add to the gradient, which is the sum over all ranks when `step` reads it.

        Args:
            loss: the micro-batch's part of the sum, over the global denominator.
            is_last: of the micro-batches before the step.
        """
        ...

    def step(self, learning_rate: float) -> float:
        """Clip, update and clear the gradient; returns its norm before clipping. NaN or inf: no update."""
        ...

    def clear_gradients(self) -> None:
        """Drop what was accumulated."""

    def read(
        self, module: torch.nn.Module, tensors: HFTensors
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole tensors in the compute type.

        Args:
            module: whose own parameters are read.
            tensors: called when they are at hand.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Masters and the optimiser's state, whole and in fp32, in the order of the model's parameters: the same whoever
        saves them. On the first rank; empty on the others."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What any other of these saved; given to every rank."""
