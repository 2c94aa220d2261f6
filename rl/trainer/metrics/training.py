"""The typed result of training on one batch; names of metrics appear only in `metrics`."""

from dataclasses import dataclass

from rl.algorithms.base.correction import effective_fraction
from rl.trainer.metrics.sums import LossSums, MismatchSums

__all__ = ["CriticResult", "LearningResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticResult:
    """Result of the critic's steps on a batch."""

    grad_norm: float
    """Mean over the steps."""
    explained_variance: float
    """Explained variance of the returns by the values before the first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningResult:
    """Result of all steps on one batch."""

    sums: LossSums
    denominator: float
    """Sum of what the steps' losses were divided by."""
    grad_norm: float
    """Mean over the steps; NaN where one was skipped."""
    learning_rate: float
    has_engine_logprobs: bool = True
    """False where no engine sampled the tokens, so there is nothing to compare the trainer with."""
    tracks_freshness: bool = False
    """Whether fresh and stale tokens are told apart."""
    critic: CriticResult | None = None
    kl_coefficient: float | None = None
    """Coefficient of the penalty in these steps; None where there is no penalty."""

    @property
    def mismatch_k3(self) -> float | None:
        """K3 per fresh token; None where nothing can be compared."""
        return self.sums.mismatch.mean_k3 if self.has_engine_logprobs else None

    def metrics(self) -> dict[str, float]:
        """Name everything for the tracker.

        Losses are divided by `denominator`, as their gradients are; other sums are means over the tokens that were forwarded,
        and are absent where there are none. `training/num_tokens` counts those: samples without signal are not forwarded.
        """
        sums = self.sums
        metrics = {}
        if sums.num_tokens:
            metrics |= {name: value / self.denominator for name, value in sums.losses.items()}
            metrics |= {name: value / sums.num_tokens for name, value in sums.tokens.items()}
            metrics |= self._freshness()
            if self.has_engine_logprobs:
                metrics |= _mismatch(sums.mismatch, sums.num_tokens)
        metrics |= {
            "training/num_tokens": sums.num_tokens,
            "optimizer/grad_norm": self.grad_norm,
            "optimizer/learning_rate": self.learning_rate,
            "seconds/backward": sums.backward_seconds,  # part of seconds/forward_backward
        }
        if self.critic is not None:
            metrics["optimizer/critic_grad_norm"] = self.critic.grad_norm
            metrics["value/explained_variance"] = self.critic.explained_variance
        if self.kl_coefficient is not None:
            metrics["kl/coef"] = self.kl_coefficient
        return metrics

    def _freshness(self) -> dict[str, float]:
        if not self.tracks_freshness:
            return {}
        mismatch = self.sums.mismatch
        metrics = {"staleness/fresh_fraction": mismatch.num_fresh / self.sums.num_tokens}
        if mismatch.num_stale:
            metrics["staleness/k3"] = mismatch.stale_k3 / mismatch.num_stale
        return metrics


def _mismatch(sums: MismatchSums, num_tokens: int) -> dict[str, float]:
    weight = sums.weight / num_tokens
    metrics = {
        "mismatch/importance_weight_mean": weight,
        "mismatch/left_out_fraction": sums.num_left_out / num_tokens,
        "mismatch/effective_sample_fraction": effective_fraction(
            weight, sums.squared_weight / num_tokens
        ),
    }
    if sums.num_fresh:
        metrics |= {
            "mismatch/k3": sums.k3 / sums.num_fresh,
            "mismatch/logprob_difference_mean": sums.difference / sums.num_fresh,
            "mismatch/logprob_difference_max": sums.max_difference,
        }
    return metrics
