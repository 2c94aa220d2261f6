"""Pool of processes that score completions; each can be killed and replaced.

    submit(jobs) -> the next idle process, one job at a time -> outcomes, in the order of the jobs

Jobs are distributed one by one, so that all processes stay busy. The time limit applies to each job. A job that hangs
or kills its process costs only itself: the next job gets a new process.
"""

import logging
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from rl.rewards.job import ScoreJob
from rl.rewards.outcome import ScoreOutcome
from rl.rewards.processes.process import ScorerProcess
from rl.rewards.scorer import Scorer

__all__ = ["ScoreJob", "ScoreTicket", "ScorerPool"]

logger = logging.getLogger(__name__)


class ScoreTicket:
    """Pending outcomes of one `submit`."""

    def __init__(self, pending: list[Future[ScoreOutcome]]) -> None:
        self._pending = pending

    def done(self) -> bool:
        """Return whether all outcomes are known."""
        return all(future.done() for future in self._pending)

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until all outcomes are known or the time is over; return `done()`."""
        return not wait(self._pending, timeout_seconds).not_done

    def outcomes(self) -> list[ScoreOutcome]:
        """Return one outcome per job, in the order of the jobs; block until all are known.

        Raises:
            RuntimeError: a process could not be restarted, or the pool was closed.
            CancelledError: the pool was closed before a job began.
        """
        return [future.result() for future in self._pending]


class ScorerPool:
    """Pool of `num_workers` processes, each with the scorer loaded and a thread that waits for it.

    Args:
        scorer: picklable scorer; each process unpickles and prepares it once.
        num_workers: number of processes.
        time_limit_seconds: time limit of one job. A process that exceeds it is killed, and the outcome is a TIMEOUT.
        memory_limit_gb: limit of a process's address space, in GB (10^9 bytes). Exceeding it gives an ERROR. Linux
            only.

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
        """Queue the jobs and return at once. Jobs must be picklable, else `outcomes` raises an error."""
        return ScoreTicket([self._threads.submit(self._score, job) for job in jobs])

    def close(self) -> None:
        """Stop all processes at once, and cancel jobs that are not done."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.close()

    def _score(self, job: ScoreJob) -> ScoreOutcome:
        process = self._idle.get()
        try:
            return process.score(job)
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
