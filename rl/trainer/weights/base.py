"""The interface of trained weights, a policy's or a critic's: how gradients are summed over ranks, and how weights are updated."""

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
        """Return `function(micro_batch)`, with whole weights available wherever the function reads them."""
        ...

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add to the gradient, which is the sum over all ranks when `step` reads it.

        Args:
            loss: the micro-batch's part of the sum, divided by the global denominator.
            is_last: whether this is the last micro-batch before the step.
        """
        ...

    def step(self, learning_rate: float) -> float:
        """Clip, update and clear the gradient; returns its norm before clipping. NaN or inf: no update."""
        ...

    def clear_gradients(self) -> None:
        """Drop the accumulated gradient."""

    def read(
        self, module: torch.nn.Module, tensors: HFTensors
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield whole tensors in the compute type.

        Args:
            module: its own parameters are read.
            tensors: called while the parameters are available.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return masters and optimiser state, whole, in fp32 and in the order of the model's parameters, so that every kind of
        weights saves the same. Only on the first rank; empty on the others."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that any kind of weights saved; every rank gets all of it."""
