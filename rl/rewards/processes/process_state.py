"""Snapshot of a process, to undo what a scorer changes before the next job."""

import builtins
import decimal
import os
import resource
import signal
import sys
import threading
from typing import Any

__all__ = ["ProcessState"]

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_LIMITS = tuple(
    getattr(resource, name)
    for name in ("RLIMIT_NOFILE", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_STACK")
)


class ProcessState:
    """State of the process after the scorer was loaded; `restore` brings it back.

    Args:
        fd: file descriptor of the socket to the trainer.
    """

    def __init__(self, fd: int) -> None:
        self._pid = os.getpid()
        self._fds = {number: _identity(number) for number in (0, 1, 2, fd)}
        self._directory = os.getcwd()
        self._handlers = {number: signal.getsignal(number) for number in _settable_signals()}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._limits = {limit: resource.getrlimit(limit) for limit in _LIMITS}
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        self._builtins = dict(vars(builtins))
        self._path = tuple(sys.path)
        self._environment = dict(os.environ)
        self._recursion_limit = sys.getrecursionlimit()
        self._decimal_context = decimal.getcontext().copy()
        self._threads = set(threading.enumerate())

    @property
    def is_original(self) -> bool:
        """True if this is the original process, and not one that a scorer forked."""
        return _getpid() == self._pid

    @property
    def is_connected(self) -> bool:
        """True if the scorer left the standard streams and the socket to the trainer as they were."""
        return all(_identity(number) == identity for number, identity in self._fds.items())

    def restore(self) -> bool:
        """Undo the scorer's changes; return False if that is not possible."""
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        for number, handler in self._handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        sys.stdin, sys.stdout, sys.stderr = self._streams
        vars(builtins).update(self._builtins)
        sys.path += [folder for folder in self._path if folder not in sys.path]
        for name in self._environment.keys() - os.environ.keys():
            os.environ[name] = self._environment[name]
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        sys.setprofile(None)
        sys.setrecursionlimit(max(self._recursion_limit, sys.getrecursionlimit()))
        decimal.setcontext(self._decimal_context.copy())
        try:
            os.chdir(self._directory)
            for limit, values in self._limits.items():
                if resource.getrlimit(limit) != values:
                    resource.setrlimit(limit, values)
        except (OSError, ValueError):  # the directory is gone, or the hard limit was lowered
            return False
        return not any(stream is not None and stream.closed for stream in self._streams)

    def has_company(self) -> bool:
        """Return whether threads or children that a scorer started are left."""
        if set(threading.enumerate()) - self._threads:
            return True
        try:
            os.waitpid(-1, os.WNOHANG) if not hasattr(os, "waitid") else os.waitid(
                os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT
            )
        except ChildProcessError:
            return False
        return True


_getpid = os.getpid  # a scorer may replace os.getpid


def _settable_signals() -> list[Any]:
    fixed = (signal.SIGKILL, signal.SIGSTOP)
    return [number for number in signal.valid_signals() if number not in fixed]


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
