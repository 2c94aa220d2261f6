import math

import pytest
import torch

from rl.algorithms.ppo import (
    explained_variance,
    generalized_advantages,
    ppo_advantages,
    value_loss,
)
from tests.rl.algorithms.batches import signals


def gae(batch, gamma, gae_lambda) -> list[float]:
    return generalized_advantages(
        batch, batch.values_N, gamma=gamma, gae_lambda=gae_lambda
    ).tolist()


def test_gae_by_hand():
    batch = signals([1.0], lengths=[3], values=[0.5, 0.25, 0.75], token_rewards=[0.0, -0.5, 0.0])
    # deltas: 0 + 0.5 * 0.25 - 0.5, -0.5 + 0.5 * 0.75 - 0.25, 1 - 0.75; gamma * lambda = 0.25
    d = [-0.375, -0.375, 0.25]
    expected = [d[0] + 0.25 * (d[1] + 0.25 * d[2]), d[1] + 0.25 * d[2], d[2]]
    assert gae(batch, 0.5, 0.5) == pytest.approx(expected)


def test_lambda_one_is_the_return_minus_the_value_and_lambda_zero_one_step():
    batch = signals([2.0], lengths=[2], values=[0.5, 1.5])
    assert gae(batch, 1.0, 1.0) == [1.5, 0.5]
    assert gae(batch, 1.0, 0.0) == [1.0, 0.5]


def test_samples_do_not_hear_of_each_other_and_an_empty_one_is_passed_over():
    alone = gae(signals([2.0], lengths=[2], values=[0.5, 1.5]), 0.9, 0.8)
    batch = signals([7.0, 9.0, 2.0, 9.0], lengths=[1, 0, 2, 0], values=[-3.0, 0.5, 1.5])
    assert gae(batch, 0.9, 0.8) == [10.0, *alone]


def test_advantages_are_whitened_over_the_batch_and_returns_are_not():
    batch = signals([1.0, 0.0], lengths=[1, 3], values=[0.5, 0.5, 0.5, 0.5])
    estimates = ppo_advantages(batch, gamma=1.0, gae_lambda=1.0)
    # 0.5, -0.5, -0.5, -0.5: mean -0.25, deviation sqrt(3) / 4
    scale = 3**0.5 / 4 + 1e-6
    assert estimates.advantages_N.tolist() == pytest.approx([0.75 / scale] + [-0.25 / scale] * 3)
    assert estimates.returns_N.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_the_score_is_discounted_once_per_token_from_the_last_one():
    # no critic to speak of: gamma^2, gamma, 1 times the score, and each token's own reward likewise
    batch = signals([8.0], lengths=[3], values=[0.0] * 3, token_rewards=[4.0, 2.0, 1.0])
    assert gae(batch, 0.5, 1.0) == [4.0 + 1.0 + 9.0 / 4, 2.0 + 9.0 / 2, 9.0]


def test_explained_variance_is_one_for_a_critic_that_knows_zero_for_a_constant_and_below_for_harm():
    returns = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 7.0).double(), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(3).double()) == 0.0


def value_gradient(values, old, returns, weights, clip):
    values = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    out = value_loss(
        values, torch.tensor(old).double(), torch.tensor(returns).double(), torch.tensor(weights).double(),
        value_clip=clip,
    )  # fmt: skip
    out.loss.backward()
    return values.grad.tolist(), out


def test_the_values_gradient_is_the_error_until_the_clip_takes_over():
    # within; moved 0.5 towards the return, past 0.2: clipped error is greater, no gradient; moved away: its own error
    got, out = value_gradient(
        [0.1, 0.5, -0.5, math.nan], [0.0] * 4, [1.0] * 4, [1.0, 1.0, 2.0, 0.0], clip=0.2
    )
    assert got == pytest.approx([-0.9, 0.0, -3.0, 0.0])
    assert out.loss.item() == pytest.approx((0.81 + 0.64 + 2 * 2.25) / 2)
    assert out.metrics["value/clip_fraction"] == 1
