"""DAPO: GRPO for long answers (https://arxiv.org/abs/2503.14476, sections 3.1 to 3.4).

    A_i = (r_i - mean(r)) / (std(r) + 1e-6),   r_i = score_i + overlong_i
    L   = -1/N sum_n min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A),   clip_high > clip_low

1. Clip-higher: improbable tokens may grow (3.1). 2. Dynamic sampling: the loop replaces groups whose scores are all the
same by new ones (3.2). 3. Token mean (3.3), in the weights.
4. Overlong shaping (3.4): 0 up to max_tokens - buffer, falling linearly to -1 at max_tokens.
We differ from the paper: 1. a group is dropped when its scores are all the same, whatever they are, and judged before
shaping; 2. an answer that is cut off at `sampling.max_tokens` has its length, hence -1: longer ones do not exist;
3. a step replaces at most `max_resample_batches` batches of groups, and what is left then trains nothing.
"""

from dataclasses import dataclass
from functools import partial

import torch

from rl.algorithms.base.algorithm import Algorithm, Needs
from rl.algorithms.base.config import ClippedConfig
from rl.algorithms.base.ops import clipped_surrogate, token_log_ratio
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens
from rl.algorithms.grpo import group_advantages
from rollout.config import require

__all__ = ["DAPOConfig", "dapo_advantages", "dapo_loss", "make_dapo", "overlong_rewards"]


@dataclass(kw_only=True)
class DAPOConfig(ClippedConfig):
    """Parameters of DAPO."""

    clip_high: float = 0.28
    num_overlong_tokens: int = 0
    """The last tokens before sampling.max_tokens, over which a penalty grows from 0 to 1; 0 gives no penalty."""
    max_resample_batches: int = 10
    """Groups that scored the same throughout are replaced, at most num_prompts_per_step times this in a step; 0 replaces none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        num_overlong, max_resample = self.num_overlong_tokens, self.max_resample_batches
        require(num_overlong >= 0, "algorithm.num_overlong_tokens", ">= 0", num_overlong)
        require(max_resample >= 0, "algorithm.max_resample_batches", ">= 0", max_resample)


def make_dapo(config: DAPOConfig, *, max_tokens: int) -> Algorithm:
    """Make DAPO.

    Raises:
        ValueError: the overlong penalty would begin before the first token.
    """
    num_overlong = config.num_overlong_tokens
    rule = f"<= sampling.max_tokens ({max_tokens})"
    require(num_overlong <= max_tokens, "algorithm.num_overlong_tokens", rule, num_overlong)
    return Algorithm(
        advantages=partial(dapo_advantages, max_tokens=max_tokens, num_buffer_tokens=num_overlong),
        loss=partial(dapo_loss, clip_low=config.clip_low, clip_high=config.clip_high),
        needs=Needs(max_resample_batches=config.max_resample_batches),
    )


def overlong_rewards(
    lengths_S: torch.Tensor, *, max_tokens: int, num_buffer_tokens: int
) -> torch.Tensor:
    """Compute what is added to the scores: [S] in [-1, 0].

    Args:
        lengths_S: [S] sampled tokens.
        max_tokens: limit on the tokens of a completion.
        num_buffer_tokens: tokens before `max_tokens` over which the penalty grows; 0 gives no penalty.
    """
    if num_buffer_tokens == 0:
        return torch.zeros_like(lengths_S, dtype=torch.float64)
    over_S = lengths_S.double() - (max_tokens - num_buffer_tokens)
    return -(over_S / num_buffer_tokens).clamp(0, 1)


def dapo_advantages(signals: Signals, *, max_tokens: int, num_buffer_tokens: int) -> Estimates:
    """Compute GRPO's advantages from the shaped rewards."""
    penalties_S = overlong_rewards(
        signals.lengths_S, max_tokens=max_tokens, num_buffer_tokens=num_buffer_tokens
    )
    shaped = signals.with_rewards(signals.rewards_S + penalties_S)
    return Estimates(advantages_N=shaped.per_token(shaped.per_group(group_advantages)))


def dapo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> LossOutput:
    """Compute the clipped surrogate; `clip_low` and `clip_high` are offsets from 1."""
    ratio_N = token_log_ratio(tokens).exp()
    return clipped_surrogate(ratio_N, tokens, clip_low=clip_low, clip_high=clip_high)
