import math
from dataclasses import fields, replace

import pytest
import torch

from rl.algorithms.base.signals import Tokens
from rl.algorithms.grpo import group_advantages, grpo_advantages, grpo_loss
from tests.rl.algorithms.batches import gradient, signals, tokens

CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def test_gradient_on_policy_is_reinforce():
    # old == new: the ratio is 1, so dL/dlogprob = -w * A, by hand
    made = tokens([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], [0.5, -1.0, 9.0], [1.0, 0.5, 0.0])
    assert (
        grpo_loss(made, **CLIP).loss.item() == 0.0
    )  # -(0.5 * 1 - 1.0 * 0.5); not the unweighted 9
    assert gradient(grpo_loss, made, **CLIP) == [-0.5, 0.5, 0.0]


def test_clip_stops_gradient_only_in_the_direction_of_the_advantage():
    # ratios 1.65, 1.65, 0.61, 0.61
    made = tokens([0.5, 0.5, -0.5, -0.5], [0.0] * 4, [1.0, -1.0, 1.0, -1.0])
    assert [g == 0 for g in gradient(grpo_loss, made, **CLIP)] == [True, False, False, True]
    assert grpo_loss(made, **CLIP).metrics["ratio/clip_fraction"] == 2


def test_upper_and_lower_bounds_are_separate():
    # ratio 1.25 lies inside 1 + 0.28 and outside 1 + 0.2; ratio 0.75 lies outside 1 - 0.2
    made = tokens([math.log(1.25), math.log(0.75)], [0.0, 0.0], [1.0, -1.0])
    assert [g == 0 for g in gradient(grpo_loss, made, **CLIP)] == [False, True]


def test_gradient_does_not_depend_on_how_the_batch_is_split():
    # both pieces hold trained and untrained tokens: a random mask could make this vacuous
    made = tokens(
        [0.1] * 6, [0.0] * 6, [1.0, 0.0, -2.0, 0.5, 3.0, 0.0], [1.0, 0.0, 1.0, 0.25, 1.0, 0.0]
    )
    whole = gradient(grpo_loss, made, **CLIP)
    made.logprobs_N.grad = None
    for piece in (slice(0, 2), slice(2, 6)):
        present = {f.name: getattr(made, f.name) for f in fields(Tokens)}
        cut = {name: value[piece] for name, value in present.items() if value is not None}
        grpo_loss(replace(made, **cut), **CLIP).loss.backward()
    assert made.logprobs_N.grad.tolist() == whole


def test_untrained_nan_does_not_reach_loss_or_gradient():
    made = tokens([-1.0, math.nan], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0])
    assert grpo_loss(made, **CLIP).loss.isfinite()
    assert gradient(grpo_loss, made, **CLIP)[1] == 0


@pytest.mark.parametrize("score", [0.0, 0.7, 1 / 3])
def test_a_uniform_group_has_no_signal_at_all(score):
    # exactly zero: rounding of the mean must not turn into a gradient
    assert group_advantages(torch.full((7,), score, dtype=torch.float64)).tolist() == [0.0] * 7


def test_advantages_are_centred_and_scaled_by_the_groups_own_deviation():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    # mean 1/4, variance 3/16 (divided by G)
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25]).double() / (3**0.5 / 4 + 1e-6)
    torch.testing.assert_close(group_advantages(rewards), expected)


def test_without_normalisation_advantages_are_only_centred():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert group_advantages(rewards, normalize_std=False).tolist() == [0.75, -0.25, -0.25, -0.25]


def test_groups_do_not_hear_of_each_other_and_a_missing_sibling_leaves_a_smaller_group():
    # the second group has lost siblings to its scorer, the third all but one
    batch = signals([1.0, 0.0, 0.0, 0.0], [5.0, 7.0], [3.0], lengths=[1, 2, 1, 0, 1, 1, 2])
    got = grpo_advantages(batch, normalize_std=False).advantages_N.tolist()
    # the fourth sample has no trained token: it counts in the mean and has no advantage to carry
    assert got == [0.75, -0.25, -0.25, -0.25, -1.0, 1.0, 0.0, 0.0]


def test_a_nan_reward_stays_in_its_group():
    got = grpo_advantages(signals([math.nan, 1.0], [0.0, 1.0]), normalize_std=False)
    assert got.advantages_N.isnan().tolist() == [True, True, False, False]


def test_token_rewards_count_in_the_samples_reward():
    batch = signals([1.0, 0.0], lengths=[2, 1], token_rewards=[-0.25, -0.25, 0.0])
    got = grpo_advantages(batch, normalize_std=False).advantages_N.tolist()
    assert got == [0.25, 0.25, -0.25]
