"""Workers on a virtual clock, for the real fleet: the real `Worker` and `WeightReceiver` around an engine that invents tokens.

Everything that happens is an entry in one heap, so a run is a function of its seed, and waiting costs nothing.
"""

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from typing import Any

import torch

from rollout.config import FaultConfig
from rollout.core import (
    Completion,
    FinishReason,
    Request,
    RequestState,
    SampleKey,
    SamplingParams,
)
from rollout.fleet.cluster.pool import Event, Lost, PhaseEnded, Reported
from rollout.fleet.cluster.report import WorkerReport
from rollout.fleet.cluster.update_round import Phase
from rollout.fleet.workers.faults import Faults
from rollout.fleet.workers.worker import Worker
from rollout.stats import EngineStats
from rollout.weights.manifest import Manifest
from rollout.weights.staging import HeldWeights, ReceiverState, StagingArea, WeightReceiver
from rollout.weights.update import WeightUpdate, make_update
from tests.rollout.weights.tensor_set import TensorSet

_IDLE_SECONDS = 0.05
_REPORT_SECONDS = 0.25
_JOIN_SECONDS = 30.0
VOCAB_SIZE = 1000


def weights_of(version: int) -> dict[str, torch.Tensor]:
    return {name: torch.full((4,), float(version)) for name in ("first", "second")}


def update_to(version: int) -> WeightUpdate:
    return make_update(version, weights_of(version).items())


def make_request(
    group_id: int, index: int, *, num_tokens: int, prompt: tuple[int, ...] = (1, 2, 3)
) -> Request:
    return Request(
        request_id=f"{group_id}/{index}",
        token_ids=prompt,
        params=SamplingParams(max_tokens=num_tokens),
        key=SampleKey(0, group_id, index),
    )


def token_of(key: SampleKey, position: int, version: int) -> int:
    return hash((key.group_id, key.sample_index, position, version)) % VOCAB_SIZE


class SimulatedEngine:
    """Each step takes `step_seconds` of its own clock and gives every running request a token."""

    def __init__(
        self,
        *,
        step_seconds: float,
        num_blocks: int = 10_000,
        max_requests: int = 8,
        drains: bool = False,
    ) -> None:
        self.drains = drains
        self.is_commit_pending = False
        self.block_size = 16
        self.num_blocks = self.num_free_blocks = num_blocks
        self.max_requests = max_requests
        self.speculator = None
        self.stats = EngineStats()
        self.seconds = 0.0
        self._step_seconds = step_seconds
        self._receiver = WeightReceiver(
            TensorSet(weights_of(0)), TensorSet(weights_of(0)), version=0
        )
        self._states: dict[str, RequestState] = {}
        self._answered: list[Completion] = []

    @property
    def config(self) -> "SimulatedEngine":
        return self

    @property
    def weights(self) -> "SimulatedEngine":
        return self

    @property
    def request_ids(self) -> list[str]:
        return list(self._states)

    @property
    def policy_version(self) -> int:
        return self._receiver.version

    @property
    def has_unfinished(self) -> bool:
        return bool(self._states or self._answered or self.is_commit_pending)

    @property
    def has_staged(self) -> bool:
        return self._receiver.state is not ReceiverState.IDLE

    def held(self) -> HeldWeights:
        return self._receiver.held()

    def add_request(self, request: Request) -> None:
        assert request.request_id not in self._states
        self._states[request.request_id] = RequestState.of(request)

    def abort(self, request_id: str) -> None:
        if request_id in self._states:
            self._finish(self._states[request_id], FinishReason.ABORTED)

    def step(self) -> list[Completion]:
        self.seconds += self._step_seconds
        versions = {
            value for tensor in self._receiver.live.tensors.values() for value in tensor.tolist()
        }
        assert versions == {self.policy_version}, f"a step on mixed weights: {versions}"
        states = [s for s in self._states.values() if s.num_output or not self.is_commit_pending]
        for state in states[: self.max_requests]:
            key, position = state.request.key, state.num_output
            state.token_ids.append(token_of(key, position, self.policy_version))
            state.logprobs.append(0.0)
            state.policy_versions.append(self.policy_version)
            self.stats.num_sampled_tokens += 1
            self.stats.num_request_steps += 1
            if state.num_output == state.request.params.max_tokens:
                self._finish(state, FinishReason.LENGTH)
        self.stats.num_steps += 1
        self._commit_if_ready()
        finished, self._answered = self._answered, []
        return finished

    def staging(self, manifest: Manifest) -> AbstractContextManager[Mapping[str, torch.Tensor]]:
        return self._receiver.staging(manifest)

    def verify(self) -> None:
        self._receiver.verify()

    def commit_when_ready(self) -> None:
        self._receiver.require_verified()
        self.is_commit_pending = True
        self._commit_if_ready()

    def rollback(self) -> None:
        self.is_commit_pending = False
        self._receiver.rollback()

    def _commit_if_ready(self) -> None:
        has_begun = any(state.num_output for state in self._states.values())
        if self.is_commit_pending and not (self.drains and has_begun):
            self.is_commit_pending = False
            self._receiver.commit()

    def _finish(self, state: RequestState, reason: FinishReason) -> None:
        del self._states[state.request.request_id]
        self._answered.append(
            Completion(
                request_id=state.request.request_id,
                token_ids=state.output_ids,
                logprobs=state.logprobs,
                policy_versions=state.policy_versions,
                finish_reason=reason,
            )
        )


