import pytest
import torch

from rl.algorithms.grpo import grpo_advantages, grpo_loss

CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def test_gradient_on_policy_is_reinforce():
    # old == new: the ratio is 1, so dL/dlogprob = -w * A, by hand
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([0.5, -1.0, 9.0])
    weights = torch.tensor([1.0, 0.5, 0.0])
    loss = grpo_loss(logprobs, logprobs.detach(), advantages, weights, **CLIP).loss
    loss.backward()
    assert loss.item() == 0.0  # -(0.5 * 1 - 1.0 * 0.5); the unweighted 9.0 must not enter
    torch.testing.assert_close(logprobs.grad, torch.tensor([-0.5, 0.5, 0.0]))


def test_clip_stops_gradient_only_in_the_direction_of_the_advantage():
    # ratios 1.65, 1.65, 0.61, 0.61
    logprobs = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    out = grpo_loss(logprobs, torch.zeros(4), advantages, torch.ones(4), **CLIP)
    out.loss.backward()
    assert (logprobs.grad == 0).tolist() == [True, False, False, True]
    assert out.metrics["ratio/clip_fraction"] == 2


def test_upper_and_lower_bounds_are_separate():
    # ratio 1.25 lies inside 1 + 0.28 and outside 1 + 0.2; ratio 0.75 lies outside 1 - 0.2
    logprobs = torch.tensor([1.25, 0.75]).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0])
    grpo_loss(logprobs, torch.zeros(2), advantages, torch.ones(2), **CLIP).loss.backward()
    assert (logprobs.grad == 0).tolist() == [False, True]


def test_gradient_does_not_depend_on_how_the_batch_is_split():
    # both pieces hold trained and untrained tokens: a random mask could make this vacuous
    weights = torch.tensor([1.0, 0.0, 1.0, 0.25, 1.0, 0.0], dtype=torch.float64)
    old = torch.zeros(6, dtype=torch.float64)
    advantages = torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)

    def grad(pieces):
        logprobs = (old + 0.1).requires_grad_()
        for s in pieces:
            grpo_loss(logprobs[s], old[s], advantages[s], weights[s], **CLIP).loss.backward()
        return logprobs.grad

    whole, split = grad([slice(0, 6)]), grad([slice(0, 2), slice(2, 6)])
    torch.testing.assert_close(whole, split, rtol=1e-12, atol=0)


def test_untrained_nan_does_not_reach_loss_or_gradient():
    logprobs = torch.tensor([-1.0, float("nan")], requires_grad=True)
    advantages, weights = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
    out = grpo_loss(logprobs, torch.zeros(2), advantages, weights, **CLIP)
    out.loss.backward()
    assert out.loss.isfinite()
    assert logprobs.grad[1] == 0


@pytest.mark.parametrize("score", [0.0, 0.7, 1 / 3])
def test_a_uniform_group_has_no_signal_at_all(score):
    # exactly zero: rounding of the mean must not turn into a gradient
    assert grpo_advantages(torch.full((7,), score, dtype=torch.float64)).tolist() == [0.0] * 7


def test_advantages_are_centred_and_scaled_by_the_groups_own_deviation():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    # mean 1/4, variance 3/16 (divided by G)
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25]).double() / (3**0.5 / 4 + 1e-6)
    torch.testing.assert_close(grpo_advantages(rewards), expected)


def test_without_normalisation_advantages_are_only_centred():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert grpo_advantages(rewards, normalize_std=False).tolist() == [0.75, -0.25, -0.25, -0.25]
