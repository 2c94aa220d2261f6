"""PPO with a critic (https://arxiv.org/abs/1707.06347, eq. 7; GAE: https://arxiv.org/abs/1506.02438, eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t                V = 0 after the last token; r = token rewards, the score at the last
    A_t     = delta_t + gamma lambda A_{t+1}           returns = A + V
    A       = (A - mean(A)) / (std(A) + 1e-6)          over all trained tokens of the batch
    L       = clipped surrogate
    L_V     = sum_n w_n max((V - returns)^2, (clip(V, V_old - value_clip, V_old + value_clip) - returns)^2) / 2

t counts the trained tokens of one sample: tokens of an environment between them are skipped.
V_t is read at the row that predicts token t: the state before it. Returns are not whitened.
We differ from the paper: 1. critic and policy share no parameters and no optimiser, so there is no coefficient between their
losses; 2. an answer cut off at `sampling.max_tokens` ends there, without a bootstrap: its score is its whole return;
3. no entropy bonus; 4. lambda and gamma are 1 by default, as answers are scored once, at their end; 5. advantages are
whitened, over all trained tokens of the batch.
"""

from dataclasses import dataclass
from functools import partial

import torch

from rl.algorithms.base.algorithm import Algorithm, CriticSettings, Needs
from rl.algorithms.base.config import ClippedConfig
from rl.algorithms.base.ops import clipped_surrogate, token_log_ratio, whitened
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens
from rollout.config import require

__all__ = [
    "PPOConfig",
    "explained_variance",
    "generalized_advantages",
    "make_ppo",
    "ppo_advantages",
    "ppo_loss",
    "value_loss",
]


@dataclass(kw_only=True)
class PPOConfig(ClippedConfig):
    """Parameters of PPO and of its critic."""

    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 1.0
    """1: only the score says what a token was worth; towards 0: the critic does."""
    value_clip: float = 0.2
    """Greatest change of a value on one batch that can still lower the critic's loss; has an effect with trainer.steps_per_batch > 1."""
    critic_learning_rate: float = 1e-5
    """Learning rate of the critic at every step, whatever `trainer.lr_schedule` is."""
    num_critic_warmup_steps: int = 0
    """Batches at the beginning on which only the critic is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.gamma <= 1, "algorithm.gamma", "in (0, 1]", self.gamma)
        require(0 <= self.gae_lambda <= 1, "algorithm.gae_lambda", "in [0, 1]", self.gae_lambda)
        require(self.value_clip > 0, "algorithm.value_clip", "> 0", self.value_clip)
        require(
            self.critic_learning_rate > 0,
            "algorithm.critic_learning_rate",
            "> 0",
            self.critic_learning_rate,
        )
        require(
            self.num_critic_warmup_steps >= 0,
            "algorithm.num_critic_warmup_steps",
            ">= 0",
            self.num_critic_warmup_steps,
        )


def make_ppo(config: PPOConfig, *, max_tokens: int) -> Algorithm:
    """Make PPO; `max_tokens` has no effect."""
    critic = CriticSettings(
        value_clip=config.value_clip,
        learning_rate=config.critic_learning_rate,
        num_warmup_steps=config.num_critic_warmup_steps,
    )
    return Algorithm(
        advantages=partial(ppo_advantages, gamma=config.gamma, gae_lambda=config.gae_lambda),
        loss=partial(ppo_loss, clip_low=config.clip_low, clip_high=config.clip_high),
        needs=Needs(critic=critic),
    )


def ppo_advantages(signals: Signals, *, gamma: float, gae_lambda: float) -> Estimates:
    """Compute whitened advantages, and the returns that the critic is trained to predict."""
    values_N = signals.values_N
    assert values_N is not None, "the trainer computes values first"
    advantages_N = generalized_advantages(signals, values_N, gamma=gamma, gae_lambda=gae_lambda)
    return Estimates(advantages_N=whitened(advantages_N), returns_N=advantages_N + values_N)


def generalized_advantages(
    signals: Signals, values_N: torch.Tensor, *, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """Compute [N] GAE, from the last token of each sample to its first; samples do not affect each other."""
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
    """Compute the clipped surrogate; `clip_low` and `clip_high` are offsets from 1."""
    ratio_N = token_log_ratio(tokens).exp()
    return clipped_surrogate(ratio_N, tokens, clip_low=clip_low, clip_high=clip_high)


def explained_variance(values_N: torch.Tensor, returns_N: torch.Tensor) -> float:
    """Compute 1 - var(returns - values) / var(returns).

    It is 1 for a perfect critic, 0 for one no better than a constant, below 0 for one worse than a constant; 0 where
    all returns are the same.
    """
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
    """Compute the clipped squared error of the critic.

    Args:
        values_N: [N], carries grad.
        old_values_N: [N], before the critic's first step on this batch.
        returns_N: [N].
        loss_weights_N: [N], 0 = not trained.
        value_clip: greatest change of a value from its old one that can still lower the loss.
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
