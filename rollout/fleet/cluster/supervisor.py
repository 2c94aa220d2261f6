"""Decides which workers of a fleet serve, are replaced, or are brought to other weights. Time is passed in."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from rollout.config import RayFleetConfig
from rollout.fleet.cluster.active_weights import WeightsInForce
from rollout.fleet.cluster.dispatcher import Dispatcher
from rollout.fleet.cluster.members import Members, WorkerState
from rollout.fleet.cluster.pool import WorkerPool
from rollout.speculation.drafters.suffix import SuffixDrafter

__all__ = ["Supervisor"]

logger = logging.getLogger("paceline")


class Supervisor:
    """Starts, admits, drops and replaces workers.

    Args:
        pool: starts and ends workers.
        config: `max_replacements` is read.
        members: states of the workers.
        weights: live weights of the fleet.
        requests: requests and their leases.
        is_stopping: returns whether the whole job is ending, so that a lost worker is not replaced.
    """

    def __init__(
        self,
        pool: WorkerPool,
        config: RayFleetConfig,
        *,
        members: Members,
        weights: WeightsInForce,
        requests: Dispatcher,
        is_stopping: Callable[[], bool],
    ) -> None:
        self.num_replaced = 0
        self.last_loss = ""
        """Why the last worker was lost."""
        self._pool = pool
        self._config = config
        self._members = members
        self._weights = weights
        self._requests = requests
        self._is_stopping = is_stopping

    def add(self, now: float) -> str:
        """Starts one more worker; returns its id."""
        worker_id = self._members.add(now)
        self._pool.start(worker_id)
        return worker_id

    def drop(self, worker_id: str, reason: str, now: float) -> None:
        """Ends a worker: others get its requests, and another one takes its place unless it was leaving.

        Raises:
            RuntimeError: more workers were lost than may be replaced, or the run is stopping.
        """
        state = self._members.remove(worker_id)
        self._pool.stop(worker_id)
        self._weights.lose(worker_id, reason)
        num_requests = self._requests.lose(worker_id)
        if state is WorkerState.LEAVING:
            return
        self.last_loss = f"{worker_id} is gone: {reason}"
        if self._is_stopping():
            raise RuntimeError(f"{self.last_loss}; it is not replaced, since the run stops")
        logger.warning("%s; its %d requests go to others", self.last_loss, num_requests)
        self.num_replaced += 1
        if self.num_replaced > self._config.max_replacements:
            raise RuntimeError(
                f"{self.num_replaced} workers were lost, more than fleet.max_replacements="
                f"{self._config.max_replacements} allows; the last one: {self.last_loss}"
            )
        self.add(now)

    def admit_joiners(self, now: float) -> None:
        """Lets joining workers serve that hold the current version, and begins to bring the others to it."""
        behind = []
        for worker_id in self._members.having(WorkerState.JOINING):
            report = self._members.reports[worker_id]
            if report.policy_version < self._weights.version:
                behind.append(worker_id)
            elif self._weights.are_held(report):
                self._members.enter(worker_id, WorkerState.SERVING, now)
                self._requests.router.add_worker(worker_id, report.capacity)
                self.restore(worker_id)
            else:
                reason = (
                    f"its weights of version {report.policy_version} ({report.digest}) are not the trainer's of "
                    f"version {self._weights.version} ({self._weights.digest})"
                )
                self.drop(worker_id, reason, now)
        if behind:
            self._weights.begin_join(behind, now)

    def advance_update(self, now: float) -> None:
        """Takes the update under way further; drops workers that are late or that failed while others did not."""
        before = self._weights.version
        for worker_id, reason in self._weights.late(now):
            self.drop(worker_id, reason, now)
        done = self._weights.advance(now)
        if done is None:
            return
        if self._weights.version > before:
            self._requests.router.forget_prefixes()
        if done.committed or (done.version == before and not done.has_lost):
            for worker_id in done.failures:
                if worker_id in self._members:
                    self.drop(worker_id, done.failures[worker_id], now)

    def restore(self, worker_id: str) -> None:
        """Gives a worker the history of all answers, for its drafts."""
        if self._requests.history.num_tokens:
            self._pool.restore(worker_id, self.speculation_state())

    def speculation_state(self) -> dict[str, Any]:
        """Returns the history of all workers' answers, as `Speculator.state_dict` of one engine would."""
        return {SuffixDrafter.__name__: self._requests.history.state_dict()}

    def load_speculation_state(self, saved: Mapping[str, Any]) -> None:
        """Takes over a history, and gives it to all workers that serve."""
        history = saved.get(SuffixDrafter.__name__)
        if history is not None:
            self._requests.history.load_state_dict(history)
            for worker_id in self._requests.router.worker_ids:
                self.restore(worker_id)
