"""The penalty for diverging from the reference: its part in the rewards or the loss, and its coefficient."""

from dataclasses import replace

import torch

from rl.algorithms.base.algorithm import LossFunction
from rl.algorithms.base.config import AlgorithmConfig, KLPlacement
from rl.algorithms.base.kl import adapted_coefficient, kl_divergence, kl_loss
from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Tokens
from rl.trainer.metrics.sums import LossSums

__all__ = ["KLPenalty"]

_DIVERGENCE = "kl/reference"


class KLPenalty:
    """Penalty of a run with `kl_coef` > 0. `coefficient` is part of the checkpoint."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self._estimator = config.kl_estimator
        self._target = config.kl_target
        self.is_in_loss = config.kl_placement is KLPlacement.loss
        self.coefficient = config.kl_coef

    def rewards(self, old_logprobs_N: torch.Tensor, ref_logprobs_N: torch.Tensor) -> torch.Tensor:
        """Compute the reward of each token from a penalty that is not in the loss: [N] in float64."""
        kl_N = kl_divergence(old_logprobs_N.double(), ref_logprobs_N.double(), self._estimator)
        return -self.coefficient * kl_N

    def added_to(self, loss_function: LossFunction) -> LossFunction:
        """Return the loss with the penalty, if it is part of the loss, and with the divergence among its metrics."""

        def loss_with_penalty(tokens: Tokens) -> LossOutput:
            output = loss_function(tokens)
            assert tokens.ref_logprobs_N is not None, "a run with a penalty has a reference"
            with torch.no_grad():
                kl_N = kl_divergence(tokens.logprobs_N, tokens.ref_logprobs_N, self._estimator)
            output = replace(output, metrics={**output.metrics, _DIVERGENCE: kl_N.sum()})
            if not self.is_in_loss:
                return output
            penalty = kl_loss(tokens, coefficient=self.coefficient, estimator=self._estimator)
            return replace(output, loss=output.loss + penalty.loss)

        return loss_with_penalty

    def divergence(self, sums: LossSums) -> float | None:
        """Mean divergence per token that the loss reported; None where no token was forwarded."""
        total = sums.tokens.get(_DIVERGENCE)
        return total / sums.num_tokens if total is not None else None

    def adapt(self, divergence: float) -> None:
        """Move the coefficient towards `kl_target` after a step; without a target it stays."""
        if self._target:
            self.coefficient = adapted_coefficient(
                self.coefficient, divergence=divergence, target=self._target
            )
