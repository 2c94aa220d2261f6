"""Process of one worker: a thread that steps, and methods that other processes call."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch

from rollout.build.engines import build_engine
from rollout.config import Dtype, EngineConfig, FaultConfig
from rollout.core import Completion, Request
from rollout.fleet.cluster.report import WorkerReport
from rollout.fleet.cluster.update_round import Phase
from rollout.fleet.workers.faults import Faults
from rollout.fleet.workers.worker import Worker
from rollout.load import load_model
from rollout.models.checkpoint import torch_dtype
from rollout.weights.manifest import Manifest
from rollout.weights.transport.receiver import CollectiveReceiver

__all__ = ["Place", "WorkerProcess", "WorkerSpec"]

_IDLE_SECONDS = 0.05  # between two looks for work
_REPORT_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """Arguments from which a worker is made."""

    weights: Path
    """A Hugging Face directory, where the worker runs."""
    dtype: Dtype
    eos_token_ids: tuple[int, ...] | None = None
    """Tokens that end a completion, as the trainer resolved them; None: as the directory's own files say."""
    engine: EngineConfig
    policy_version: int
    """Version of these weights."""
    num_threads: int
    faults: Sequence[FaultConfig] = field(default_factory=tuple)
    """Faults of this worker."""

    def make(self) -> Worker:
        torch.set_num_threads(self.num_threads)
        loaded = load_model(self.weights, dtype=torch_dtype(self.dtype, "cpu"))
        decoder = loaded.decoder
        if self.eos_token_ids is not None:
            decoder.spec = replace(decoder.spec, eos_token_ids=self.eos_token_ids)
        engine = build_engine(
            decoder, loaded.tokenizer, self.engine, policy_version=self.policy_version
        )
        return Worker(engine, faults=Faults(self.faults))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Place of a worker in a group that weights are broadcast to."""

    address: tuple[str, int]
    rank: int
    size: int
    generation: int


class WorkerProcess:
    """Steps its worker for as long as it lives. Every public method may be called by any thread."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = spec.make()
        self._receiver = CollectiveReceiver()
        self._generation = -1
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._pending: list[Future[None]] = []  # done when no commit waits; the engine thread's
        self._has_news = threading.Condition()  # guards the four below
        self._report = self._worker.report()
        self._completions: list[Completion] = []
        self._is_taken = False  # the report
        self._failure: BaseException | None = None
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def submit(self, requests: Sequence[Request]) -> None:
        self._inbox.put(lambda: self._worker.submit(requests))

    def cancel(self, request_ids: Sequence[str]) -> None:
        self._inbox.put(lambda: self._worker.cancel(request_ids))

    def restore(self, speculation: Mapping[str, Any]) -> None:
        self._inbox.put(lambda: self._worker.restore(speculation))

    def poll(self, timeout_seconds: float) -> tuple[WorkerReport, list[Completion]]:
        """Returns completions since the last call; waits for one, up to the time limit.

        Raises:
            RuntimeError: the engine failed.
        """
        with self._has_news:
            self._has_news.wait_for(lambda: self._completions or self._failure, timeout_seconds)
            if self._failure is not None:
                raise RuntimeError(f"the engine failed: {self._failure!r}") from self._failure
            completions, self._completions = self._completions, []
            self._is_taken = True
            return self._report, completions

    def stage(self, manifest: Manifest, place: Place) -> tuple[WorkerReport, str]:
        """Receives an update while the engine steps; returns a report, and the error or an empty text."""
        return self._try(lambda: self._stage(manifest, place))

    def ask(self, phase: Phase) -> tuple[WorkerReport, str]:
        """Go through a later phase of an update: VERIFY while the engine steps, COMMIT and ROLLBACK between two steps."""
        match phase:
            case Phase.VERIFY:
                return self._try(self._worker.verify)
            case Phase.COMMIT:
                return self._try(lambda: self._between_steps(self._worker.commit))
            case Phase.ROLLBACK:
                return self._try(lambda: self._between_steps(self._worker.rollback))
        raise ValueError(f"a worker has no such update phase: {phase}")

    def _stage(self, manifest: Manifest, place: Place) -> None:
        if place.generation != self._generation:
            self._receiver.join(place.address, place.rank, place.size, place.generation)
            self._generation = place.generation
        self._worker.stage(manifest, self._receiver.receive)

    def _try(self, action: Callable[[], None]) -> tuple[WorkerReport, str]:
        error = ""
        try:
            action()
        except (RuntimeError, ValueError) as problem:
            error = str(problem)
        with self._has_news:
            return replace(self._report, speculation=None), error

    def _between_steps(self, action: Callable[[], None]) -> None:
        """Have the engine's thread do something, and wait until it is done, a commit for as long as that waits."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                action()
            except (RuntimeError, ValueError) as error:
                done.set_exception(error)
            else:
                self._pending.append(done)

        self._inbox.put(run)
        done.result()

    def _run(self) -> None:
        reported_at = time.monotonic()
        try:
            while True:
                self._take_inbox()
                completions = self._worker.turn()
                now = time.monotonic()
                is_settled = bool(self._pending) and not self._worker.is_commit_pending
                if completions or is_settled or now - reported_at > _REPORT_SECONDS:
                    self._publish(completions)
                    reported_at = now
                if is_settled:
                    for done in self._pending:
                        done.set_result(None)
                    self._pending.clear()
        except BaseException as failure:  # noqa: BLE001 the thread's end is the process's, which says so in `poll`
            with self._has_news:
                self._failure = failure
                self._has_news.notify_all()

    def _take_inbox(self) -> None:
        is_idle = not self._worker.has_unfinished
        try:
            while True:
                self._inbox.get(block=is_idle, timeout=_IDLE_SECONDS)()
                is_idle = False
        except Empty:
            return

    def _publish(self, completions: list[Completion]) -> None:
        report = self._worker.report()
        with self._has_news:
            before = self._report.speculation
            if report.speculation is not None and before is not None and not self._is_taken:
                report.speculation.add(before)
            self._report, self._is_taken = report, False
            self._completions += completions
            if completions:
                self._has_news.notify_all()
