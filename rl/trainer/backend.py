"""What the loop asks of whatever computes gradients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from rl.algorithms.output import LossOutput
from rl.algorithms.signals import Tokens
from rl.trainer.packing import MicroBatch

__all__ = ["Backend", "BatchStats", "LossFunction"]

LossFunction = Callable[[Tokens], LossOutput]
"""A sum over the tokens of a micro-batch, and sums to report."""


@dataclass(slots=True, kw_only=True)
class BatchStats:
    """Sums over the trained tokens of a batch."""

    sums: dict[str, float]
    max_logprob_difference: float
    """Greatest |old_logprobs - rollout_logprobs| of fresh tokens: 0.0 in exact mode."""
    num_tokens: int
    bad_sample: int | None
    """Index of the first sample whose loss is not finite."""
    backward_seconds: float = 0.0
    """Spent in backward passes."""

    @property
    def num_fresh_tokens(self) -> int:
        """Tokens that count in `mismatch/k3` and the like: all where the extras say nothing of `is_fresh`."""
        return int(self.sums.get("staleness/fresh_fraction", self.num_tokens))


class Backend(Protocol):
    def forward_backward(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_function: LossFunction,
        *,
        denominator: float,
    ) -> BatchStats:
        """Accumulate the gradient of sum / denominator."""
        ...

    def old_logprobs(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """[N] log-probabilities of all micro-batches, one after the other, without a gradient."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip, update and clear the gradient; returns its norm before clipping, in which NaN skips the update."""
        ...

    def clear_gradients(self) -> None:
        """Drop what was accumulated."""

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights under Hugging Face's names, in the compute type, in a fixed order."""
        ...

    def write_beside(self, directory: Path) -> None:
        """Add to a Hugging Face directory of the weights what is not in them: adapters, an average."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
