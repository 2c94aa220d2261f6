"""The typed result of one step; names of metrics appear only in `metrics`."""

from collections.abc import Mapping
from dataclasses import dataclass

from rl.trainer.metrics.rollouts import RolloutSummary
from rl.trainer.metrics.staleness import Staleness
from rl.trainer.metrics.training import LearningResult

__all__ = ["FleetRates", "StepResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRates:
    """Rates that the fleet measured while its engines stepped; None where none did."""

    concurrency: float | None
    """Requests per engine step, the mean."""
    tokens_per_second: float | None

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> "FleetRates":
        """Take the values from the result of `Fleet.take_metrics`."""
        return cls(
            concurrency=metrics.get("rollout/concurrency"),
            tokens_per_second=metrics.get("fleet/tokens_per_second"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Results of one step."""

    rollouts: RolloutSummary
    num_dropped_groups: int
    """Groups that dynamic sampling replaced."""
    tokens_per_second: float | None
    """Speed of the rollouts; None where they were not decoded."""
    learning: LearningResult | None = None
    """None where nothing is trained."""
    staleness: Staleness | None = None
    predicted_staleness: float | None = None

    def metrics(self) -> dict[str, float]:
        """Return all values by metric name."""
        metrics = self.rollouts.metrics()
        metrics["rollout/num_dropped_groups"] = self.num_dropped_groups
        if self.tokens_per_second is not None:
            metrics["rollout/tokens_per_second"] = self.tokens_per_second
        if self.learning is not None:
            metrics |= self.learning.metrics()
        if self.staleness is not None:
            metrics |= self.staleness.metrics()
        if self.predicted_staleness is not None:
            metrics["staleness/predicted"] = self.predicted_staleness
        return metrics
