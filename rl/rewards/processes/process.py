"""Process of one scorer: it can be started, given jobs with a time limit, killed and replaced.

It is a plain subprocess, because spawn of multiprocessing runs the main script again: a training script would load
torch into every scorer.
"""

import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from os import killpg
from threading import Lock

from rl.rewards.job import ScoreJob
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rewards.processes.messages import Reply, new_job_id, to_block
from rl.rewards.scorer import Scorer
from rl.runs.stop_signal import STOP_SIGNALS

__all__ = ["OUT_OF_MEMORY_EXIT_CODE", "UNUSABLE_EXIT_CODE", "ScoreJob", "ScorerProcess"]

START_LIMIT_SECONDS = 120.0
OUT_OF_MEMORY_EXIT_CODE = 113
UNUSABLE_EXIT_CODE = 114
_MAX_LINE_BYTES = 1 << 20
_BOOT = """\
import sys
sys.path[:] = sys.argv[3:]
from rl.rewards.processes.worker import main
main(int(sys.argv[1]), memory_limit_bytes=int(sys.argv[2]))
"""


@dataclass(slots=True, kw_only=True)
class _Link:
    """Running process, the leader of its process group, with the trainer's end of its socket."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    received: bytearray
    """Bytes of a line that is not complete yet."""
    has_served: bool = False
    """Whether the process scored a job before, which may be the cause if the process dies."""
    is_shared: bool = False
    """Whether earlier jobs left threads or children in the process, which may cause any failure."""

    def kill(self) -> None:
        # macOS: no permission to kill a zombie
        with suppress(ProcessLookupError, PermissionError):
            killpg(self.process.pid, signal.SIGKILL)


class ScorerProcess:
    """Scorer in a process. Its life is `start`, any number of `score`, `close`; another thread may call `kill` at
    any time."""

    def __init__(
        self, scorer: Scorer, *, time_limit_seconds: float, memory_limit_gb: float
    ) -> None:
        self._pickled_scorer = pickle.dumps(scorer)
        self._time_limit_seconds = time_limit_seconds
        self._memory_limit_gb = memory_limit_gb
        self._lock = Lock()  # guards the next two attributes
        self._link: _Link | None = None
        self._is_killed = False

    def start(self) -> None:
        """Start a process and wait until its scorer is loaded.

        Raises:
            RuntimeError: the scorer cannot be loaded there, or `kill` was called.
        """
        link = self._launch()
        try:
            reply = _ask(link, self._pickled_scorer, job_id=None, seconds=START_LIMIT_SECONDS)
            problem = (
                reply.outcome.message if reply else f"no answer within {START_LIMIT_SECONDS:.0f} s"
            )
        except (EOFError, OSError):
            problem = self._end()
        if problem:
            self.close()
            raise RuntimeError(
                "the scorer could not be loaded in its process, within "
                f"reward.memory_limit_gb={self._memory_limit_gb}: {problem}"
            )

    def score(self, job: ScoreJob) -> ScoreOutcome:
        """Return the outcome of a job. A job that hangs or kills the process affects only itself.

        A failed job is scored again in a new process if another job may be the cause: earlier jobs ran in a process
        that died, or left threads or children in it.

        Raises:
            RuntimeError: the process could not be restarted, or `kill` was called.
        """
        data = pickle.dumps(job)
        outcome, may_be_anothers_fault = self._score_once(data)
        if may_be_anothers_fault:
            self.close()
            outcome, _ = self._score_once(data)
        return outcome

    def kill(self) -> None:
        """Kill the process for good; a `score` that waits for it raises an error."""
        with self._lock:
            self._is_killed = True
            if self._link is not None:
                self._link.kill()

    def close(self) -> None:
        """Kill the process if it runs, and free its socket; no `score` may be waiting for it."""
        with self._lock:
            link, self._link = self._link, None
            if link is not None:
                link.kill()  # before wait(), which frees the process id for others
                link.process.wait()
                link.connection.close()

    def _score_once(self, pickled_job: bytes) -> tuple[ScoreOutcome, bool]:
        """Return the outcome, and whether an earlier job may have caused a failure."""
        link = self._living_link()
        has_served, link.has_served = link.has_served, True
        job_id = new_job_id()
        data = pickle.dumps((job_id, pickled_job))
        try:
            reply = _ask(link, data, job_id=job_id, seconds=self._time_limit_seconds)
        except (EOFError, OSError):
            return ScoreOutcome(kind=OutcomeKind.ERROR, message=self._end()), has_served
        if reply is None:
            self._end()
            message = f"killed after reward.time_limit_seconds={self._time_limit_seconds}"
            return ScoreOutcome(kind=OutcomeKind.TIMEOUT, message=message), link.is_shared
        was_shared, link.is_shared = link.is_shared, reply.is_shared
        if reply.is_last:
            self.close()
        is_error = reply.outcome.kind is not OutcomeKind.SCORE
        return reply.outcome, is_error and was_shared

    def _living_link(self) -> _Link:
        link = self._link
        # a process writes nothing between jobs, so its end of the socket is closed only if it died
        if link is None or _is_closed(link):
            self.close()
            self.start()
            link = self._link
        if link is None:
            raise RuntimeError("the scorer pool was closed before its jobs were done")
        return link

    def _launch(self) -> _Link:
        with self._lock:
            self._check_not_killed()
            ours, theirs = socket.socketpair()
            limit_bytes = int(self._memory_limit_gb * 1e9)
            command = [sys.executable, "-c", _BOOT, str(theirs.fileno()), str(limit_bytes)]
            # blocked until the process handles them, so that a stop signal to all processes cannot kill it at its start
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            try:
                with theirs:
                    process = subprocess.Popen(
                        [*command, *sys.path],
                        stdin=subprocess.DEVNULL,
                        pass_fds=[theirs.fileno()],
                        start_new_session=True,
                    )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._link = _Link(process=process, connection=ours, received=bytearray())
            return self._link

    def _end(self) -> str:
        """Kill the process, and return how it ended if it was dead before."""
        link = self._link
        assert link is not None, "no process to end"
        self.close()
        self._check_not_killed()
        exit_code = link.process.returncode
        if exit_code == OUT_OF_MEMORY_EXIT_CODE:
            return f"MemoryError: reward.memory_limit_gb={self._memory_limit_gb} is used up"
        if exit_code == UNUSABLE_EXIT_CODE:
            return "the scorer closed or replaced its process's standard streams or our socket"
        if exit_code < 0:
            return f"the scorer's process was killed by {signal.Signals(-exit_code).name}"
        return f"the scorer's process exited with code {exit_code}"

    def _check_not_killed(self) -> None:
        if self._is_killed:
            raise RuntimeError("the scorer pool was closed before its jobs were done")


def _ask(link: _Link, data: bytes, *, job_id: str | None, seconds: float) -> Reply | None:
    """Send a block and return the worker's answer; return None after the time limit.

    Raises:
        EOFError: the worker's end is closed.
        OSError: the worker's end was closed during the send.
    """
    deadline = time.monotonic() + seconds
    unsent = memoryview(to_block(data))
    link.connection.setblocking(False)
    poller = select.poll()
    while (left := deadline - time.monotonic()) > 0:
        poller.register(link.connection, select.POLLIN | (select.POLLOUT if unsent else 0))
        for _, event in poller.poll(left * 1000):
            if event & select.POLLOUT:
                unsent = unsent[link.connection.send(unsent) :]
            if event & ~select.POLLOUT:
                for line in _read_lines(link):
                    reply = Reply.from_line(line)
                    if reply is not None and reply.answers(job_id, pid=link.process.pid):
                        return reply
    return None


def _read_lines(link: _Link) -> list[bytes]:
    """Read what the worker wrote, and return the complete lines."""
    part = link.connection.recv(1 << 16)
    if not part:
        raise EOFError("the scorer's process has ended")
    *lines, rest = (bytes(link.received) + part).split(b"\n")
    link.received[:] = rest[-_MAX_LINE_BYTES:]
    return lines


def _is_closed(link: _Link) -> bool:
    """Return whether the worker's end is closed; discard anything that a scorer wrote between jobs."""
    link.connection.setblocking(False)
    link.received.clear()
    try:
        while link.connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
