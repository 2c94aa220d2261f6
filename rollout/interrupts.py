"""Ctrl-C that waits for what must not be left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["deferring_interrupts"]


@contextmanager
def deferring_interrupts() -> Iterator[None]:
    """A SIGINT that comes within the block comes behind it instead. In other threads than the main one, where none comes, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)
