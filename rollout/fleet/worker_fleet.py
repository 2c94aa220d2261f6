"""A fleet of workers that come, go and fail: who lives, and which weights they hold. Where requests are is `Dispatcher`'s.

Nothing here knows where workers run or what time it is: a `WorkerPool` does. So the same code runs over Ray, and in tests
over simulated workers on a clock of their own.

    STARTING ──loaded──> JOINING ──at the current version, by digest──> SERVING ──> LEAVING ──idle──> gone
         └────────────────────┴──── lost, silent, or wrong: replaced ──────┴───────────┘ (not replaced)
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Self

from rollout.config import FleetConfig
from rollout.engine.core import Completion, Request
from rollout.fleet.dispatcher import Dispatcher
from rollout.fleet.fleet import FleetStatus
from rollout.fleet.health import Health, Watchdog
from rollout.fleet.pool import Answered, Event, Lost, Reported, WorkerPool
from rollout.fleet.update_round import Phase, UpdateRound
from rollout.fleet.worker import WorkerReport
from rollout.speculation.stats import SpeculationStats
from rollout.weights.update import WeightUpdate

__all__ = ["WorkerFleet", "WorkerState"]

logger = logging.getLogger("paceline")

_TICK_SECONDS = 0.5  # between two looks at deadlines while nothing comes
_PATIENCE_SECONDS = 30.0
_MAX_UPDATE_ATTEMPTS = 3
_SLOWEST_BYTES_PER_SECOND = 50e6


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


class WorkerFleet:
    """The `Fleet` over a pool of workers.

    Args:
        pool: of workers that load the weights of `policy_version`; closed with the fleet.
        config: how many, and for how long they are waited for.
        policy_version: of the first workers' weights.
        digest: of those weights.
    """

    is_concurrent = True

    def __init__(
        self, pool: WorkerPool, config: FleetConfig, *, policy_version: int, digest: str
    ) -> None:
        self._pool = pool
        self._config = config
        self._version = policy_version
        self._digest = digest
        self._current: WeightUpdate | None = None  # None: what workers load themselves
        self._requests = Dispatcher(pool, lease_seconds=config.lease_seconds)
        self._health = Health()
        self._watchdog = Watchdog(patience_seconds=_PATIENCE_SECONDS)
        self._time = 0.0  # as deadlines count it, see `_pump`
        self._attended_at = pool.now()
        self._members: dict[str, _Member] = {}
        self._num_started = 0
        self._num_replaced = 0
        self._round: tuple[UpdateRound, WeightUpdate] | None = None
        self._phase_began = 0.0
        self._num_answered = 0  # when the watchdog last looked
        self._last_loss = ""
        self._reported: Counter[str] = Counter()  # totals, when metrics were last taken
        self._counted: dict[str, WorkerReport] = {}  # the same
        self._phase_seconds: dict[str, float] = {}  # of the last update
        self._speculation: SpeculationStats | None = None

    def start(self) -> Self:
        """Start the workers; returns when all of them serve.

        Raises:
            RuntimeError: one cannot be started, or holds other weights than the trainer; with the reason.
        """
        for _ in range(self._config.num_workers):
            self.add_worker()
        while any(m.state is not WorkerState.SERVING for m in self._members.values()):
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
        if update.version <= self._version:
            raise ValueError(
                f"a weight update must be newer than version {self._version}, got {update.version}"
            )
        for attempt in range(1, _MAX_UPDATE_ATTEMPTS + 1):
            is_last = attempt == _MAX_UPDATE_ATTEMPTS
            attempted = self._begin_round(update, self._ready_workers(), is_last_attempt=is_last)
            self._finish_round()
            if attempted.committed:
                return
            outcome = (
                f"no worker took the weights of version {update.version}, and version {self._version} stays in force: "
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
            policy_version=self._version,
        )

    def take_metrics(self) -> dict[str, float]:
        book = self._requests.leases
        totals = {
            "fleet/reissued_leases": book.num_reissued,
            "fleet/discarded_completions": book.num_discarded,
            "fleet/replaced_workers": self._num_replaced,
        }
        reports = {w: m.report for w, m in self._members.items() if m.report is not None}
        metrics = {name: float(total - self._reported[name]) for name, total in totals.items()}
        metrics["fleet/num_workers"] = float(len(self._requests.router.worker_ids))
        concurrency = sum(
            _requests_per_step(report, self._counted.get(worker_id))
            for worker_id, report in reports.items()
        )
        if concurrency:
            speeds = [report.tokens_per_second or 0.0 for report in reports.values()]
            metrics["rollout/concurrency"] = concurrency
            metrics["fleet/tokens_per_second"] = sum(speeds)
        metrics |= self._phase_seconds
        if self._speculation is not None:
            metrics |= self._speculation.metrics()
        self._reported, self._counted = Counter(totals), reports
        self._phase_seconds, self._speculation = {}, None
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"lengths": self._requests.lengths.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        if "lengths" in saved:
            self._requests.lengths.load_state_dict(saved["lengths"])

    # --- workers

    @property
    def workers(self) -> dict[str, WorkerState]:
        return {worker_id: member.state for worker_id, member in self._members.items()}

    def add_worker(self) -> str:
        """Start one more; it serves when it holds the current version."""
        worker_id = f"worker-{self._num_started}"
        self._num_started += 1
        now = self._time
        self._members[worker_id] = _Member(WorkerState.STARTING, since=now)
        self._health.watch(worker_id, now, limit_seconds=self._config.start_seconds)
        self._pool.start(worker_id)
        return worker_id

    def remove_worker(self, worker_id: str) -> None:
        """Give a worker nothing more, and end it when it has answered what it has."""
        self._enter(worker_id, WorkerState.LEAVING)
        self._requests.router.remove_worker(worker_id)

    def _enter(self, worker_id: str, state: WorkerState) -> None:
        member = self._members[worker_id]
        member.state, member.since = state, self._time

    def _ready_workers(self) -> list[str]:
        """Those that can take an update; waits until there is one, and for those that are joining at the old version."""
        while True:
            ready = [w for w, m in self._members.items() if m.state is not WorkerState.STARTING]
            if ready and self._round is None:
                return ready
            self._pump(_TICK_SECONDS)

    def _drop(self, worker_id: str, reason: str) -> None:
        """Do without a worker: others get its requests, and unless it was leaving another one takes its place."""
        member = self._members.pop(worker_id)
        self._pool.stop(worker_id)
        self._health.forget(worker_id)
        if self._round is not None:
            self._round[0].lose(worker_id, reason)
        num_requests = self._requests.lose(worker_id)
        if member.state is WorkerState.LEAVING:
            return
        self._last_loss = f"{worker_id} is gone: {reason}"
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
        joiners = [w for w, m in self._members.items() if m.state is WorkerState.JOINING]
        behind = []
        for worker_id in joiners:
            report = self._members[worker_id].report
            assert report is not None, "a joiner is loaded"
            if report.policy_version < self._version:
                behind.append(worker_id)
            elif (report.policy_version, report.digest) == (self._version, self._digest):
                self._enter(worker_id, WorkerState.SERVING)
                self._requests.router.add_worker(worker_id, report.capacity)
            else:
                self._drop(
                    worker_id,
                    f"its weights of version {report.policy_version} ({report.digest}) are not the trainer's of "
                    f"version {self._version} ({self._digest})",
                )
        if behind:
            assert self._current is not None, "an earlier version was in force"
            self._begin_round(self._current, behind, is_last_attempt=True)

    # --- updates

    def _begin_round(
        self, update: WeightUpdate, worker_ids: Sequence[str], *, is_last_attempt: bool
    ) -> UpdateRound:
        assert self._round is None, "one update at a time"
        begun = UpdateRound(update.version, worker_ids, is_last_attempt=is_last_attempt)
        self._round = (begun, update)
        self._ask(begun, update)
        return begun

    def _finish_round(self) -> None:
        while self._round is not None:
            self._pump(_TICK_SECONDS)

    def _ask(self, current: UpdateRound, update: WeightUpdate) -> None:
        self._phase_began = self._time
        self._pool.ask(current.asked, current.phase, update)

    def _advance_round(self, now: float) -> None:
        if self._round is None:
            return
        current, update = self._round
        seconds = now - self._phase_began
        limit = self._config.start_seconds + update.num_bytes / _SLOWEST_BYTES_PER_SECOND
        # a commit may wait for requests to end; whoever hangs in it is silent
        if current.phase is not Phase.COMMIT and seconds > limit:
            for worker_id in current.pending:
                self._drop(
                    worker_id,
                    f"asked to {current.phase.value}, it said nothing for {seconds:.0f} s",
                )
        while not current.is_done and not current.pending:
            self._phase_seconds[f"fleet/{current.phase.name.lower()}_seconds"] = (
                now - self._phase_began
            )
            if current.advance():
                self._ask(current, update)
        if current.is_done:
            self._round = None
            self._conclude(current, update)

    def _conclude(self, done: UpdateRound, update: WeightUpdate) -> None:
        is_join = done.version == self._version
        if done.committed and not is_join:
            self._version, self._digest = done.version, update.manifest.digest
            self._current = _kept(update, self._current)
            self._requests.router.forget_prefixes()
        # a joiner that failed beside one that was lost is asked again
        if done.committed or (is_join and not done.has_lost):
            for worker_id in done.failures.keys() & self._members.keys():
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
        for worker_id in self._health.silent(now):
            silence = self._health.seconds_silent(worker_id, now)
            state = self._members[worker_id].state.value
            self._drop(worker_id, f"{state}, it gave no sign of life for {silence:.0f} s")
        self._requests.lease_again(now)
        self._advance_round(now)
        if self._round is None:
            self._admit_joiners()
        for worker_id, member in list(self._members.items()):
            if member.state is WorkerState.LEAVING and not self._requests.leases.of_worker(
                worker_id
            ):
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
        elif self._round is not None:
            current, update = self._round
            error = event.error or _wrong_weights(event, update)
            current.answer(event.worker_id, event.phase, error)

    def _note(self, worker_id: str, report: WorkerReport) -> None:
        member, now = self._members[worker_id], self._time
        if report.speculation is not None:
            self._speculation = self._speculation or SpeculationStats()
            self._speculation.add(report.speculation)
        if member.report is not None and report.num_turns < member.report.num_turns:
            return  # overtaken
        member.report = report
        if member.state is WorkerState.STARTING:
            self._enter(worker_id, WorkerState.JOINING)
            self._health.watch(worker_id, now, limit_seconds=self._config.silence_seconds)
        self._health.heard(worker_id, report.num_turns, now)
        self._requests.router.measured(
            worker_id,
            tokens_per_second=report.tokens_per_second,
            num_sampled=report.num_sampled,
        )

    def _watch(self, now: float) -> None:
        num_answered, self._num_answered = self._num_answered, self._requests.num_answered
        is_waiting = self._requests.leases.running or self._round is not None
        if not is_waiting or num_answered != self._num_answered:
            self._watchdog.moved(now)
            return
        line = self._watchdog.line(now, list(self._awaited(now)))
        if line is not None:
            logger.warning("%s", line)

    def _awaited(self, now: float) -> Iterator[str]:
        """Who is waited for."""
        for worker_id, member in self._members.items():
            count = len(self._requests.leases.of_worker(worker_id))
            silence = self._health.seconds_silent(worker_id, now)
            yield (
                f"{worker_id} has {count} requests, is {member.state.value} since {now - member.since:.0f} s and was "
                f"heard of {silence:.0f} s ago"
            )
        if self._requests.router.num_waiting:
            yield f"{self._requests.router.num_waiting} requests wait for room"
        if self._round is not None:
            current, since = self._round[0], now - self._phase_began
            names = ", ".join(current.pending)
            yield f"{names} to {current.phase.value} version {current.version} since {since:.0f} s"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _requests_per_step(report: WorkerReport, before: WorkerReport | None) -> float:
    """Mean of the engine steps since an earlier report."""
    num_steps = report.num_steps - (before.num_steps if before else 0)
    count = report.num_request_steps - (before.num_request_steps if before else 0)
    return count / num_steps if num_steps else 0.0


def _wrong_weights(event: Answered, update: WeightUpdate) -> str:
    """What is wrong with the weights of a worker that says it committed; empty: nothing."""
    held = (event.report.policy_version, event.report.digest)
    if event.phase is not Phase.COMMIT or held == (update.version, update.manifest.digest):
        return ""
    return f"it committed, but holds version {held[0]} ({held[1]})"


def _kept(update: WeightUpdate, before: WeightUpdate | None) -> WeightUpdate:
    """A copy for workers that join later, in the memory of the one before where it fits."""
    tensors = {}
    for name, tensor in update.tensors.items():
        old = None if before is None else before.tensors.get(name)
        fits = old is not None and (old.shape, old.dtype) == (tensor.shape, tensor.dtype)
        tensors[name] = old.copy_(tensor) if fits else tensor.detach().to("cpu", copy=True)
    return WeightUpdate(version=update.version, manifest=update.manifest, tensors=tensors)
