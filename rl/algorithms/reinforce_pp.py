"""REINFORCE++: no critic, advantages normalised over the whole batch (https://arxiv.org/abs/2501.03262).

    A_t = r + sum_{s >= t} token_rewards_s             the return from token t on; token rewards are the KL penalty's
    A_t = r_i - mean(r)                                "with baseline": centred in the group first
    A   = (A - mean(A)) / (std(A) + 1e-6)              over all trained tokens of the batch
    L   = clipped surrogate (PPO's)

The paper puts K1 into the reward (`kl_placement: reward`); with the baseline, K2 into the loss.
We differ from the paper: 1. there is no KL unless `kl_coef` asks for it; 2. statistics are over tokens, so that a long answer
counts more, as in the authors' code; 3. a batch that scored the same throughout has advantages of exactly zero.
"""

from dataclasses import dataclass
from functools import partial

import torch

from rl.algorithms.base.algorithm import Algorithm
from rl.algorithms.base.config import ClippedConfig
from rl.algorithms.base.ops import centred, clipped_surrogate, token_log_ratio, whitened
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens

__all__ = [
    "ReinforcePPConfig",
    "make_reinforce_pp",
    "reinforce_pp_advantages",
    "reinforce_pp_loss",
    "returns_to_go",
]


@dataclass(kw_only=True)
class ReinforcePPConfig(ClippedConfig):
    """Parameters of REINFORCE++."""

    use_group_baseline: bool = False
    """Centre the rewards of each group before they are normalised over the batch."""


def make_reinforce_pp(config: ReinforcePPConfig, *, max_tokens: int) -> Algorithm:
    """Make REINFORCE++; `max_tokens` has no effect."""
    return Algorithm(
        advantages=partial(reinforce_pp_advantages, use_group_baseline=config.use_group_baseline),
        loss=partial(reinforce_pp_loss, clip_low=config.clip_low, clip_high=config.clip_high),
    )


def reinforce_pp_advantages(signals: Signals, *, use_group_baseline: bool) -> Estimates:
    """Whiten the returns over the batch; `use_group_baseline` centres each group first."""
    if use_group_baseline:
        returns_N = signals.per_token(signals.per_group(centred))
    else:
        returns_N = returns_to_go(signals)
    return Estimates(advantages_N=whitened(returns_N))


def returns_to_go(signals: Signals) -> torch.Tensor:
    """Sum the reward of the sample with those of this token and all later ones: [N]."""
    samples = signals.token_rewards_N.split(signals.lengths_S.tolist())
    to_go = [rewards_n.flip(0).cumsum(0).flip(0) for rewards_n in samples]
    return signals.per_token(signals.rewards_S) + torch.cat(to_go)


def reinforce_pp_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> LossOutput:
    """Compute the clipped surrogate; `clip_low` and `clip_high` are offsets from 1."""
    ratio_N = token_log_ratio(tokens).exp()
    return clipped_surrogate(ratio_N, tokens, clip_low=clip_low, clip_high=clip_high)
