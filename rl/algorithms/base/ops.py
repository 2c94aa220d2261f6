"""Functions that several algorithms share. N = trained tokens, sample after sample; G = siblings of one prompt."""

import torch

from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Tokens

__all__ = [
    "MAX_LOG_RATIO",
    "centred",
    "clipped_surrogate",
    "importance_weighted",
    "is_uniform",
    "sample_means",
    "sample_sums",
    "token_log_ratio",
    "whitened",
]

MAX_LOG_RATIO = 20.0
"""Limit on logarithms of ratios of probabilities. Larger ones are clamped before exp, which would overflow; its gradient would be
NaN even where the clip cuts it off."""


def is_uniform(rewards_G: torch.Tensor) -> bool:
    """Whether all rewards are the same, so that comparing them teaches nothing; true for a single reward."""
    return bool((rewards_G == rewards_G[0]).all())


def centred(rewards_G: torch.Tensor) -> torch.Tensor:
    """Subtract the mean; exactly zero where all rewards are the same, however the mean is rounded."""
    return torch.zeros_like(rewards_G) if is_uniform(rewards_G) else rewards_G - rewards_G.mean()


def whitened(x_N: torch.Tensor) -> torch.Tensor:
    """Scale to mean 0 and standard deviation 1 (divided by N); zeros where all values are the same."""
    if not len(x_N):
        return x_N
    centred_N = centred(x_N)
    return centred_N / (centred_N.square().mean().sqrt() + 1e-6)


def token_log_ratio(tokens: Tokens) -> torch.Tensor:
    """Compute the log of current over base probability: [N], at most `MAX_LOG_RATIO`, and 0 where nothing is trained.

    Clamped and untrained tokens have no gradient.
    """
    # where, not *: NaN * 0 is NaN
    is_trained_N = tokens.loss_weights_N != 0
    log_ratio_N = torch.where(is_trained_N, tokens.logprobs_N - tokens.base_logprobs_N, 0.0)
    return log_ratio_N.clamp(max=MAX_LOG_RATIO)


def sample_sums(x_N: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """Sum over each sample: [N], at each token the sum of its sample. `ids_N` counts the samples from 0, ascending; N > 0."""
    return x_N.new_zeros(int(ids_N[-1]) + 1).index_add(0, ids_N, x_N)[ids_N]


def sample_means(x_N: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Average `x_N` over the trained tokens of each sample: [N], at each token the mean of its sample.

    `x_N` must be 0 where nothing is trained.

    A sample is never split over micro-batches, so the mean is that of all its tokens.
    """
    if not len(x_N):
        return x_N
    _, ids_N = tokens.sample_ids_N.unique_consecutive(return_inverse=True)
    counts_N = sample_sums((tokens.loss_weights_N != 0).to(x_N.dtype), ids_N)
    return sample_sums(x_N, ids_N) / counts_N.clamp(min=1)


def clipped_surrogate(
    ratio_N: torch.Tensor, tokens: Tokens, *, clip_low: float, clip_high: float
) -> LossOutput:
    """Compute -sum w min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) (https://arxiv.org/abs/1707.06347, eq. 7)."""
    is_trained_N, advantages_N = tokens.loss_weights_N != 0, tokens.advantages_N
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    token_loss_N = -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    loss = torch.where(is_trained_N, token_loss_N * tokens.loss_weights_N, 0.0).sum()
    with torch.no_grad():
        is_clipped_N = (clipped_N * advantages_N < ratio_N * advantages_N) & is_trained_N
    return LossOutput(loss=loss, metrics={"ratio/clip_fraction": is_clipped_N.sum()})


def importance_weighted(tokens: Tokens) -> LossOutput:
    """Compute -sum w exp(logprobs - base_logprobs) A. At a ratio of 1 its gradient is REINFORCE's, -sum w A grad log p."""
    ratio_N = token_log_ratio(tokens).exp()
    weighted_N = ratio_N * tokens.advantages_N * tokens.loss_weights_N
    loss = -torch.where(tokens.loss_weights_N != 0, weighted_N, 0.0).sum()
    return LossOutput(loss=loss, metrics={})
