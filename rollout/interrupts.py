"""Delay of signals during work that must not stop halfway."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["deferring_interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def deferring_interrupts() -> Iterator[None]:
    """Delay signals that Python handles until the block ends. Outside the main thread, where none arrives, do
    nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handled = {n: signal.getsignal(n) for n in _SIGNALS if callable(signal.getsignal(n))}
    for number in handled:
        signal.signal(number, lambda n, _: came.append(n))
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
