"""Metrics of a fleet, from totals and workers' reports, each for the time since it was last taken."""

from collections import Counter
from collections.abc import Mapping

from rollout.fleet.cluster.report import WorkerReport
from rollout.stats import SpeculationStats

__all__ = ["FleetMeter"]


class FleetMeter:
    """Remembers what it has told."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()
        self._reports: dict[str, WorkerReport] = {}
        self._speculation: SpeculationStats | None = None

    def add(self, report: WorkerReport) -> None:
        """Take what a report counts since the last one of its worker; each report once, overtaken ones too."""
        if report.speculation is not None:
            self._speculation = self._speculation or SpeculationStats()
            self._speculation.add(report.speculation)

    def take(
        self, totals: Mapping[str, int], reports: Mapping[str, WorkerReport]
    ) -> dict[str, float]:
        """Metrics since the last call.

        Args:
            totals: total of each metric since the fleet began.
            reports: the newest of every worker.
        """
        metrics = {name: float(total - self._totals[name]) for name, total in totals.items()}
        concurrency = sum(
            _requests_per_step(report, self._reports.get(worker_id))
            for worker_id, report in reports.items()
        )
        if concurrency:
            speeds = [report.tokens_per_second or 0.0 for report in reports.values()]
            metrics["rollout/concurrency"] = concurrency
            metrics["fleet/tokens_per_second"] = sum(speeds)
        if reports:
            busy = sum(_busy_seconds(r, self._reports.get(w)) for w, r in reports.items())
            metrics["fleet/busy_seconds"] = busy / len(reports)
        if self._speculation is not None:
            metrics |= self._speculation.metrics()
        self._totals, self._reports = Counter(totals), dict(reports)
        self._speculation = None
        return metrics


def _requests_per_step(report: WorkerReport, before: WorkerReport | None) -> float:
    """Mean of the engine steps since an earlier report."""
    num_steps = report.num_steps - (before.num_steps if before else 0)
    count = report.num_request_steps - (before.num_request_steps if before else 0)
    return count / num_steps if num_steps else 0.0


def _busy_seconds(report: WorkerReport, before: WorkerReport | None) -> float:
    return report.busy_seconds - (before.busy_seconds if before else 0.0)
