"""CISPO: the weight is clipped, never the gradient (MiniMax-M1, https://arxiv.org/abs/2506.13585, section 3.1).

    A_i = (r_i - mean(r)) / (std(r) + 1e-6)
    L   = -sum_n w_n detach(min(exp(logprobs - base_logprobs), max_ratio)) A logprobs

Every token keeps a gradient, also rare ones whose ratio PPO's clip would cut off.
We differ from the paper: 1. `max_ratio` is the bound itself, not its offset from 1; 2. there is no lower bound, which the paper
sets so low that it does nothing. 5 is the middle of the range that ScaleRL found equally good (https://arxiv.org/abs/2510.13786).
"""

import math
from dataclasses import dataclass
from functools import partial

import torch

from rl.algorithms.base.algorithm import Algorithm
from rl.algorithms.base.config import AlgorithmConfig
from rl.algorithms.base.ops import token_log_ratio
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens
from rl.algorithms.grpo import group_advantages
from rollout.config import require

__all__ = ["CISPOConfig", "cispo_advantages", "cispo_loss", "make_cispo"]


@dataclass(kw_only=True)
class CISPOConfig(AlgorithmConfig):
    """Parameters of CISPO."""

    max_ratio: float = 5.0
    """Greatest weight of a token; the bound itself, not its offset from 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_ratio >= 1, "algorithm.max_ratio", ">= 1", self.max_ratio)


def make_cispo(config: CISPOConfig, *, max_tokens: int) -> Algorithm:
    """Make CISPO; `max_tokens` has no effect."""
    loss = partial(cispo_loss, max_ratio=config.max_ratio)
    return Algorithm(advantages=cispo_advantages, loss=loss)


def cispo_advantages(signals: Signals) -> Estimates:
    """Compute GRPO's advantages."""
    return Estimates(advantages_N=signals.per_token(signals.per_group(group_advantages)))


def cispo_loss(tokens: Tokens, *, max_ratio: float) -> LossOutput:
    """Compute REINFORCE's loss with weights of at most `max_ratio`."""
    is_trained_N = tokens.loss_weights_N != 0
    log_ratio_N = token_log_ratio(tokens).detach()
    # clamped as a logarithm: exp would overflow first
    ratio_N = log_ratio_N.clamp(max=math.log(max_ratio)).exp()
    logprobs_N = torch.where(is_trained_N, tokens.logprobs_N, 0.0)
    weighted_N = ratio_N * tokens.advantages_N * logprobs_N * tokens.loss_weights_N
    loss = -torch.where(is_trained_N, weighted_N, 0.0).sum()
    is_clipped_N = (log_ratio_N > math.log(max_ratio)) & is_trained_N
    return LossOutput(loss=loss, metrics={"ratio/clip_fraction": is_clipped_N.sum()})
