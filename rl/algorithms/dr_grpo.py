"""Dr. GRPO: GRPO without its two biases (https://arxiv.org/abs/2503.20783, section 3.2).

    A_i = r_i - mean(r)                                not divided by the group's standard deviation,
    L   = -1/G sum_i 1/C sum_t min(rho A, clip(rho) A) nor each sample by its own length, but by a constant C

Dividing by the standard deviation favours prompts that are almost always, or almost never, solved; dividing by the length makes
long wrong answers cheap. C is `sampling.max_tokens`, by `loss_reduction: fixed_length`.
We differ from the paper's equation, which has no C, and not from its code: a constant only scales the gradient.
"""

from dataclasses import dataclass
from functools import partial

from rl.algorithms.base.algorithm import Algorithm
from rl.algorithms.base.config import ClippedConfig, LossReduction
from rl.algorithms.base.ops import centred, clipped_surrogate, token_log_ratio
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens

__all__ = ["DrGRPOConfig", "dr_grpo_advantages", "dr_grpo_loss", "make_dr_grpo"]


@dataclass(kw_only=True)
class DrGRPOConfig(ClippedConfig):
    """Parameters of Dr. GRPO."""

    loss_reduction: LossReduction = LossReduction.fixed_length


def make_dr_grpo(config: DrGRPOConfig, *, max_tokens: int) -> Algorithm:
    """Make Dr. GRPO; `max_tokens` acts through `loss_reduction`."""
    return Algorithm(
        advantages=dr_grpo_advantages,
        loss=partial(dr_grpo_loss, clip_low=config.clip_low, clip_high=config.clip_high),
    )


def dr_grpo_advantages(signals: Signals) -> Estimates:
    """Centre the rewards of each group by itself."""
    return Estimates(advantages_N=signals.per_token(signals.per_group(centred)))


def dr_grpo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> LossOutput:
    """Compute the clipped surrogate; `clip_low` and `clip_high` are offsets from 1."""
    ratio_N = token_log_ratio(tokens).exp()
    return clipped_surrogate(ratio_N, tokens, clip_low=clip_low, clip_high=clip_high)
