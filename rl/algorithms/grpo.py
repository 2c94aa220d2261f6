"""GRPO: group-relative advantages and the clipped surrogate (https://arxiv.org/abs/2402.03300, section 4.1).

    A_i = (r_i - mean(r)) / (std(r) + 1e-6)            over one group, the siblings of one prompt
    rho = exp(logprobs - base_logprobs)
    L   = -sum_n w_n * min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)

The loss is a sum: the trainer divides once, by a denominator taken over all micro-batches and ranks. The aggregation
(token mean, sequence mean, fixed length) lies in the weights w_n, which packing sets; a weight of 0 means not trained.
We differ from the paper: 1. there is no KL term unless `kl_coef` asks for it; 2. the default weights are a token mean (DAPO);
3. the standard deviation divides by G, not by G - 1; 4. a group whose rewards are all the same has advantages of exactly zero.
N = trained tokens, G = group size.
"""

from dataclasses import dataclass
from functools import partial

import torch

from rl.algorithms.base.algorithm import Algorithm
from rl.algorithms.base.config import ClippedConfig
from rl.algorithms.base.ops import centred, clipped_surrogate, token_log_ratio
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens

__all__ = ["GRPOConfig", "group_advantages", "grpo_advantages", "grpo_loss", "make_grpo"]


@dataclass(kw_only=True)
class GRPOConfig(ClippedConfig):
    """Parameters of GRPO."""

    normalize_std: bool = True
    """Divide a group's centred rewards by their standard deviation."""


def make_grpo(config: GRPOConfig, *, max_tokens: int) -> Algorithm:
    """Make GRPO; `max_tokens` has no effect."""
    return Algorithm(
        advantages=partial(grpo_advantages, normalize_std=config.normalize_std),
        loss=partial(grpo_loss, clip_low=config.clip_low, clip_high=config.clip_high),
    )


def grpo_advantages(signals: Signals, *, normalize_std: bool) -> Estimates:
    """Compute the advantages of each group by itself; every token has the advantage of its sample."""
    in_group = partial(group_advantages, normalize_std=normalize_std)
    return Estimates(advantages_N=signals.per_token(signals.per_group(in_group)))


def group_advantages(rewards_G: torch.Tensor, *, normalize_std: bool = True) -> torch.Tensor:
    """Turn the [G] rewards of one group into [G] advantages."""
    centred_G = centred(rewards_G)
    if not normalize_std:
        return centred_G
    return centred_G / (centred_G.square().mean().sqrt() + 1e-6)


def grpo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> LossOutput:
    """Compute the clipped surrogate.

    Args:
        tokens: tokens of whole samples.
        clip_low: the ratio is kept at or above 1 - clip_low.
        clip_high: the ratio is kept at or below 1 + clip_high.
    """
    ratio_N = token_log_ratio(tokens).exp()
    return clipped_surrogate(ratio_N, tokens, clip_low=clip_low, clip_high=clip_high)
