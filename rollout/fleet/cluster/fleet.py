"""A fleet of workers that come, go and fail: who serves, is replaced, or is brought to which weights.

Where requests are is `Dispatcher`'s, who belongs `Members`', which weights are in force `WeightsInForce`'s. Nothing here knows
where workers run or what time it is: a `WorkerPool` does. So the same code runs over Ray, and in tests over simulated
workers on a clock of their own.
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
from rollout.fleet.cluster.pool import Answered, Event, Lost, Reported, WorkerPool
from rollout.fleet.cluster.report import WorkerReport
from rollout.speculation.drafters.suffix import SuffixDrafter
from rollout.weights.update import WeightUpdate

__all__ = ["WorkerFleet", "WorkerState"]

logger = logging.getLogger("paceline")

_TICK_SECONDS = 0.5  # between two looks at deadlines while nothing comes
_PATIENCE_SECONDS = 30.0
_MAX_UPDATE_ATTEMPTS = 3


class WorkerFleet:
    """The `Fleet` over a pool of workers.

    Args:
        pool: of workers that load the weights of `policy_version`; closed with the fleet.
        config: how many, and for how long they are waited for.
        policy_version: of the first workers' weights.
        digest: of those weights.
        history_tokens: of past answers, at most, for the drafts of workers that join or begin anew; 0 where drafts have no
            history.
        is_stopping: asked before a lost worker is replaced: whether its loss is part of the end of the whole job.
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
        self._is_stopping = is_stopping
        self._config = config
        self._weights = WeightsInForce(
            pool, version=policy_version, digest=digest, start_seconds=config.start_seconds
        )
        self._requests = Dispatcher(
            pool, lease_seconds=config.lease_seconds, history_tokens=history_tokens
        )
        self._members = Members(config)
        self._meter = FleetMeter()
        self._watchdog = Watchdog(patience_seconds=_PATIENCE_SECONDS)
        self._time = 0.0  # as deadlines count it, see `_pump`
        self._attended_at = pool.now()
        self._num_replaced = 0
        self._num_answered = 0  # when the watchdog last looked
        self._last_loss = ""

    def start(self) -> Self:
        """Start the workers; returns when all of them serve.

        Raises:
            RuntimeError: one cannot be started, or holds other weights than the trainer; with the reason.
        """
        for _ in range(self._config.num_workers):
            self.add_worker()
        while any(state is not WorkerState.SERVING for state in self.workers.values()):
            self._pump(_TICK_SECONDS)
            if self._num_replaced:
                raise RuntimeError(f"the fleet could not be started: {self._last_loss}")
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
        """Stage at all workers, verify at all, commit at all; a worker that fails alone is replaced.

        Raises:
            ValueError: no newer version.
            RuntimeError: no worker could take it; the old version stays in force everywhere.
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
                f"no worker took the weights of version {update.version}, and version {before} stays in force: "
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
            "fleet/replaced_workers": self._num_replaced,
        }
        metrics = self._meter.take(totals, self._members.reports)
        metrics["fleet/num_workers"] = float(len(self._requests.router.worker_ids))
        return metrics | self._weights.take_phase_seconds()

    def state_dict(self) -> dict[str, Any]:
        return {
            "lengths": self._requests.lengths.state_dict(),
            "speculation": self._speculation_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        if "lengths" in saved:
            self._requests.lengths.load_state_dict(saved["lengths"])
        history = saved.get("speculation", {}).get(SuffixDrafter.__name__)
        if history is not None:
            self._requests.history.load_state_dict(history)
            for worker_id in self._requests.router.worker_ids:
                self._restore(worker_id)

    def _speculation_state(self) -> dict[str, Any]:
        """As an engine's own `Speculator` would have it: all workers' answers are in one history, whoever gave them."""
        return {SuffixDrafter.__name__: self._requests.history.state_dict()}

    def _restore(self, worker_id: str) -> None:
        if self._requests.history.num_tokens:
            self._pool.restore(worker_id, self._speculation_state())

    # --- workers

    @property
    def workers(self) -> dict[str, WorkerState]:
        return self._members.states

    def requests_of(self, worker_id: str) -> set[str]:
        """Ids of those that it works on, by its leases."""
        leases = self._requests.leases.of_worker(worker_id)
        return {lease.request.request_id for lease in leases}

    def add_worker(self) -> str:
        """Start one more; it serves when it holds the current version."""
        worker_id = self._members.add(self._time)
        self._pool.start(worker_id)
        return worker_id

    def remove_worker(self, worker_id: str) -> None:
        """Give a worker nothing more, and end it when it has answered what it has."""
        self._members.enter(worker_id, WorkerState.LEAVING, self._time)
        self._requests.router.remove_worker(worker_id)

    def _ready_workers(self) -> list[str]:
        """Those that can take an update; waits until there is one, and for those that are joining at the old version."""
        while True:
            ready = [w for w, state in self.workers.items() if state is not WorkerState.STARTING]
            if ready and not self._weights.is_changing:
                return ready
            self._pump(_TICK_SECONDS)

    def _drop(self, worker_id: str, reason: str) -> None:
        """Do without a worker: others get its requests, and unless it was leaving another one takes its place."""
        state = self._members.remove(worker_id)
        self._pool.stop(worker_id)
        self._weights.lose(worker_id, reason)
        num_requests = self._requests.lose(worker_id)
        if state is WorkerState.LEAVING:
            return
        self._last_loss = f"{worker_id} is gone: {reason}"
        if self._is_stopping():
            raise RuntimeError(f"{self._last_loss}; it is not replaced, since the run stops")
        logger.warning("%s; its %d requests go to others", self._last_loss, num_requests)
        self._num_replaced += 1
        if self._num_replaced > self._config.max_replacements:
            raise RuntimeError(
                f"{self._num_replaced} workers were lost, more than fleet.max_replacements="
                f"{self._config.max_replacements} allows; the last one: {self._last_loss}"
            )
        self.add_worker()

    def _admit_joiners(self) -> None:
        """Let workers serve that hold the current version, and begin to bring others to it."""
        behind = []
        for worker_id in self._members.having(WorkerState.JOINING):
            report = self._members.reports[worker_id]
            if report.policy_version < self._weights.version:
                behind.append(worker_id)
            elif self._weights.are_held(report):
                self._members.enter(worker_id, WorkerState.SERVING, self._time)
                self._requests.router.add_worker(worker_id, report.capacity)
                self._restore(worker_id)
            else:
                self._drop(
                    worker_id,
                    f"its weights of version {report.policy_version} ({report.digest}) are not the trainer's of "
                    f"version {self._weights.version} ({self._weights.digest})",
                )
        if behind:
            self._weights.begin_join(behind, self._time)

    def _advance_update(self) -> None:
        before = self._weights.version
        for worker_id, reason in self._weights.late(self._time):
            self._drop(worker_id, reason)
        done = self._weights.advance(self._time)
        if done is None:
            return
        if self._weights.version > before:
            self._requests.router.forget_prefixes()
        if done.committed or (done.version == before and not done.has_lost):
            for worker_id in done.failures:
                if worker_id in self._members:
                    self._drop(worker_id, done.failures[worker_id])

    # --- time

    def _pump(self, timeout_seconds: float) -> None:
        """Take what workers say, wait for it if need be, and do what is due."""
        # while nobody asks, answers wait here to be taken: such time is not held against workers
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
            self._drop(worker_id, reason)
        self._requests.lease_again(now)
        self._advance_update()
        if not self._weights.is_changing:
            self._admit_joiners()
        for worker_id in self._members.having(WorkerState.LEAVING):
            if not self._requests.leases.of_worker(worker_id):
                self._drop(worker_id, "it left")
        self._requests.route(now)
        self._requests.leases.check()
        self._watch(now)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Lost):
            self._drop(event.worker_id, event.reason)
            return
        self._note(event.worker_id, event.report)
        if isinstance(event, Reported):
            for completion in event.completions:
                self._requests.take(completion)
        elif isinstance(event, Answered):
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
        """Who is waited for."""
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
