"""Importance weights for tokens that were sampled by a slightly other policy than the one that is trained.

    w = min(exp(old_logprobs - rollout_logprobs), max_weight)        detached, one per token

Truncated importance sampling of the engine's mismatch (https://fengyao.notion.site/off-policy-rl): the expectation is
taken under the engine's distribution, the gradient wanted under the trainer's. Truncation bounds the variance and
biases what it cuts. Where trainer and engine agree bit for bit every weight is exactly 1.
"""

import math

import torch

__all__ = ["importance_weights"]


def importance_weights(
    old_logprobs_N: torch.Tensor, rollout_logprobs_N: torch.Tensor, *, max_weight: float
) -> torch.Tensor:
    """[N] weights in (0, max_weight].

    Args:
        old_logprobs_N: [N], the trainer's policy at the start of the step, detached.
        rollout_logprobs_N: [N], of the distribution that was sampled from.
        max_weight: >= 1.
    """
    # truncated as a logarithm: exp would overflow first
    return (old_logprobs_N - rollout_logprobs_N).clamp(max=math.log(max_weight)).exp()
