"""RLOO: REINFORCE with the siblings' mean as baseline (https://arxiv.org/abs/2402.14740, section 2.2).

    A_i = r_i - mean_{j != i}(r_j) = G / (G - 1) (r_i - mean(r))
    L   = -sum_n w_n exp(logprobs - base_logprobs) A

The whole answer is one action, so its tokens are summed, not averaged: `fixed_length` weights, a constant away from
the sum. A sample whose siblings could not be scored has no baseline and no advantage.
We differ from the paper: 1. each token's ratio to the base policy is in the loss; in the only step of a batch it is 1; 2. tokens
are divided by `sampling.max_tokens`, which scales the gradient alone.
"""

import torch

from rl.algorithms.ops import centred, importance_weighted
from rl.algorithms.output import LossOutput
from rl.algorithms.signals import Estimates, Signals, Tokens

__all__ = ["leave_one_out", "rloo_advantages", "rloo_loss"]


def leave_one_out(rewards_G: torch.Tensor) -> torch.Tensor:
    """[G] rewards minus the mean of the others'; 0 for one alone."""
    size = len(rewards_G)
    return centred(rewards_G) * (size / max(size - 1, 1))


def rloo_advantages(signals: Signals) -> Estimates:
    """Each group by itself."""
    return Estimates(advantages_N=signals.per_token(signals.per_group(leave_one_out)))


def rloo_loss(tokens: Tokens) -> LossOutput:
    """REINFORCE, weighted by each token's ratio."""
    return importance_weighted(tokens)
