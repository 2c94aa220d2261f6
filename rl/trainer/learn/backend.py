"""What the loop asks of whatever computes gradients."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from rl.algorithms.base.algorithm import LossFunction
from rl.trainer.learn.packing import MicroBatch

__all__ = ["Backend", "BatchStats", "over_ranks", "over_steps"]


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


def over_steps(stats: Sequence[BatchStats]) -> BatchStats:
    """Of all steps on one batch."""
    return replace(_joined(stats), backward_seconds=sum(part.backward_seconds for part in stats))


def over_ranks(stats: Sequence[BatchStats]) -> BatchStats:
    """Of one step, whose samples are numbered alike on all ranks."""
    bad_samples = [part.bad_sample for part in stats if part.bad_sample is not None]
    return replace(_joined(stats), bad_sample=min(bad_samples, default=None))


def _joined(stats: Sequence[BatchStats]) -> BatchStats:
    """Sums of sums; the longest time."""
    sums: dict[str, float] = {}
    for part in stats:
        for name, value in part.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    return BatchStats(
        sums=sums,
        max_logprob_difference=max(part.max_logprob_difference for part in stats),
        num_tokens=sum(part.num_tokens for part in stats),
        bad_sample=next((p.bad_sample for p in stats if p.bad_sample is not None), None),
        backward_seconds=max(part.backward_seconds for part in stats),
    )


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

    def write_beside(self, directory: Path | None) -> None:
        """Add to a Hugging Face directory of the weights what is not in them: adapters, an average. Of several ranks all call
        it, those that only help with None."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
