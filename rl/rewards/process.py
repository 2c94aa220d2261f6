"""One scorer in a process that can be killed: started, fed, timed, replaced.

A plain subprocess and not multiprocessing's, whose spawn runs the main script again: a training script would load
torch into every scorer.
"""

import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from os import killpg
from threading import Lock
from typing import Any

from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rewards.scorer import Scorer

START_LIMIT_SECONDS = 120.0
OUT_OF_MEMORY_EXIT_CODE = 113
_BOOT = """\
import sys
sys.path[:] = sys.argv[3:]
from rl.rewards.worker import main

__all__ = ["OUT_OF_MEMORY_EXIT_CODE", "ScoreJob", "ScorerProcess"]
main(int(sys.argv[1]), memory_limit_bytes=int(sys.argv[2]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreJob:
    completion: str
    row: dict[str, Any]
    """The prompt's; it is pickled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Link:
    """A running process, the leader of its own process group, and our end of its socket."""

    process: subprocess.Popen[bytes]
    connection: Connection

    def kill(self) -> None:
        # macOS: no permission to kill a zombie
        with suppress(ProcessLookupError, PermissionError):
            killpg(self.process.pid, signal.SIGKILL)


class ScorerProcess:
    """Life: `start`, any number of `score`, `close`. `kill` may come from another thread at any time."""

    def __init__(
        self, scorer: Scorer, *, time_limit_seconds: float, memory_limit_gb: float
    ) -> None:
        self._pickled_scorer = pickle.dumps(scorer)
        self._time_limit_seconds = time_limit_seconds
        self._memory_limit_gb = memory_limit_gb
        self._lock = Lock()  # guards the two below
        self._link: _Link | None = None
        self._is_killed = False

    def start(self) -> Connection:
        """Launch a process and wait until its scorer is loaded.

        Raises:
            RuntimeError: the scorer cannot be loaded there, or `kill` was called.
        """
        connection = self._launch()
        try:
            connection.send_bytes(self._pickled_scorer)
            if connection.poll(START_LIMIT_SECONDS):
                problem = connection.recv()
            else:
                problem = f"no answer within {START_LIMIT_SECONDS:.0f} s"
        except (EOFError, OSError):
            problem = self._end()
        if problem:
            self.close()
            raise RuntimeError(
                "the scorer could not be loaded in its process, within "
                f"reward.memory_limit_gb={self._memory_limit_gb}: {problem}"
            )
        return connection

    def score(self, jobs: list[ScoreJob]) -> list[ScoreOutcome]:
        """One outcome per job, in order; a job that hangs or kills the process costs only itself.

        Raises:
            RuntimeError: the process could not be restarted, or `kill` was called.
        """
        outcomes: list[ScoreOutcome] = []
        while len(outcomes) < len(jobs):
            outcomes += self._score_until_failure(jobs[len(outcomes) :])
        return outcomes

    def kill(self) -> None:
        """Kill the process for good; a `score` that waits for it raises."""
        with self._lock:
            self._is_killed = True
            if self._link is not None:
                self._link.kill()

    def close(self) -> None:
        """Kill the process, if one runs, and free its socket; no `score` may be waiting for it."""
        with self._lock:
            link, self._link = self._link, None
            if link is not None:
                link.kill()  # before wait(), which frees the process id for others
                link.process.wait()
                link.connection.close()

    def _score_until_failure(self, jobs: list[ScoreJob]) -> list[ScoreOutcome]:
        """Outcomes of the first jobs: of all, or up to the one that cost the process its life."""
        connection = self._living_connection()
        outcomes: list[ScoreOutcome] = []
        try:
            connection.send(jobs)
            for _ in jobs:
                if not connection.poll(self._time_limit_seconds):
                    self._end()
                    message = f"killed after reward.time_limit_seconds={self._time_limit_seconds}"
                    outcomes.append(ScoreOutcome(kind=OutcomeKind.TIMEOUT, message=message))
                    break
                outcomes.append(connection.recv())
        except (EOFError, OSError):
            outcomes.append(ScoreOutcome(kind=OutcomeKind.ERROR, message=self._end()))
        return outcomes

    def _living_connection(self) -> Connection:
        link = self._link
        # between jobs the process is silent: there is something to read only if it died
        if link is not None and not link.connection.poll(0):
            return link.connection
        self.close()
        return self.start()

    def _launch(self) -> Connection:
        with self._lock:
            self._check_not_killed()
            ours, theirs = Pipe()
            limit_bytes = int(self._memory_limit_gb * 1e9)
            command = [sys.executable, "-c", _BOOT, str(theirs.fileno()), str(limit_bytes)]
            with theirs:
                process = subprocess.Popen(
                    [*command, *sys.path],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            self._link = _Link(process=process, connection=ours)
            return ours

    def _end(self) -> str:
        """Kill the process, and say how it ended if it was dead already."""
        link = self._link
        assert link is not None, "no process to end"
        self.close()
        self._check_not_killed()
        exit_code = link.process.returncode
        if exit_code == OUT_OF_MEMORY_EXIT_CODE:
            return f"MemoryError: reward.memory_limit_gb={self._memory_limit_gb} is used up"
        if exit_code < 0:
            return f"the scorer's process was killed by {signal.Signals(-exit_code).name}"
        return f"the scorer's process exited with code {exit_code}"

    def _check_not_killed(self) -> None:
        if self._is_killed:
            raise RuntimeError("the scorer pool was closed before its jobs were done")
