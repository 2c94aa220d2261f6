"""Scorers in processes that can be killed, behind a queue.

    submit(jobs) -> chunks of at most 64 -> the next idle process -> outcomes, in the order of the jobs

A chunk travels in one message; its outcomes come back one by one, so the time limit holds per job, and after a job
that hangs or kills its process the rest of the chunk goes on in a fresh one. No job is scored twice.
"""

import logging
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from rl.rewards.outcome import ScoreOutcome
from rl.rewards.process import ScoreJob, ScorerProcess
from rl.rewards.scorer import Scorer

__all__ = ["MAX_JOBS_PER_CHUNK", "ScoreJob", "ScoreTicket", "ScorerPool"]

MAX_JOBS_PER_CHUNK = 64

logger = logging.getLogger(__name__)


class ScoreTicket:
    """The pending outcomes of one `submit`."""

    def __init__(self, chunks: list[Future[list[ScoreOutcome]]]) -> None:
        self._chunks = chunks

    def done(self) -> bool:
        return all(chunk.done() for chunk in self._chunks)

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until all outcomes are known, or for the time to be over; returns `done()`."""
        return not wait(self._chunks, timeout_seconds).not_done

    def outcomes(self) -> list[ScoreOutcome]:
        """One per job, in the order of the jobs; blocks until all are known.

        Raises:
            RuntimeError: a process could not be restarted, or the pool was closed.
            CancelledError: the pool was closed before a chunk was begun.
        """
        return [outcome for chunk in self._chunks for outcome in chunk.result()]


class ScorerPool:
    """`num_workers` processes with the scorer loaded, and a thread each that waits for it.

    Args:
        scorer: picklable; unpickled, and prepared, once per process.
        num_workers: processes.
        time_limit_seconds: of one job; past it the process is killed and the outcome is a TIMEOUT.
        memory_limit_gb: address space of a process, in GB (10^9 bytes); past it an ERROR. Linux alone.

    Raises:
        RuntimeError: the scorer cannot be loaded in its process.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        num_workers: int,
        time_limit_seconds: float,
        memory_limit_gb: float,
    ) -> None:
        if sys.platform != "linux":
            logger.warning("reward.memory_limit_gb has no effect on %s", sys.platform)
        self._processes = [
            ScorerProcess(
                scorer, time_limit_seconds=time_limit_seconds, memory_limit_gb=memory_limit_gb
            )
            for _ in range(num_workers)
        ]
        self._idle: SimpleQueue[ScorerProcess] = SimpleQueue()
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="scorer")
        try:
            list(self._threads.map(ScorerProcess.start, self._processes))
        except BaseException:
            self.close()
            raise
        for process in self._processes:
            self._idle.put(process)

    def submit(self, jobs: Sequence[ScoreJob]) -> ScoreTicket:
        """Queue the jobs and return at once; rows must be picklable, else `outcomes` raises."""
        starts = range(0, len(jobs), MAX_JOBS_PER_CHUNK)
        chunks = [list(jobs[start : start + MAX_JOBS_PER_CHUNK]) for start in starts]
        return ScoreTicket([self._threads.submit(self._score, chunk) for chunk in chunks])

    def close(self) -> None:
        """End every process now; jobs that are not done yet are given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.close()

    def _score(self, jobs: list[ScoreJob]) -> list[ScoreOutcome]:
        process = self._idle.get()
        try:
            return process.score(jobs)
        finally:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
