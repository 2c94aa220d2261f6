"""Corrects for tokens that a slightly different policy sampled: a stale one, one in 8 bits, or another engine's.

    d = old_logprobs - rollout_logprobs            per token, detached; 0.0 in exact mode, and then every weight is 1
    token:    w = exp(d)                           sequence: w = exp(sum of d over the sample)
    truncate: min(w, max_weight)                   mask: w where min_weight <= w <= max_weight, else 0
    veto of a whole sample: |mean d| > max_mean_log_ratio (geometric mean), or mean (e^d - 1 - d) > max_sample_k3

The expectation is taken under the engine's distribution, the gradient wanted under the trainer's: truncated importance
sampling (https://fengyao.notion.site/off-policy-rl), masks and geometric vetoes as in verl's rollout correction. `token` is biased by
what earlier tokens did, `sequence` is unbiased until it truncates, with a variance that grows with length. Vetoed and masked tokens
weigh 0 and still count in the denominator: a batch with many of them makes a smaller step.
Everything is done on logarithms and clamped before exp. N = trained tokens of whole samples.
"""

import math
from dataclasses import dataclass

import torch

from rl.algorithms.base.config import CorrectionLevel, CorrectionMode
from rl.algorithms.base.kl import k3_divergence
from rl.algorithms.base.ops import sample_sums

__all__ = ["Corrector", "effective_fraction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrector:
    """Computes the importance weight of each token; a limit of 0 is off."""

    max_weight: float  # >= 1; 0: no weights, all tokens alike
    min_weight: float = 0.0  # read by `mask`
    level: CorrectionLevel = CorrectionLevel.token
    mode: CorrectionMode = CorrectionMode.truncate
    max_mean_log_ratio: float = 0.0
    max_sample_k3: float = 0.0

    def __call__(
        self,
        old_logprobs_N: torch.Tensor,
        rollout_logprobs_N: torch.Tensor,
        sample_ids_N: torch.Tensor,
    ) -> torch.Tensor:
        """Compute weights in [0, max_weight]: [N].

        Args:
            old_logprobs_N: [N], the trainer's policy at the start of the step, detached.
            rollout_logprobs_N: [N], of the distribution that was sampled from.
            sample_ids_N: [N] int64, in ascending order.
        """
        log_ratio_N = old_logprobs_N - rollout_logprobs_N
        if not len(log_ratio_N):
            return log_ratio_N
        _, ids_N = sample_ids_N.unique_consecutive(return_inverse=True)
        weights_N = self._weights(log_ratio_N, ids_N)
        return torch.where(self._is_vetoed(log_ratio_N, ids_N), 0.0, weights_N)

    def _weights(self, log_ratio_N: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
        if self.max_weight == 0:
            return torch.ones_like(log_ratio_N)
        if self.level is CorrectionLevel.sequence:
            log_ratio_N = sample_sums(log_ratio_N, ids_N)
        limit = math.log(self.max_weight)
        # clamped as a logarithm: exp would overflow first
        weights_N = log_ratio_N.clamp(max=limit).exp()
        if self.mode is CorrectionMode.truncate:
            return weights_N
        is_outside_N = (log_ratio_N > limit) | (weights_N < self.min_weight)
        return torch.where(is_outside_N, 0.0, weights_N)

    def _is_vetoed(self, log_ratio_N: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
        is_vetoed_N = torch.zeros_like(log_ratio_N, dtype=torch.bool)
        lengths_N = sample_sums(torch.ones_like(log_ratio_N), ids_N)
        if self.max_mean_log_ratio:
            means_N = sample_sums(log_ratio_N, ids_N) / lengths_N
            is_vetoed_N |= means_N.abs() > self.max_mean_log_ratio
        if self.max_sample_k3:
            k3_N = k3_divergence(log_ratio_N)
            is_vetoed_N |= sample_sums(k3_N, ids_N) / lengths_N > self.max_sample_k3
        return is_vetoed_N


def effective_fraction(weight_mean: float, squared_mean: float) -> float:
    """Compute the effective sample size over the number of tokens, (sum w)^2 / (N sum w^2): 1 where all weigh the same."""
    return weight_mean**2 / squared_mean if squared_mean else 0.0
