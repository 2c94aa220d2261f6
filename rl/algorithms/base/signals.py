"""Inputs of an algorithm: a whole batch for its advantages, a micro-batch for its loss.

Shape legend: S = samples of a batch, those of a group side by side; N = trained tokens, sample after sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

__all__ = ["Estimates", "Signals", "Tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Rewards and lengths of a whole batch, in float64."""

    rewards_S: torch.Tensor
    group_ids_S: torch.Tensor  # int64
    lengths_S: torch.Tensor  # int64, trained tokens; 0 where the policy sampled none
    token_rewards_N: (
        torch.Tensor
    )  # given at each token: minus a KL penalty, or a teacher's judgement
    values_N: torch.Tensor | None = None  # the critic's, of the state before each token

    def with_rewards(self, rewards_S: torch.Tensor) -> "Signals":
        """Return the same signals with other rewards."""
        return replace(self, rewards_S=rewards_S)

    @property
    def returns_S(self) -> torch.Tensor:
        """Sum of each sample's reward and its token rewards: [S]."""
        sample_ids_N = torch.arange(len(self.lengths_S)).repeat_interleave(self.lengths_S)
        return self.rewards_S.index_add(0, sample_ids_N, self.token_rewards_N)

    def per_group(self, advantages: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Apply a function of one group's rewards to each group: [S]."""
        if not len(self.rewards_S):
            return self.rewards_S
        _, sizes = self.group_ids_S.unique_consecutive(return_counts=True)
        return torch.cat([advantages(r_G) for r_G in self.returns_S.split(sizes.tolist())])

    def per_token(self, x_S: torch.Tensor) -> torch.Tensor:
        """Repeat a value per sample for each of its tokens: [S] -> [N]."""
        return x_S.repeat_interleave(self.lengths_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """Advantages of a batch, and the critic's targets."""

    advantages_N: torch.Tensor
    returns_N: torch.Tensor | None = None  # targets of the critic


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Trained tokens of whole samples: a micro-batch."""

    logprobs_N: torch.Tensor  # current policy, carries grad
    base_logprobs_N: torch.Tensor  # of the policy that ratios are taken against, detached
    advantages_N: torch.Tensor
    loss_weights_N: torch.Tensor  # 0 = not trained
    sample_ids_N: torch.Tensor  # int64, in ascending order
    ref_logprobs_N: torch.Tensor | None = None  # of the frozen reference
