"""GSPO: one ratio per sequence (https://arxiv.org/abs/2507.18071, section 4.1).

    A_i = (r_i - mean(r)) / (std(r) + 1e-6)
    s_i = exp(mean_t(logprobs - base_logprobs))        over the trained tokens of sample i
    L   = -sum_i w_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)

With `loss_reduction: sequence_mean` w_i is 1. The gradient of every token of a sample is the same, -w s A / length, where
GRPO's varies with each token's own ratio. Ranges are far narrower than a token's: 3e-4 and 4e-4 (section 5.1).
We differ from the paper: the loss is summed over tokens with their weights, so that any reduction and any correction can be
had; for `sequence_mean` without a correction this is the paper's.
"""

from rl.algorithms.grpo import group_advantages
from rl.algorithms.ops import clipped_surrogate, sample_means, token_log_ratio
from rl.algorithms.output import LossOutput
from rl.algorithms.signals import Estimates, Signals, Tokens

__all__ = ["gspo_advantages", "gspo_loss"]


def gspo_advantages(signals: Signals) -> Estimates:
    """GRPO's."""
    return Estimates(advantages_N=signals.per_token(signals.per_group(group_advantages)))


def gspo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> LossOutput:
    """Clipped surrogate of the sequences' ratios; `clip_low` and `clip_high` are offsets from 1."""
    ratio_N = sample_means(token_log_ratio(tokens), tokens).exp()
    return clipped_surrogate(ratio_N, tokens, clip_low=clip_low, clip_high=clip_high)
