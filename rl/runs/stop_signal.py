"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 as requests to stop.

    starting     a signal raises `Stopped` at once, because there is nothing to keep yet
    deferring    a signal sets `requested`, and the run ends where nothing is lost; a second Ctrl-C raises `Stopped`

A batch system sends SIGTERM to every process of a job, often twice. So only a repeated SIGINT stops a run at once.
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
"""Time after the first SIGINT in which another one counts as the same, because a terminal and a launcher both
deliver it."""


class Stopped(KeyboardInterrupt):
    """Error that ends the work at once after a stop signal. Its text is the signal's name."""


class StopSignal:
    """Handler of stop signals, active while its context is entered. Outside the main thread, where none arrives, it
    does nothing.

    Args:
        is_quiet: whether to print no message about a deferred signal.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        self.name = ""
        """Name of the first signal; empty before it."""
        self._is_quiet = is_quiet
        self._is_deferring = False
        self._came_at = 0.0
        self._previous: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        """True after a signal."""
        return bool(self.name)

    def defer(self) -> None:
        """Let later signals only set `requested`."""
        self._is_deferring = True

    def explains_failure(self) -> bool:
        """Return whether a failure that has just happened was caused by a stop signal to all processes of the job."""
        return self.comes_within(_BLAME_SECONDS)

    def comes_within(self, seconds: float) -> bool:
        """Return whether a signal arrives within the next seconds, or has arrived before.

        The processes of a job receive the signal one after another, so another process may end before this one gets
        it.
        """
        deadline = time.monotonic() + seconds
        while not self.requested and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.requested

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # nohup sets SIGHUP to be ignored
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
        # not print() or logging, which the signal may have interrupted
        if not self._is_quiet:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{line}\n".encode())