class _Killed(Exception):
    pass


class _Hung(Exception):
    pass


def _raise(kind: type[Exception]) -> None:
    raise kind


class _Process:
    """Simulated process of a worker: whether it hangs, when it last reported, which phase it still has to run."""

    def __init__(self, worker: Worker, engine: SimulatedEngine) -> None:
        self.worker = worker
        self.engine = engine
        self.is_hung = False
        self.reported_at = 0.0
        self.pending: tuple[Phase, int] | None = None


class _Transfer:
    """Simulated transfer: begins once all receivers have joined; fails if one is lost or does not join in time."""

    def __init__(self, worker_ids: Sequence[str], end: Callable[[str, str], None]) -> None:
        self.worker_ids = worker_ids
        self.is_over = False
        self._missing = set(worker_ids)
        self._waiting: list[str] = []
        self._end = end
        self._error = ""

    def join(self, worker_id: str) -> None:
        self._missing.discard(worker_id)
        self._waiting.append(worker_id)
        if not self._missing or self.is_over:
            self.finish(self._error)

    def lose(self, worker_id: str) -> None:
        if worker_id in self._missing:
            self.finish(f"{worker_id} was lost before it joined")

    def expire(self) -> None:
        if not self.is_over:
            self.finish(f"{sorted(self._missing)} did not join in time")

    def finish(self, error: str) -> None:
        self.is_over, self._error = True, error
        while self._waiting:
            self._end(self._waiting.pop(0), error)


