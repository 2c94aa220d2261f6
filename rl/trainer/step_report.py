"""Report of each step to the tracker."""

from collections.abc import Callable, Sequence

from rl.config import TrainConfig
from rl.tracking.tracker import Tracker
from rl.trainer.collect.batches import CollectedBatch
from rl.trainer.metrics.memory import memory_metrics
from rl.trainer.metrics.overprovision import overprovision_metrics
from rl.trainer.metrics.rollouts import RolloutSummary, sample_rows
from rl.trainer.metrics.staleness import Pipeline, Staleness
from rl.trainer.metrics.step import FleetRates, StepResult
from rl.trainer.metrics.stopwatch import Stopwatch
from rl.trainer.metrics.training import LearningResult
from rollout.fleet.base import Fleet

__all__ = ["StepReport"]


class StepReport:
    """Reporter of steps, one after another.

    Args:
        config: config of the run.
        fleet: fleet with the metrics of its engines since the last step.
        tracker: tracker that receives metrics and sample rollouts.
        render: function that turns a prompt's tokens into the text that the model sees.
        decodes: whether the fleet generates the tokens that are trained.
    """

    def __init__(
        self,
        config: TrainConfig,
        fleet: Fleet,
        tracker: Tracker,
        *,
        render: Callable[[Sequence[int]], str],
        decodes: bool,
    ) -> None:
        self._render = render
        self._max_staleness = config.max_staleness
        self._fleet = fleet
        self._tracker = tracker
        self._decodes = decodes

    def __call__(
        self,
        batch: CollectedBatch,
        learning: LearningResult | None,
        stopwatch: Stopwatch,
        *,
        version: int,
    ) -> None:
        """Report one step.

        Args:
            batch: batch of the step.
            learning: result of the training; None if nothing is trained.
            stopwatch: times of the step.
            version: policy version after the step.
        """
        fleet_metrics = self._fleet.take_metrics()
        rates = FleetRates.of(fleet_metrics)
        rollouts = RolloutSummary.of(batch.groups)
        staleness = predicted = None
        if learning is not None and self._max_staleness:
            staleness = Staleness.of(batch.trained, version - 1)
        if staleness is not None:
            predicted = self._predicted_staleness(batch, rates, stopwatch)
        result = StepResult(
            rollouts=rollouts,
            num_dropped_groups=len(batch.groups) - len(batch.trained),
            tokens_per_second=self._speed(rollouts, rates, stopwatch),
            learning=learning,
            staleness=staleness,
            predicted_staleness=predicted,
        )
        metrics = result.metrics() | overprovision_metrics(batch.groups)
        metrics |= fleet_metrics | stopwatch.metrics() | memory_metrics()
        header = {"step": version, "policy_version": version}
        rows = [
            {**row, "rendered_prompt": self._render(group.rollouts[0].prompt_ids)}
            for group, row in zip(
                batch.groups, sample_rows(batch.groups, step=version), strict=True
            )
        ]
        self._tracker.step({**header, **metrics}, rows)

    def _speed(
        self, rollouts: RolloutSummary, rates: FleetRates, stopwatch: Stopwatch
    ) -> float | None:
        """Return the generated tokens per second; None if none were generated, or no time was measured."""
        if self._max_staleness:
            # the time that the step waited is not the time in which its tokens were generated
            return rates.tokens_per_second
        if not self._decodes:
            return None
        return rollouts.num_tokens / max(_waited(stopwatch), 1e-9)

    def _predicted_staleness(
        self, batch: CollectedBatch, rates: FleetRates, stopwatch: Stopwatch
    ) -> float | None:
        """Return the staleness that follows from the measured rates; None if the fleet has generated nothing since
        the last step."""
        if rates.concurrency is None:
            return None
        is_concurrent = self._fleet.is_concurrent
        pipeline = Pipeline.measure(
            batch.trained,
            concurrency=rates.concurrency,
            speed_ratio=1 - _waited(stopwatch) / stopwatch.total_seconds if is_concurrent else 0.0,
            num_waiting=batch.num_waiting,
        )
        return pipeline.staleness(max_staleness=self._max_staleness)


def _waited(stopwatch: Stopwatch) -> float:
    """Return the time that the step waited for rollouts or scores, in seconds."""
    return stopwatch.seconds("rollout") + stopwatch.seconds("score_wait")
