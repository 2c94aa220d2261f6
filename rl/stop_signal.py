"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 as requests to stop.

    starting     a signal raises `Stopped` at once: there is nothing to keep yet
    deferring    a signal sets `requested`, and the run ends where nothing is lost; a second Ctrl-C raises `Stopped`

A batch system sends SIGTERM to every process of a job, and often twice, so only a repeated SIGINT is taken for impatience.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Self

__all__ = ["STOP_SIGNALS", "StopSignal", "Stopped"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_BLAME_SECONDS = 1.0
_ECHO_SECONDS = 1.0
"""A SIGINT that comes so soon after the first is the same one: a terminal and a launcher both deliver it."""


class Stopped(KeyboardInterrupt):
    """A stop signal that ends the work at once; its text is the signal's name."""


class StopSignal:
    """Takes stop signals while it is entered, in the main thread; elsewhere, where none arrives, it does nothing.

    Args:
        is_quiet: print nothing when a signal is deferred.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        self.name = ""
        """Name of the first signal; empty before it came."""
        self._is_quiet = is_quiet
        self._is_deferring = False
        self._came_at = 0.0
        self._previous: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return bool(self.name)

    def defer(self) -> None:
        """From now on, let a signal only set `requested`."""
        self._is_deferring = True

    def explains_failure(self) -> bool:
        """Whether something that failed just now did so because the processes of the job were told to stop."""
        return self.comes_within(_BLAME_SECONDS)

    def comes_within(self, seconds: float) -> bool:
        """Whether a signal came or comes in so many seconds.

        The processes of a job are signalled one after another: the end of one may be seen here before our own signal.
        """
        deadline = time.monotonic() + seconds
        while not self.requested and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.requested

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # nohup asks that SIGHUP be ignored
            wanted = [
                number
                for number in STOP_SIGNALS
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
            ]
            self._previous = {number: signal.signal(number, self._receive) for number in wanted}
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyrefly: ignore
        self._previous = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        is_first = not self.requested
        if is_first:
            self.name, self._came_at = name, now
        if not self._is_deferring:
            raise Stopped(self.name)
        if is_first:
            self._say(f"{name}: stopping as soon as a checkpoint is kept; Ctrl-C ends at once")
        elif number == signal.SIGINT and now - self._came_at > _ECHO_SECONDS:
            raise Stopped(name)

    def _say(self, line: str) -> None:
        # print() and logging may be in the middle of a line when a handler runs
        if not self._is_quiet:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{line}\n".encode())
