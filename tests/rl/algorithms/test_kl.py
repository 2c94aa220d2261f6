"""Values and gradients of the estimators: exactly, by summing over a distribution of three tokens."""

import pytest
import torch

from rl.algorithms.base.config import KLEstimator
from rl.algorithms.base.kl import adapted_coefficient, kl_divergence, kl_loss
from tests.rl.algorithms.batches import tokens

LOGITS = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64)
REF_LOGPROBS = torch.tensor([-0.2, 0.4, 0.1], dtype=torch.float64).log_softmax(0)


def expectation_gradient(estimator: KLEstimator) -> torch.Tensor:
    """Of E[K] with the sampling distribution held fixed: what a loss over samples has on average."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    kl = kl_divergence(logprobs, REF_LOGPROBS, estimator)
    (logprobs.exp().detach() * kl).sum().backward()
    assert logits.grad is not None
    return logits.grad


def exact_gradient(*, is_reverse: bool) -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    if is_reverse:
        divergence = (logprobs.exp() * (logprobs - REF_LOGPROBS)).sum()
    else:
        divergence = (REF_LOGPROBS.exp() * (REF_LOGPROBS - logprobs)).sum()
    divergence.backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("estimator", [KLEstimator.k1, KLEstimator.k3])
def test_k1_and_k3_are_unbiased(estimator):
    logprobs = LOGITS.log_softmax(0)
    truth = (logprobs.exp() * (logprobs - REF_LOGPROBS)).sum()
    got = (logprobs.exp() * kl_divergence(logprobs, REF_LOGPROBS, estimator)).sum()
    torch.testing.assert_close(got, truth, rtol=1e-12, atol=0)


def test_the_gradient_of_k1_is_zero_on_average():
    assert expectation_gradient(KLEstimator.k1).abs().max() < 1e-15


def test_the_gradient_of_k2_is_the_reverse_kls():
    got, truth = expectation_gradient(KLEstimator.k2), exact_gradient(is_reverse=True)
    torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-15)


def test_the_gradient_of_k3_is_the_forward_kls():
    got, truth = expectation_gradient(KLEstimator.k3), exact_gradient(is_reverse=False)
    torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-15)
    assert (got - exact_gradient(is_reverse=True)).abs().max() > 1e-3


def test_the_loss_weighs_tokens_and_leaves_untrained_ones_out():
    made = tokens([-1.0, float("nan")], [0.0, 0.0], [0.0, 0.0], [0.5, 0.0], ref=[-2.0, -1.0])
    out = kl_loss(made, coefficient=0.1, estimator=KLEstimator.k2)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(0.1 * 0.5 * 0.5)
    assert made.logprobs_N.grad.tolist() == pytest.approx([0.1 * 0.5 * 1.0, 0.0])


def test_k3_of_a_token_that_the_policy_has_all_but_forgotten_is_finite():
    logprobs = torch.tensor([-300.0], requires_grad=True)
    kl = kl_divergence(logprobs, torch.tensor([-1.0]), KLEstimator.k3)
    kl.sum().backward()
    assert kl.isfinite().all()
    assert logprobs.grad == 0, "finite, and not towards forgetting it altogether"


def test_the_coefficient_rises_above_the_target_falls_below_and_moves_by_two_percent_at_most():
    assert adapted_coefficient(1.0, divergence=9.0, target=0.1) == pytest.approx(1.02)
    assert adapted_coefficient(1.0, divergence=0.0, target=0.1) == pytest.approx(0.98)
    assert adapted_coefficient(1.0, divergence=0.11, target=0.1) == pytest.approx(1.01)
    assert adapted_coefficient(0.5, divergence=0.1, target=0.1) == 0.5
