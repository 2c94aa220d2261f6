"""A fleet of workers that come, go and fail.

`Dispatcher` knows where requests are, `Members` which workers there are, `WeightsInForce` which weights are live; `Supervisor`
decides which workers serve and which are replaced. The pool of workers and the clock are arguments, so that tests run the same
code over simulated workers on a virtual clock.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rollout.config import RayFleetConfig
from rollout.core import Completion, Request
from rollout.fleet.base import FleetStatus
from rollout.fleet.cluster.active_weights import WeightsInForce
from rollout.fleet.cluster.dispatcher import Dispatcher
from rollout.fleet.cluster.health import Watchdog
from rollout.fleet.cluster.members import Members, WorkerState
from rollout.fleet.cluster.metrics import FleetMeter
from rollout.fleet.cluster.pool import Event, Lost, PhaseEnded, Reported, WorkerPool
from rollout.fleet.cluster.report import WorkerReport
from rollout.fleet.cluster.supervisor import Supervisor
from rollout.weights.update import WeightUpdate

__all__ = ["WorkerFleet", "WorkerState"]

logger = logging.getLogger("paceline")

_TICK_SECONDS = 0.5  # between two looks at deadlines while nothing comes
_PATIENCE_SECONDS = 30.0
_MAX_UPDATE_ATTEMPTS = 3


class WorkerFleet:
    """The `Fleet` over a pool of workers.

    Args:
        pool: starts workers that load the weights of `policy_version`; closed with the fleet.
        config: number of workers, and time limits.
        policy_version: version of the weights that the first workers load.
        digest: digest of these weights.
        history_tokens: most tokens of past answers to keep, for the drafts of workers that join; 0 if drafts have no history.
        is_stopping: returns whether the whole job is ending, so that a lost worker is not replaced.
    """

    is_concurrent = True

    def __init__(
        self,
        pool: WorkerPool,
        config: RayFleetConfig,
        *,
        policy_version: int,
        digest: str,
        history_tokens: int = 0,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._pool = pool
        self._config = config
        self._weights = WeightsInForce(
            pool, version=policy_version, digest=digest, start_seconds=config.start_seconds
        )
        self._requests = Dispatcher(
            pool, lease_seconds=config.lease_seconds, history_tokens=history_tokens
        )
        self._members = Members(config)
        self._supervisor = Supervisor(
            pool,
            config,
            members=self._members,
            weights=self._weights,
            requests=self._requests,
            is_stopping=is_stopping,
        )
        self._meter = FleetMeter()
        self._watchdog = Watchdog(patience_seconds=_PATIENCE_SECONDS)
        self._time = 0.0  # as deadlines count it, see `_pump`
        self._attended_at = pool.now()
        self._num_answered = 0  # when the watchdog last looked

    def start(self) -> Self:
        """Starts the workers; returns when all of them serve.

        Raises:
            RuntimeError: a worker cannot be started, or holds other weights than the trainer.
        """
        for _ in range(self._config.num_workers):
            self.add_worker()
        while any(state is not WorkerState.SERVING for state in self.workers.values()):
            self._pump(_TICK_SECONDS)
            if self._supervisor.num_replaced:
                raise RuntimeError(f"the fleet could not be started: {self._supervisor.last_loss}")
        return self

    def close(self) -> None:
        self._pool.close()

    # --- what a fleet does

    def submit(self, requests: Sequence[Request]) -> None:
        self._requests.submit(requests)
        self._requests.route(self._time)

    def poll(self, timeout_seconds: float) -> list[Completion]:
        deadline = self._pool.now() + timeout_seconds
        self._pump(0.0)
        while self._requests.leases.running and not self._requests.has_completions:
            left = deadline - self._pool.now()
            if left <= 0:
                break
            self._pump(min(left, _TICK_SECONDS))
        return self._requests.take_completions()

    def cancel(self, request_ids: Sequence[str]) -> None:
        self._requests.cancel(request_ids, self._time)

    def update_weights(self, update: WeightUpdate) -> None:
        """Stages at all workers, verifies at all, commits at all; replaces a worker that fails while others do not.

        Raises:
            ValueError: the version is not newer.
            RuntimeError: no worker could take the weights; the old version stays live everywhere.
        """
        before = self._weights.version
        if update.version <= before:
            raise ValueError(
                f"a weight update must be newer than version {before}, got {update.version}"
            )
        for attempt in range(1, _MAX_UPDATE_ATTEMPTS + 1):
            is_last = attempt == _MAX_UPDATE_ATTEMPTS
            ready = self._ready_workers()
            attempted = self._weights.begin(update, ready, self._time, is_last_attempt=is_last)
            while self._weights.is_changing:
                self._pump(_TICK_SECONDS)
            if attempted.committed:
                return
            outcome = (
                f"no worker took the weights of version {update.version}, and version {before} stays live: "
                + "; ".join(f"{worker}: {why}" for worker, why in attempted.failures.items())
            )
            if is_last:
                raise RuntimeError(outcome)
            logger.warning("%s (attempt %d of %d)", outcome, attempt, _MAX_UPDATE_ATTEMPTS)

    def status(self) -> FleetStatus:
        book = self._requests.leases
        return FleetStatus(
            issued=book.issued,
            running=book.running,
            finished=book.finished,
            rejected=book.rejected,
            cancelled=book.cancelled,
            policy_version=self._weights.version,
        )

    def take_metrics(self) -> dict[str, float]:
        book = self._requests.leases
        totals = {
            "fleet/reissued_leases": book.num_reissued,
            "fleet/discarded_completions": book.num_discarded,
            "fleet/replaced_workers": self._supervisor.num_replaced,
        }
        metrics = self._meter.take(totals, self._members.reports)
        metrics["fleet/num_workers"] = float(len(self._requests.router.worker_ids))
        return metrics | self._weights.take_phase_seconds()

    def state_dict(self) -> dict[str, Any]:
        return {
            "lengths": self._requests.lengths.state_dict(),
            "speculation": self._supervisor.speculation_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        if "lengths" in saved:
            self._requests.lengths.load_state_dict(saved["lengths"])
        self._supervisor.load_speculation_state(saved.get("speculation", {}))

    # --- workers

    @property
    def workers(self) -> dict[str, WorkerState]:
        """State of each worker, in the order in which they were started."""
        return self._members.states

    def requests_of(self, worker_id: str) -> set[str]:
        """Returns the ids of the requests that a worker has under lease."""
        leases = self._requests.leases.of_worker(worker_id)
        return {lease.request.request_id for lease in leases}

    def add_worker(self) -> str:
        """Starts one more worker, which serves once it holds the current version; returns its id."""
        return self._supervisor.add(self._time)

    def remove_worker(self, worker_id: str) -> None:
        """Gives a worker no more requests, and ends it when it has answered those it has."""
        self._members.enter(worker_id, WorkerState.LEAVING, self._time)
        self._requests.router.remove_worker(worker_id)

    def _ready_workers(self) -> list[str]:
        """Returns the workers that can take an update. Waits until there is one, and until joining workers have their weights."""
        while True:
            ready = [w for w, state in self.workers.items() if state is not WorkerState.STARTING]
            if ready and not self._weights.is_changing:
                return ready
            self._pump(_TICK_SECONDS)

    # --- time

    def _pump(self, timeout_seconds: float) -> None:
        """Handles events of workers, waiting for them up to the time limit, then does what is due."""
        # events wait while nobody polls: this time does not count against workers
        self._time += min(self._pool.now() - self._attended_at, _TICK_SECONDS)
        start = self._pool.now()
        events = self._pool.wait(timeout_seconds)
        self._attended_at = self._pool.now()
        self._time += self._attended_at - start
        for event in events:
            if event.worker_id in self._members:
                self._handle(event)
        now = self._time
        for worker_id, reason in self._members.silent(now):
            self._supervisor.drop(worker_id, reason, now)
        self._requests.lease_again(now)
        self._supervisor.advance_update(now)
        if not self._weights.is_changing:
            self._supervisor.admit_joiners(now)
        for worker_id in self._members.having(WorkerState.LEAVING):
            if not self._requests.leases.of_worker(worker_id):
                self._supervisor.drop(worker_id, "it left", now)
        self._requests.route(now)
        self._requests.leases.check()
        self._watch(now)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Lost):
            self._supervisor.drop(event.worker_id, event.reason, self._time)
            return
        self._note(event.worker_id, event.report)
        if isinstance(event, Reported):
            for completion in event.completions:
                self._requests.take(completion)
        elif isinstance(event, PhaseEnded):
            self._weights.answer(event)

    def _note(self, worker_id: str, report: WorkerReport) -> None:
        self._meter.add(report)
        if self._members.heard(worker_id, report, self._time):
            self._requests.router.measured(
                worker_id,
                tokens_per_second=report.tokens_per_second,
                num_sampled=report.num_sampled,
            )

    def _watch(self, now: float) -> None:
        num_answered, self._num_answered = self._num_answered, self._requests.num_answered
        is_waiting = self._requests.leases.running or self._weights.is_changing
        if not is_waiting or num_answered != self._num_answered:
            self._watchdog.moved(now)
            return
        line = self._watchdog.line(now, list(self._awaited(now)))
        if line is not None:
            logger.warning("%s", line)

    def _awaited(self, now: float) -> Iterator[str]:
        """Describes each worker, and what else is waited for."""
        for worker_id, what in self._members.describe(now):
            count = len(self._requests.leases.of_worker(worker_id))
            yield f"{worker_id} has {count} requests, {what}"
        if self._requests.router.num_waiting:
            yield f"{self._requests.router.num_waiting} requests wait for room"
        if self._weights.is_changing:
            yield self._weights.describe(now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
