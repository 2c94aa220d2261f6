"""MaxRL: towards maximum likelihood of being right (https://arxiv.org/abs/2602.02710).

    A_i = (r_i - mean(r)) / mean(r)                    0 where all rewards of the group are 0
    L   = -sum_n w_n exp(logprobs - base_logprobs) A

The gradient of log(pass rate) is that of the pass rate over the pass rate: rarely solved prompts count more. With G samples
the mean of A grad log pi is, in expectation, the gradient of the first G - 1 terms of log p = -sum_k (1 - p)^k / k. Without
the baseline it would be G terms: where all rewards are 0 the baseline is not subtracted, which costs one term.
We differ from the paper: 1. rewards may be any that are not negative, not only 0 and 1; hence no KL penalty in them;
2. tokens are divided by `sampling.max_tokens` (`fixed_length`), which only scales the gradient.
"""

from dataclasses import dataclass

import torch

from rl.algorithms.base.algorithm import Algorithm
from rl.algorithms.base.config import AlgorithmConfig, KLPlacement, LossReduction
from rl.algorithms.base.ops import centred, importance_weighted, is_uniform
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens
from rollout.config import require

__all__ = ["MaxRLConfig", "make_maxrl", "maxrl_advantages", "maxrl_loss", "relative_to_mean"]


@dataclass(kw_only=True)
class MaxRLConfig(AlgorithmConfig):
    """Parameters of MaxRL."""

    loss_reduction: LossReduction = LossReduction.fixed_length

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.kl_coef == 0 or self.kl_placement is KLPlacement.loss,
            "algorithm.kl_placement",
            "loss when algorithm=maxrl, which divides by a mean reward that a penalty would shift",
            self.kl_placement.name,
        )


def make_maxrl(config: MaxRLConfig, *, max_tokens: int) -> Algorithm:
    """Make MaxRL; `max_tokens` acts through `loss_reduction`."""
    return Algorithm(advantages=maxrl_advantages, loss=maxrl_loss)


def relative_to_mean(rewards_G: torch.Tensor) -> torch.Tensor:
    """Turn the [G] rewards of one group into [G] advantages.

    Raises:
        ValueError: a reward is below 0, so that a mean near 0 would mean nothing.
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
    """Compute the advantages of each group by itself."""
    return Estimates(advantages_N=signals.per_token(signals.per_group(relative_to_mean)))


def maxrl_loss(tokens: Tokens) -> LossOutput:
    """Compute REINFORCE's loss, weighted by each token's ratio."""
    return importance_weighted(tokens)
