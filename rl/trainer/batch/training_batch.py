"""A batch in columns: rollouts, and tensors over their trained tokens. Stages add columns; nothing is rebuilt.

    of(rollouts): rollout_logprobs  ->  is_fresh  ->  old_logprobs, ref_logprobs, teacher_logprobs, values
                                    ->  advantages, returns  ->  loss_weights

Shape legend: S = samples, one per rollout; N = trained tokens, sample after sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch

from rl.rollouts import Rollout

__all__ = ["TrainingBatch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """Samples side by side, siblings together."""

    rollouts: Sequence[Rollout]
    lengths: Sequence[int]
    """Trained tokens of each rollout."""
    columns: Mapping[str, torch.Tensor]
    """[N] each."""

    @classmethod
    def of(cls, rollouts: Sequence[Rollout]) -> "TrainingBatch":
        """Make a batch whose only column is `rollout_logprobs`, as the engine reported them."""
        reported = [
            logprob
            for rollout in rollouts
            for logprob, is_trained in zip(
                rollout.log.rollout_logprobs, rollout.log.loss_mask, strict=True
            )
            if is_trained
        ]
        return cls(
            rollouts=rollouts,
            lengths=[rollout.num_sampled_tokens for rollout in rollouts],
            columns={"rollout_logprobs": torch.tensor(reported, dtype=torch.float32)},
        )

    def __len__(self) -> int:
        return len(self.rollouts)

    def __getitem__(self, column: str) -> torch.Tensor:
        return self.columns[column]

    def spans(self) -> list[slice]:
        """Return the place of each sample's tokens in the columns."""
        return [slice(start, stop) for start, stop in pairwise(accumulate(self.lengths, initial=0))]

    def with_columns(self, columns: Mapping[str, torch.Tensor]) -> "TrainingBatch":
        """Return the same batch with more columns."""
        return replace(self, columns={**self.columns, **columns})

    def take(self, indices: Sequence[int]) -> "TrainingBatch":
        """A batch of some of the samples, in the order of `indices`."""
        spans = self.spans()

        def taken(column_N: torch.Tensor) -> torch.Tensor:
            return torch.cat([column_N[spans[i]] for i in indices] or [column_N[:0]])

        return TrainingBatch(
            rollouts=[self.rollouts[i] for i in indices],
            lengths=[self.lengths[i] for i in indices],
            columns={name: taken(column_N) for name, column_N in self.columns.items()},
        )

    def per_token(self, values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        """Repeat one value per sample for each of its tokens: [N]."""
        return torch.tensor(values, dtype=dtype).repeat_interleave(
            torch.tensor(self.lengths, dtype=torch.int64)
        )
