"""MaxRL: towards maximum likelihood of being right (https://arxiv.org/abs/2602.02710).

    A_i = (r_i - mean(r)) / mean(r)                    0 where nobody was right
    L   = -sum_n w_n exp(logprobs - base_logprobs) A

The gradient of log(pass rate) is that of the pass rate over the pass rate: rarely solved prompts count more. With G samples
the mean of A grad log pi is, in expectation, the gradient of the first G - 1 terms of log p = -sum_k (1 - p)^k / k: G without
the baseline, which is not taken off where nobody was right, and costs one.
We differ from the paper: 1. rewards may be any that are not negative, not only 0 and 1; hence no KL penalty in them;
2. tokens are divided by `sampling.max_tokens` (`fixed_length`), which scales the gradient alone.
"""

import torch

from rl.algorithms.ops import centred, importance_weighted, is_uniform
from rl.algorithms.output import LossOutput
from rl.algorithms.signals import Estimates, Signals, Tokens

__all__ = ["maxrl_advantages", "maxrl_loss", "relative_to_mean"]


def relative_to_mean(rewards_G: torch.Tensor) -> torch.Tensor:
    """[G] rewards of one group -> [G] advantages.

    Raises:
        ValueError: a reward below 0, so that a mean near 0 would mean nothing.
    """
    if bool((rewards_G < 0).any()):
        raise ValueError(
            f"MaxRL divides by a group's mean reward: rewards must be >= 0, got {float(rewards_G.min())}; "
            "shift the scorer's scores, or choose algorithm=rloo"
        )
    if is_uniform(rewards_G):
        return torch.zeros_like(rewards_G)
    return centred(rewards_G) / rewards_G.mean()


def maxrl_advantages(signals: Signals) -> Estimates:
    """Each group by itself."""
    return Estimates(advantages_N=signals.per_token(signals.per_group(relative_to_mean)))


def maxrl_loss(tokens: Tokens) -> LossOutput:
    """REINFORCE, weighted by each token's ratio."""
    return importance_weighted(tokens)
