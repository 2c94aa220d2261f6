"""GSPO: one ratio per sequence (https://arxiv.org/abs/2507.18071, section 4.1).

    A_i = (r_i - mean(r)) / (std(r) + 1e-6)
    s_i = exp(mean_t(logprobs - base_logprobs))        over the trained tokens of sample i
    L   = -sum_i w_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)

With `loss_reduction: sequence_mean` w_i is 1. The gradient of every token of a sample is the same, -w s A / length, where
GRPO's varies with each token's own ratio. Ranges are far narrower than a token's: 3e-4 and 4e-4 (section 5.1).
We differ from the paper: the loss is summed over tokens with their weights, so that it works with any reduction and any
correction; for `sequence_mean` without a correction it is the paper's.
"""

from dataclasses import dataclass
from functools import partial

from rl.algorithms.base.algorithm import Algorithm
from rl.algorithms.base.config import ClippedConfig, LossReduction
from rl.algorithms.base.ops import clipped_surrogate, sample_means, token_log_ratio
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens
from rl.algorithms.grpo import group_advantages

__all__ = ["GSPOConfig", "gspo_advantages", "gspo_loss", "make_gspo"]


@dataclass(kw_only=True)
class GSPOConfig(ClippedConfig):
    """Parameters of GSPO."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    loss_reduction: LossReduction = LossReduction.sequence_mean


def make_gspo(config: GSPOConfig, *, max_tokens: int) -> Algorithm:
    """Make GSPO; `max_tokens` has no effect."""
    loss = partial(gspo_loss, clip_low=config.clip_low, clip_high=config.clip_high)
    return Algorithm(advantages=gspo_advantages, loss=loss)


def gspo_advantages(signals: Signals) -> Estimates:
    """Compute GRPO's advantages."""
    return Estimates(advantages_N=signals.per_token(signals.per_group(group_advantages)))


def gspo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> LossOutput:
    """Compute the clipped surrogate of the sequences' ratios; `clip_low` and `clip_high` are offsets from 1."""
    ratio_N = sample_means(token_log_ratio(tokens), tokens).exp()
    return clipped_surrogate(ratio_N, tokens, clip_low=clip_low, clip_high=clip_high)
