"""The process in which a scorer runs; `rl.rewards.process` starts it and speaks to it.

    parent -> worker   the pickled scorer        worker -> parent   "" once it is loaded, else what went wrong
    parent -> worker   a list of ScoreJobs       worker -> parent   one ScoreOutcome per job, as soon as it is known

It leads a process group of its own, in which the scorer's children live and die, and which Ctrl-C does not reach. A
batch system signals every process of a job: this one leaves it to its parent to end it.
"""

import math
import numbers
import os
import pickle
import reprlib
import resource
import select
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from threading import Thread

from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rewards.process import OUT_OF_MEMORY_EXIT_CODE, ScoreJob
from rl.rewards.scorer import PreparedScorer, Scorer
from rl.stop_signal import STOP_SIGNALS

__all__ = ["main"]

MAX_MESSAGE_CHARS = 2000


def main(fd: int, *, memory_limit_bytes: int) -> None:
    """Serve jobs from the socket `fd` until the parent closes its end or dies."""
    _leave_stop_signals_to_parent()
    Thread(target=_die_with_parent, args=(fd,), daemon=True).start()
    _limit_memory(memory_limit_bytes)
    connection = Connection(fd)
    scorer = _load_scorer(connection)
    while True:
        try:
            jobs: list[ScoreJob] = connection.recv()
        except EOFError:
            return
        for job in jobs:
            connection.send(score_job(scorer, job=job))


def score_job(scorer: Scorer, *, job: ScoreJob) -> ScoreOutcome:
    """The score, or an ERROR with what the scorer raised; ends the process if memory ran out."""
    try:
        value = scorer(job.completion, job.row)
        if isinstance(value, numbers.Real) and math.isfinite(value):
            return ScoreOutcome(kind=OutcomeKind.SCORE, score=float(value))
        message = f"a scorer must return a finite number, got {reprlib.repr(value)}"
    except MemoryError:
        # what the scorer still holds would starve the next jobs
        os._exit(OUT_OF_MEMORY_EXIT_CODE)
    except BaseException as error:  # noqa: BLE001 - a process boundary: any failure becomes a tagged outcome
        message = f"{type(error).__name__}: {error}"[:MAX_MESSAGE_CHARS]
    return ScoreOutcome(kind=OutcomeKind.ERROR, message=message)


def _load_scorer(connection: Connection) -> Scorer:
    try:
        scorer = pickle.loads(connection.recv_bytes())
        if isinstance(scorer, PreparedScorer):
            scorer.prepare()
    except BaseException:  # noqa: BLE001 - a process boundary: the parent raises it
        connection.send(traceback.format_exc())
        sys.exit(1)
    connection.send("")
    return scorer


def _limit_memory(num_bytes: int) -> None:
    if sys.platform != "linux":  # macOS refuses a limit on the address space
        return
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    if hard_limit == resource.RLIM_INFINITY or num_bytes < hard_limit:
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


def _leave_stop_signals_to_parent() -> None:
    """Survive stop signals; what a scorer forks gets their defaults back, so that it can be terminated."""
    for number in STOP_SIGNALS:
        signal.signal(
            number, lambda *_: None
        )  # a handler, unlike SIG_IGN, is not inherited by programs
    os.register_at_fork(after_in_child=_end_at_stop_signals)


def _end_at_stop_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _die_with_parent(fd: int) -> None:
    """End the process group when the parent is gone, even if a scorer hangs."""
    poller = select.poll()
    poller.register(fd, 0)  # a hang-up alone is reported
    poller.poll()
    os.killpg(0, signal.SIGKILL)
