"""Program of a scorer's process; `rl.rewards.processes.process` starts it and exchanges messages with it.

    parent -> worker   the pickled scorer          worker -> parent   that it is loaded, or the error
    parent -> worker   a job with its id           worker -> parent   the outcome, with the id and the worker's pid

The worker leads its own process group. Children of the scorer belong to that group and are killed with it, and Ctrl-C
does not reach it. A batch system signals every process of a job; the worker ignores that signal, and its parent ends
it. A child that the scorer forks cannot answer for the worker: it has no socket, and exits where the scorer returns.
"""

import os
import resource
import select
import signal
import socket
import sys
import traceback
from pickle import loads
from threading import Thread
from typing import Any

from rl.rewards.binding import BoundScorer, bind_scorer
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rewards.processes.messages import Reply, receive_block
from rl.rewards.processes.process import OUT_OF_MEMORY_EXIT_CODE, UNUSABLE_EXIT_CODE
from rl.rewards.processes.process_state import ProcessState
from rl.rewards.scorer import ImportedScorer, PreparedScorer
from rl.rewards.values import to_score
from rl.runs.stop_signal import STOP_SIGNALS

__all__ = ["main", "score_job"]

MAX_MESSAGE_CHARS = 2000

_exit, _getpid = os._exit, os.getpid  # a scorer may replace those of the module `os`


def main(fd: int, *, memory_limit_bytes: int) -> None:
    """Serve jobs from the socket `fd` until the parent closes its end or dies."""
    _leave_stop_signals_to_parent()
    Thread(target=_die_with_parent, args=(fd,), daemon=True).start()
    _limit_memory(memory_limit_bytes)
    connection = socket.socket(fileno=fd)
    os.register_at_fork(after_in_child=connection.close)
    pid = _getpid()
    scorer = _load_scorer(connection)
    state = ProcessState(fd)
    while block := receive_block(connection):
        job_id, pickled_job = loads(block)
        outcome = score_job(scorer, pickled_job=pickled_job)
        if _getpid() != pid:
            _exit(
                0
            )  # this is a child that the scorer forked, in which the scorer returned or raised
        is_restored = state.restore()
        if not state.is_connected:
            _exit(UNUSABLE_EXIT_CODE)
        reply = Reply(
            job_id=job_id,
            pid=pid,
            outcome=outcome,
            is_shared=state.has_company(),
            is_last=not is_restored,
        )
        connection.sendall(reply.to_line())


def score_job(scorer: BoundScorer, *, pickled_job: bytes) -> ScoreOutcome:
    """Return the score, or an ERROR with the exception of the scorer; end the process if memory ran out."""
    try:
        return ScoreOutcome(kind=OutcomeKind.SCORE, score=to_score(scorer(loads(pickled_job))))
    except MemoryError:
        # memory that the scorer still holds would be missing in later jobs
        _exit(OUT_OF_MEMORY_EXIT_CODE)
    except BaseException as error:  # noqa: BLE001 - a process boundary: any failure becomes a tagged outcome
        return ScoreOutcome(kind=OutcomeKind.ERROR, message=_describe(error))


def _describe(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - an exception that cannot be printed is also the scorer's error
        text = f"{type(error).__name__}, which cannot be shown"
    return text[:MAX_MESSAGE_CHARS]


def _load_scorer(connection: socket.socket) -> BoundScorer:
    pid = _getpid()
    problem, bound = "", None
    try:
        scorer: Any = loads(receive_block(connection))
        if isinstance(scorer, PreparedScorer):
            scorer.prepare()
        bound = bind_scorer(scorer.function if isinstance(scorer, ImportedScorer) else scorer)
    except BaseException:  # noqa: BLE001 - a process boundary: the parent raises it
        problem = traceback.format_exc()
    if _getpid() != pid:
        _exit(0)
    connection.sendall(Reply.of_start(problem, pid=pid).to_line())
    if bound is None:
        sys.exit(1)
    return bound


def _limit_memory(num_bytes: int) -> None:
    if sys.platform != "linux":  # macOS refuses a limit on the address space
        return
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    if hard_limit == resource.RLIM_INFINITY or num_bytes < hard_limit:
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


def _leave_stop_signals_to_parent() -> None:
    """Ignore stop signals; restore their defaults in processes that the scorer forks, so that these can be
    terminated."""
    for number in STOP_SIGNALS:
        signal.signal(
            number, _pass
        )  # a handler, unlike SIG_IGN, is not inherited by other programs
    _unblock_stop_signals()  # the parent blocked them for the start
    # blocked during a fork, because Python would drop a signal that the child gets before its defaults are restored
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS),
        after_in_parent=_unblock_stop_signals,
        after_in_child=_end_at_stop_signals,
    )


def _pass(*_: object) -> None: ...


def _unblock_stop_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _end_at_stop_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _unblock_stop_signals()


def _die_with_parent(fd: int) -> None:
    """Kill the process group when the parent has ended, even if a scorer hangs."""
    poller = select.poll()
    poller.register(fd, 0)  # an event mask of 0 reports only hang-ups
    poller.poll()
    os.killpg(0, signal.SIGKILL)
