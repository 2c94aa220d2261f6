"""PPO with a critic (https://arxiv.org/abs/1707.06347, eq. 7; GAE: https://arxiv.org/abs/1506.02438, eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t                V = 0 behind the last token; r = token rewards, the score at the last
    A_t     = delta_t + gamma lambda A_{t+1}           returns = A + V
    A       = (A - mean(A)) / (std(A) + 1e-6)          over all trained tokens of the batch
    L       = clipped surrogate
    L_V     = sum_n w_n max((V - returns)^2, (clip(V, V_old - value_clip, V_old + value_clip) - returns)^2) / 2

t counts the trained tokens of one sample: value and advantage are carried over what an environment said in between.
V_t is read at the row that predicts token t: the state before it. Returns are not whitened.
We differ from the paper: 1. critic and policy share no parameters and no optimiser, so there is no coefficient between their
losses; 2. an answer cut off at `sampling.max_tokens` ends there, without a bootstrap: its score says what it was worth;
3. no entropy bonus; 4. lambda and gamma are 1 by default, as answers are scored once, at their end; 5. advantages are
whitened, over all trained tokens of the batch.
"""

import torch

from rl.algorithms.ops import clipped_surrogate, token_log_ratio, whitened
from rl.algorithms.output import LossOutput
from rl.algorithms.signals import Estimates, Signals, Tokens

__all__ = [
    "explained_variance",
    "generalized_advantages",
    "ppo_advantages",
    "ppo_loss",
    "value_loss",
]


def ppo_advantages(signals: Signals, *, gamma: float, gae_lambda: float) -> Estimates:
    """Whitened advantages, and the returns that the critic is to predict."""
    values_N = signals.values_N
    assert values_N is not None, "the learner asks the critic first"
    advantages_N = generalized_advantages(signals, values_N, gamma=gamma, gae_lambda=gae_lambda)
    return Estimates(advantages_N=whitened(advantages_N), returns_N=advantages_N + values_N)


def generalized_advantages(
    signals: Signals, values_N: torch.Tensor, *, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """[N] GAE, from the last token of each sample to its first; no sample hears of another."""
    # plain floats: one tensor operation per token would cost a hundred times as much
    rewards, lengths = signals.rewards_S.tolist(), signals.lengths_S.tolist()
    token_rewards, values = signals.token_rewards_N.tolist(), values_N.tolist()
    advantages = [0.0] * len(values)
    start = 0
    for reward, length in zip(rewards, lengths, strict=True):
        next_value, advantage = 0.0, 0.0
        for n in reversed(range(start, start + length)):
            delta = token_rewards[n] + reward + gamma * next_value - values[n]
            advantage = delta + gamma * gae_lambda * advantage
            next_value, advantages[n] = values[n], advantage
            reward = 0.0  # the score is given once, at the last token
        start += length
    return torch.tensor(advantages, dtype=values_N.dtype)


def ppo_loss(tokens: Tokens, *, clip_low: float, clip_high: float) -> LossOutput:
    """Clipped surrogate; `clip_low` and `clip_high` are offsets from 1."""
    ratio_N = token_log_ratio(tokens).exp()
    return clipped_surrogate(ratio_N, tokens, clip_low=clip_low, clip_high=clip_high)


def explained_variance(values_N: torch.Tensor, returns_N: torch.Tensor) -> float:
    """1 - var(returns - values) / var(returns): 1 where the critic knew, 0 where a constant would have done, below 0 where
    it did harm; 0 where all returns are the same."""
    variance = float(returns_N.var(correction=0)) if len(returns_N) else 0.0
    if variance == 0:
        return 0.0
    return 1 - float((returns_N - values_N).var(correction=0)) / variance


def value_loss(
    values_N: torch.Tensor,
    old_values_N: torch.Tensor,
    returns_N: torch.Tensor,
    loss_weights_N: torch.Tensor,
    *,
    value_clip: float,
) -> LossOutput:
    """Clipped squared error of the critic.

    Args:
        values_N: [N], carries grad.
        old_values_N: [N], before the critic's first step on this batch.
        returns_N: [N].
        loss_weights_N: [N], 0 = not trained.
        value_clip: how far a value may move from its old one and still lower the loss.
    """
    is_trained_N = loss_weights_N != 0
    values_N = torch.where(is_trained_N, values_N, returns_N)
    clipped_N = old_values_N + (values_N - old_values_N).clamp(-value_clip, value_clip)
    error_N, clipped_error_N = (values_N - returns_N).square(), (clipped_N - returns_N).square()
    token_loss_N = torch.maximum(error_N, clipped_error_N) / 2
    loss = torch.where(is_trained_N, token_loss_N * loss_weights_N, 0.0).sum()
    with torch.no_grad():
        metrics = {
            "value/clip_fraction": ((clipped_error_N > error_N) & is_trained_N).sum(),
            "value/mean": torch.where(is_trained_N, values_N, 0.0).sum(),
        }
    return LossOutput(loss=loss, metrics=metrics)
