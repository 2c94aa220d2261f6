"""RLOO: REINFORCE with the siblings' mean as baseline (https://arxiv.org/abs/2402.14740, section 2.2).

    A_i = r_i - mean_{j != i}(r_j) = G / (G - 1) (r_i - mean(r))
    L   = -sum_n w_n exp(logprobs - base_logprobs) A

The whole answer is one action, so its tokens are summed, not averaged: the weights are `fixed_length`, which differs from the
sum by a constant. A sample whose siblings could not be scored has no baseline and no advantage.
We differ from the paper: 1. each token's ratio to the base policy is in the loss; in the only step of a batch it is 1; 2. tokens
are divided by `sampling.max_tokens`, which only scales the gradient.
"""

from dataclasses import dataclass

import torch

from rl.algorithms.base.algorithm import Algorithm
from rl.algorithms.base.config import AlgorithmConfig, LossReduction
from rl.algorithms.base.ops import centred, importance_weighted
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens

__all__ = ["RLOOConfig", "leave_one_out", "make_rloo", "rloo_advantages", "rloo_loss"]


@dataclass(kw_only=True)
class RLOOConfig(AlgorithmConfig):
    """Parameters of RLOO."""

    loss_reduction: LossReduction = LossReduction.fixed_length


def make_rloo(config: RLOOConfig, *, max_tokens: int) -> Algorithm:
    """Make RLOO; `max_tokens` acts through `loss_reduction`."""
    return Algorithm(advantages=rloo_advantages, loss=rloo_loss)


def leave_one_out(rewards_G: torch.Tensor) -> torch.Tensor:
    """Subtract from each of the [G] rewards the mean of the others; a single reward gives 0."""
    size = len(rewards_G)
    return centred(rewards_G) * (size / max(size - 1, 1))


def rloo_advantages(signals: Signals) -> Estimates:
    """Compute the advantages of each group by itself."""
    return Estimates(advantages_N=signals.per_token(signals.per_group(leave_one_out)))


def rloo_loss(tokens: Tokens) -> LossOutput:
    """Compute REINFORCE's loss, weighted by each token's ratio."""
    return importance_weighted(tokens)
