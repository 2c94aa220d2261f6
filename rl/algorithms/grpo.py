"""GRPO: group-relative advantages and the clipped surrogate (https://arxiv.org/abs/2402.03300).

    A_i = (r_i - mean(r)) / (std(r) + 1e-6)            one group, siblings of one prompt
    rho = exp(logprobs - old_logprobs)
    L   = -sum_n w_n * min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)

A sum: the trainer divides once, by a denominator taken over all micro-batches and ranks. The aggregation
(token mean, sequence mean, fixed length) lives in the weights w_n, which packing sets; 0 = not trained.
We differ from the paper: 1. no KL term; 2. token mean (DAPO) as the default weights; 3. the standard deviation
is that of the group itself (divided by G, not G - 1).
N = trained tokens, G = group size.
"""

import torch

from rl.algorithms.output import LossOutput

__all__ = ["grpo_advantages", "grpo_loss"]


def grpo_advantages(rewards_G: torch.Tensor, *, normalize_std: bool = True) -> torch.Tensor:
    """[G] rewards of one group -> [G] advantages; exactly zero when every sibling scored the same."""
    if bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    if not normalize_std:
        return centred_G
    return centred_G / (centred_G.square().mean().sqrt() + 1e-6)


def grpo_loss(
    logprobs_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    advantages_N: torch.Tensor,
    loss_weights_N: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> LossOutput:
    """Clipped surrogate on packed tokens.

    Args:
        logprobs_N: [N], current policy, carries grad.
        old_logprobs_N: [N], the policy at the start of this optimiser step.
        advantages_N: [N].
        loss_weights_N: [N], 0 where the policy did not sample the token.
        clip_low: the ratio is kept at or above 1 - clip_low.
        clip_high: the ratio is kept at or below 1 + clip_high.
    """
    is_trained_N = loss_weights_N != 0
    log_ratio_N = torch.where(is_trained_N, logprobs_N - old_logprobs_N, 0.0)
    ratio_N = log_ratio_N.exp()
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    token_loss_N = -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    loss = torch.where(is_trained_N, token_loss_N * loss_weights_N, 0.0).sum()

    with torch.no_grad():
        is_clipped_N = (clipped_N * advantages_N < ratio_N * advantages_N) & is_trained_N
        metrics = {"ratio/clip_fraction": is_clipped_N.sum()}
    return LossOutput(loss=loss, metrics=metrics)
