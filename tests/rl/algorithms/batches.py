"""Signals and tokens with contents chosen by hand, in float64."""

import torch

from rl.algorithms.base.signals import Signals, Tokens


def signals(
    *groups: list[float],
    lengths: list[int] | None = None,
    token_rewards: list[float] | None = None,
    values: list[float] | None = None,
) -> Signals:
    """`groups` are the rewards of siblings; every sample has one token unless `lengths` says otherwise."""
    rewards = [reward for group in groups for reward in group]
    lengths = lengths or [1] * len(rewards)
    return Signals(
        rewards_S=torch.tensor(rewards, dtype=torch.float64),
        group_ids_S=torch.tensor([i for i, group in enumerate(groups) for _ in group]),
        lengths_S=torch.tensor(lengths),
        token_rewards_N=torch.tensor(token_rewards or [0.0] * sum(lengths), dtype=torch.float64),
        values_N=None if values is None else torch.tensor(values, dtype=torch.float64),
    )


def tokens(
    logprobs: list[float],
    base: list[float],
    advantages: list[float],
    weights: list[float] | None = None,
    *,
    sample_ids: list[int] | None = None,
    ref: list[float] | None = None,
) -> Tokens:
    """`logprobs` is a leaf that collects a gradient."""

    def tensor(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    count = len(logprobs)
    return Tokens(
        logprobs_N=tensor(logprobs).requires_grad_(),
        base_logprobs_N=tensor(base),
        advantages_N=tensor(advantages),
        loss_weights_N=tensor(weights or [1.0] * count),
        sample_ids_N=torch.tensor(sample_ids or [0] * count),
        ref_logprobs_N=None if ref is None else tensor(ref),
    )


def gradient(loss_function, made: Tokens, **arguments: float) -> list[float]:
    """Return the gradient of the loss with respect to each token's log-probability."""
    made.logprobs_N.grad = None
    loss_function(made, **arguments).loss.backward()
    assert made.logprobs_N.grad is not None
    return made.logprobs_N.grad.tolist()
