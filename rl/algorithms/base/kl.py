"""Divergence from a frozen reference policy: three estimators of KL(pi || ref) from samples of pi.

    d  = logprobs - ref_logprobs
    K1 = d                 unbiased, varies in sign
    K2 = d^2 / 2           biased, low variance
    K3 = exp(-d) - 1 + d   unbiased, never negative

As estimates of the value they are interchangeable; as losses they are not (http://joschu.net/blog/kl-approx.html;
https://arxiv.org/abs/2506.09477). Their gradients, in expectation over tokens of pi itself, are:
    K1: grad log pi: zero. Minimising it does nothing but add noise.
    K2: d grad log pi: the gradient of KL(pi || ref), the reverse KL.
    K3: (1 - ref / pi) grad log pi: that of KL(ref || pi), the forward KL, at first order the same.
In the reward nothing is differentiated, and K1 gives KL(pi || ref) without a bias.
Departures: 1. in K3 -d is clamped at 20, where a float32 gradient would end the run: past it, none is left;
2. in later steps on a batch tokens are still those of the policy before the first, as in GRPO, and nothing corrects for it.
"""

import torch

from rl.algorithms.base.config import KLEstimator
from rl.algorithms.base.ops import MAX_LOG_RATIO
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Tokens

__all__ = ["adapted_coefficient", "k3_divergence", "kl_divergence", "kl_loss"]

_MAX_ERROR, _GAIN = 0.2, 0.1


def kl_divergence(
    logprobs_N: torch.Tensor, ref_logprobs_N: torch.Tensor, estimator: KLEstimator
) -> torch.Tensor:
    """Estimate the divergence of each token in nats: [N], with the gradient of `logprobs_N`."""
    difference_N = logprobs_N - ref_logprobs_N
    match estimator:
        case KLEstimator.k1:
            return difference_N
        case KLEstimator.k2:
            return difference_N.square() / 2
        case KLEstimator.k3:
            return k3_divergence(-difference_N)


def k3_divergence(log_ratio_N: torch.Tensor) -> torch.Tensor:
    """Compute K3 = r - 1 - log r of each log r: [N]."""
    # both terms: with one of them clamped the gradient would change its sign there
    log_ratio_N = log_ratio_N.clamp(max=MAX_LOG_RATIO)
    return log_ratio_N.expm1() - log_ratio_N


def kl_loss(tokens: Tokens, *, coefficient: float, estimator: KLEstimator) -> LossOutput:
    """Compute coefficient * sum_n w_n K(n), which is added to a policy's loss."""
    assert tokens.ref_logprobs_N is not None, "the trainer computes them where the loss needs them"
    # before the estimator: where it stands, a NaN of an untrained token still reaches the gradient
    logprobs_N = torch.where(tokens.loss_weights_N != 0, tokens.logprobs_N, tokens.ref_logprobs_N)
    kl_N = kl_divergence(logprobs_N, tokens.ref_logprobs_N, estimator)
    loss = coefficient * (kl_N * tokens.loss_weights_N).sum()
    return LossOutput(loss=loss, metrics={})


def adapted_coefficient(coefficient: float, *, divergence: float, target: float) -> float:
    """Adapt the coefficient after a step: up where the divergence is above `target`, down where it is below.

    A proportional controller in log space (https://arxiv.org/abs/1909.08593, section 2.2): at most 2 % a step.
    """
    error = min(max(divergence / target - 1, -_MAX_ERROR), _MAX_ERROR)
    return coefficient * (1 + _GAIN * error)