class SimulatedPool:
    """A `WorkerPool` whose messages take random times, in the order of `seed`.

    Args:
        seed: seed of the times.
        faults: by the ordinal of the worker.
        speeds: seconds of a step, by ordinal, the last one of all further workers.
        limits: limits of `SimulatedEngine`.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        faults: Sequence[FaultConfig] = (),
        speeds: Sequence[float] = (0.01,),
        **limits: int,
    ) -> None:
        self._random = random.Random(seed)
        self._faults = faults
        self._speeds = speeds
        self._limits = limits
        self._time = 0.0
        self._order = count()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._processes: dict[str, _Process] = {}
        self._events: list[Event] = []
        self._transfer: _Transfer | None = None
        self._started: set[str] = set()
        self._doomed: set[str] = set()
        self.stopped: list[str] = []
        self.restored: list[tuple[str, Mapping[str, Any]]] = []
        self.is_closed = False

    @property
    def engines(self) -> dict[str, SimulatedEngine]:
        """Engines of the living workers."""
        return {worker_id: process.engine for worker_id, process in self._processes.items()}

    def now(self) -> float:
        return self._time

    def start(self, worker_id: str) -> None:
        self._started.add(worker_id)
        self._later(self._random.uniform(0.5, 2.0), partial(self._load, worker_id))

    def submit(self, worker_id: str, requests: Sequence[Request]) -> None:
        self._send(worker_id, lambda process: process.worker.submit(requests))

    def cancel(self, worker_id: str, request_ids: Sequence[str]) -> None:
        self._send(worker_id, lambda process: process.worker.cancel(request_ids))

    def restore(self, worker_id: str, speculation: Mapping[str, Any]) -> None:
        self.restored.append((worker_id, speculation))

    def ask(self, worker_ids: Sequence[str], phase: Phase, update: WeightUpdate) -> None:
        if phase is Phase.STAGE:
            while self._transfer is not None and not self._transfer.is_over:
                self._next()  # as a sender does, which has one thread
            transfer = _Transfer(worker_ids, partial(self._stage, update))
            self._transfer = transfer
            self._later(_JOIN_SECONDS, transfer.expire)
            for worker_id in worker_ids:
                self._send(worker_id, partial(self._join, worker_id, transfer))
            return
        for worker_id in worker_ids:
            self._send(worker_id, partial(self._do, worker_id, phase, update))

    def stop(self, worker_id: str) -> None:
        self._started.discard(worker_id)
        self._processes.pop(worker_id, None)
        self.stopped.append(worker_id)
        if self._transfer is not None:
            self._transfer.lose(worker_id)

    def kill(self, worker_id: str) -> None:
        """The process dies; word of it comes later."""
        if self._processes.pop(worker_id, None) is not None:
            self._emit(Lost(worker_id=worker_id, reason="it was killed"))

    def kill_when_asked(self, worker_id: str) -> None:
        """The process dies on its next request to join a transfer."""
        self._doomed.add(worker_id)

    def load_together(self, worker_ids: Sequence[str]) -> None:
        """Have workers that were started be there at once."""
        for worker_id in worker_ids:
            self._load(worker_id)

    def report_of(self, worker_id: str) -> WorkerReport:
        return self._processes[worker_id].worker.report()

    def say(self, event: Event) -> None:
        """Append an event to those that the next `wait` returns."""
        self._events.append(event)

    def pass_unattended(self, seconds: float) -> None:
        """Let time pass without a call of `wait`."""
        deadline = self._time + seconds
        while self._heap and self._heap[0][0] <= deadline:
            self._next()
        self._time = deadline

    def wait(self, timeout_seconds: float) -> list[Event]:
        deadline = self._time + timeout_seconds
        while not self._events and self._heap and self._heap[0][0] <= deadline:
            self._next()
        if not self._events:
            self._time = deadline
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self.is_closed = True

    def _next(self) -> None:
        self._time, _, action = heapq.heappop(self._heap)
        action()

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self._time + seconds, next(self._order), action))

    def _emit(self, event: Event) -> None:
        self._later(self._random.uniform(0.0, 0.02), lambda: self._events.append(event))

    def _send(self, worker_id: str, action: Callable[[_Process], None]) -> None:
        self._later(self._random.uniform(0.0, 0.02), partial(self._run, worker_id, action))

    def _run(self, worker_id: str, action: Callable[[_Process], None]) -> None:
        """Something happens in a process, which may be the end of it."""
        process = self._processes.get(worker_id)
        if process is None:
            return
        try:
            action(process)
            self._settle(worker_id, process)
        except _Killed:
            self.kill(worker_id)
        except _Hung:
            process.is_hung = True

    def _load(self, worker_id: str) -> None:
        if worker_id not in self._started or worker_id in self._processes:
            return
        ordinal = int(worker_id.rpartition("-")[2])
        seconds = self._speeds[min(ordinal, len(self._speeds) - 1)]
        engine = SimulatedEngine(step_seconds=seconds, **self._limits)
        faults = Faults(
            [fault for fault in self._faults if fault.worker == ordinal],
            kill=partial(_raise, _Killed),
            hang=partial(_raise, _Hung),
        )

        def sleep(duration: float) -> None:
            engine.seconds += duration

        worker = Worker(engine, faults=faults, clock=lambda: engine.seconds, sleep=sleep)  # pyrefly: ignore
        self._processes[worker_id] = _Process(worker, engine)
        self._turn(worker_id)

    def _turn(self, worker_id: str) -> None:
        self._run(worker_id, partial(self._turn_of, worker_id))
        process = self._processes.get(worker_id)
        if process is not None and process.is_hung:
            self._report(worker_id, process, [])
            self._later(_REPORT_SECONDS, partial(self._turn, worker_id))

    def _turn_of(self, worker_id: str, process: _Process) -> None:
        if process.is_hung:
            return
        before = process.engine.seconds
        completions = process.worker.turn()
        seconds = process.engine.seconds - before
        is_due = self._time + seconds - process.reported_at >= _REPORT_SECONDS
        if completions or is_due or not process.reported_at:
            self._later(seconds, partial(self._report, worker_id, process, completions))
        self._later(seconds or _IDLE_SECONDS, partial(self._turn, worker_id))

    def _report(self, worker_id: str, process: _Process, completions: Sequence[Completion]) -> None:
        if self._processes.get(worker_id) is process:
            process.reported_at = self._time
            report = process.worker.report()
            self._emit(Reported(worker_id=worker_id, report=report, completions=completions))

    def _join(self, worker_id: str, transfer: _Transfer, process: _Process) -> None:
        if worker_id in self._doomed:
            raise _Killed
        transfer.join(worker_id)

    def _stage(self, update: WeightUpdate, worker_id: str, error: str) -> None:
        """A transfer begins at a worker, or ends before it did."""
        process = self._processes.get(worker_id)
        if process is None:
            return
        if error:
            self._answer(worker_id, process, Phase.STAGE, update.version, error)
        else:
            self._run(worker_id, partial(self._do, worker_id, Phase.STAGE, update))

    def _do(self, worker_id: str, phase: Phase, update: WeightUpdate, process: _Process) -> None:
        worker = process.worker
        if process.is_hung and phase in (Phase.COMMIT, Phase.ROLLBACK):
            return  # for the thread that steps
        try:
            match phase:
                case Phase.STAGE:
                    worker.stage(update.manifest, partial(_receive, update))
                case Phase.VERIFY:
                    worker.verify()
                case Phase.COMMIT:
                    worker.commit()
                    process.pending = (phase, update.version)
                    return
                case Phase.ROLLBACK:
                    worker.rollback()
        except (RuntimeError, ValueError) as problem:
            self._answer(worker_id, process, phase, update.version, str(problem))
        else:
            self._answer(worker_id, process, phase, update.version)

    def _settle(self, worker_id: str, process: _Process) -> None:
        if process.pending is not None and not process.worker.is_commit_pending:
            self._answer(worker_id, process, *process.pending)
            process.pending = None

    def _answer(
        self, worker_id: str, process: _Process, phase: Phase, version: int, error: str = ""
    ) -> None:
        self._emit(
            PhaseEnded(
                worker_id=worker_id,
                phase=phase,
                version=version,
                report=process.worker.report(),
                error=error,
            )
        )


def _receive(update: WeightUpdate, manifest: Manifest, area: StagingArea) -> None:
    with area.staging(manifest) as shadows:
        for name, shadow in shadows.items():
            shadow.copy_(update.tensors[name])
