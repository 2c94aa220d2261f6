"""DAPO: GRPO for long answers (https://arxiv.org/abs/2503.14476, sections 3.1 to 3.4).

    A_i = (r_i - mean(r)) / (std(r) + 1e-6),   r_i = score_i + overlong_i
    L   = -1/N sum_n min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A),   clip_high > clip_low

1. clip-higher: improbable tokens may grow (3.1). 2. Dynamic sampling: groups whose scores are all the same are
replaced by new ones (3.2): the loop begins others. 3. Token mean (3.3), in the weights.
4. Overlong shaping (3.4): 0 up to max_tokens - buffer, falling linearly to -1 at max_tokens.
We differ from the paper: 1. a group is dropped when its scores are all the same, whatever they are, and judged before
shaping; 2. an answer that is cut off at `sampling.max_tokens` has its length, hence -1: longer ones do not exist;
3. at most `max_refills` batches' worth of groups is replaced in a step, and what is left then trains nothing.
"""

import torch

from rl.algorithms.grpo import group_advantages
from rl.algorithms.ops import clipped_surrogate, token_log_ratio
from rl.algorithms.output import LossOutput
from rl.algorithms.signals import Estimates, Signals, Tokens

__all__ = ["dapo_advantages", "dapo_loss", "overlong_rewards"]


def overlong_rewards(
    lengths_S: torch.Tensor, *, max_tokens: int, num_buffer_tokens: int
) -> torch.Tensor:
    """[S] lengths -> what is added to the scores, in [-1, 0].

    Args:
        lengths_S: [S] sampled tokens.
        max_tokens: of a completion.
        num_buffer_tokens: before `max_tokens`, over which the penalty grows; 0: none.
    """
    if num_buffer_tokens == 0:
        return torch.zeros_like(lengths_S, dtype=torch.float64)
    over_S = lengths_S.double() - (max_tokens - num_buffer_tokens)
    return -(over_S / num_buffer_tokens).clamp(0, 1)


def dapo_advantages(signals: Signals, *, max_tokens: int, num_buffer_tokens: int) -> Estimates:
    """GRPO's of the shaped rewards."""
    penalties_S = overlong_rewards(
        signals.lengths_S, max_tokens=max_tokens, num_buffer_tokens=num_buffer_tokens
    )
    shaped = signals.with_rewards(signals.rewards_S + penalties_S)
    return Estimates(advantages_N=shaped.per_token(shaped.per_group(group_advantages)))


def dapo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> LossOutput:
    """Clipped surrogate; `clip_low` and `clip_high` are offsets from 1."""
    ratio_N = token_log_ratio(tokens).exp()
    return clipped_surrogate(ratio_N, tokens, clip_low=clip_low, clip_high=clip_high)
