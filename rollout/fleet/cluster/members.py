"""Workers of a fleet, their states and their last reports. Plain Python; time is passed in.

STARTING ──loaded──> JOINING ──at the current version, by digest──> SERVING ──> LEAVING ──idle──> gone
     └────────────────────┴──── lost, silent, or wrong: replaced ──────┴───────────┘ (not replaced)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from rollout.config import RayFleetConfig
from rollout.fleet.cluster.health import Health
from rollout.fleet.cluster.report import WorkerReport

__all__ = ["Members", "WorkerState"]


class WorkerState(Enum):
    STARTING = "starting"
    JOINING = "joining"
    SERVING = "serving"
    LEAVING = "leaving"


@dataclass(slots=True)
class _Member:
    state: WorkerState
    since: float
    report: WorkerReport | None = None


class Members:
    """Books of the workers; what follows from a state is the fleet's business.

    Args:
        config: for how long they are waited for.
    """

    def __init__(self, config: RayFleetConfig) -> None:
        self._config = config
        self._members: dict[str, _Member] = {}
        self._health = Health()
        self._num_started = 0

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._members

    @property
    def states(self) -> dict[str, WorkerState]:
        """State of each worker, in the order in which they were started."""
        return {worker_id: member.state for worker_id, member in self._members.items()}

    @property
    def reports(self) -> dict[str, WorkerReport]:
        """Last report of each worker that has reported."""
        return {w: m.report for w, m in self._members.items() if m.report is not None}

    def having(self, *states: WorkerState) -> list[str]:
        return [worker_id for worker_id, state in self.states.items() if state in states]

    def add(self, now: float) -> str:
        """Adds a worker that starts; returns its new name."""
        worker_id = f"worker-{self._num_started}"
        self._num_started += 1
        self._members[worker_id] = _Member(WorkerState.STARTING, since=now)
        self._health.watch(worker_id, now, limit_seconds=self._config.start_seconds)
        return worker_id

    def enter(self, worker_id: str, state: WorkerState, now: float) -> None:
        member = self._members[worker_id]
        member.state, member.since = state, now

    def remove(self, worker_id: str) -> WorkerState:
        """Forget a worker; returns the state that it was in."""
        self._health.forget(worker_id)
        return self._members.pop(worker_id).state

    def heard(self, worker_id: str, report: WorkerReport, now: float) -> bool:
        """Record a report; returns False if a newer one came first. The first report moves a worker from STARTING to JOINING."""
        member = self._members[worker_id]
        if member.report is not None and report.num_turns < member.report.num_turns:
            return False
        member.report = report
        if member.state is WorkerState.STARTING:
            self.enter(worker_id, WorkerState.JOINING, now)
            self._health.watch(worker_id, now, limit_seconds=self._config.silence_seconds)
        self._health.heard(worker_id, report.num_turns, now)
        return True

    def silent(self, now: float) -> list[tuple[str, str]]:
        """Workers that gave no sign of life for too long, and how to say so."""
        return [
            (worker_id, self._silence(worker_id, now)) for worker_id in self._health.silent(now)
        ]

    def describe(self, now: float) -> Iterator[tuple[str, str]]:
        """Describes each worker: its state, the time in that state, and the time since its last report."""
        for worker_id, member in self._members.items():
            silence = self._health.seconds_silent(worker_id, now)
            yield (
                worker_id,
                f"is {member.state.value} since {now - member.since:.0f} s and was heard of {silence:.0f} s ago",
            )

    def _silence(self, worker_id: str, now: float) -> str:
        seconds = self._health.seconds_silent(worker_id, now)
        return (
            f"{self._members[worker_id].state.value}, it gave no sign of life for {seconds:.0f} s"
        )
