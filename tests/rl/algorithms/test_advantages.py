"""Advantages by hand."""

import itertools
import math

import pytest
import torch

from rl.algorithms.cispo import cispo_advantages
from rl.algorithms.dapo import dapo_advantages, overlong_rewards
from rl.algorithms.distillation import distillation_advantages
from rl.algorithms.dr_grpo import dr_grpo_advantages
from rl.algorithms.gspo import gspo_advantages
from rl.algorithms.maxrl import maxrl_advantages
from rl.algorithms.reinforce_pp import reinforce_pp_advantages
from rl.algorithms.rloo import rloo_advantages
from tests.rl.algorithms.batches import signals


def values(estimates) -> list[float]:
    return estimates.advantages_N.tolist()


def test_dr_grpo_centres_and_divides_by_nothing():
    assert values(dr_grpo_advantages(signals([4.0, 0.0], [1.0, 1.0]))) == [2.0, -2.0, 0.0, 0.0]


@pytest.mark.parametrize("advantages", [gspo_advantages, cispo_advantages])
def test_gspo_and_cispo_have_grpos(advantages):
    got = values(advantages(signals([4.0, 0.0], [1.0, 1.0])))
    assert got == pytest.approx([1.0, -1.0, 0.0, 0.0], abs=1e-5)


def test_rloo_compares_each_with_the_others():
    # 1 - (0 + 2) / 2, 0 - (1 + 2) / 2, 2 - (1 + 0) / 2; one alone has nobody to be compared with
    got = values(rloo_advantages(signals([1.0, 0.0, 2.0], [5.0])))
    assert got == pytest.approx([0.0, -1.5, 1.5, 0.0])


def test_maxrl_divides_by_the_mean_and_nobody_right_is_no_signal():
    got = values(maxrl_advantages(signals([1.0, 0.0, 0.0, 0.0], [0.0, 0.0], [1.0, 1.0])))
    assert got == [3.0, -1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("group_size", [2, 3, 5])
def test_maxrl_climbs_the_first_terms_of_the_logarithm_of_the_pass_rate(group_size):
    # exactly, over all outcomes of a group: one action, right with probability p, score functions 1 / p and -1 / (1 - p)
    p = 0.3
    expected_gradient = sum((1 - p) ** k for k in range(group_size - 1))
    got = 0.0
    for rewards in itertools.product([0.0, 1.0], repeat=group_size):
        advantages = values(maxrl_advantages(signals(list(rewards))))
        probability = math.prod(p if r else 1 - p for r in rewards)
        scores = [1 / p if r else -1 / (1 - p) for r in rewards]
        got += probability * sum(a * s for a, s in zip(advantages, scores, strict=True))
    assert got / group_size == pytest.approx(expected_gradient)


def test_maxrl_refuses_rewards_below_zero():
    with pytest.raises(ValueError, match=r"rewards must be >= 0, got -1\.0; shift the scorer"):
        maxrl_advantages(signals([1.0, -1.0]))


def test_reinforce_pp_whitens_over_all_tokens_of_the_batch():
    # returns 1, 1, 1, -1 (three tokens and one): mean 0.5, deviation sqrt(0.75)
    batch = signals([1.0], [-1.0], lengths=[3, 1])
    got = values(reinforce_pp_advantages(batch, use_group_baseline=False))
    deviation = 0.75**0.5 + 1e-6
    assert got == pytest.approx([0.5 / deviation] * 3 + [-1.5 / deviation])


def test_reinforce_pp_gives_each_token_what_comes_from_it_on():
    # to go: 1 - 0.6, 1 - 0.5, 1 - 0.3; and -1: mean 0.15
    batch = signals([1.0], [-1.0], lengths=[3, 1], token_rewards=[-0.1, -0.2, -0.3, 0.0])
    got = torch.tensor(values(reinforce_pp_advantages(batch, use_group_baseline=False)))
    expected = torch.tensor([0.4, 0.5, 0.7, -1.0])
    expected = (expected - expected.mean()) / expected.std(correction=0)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_reinforce_pp_with_a_baseline_centres_in_the_group_and_scales_over_the_batch():
    # centred: 1, -1 and 3, -3: deviation sqrt(5)
    batch = signals([2.0, 0.0], [6.0, 0.0])
    got = values(reinforce_pp_advantages(batch, use_group_baseline=True))
    assert got == pytest.approx([x / (5**0.5 + 1e-6) for x in (1, -1, 3, -3)])


@pytest.mark.parametrize("use_group_baseline", [True, False])
def test_reinforce_pp_of_a_batch_that_scored_the_same_is_exactly_zero(use_group_baseline):
    batch = signals([0.7, 0.7, 0.7], [0.7], lengths=[3, 1, 0, 2])
    got = values(reinforce_pp_advantages(batch, use_group_baseline=use_group_baseline))
    assert got == [0.0] * 6


def test_overlong_rewards_fall_linearly_over_the_buffer():
    lengths = torch.tensor([10, 16, 18, 20])
    got = overlong_rewards(lengths, max_tokens=20, num_buffer_tokens=4)
    assert got.tolist() == [0.0, 0.0, -0.5, -1.0]
    assert overlong_rewards(lengths, max_tokens=20, num_buffer_tokens=0).tolist() == [0.0] * 4


def test_dapo_compares_shaped_rewards():
    # both right, one of them too long: the short one is better
    batch = signals([1.0, 1.0], lengths=[2, 4])
    got = values(dapo_advantages(batch, max_tokens=4, num_buffer_tokens=2))
    assert got == pytest.approx([1.0] * 2 + [-1.0] * 4, abs=1e-5)
    plain = values(dapo_advantages(batch, max_tokens=4, num_buffer_tokens=0))
    assert plain == [0.0] * 6


def test_distillation_takes_each_tokens_own_reward_and_no_score():
    batch = signals([math.pi], lengths=[2], token_rewards=[0.5, -2.0])
    assert values(distillation_advantages(batch)) == [0.5, -2.0]
