"""GRPO: group-relative advantages and the clipped surrogate (https://arxiv.org/abs/2402.03300, section 4.1).

    A_i = (r_i - mean(r)) / (std(r) + 1e-6)            one group, siblings of one prompt
    rho = exp(logprobs - base_logprobs)
    L   = -sum_n w_n * min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)

A sum: the trainer divides once, by a denominator taken over all micro-batches and ranks. The aggregation
(token mean, sequence mean, fixed length) lives in the weights w_n, which packing sets; 0 = not trained.
We differ from the paper: 1. no KL term unless `kl_coef` asks for it; 2. token mean (DAPO) as the default weights;
3. the standard deviation is that of the group itself (divided by G, not G - 1); 4. advantages of a group whose
rewards are all the same are exactly zero.
N = trained tokens, G = group size.
"""

import functools

import torch

from rl.algorithms.ops import centred, clipped_surrogate, token_log_ratio
from rl.algorithms.output import LossOutput
from rl.algorithms.signals import Estimates, Signals, Tokens

__all__ = ["group_advantages", "grpo_advantages", "grpo_loss"]


def grpo_advantages(signals: Signals, *, normalize_std: bool) -> Estimates:
    """Each group by itself; every token has the advantage of its sample."""
    in_group = functools.partial(group_advantages, normalize_std=normalize_std)
    return Estimates(advantages_N=signals.per_token(signals.per_group(in_group)))


def group_advantages(rewards_G: torch.Tensor, *, normalize_std: bool = True) -> torch.Tensor:
    """[G] rewards of one group -> [G] advantages."""
    centred_G = centred(rewards_G)
    if not normalize_std:
        return centred_G
    return centred_G / (centred_G.square().mean().sqrt() + 1e-6)


def grpo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> LossOutput:
    """Clipped surrogate.

    Args:
        tokens: of whole samples.
        clip_low: the ratio is kept at or above 1 - clip_low.
        clip_high: the ratio is kept at or below 1 + clip_high.
    """
    ratio_N = token_log_ratio(tokens).exp()
    return clipped_surrogate(ratio_N, tokens, clip_low=clip_low, clip_high=clip_high)
