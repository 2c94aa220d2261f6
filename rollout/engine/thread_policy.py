"""Leaves cores to busy neighbours.

A parallel region ends when its last thread does, and a thread whose core somebody else has waits a time slice. Beside one
endless loop on two cores, decoding on one thread is 1.5 to 2.5 times as fast as on two (docs/log). So while others
keep a core busy the engine's steps run on one thread less. Only where the number of threads changes no bit of the
forward: there, too, it is nobody's concern how many there were.
"""

import math
import os
import time
from collections.abc import Callable, Collection
from types import TracebackType

import torch

from rollout.proc_stat import busy_seconds

__all__ = ["CoreTimes", "ThreadPolicy", "read_core_times"]

_WINDOW_SECONDS = 0.5  # /proc/stat counts in ticks of 10 ms
_IGNORED_CORES = 0.3  # a neighbour this small costs less than a thread

CoreTimes = tuple[float, float]
"""Busy seconds of this process's cores since the machine's start; those of this process itself."""


def read_core_times() -> CoreTimes | None:
    """Reads the times of this process's cores; None where /proc/stat is missing."""
    busy = busy_seconds({f"cpu{core}" for core in _cores()})
    return None if math.isnan(busy) else (busy, time.process_time())


def _cores() -> Collection[int]:
    """Returns the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # only on Linux
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


class ThreadPolicy:
    """A context in which PyTorch has as many threads as there are cores to spare, never more than outside it.

    Args:
        num_cores: number of cores that this process may use.
        read: gives the times of its cores.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        *,
        num_cores: int | None = None,
        read: Callable[[], CoreTimes | None] = read_core_times,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_cores = num_cores or len(_cores())
        self._read = read
        self._clock = clock
        self._read_at, self._times = clock(), read()
        self._num_free = self._num_cores
        self._outside = 0

    def __enter__(self) -> None:
        self._look()
        self._outside = torch.get_num_threads()
        if self._num_free < self._outside:
            torch.set_num_threads(self._num_free)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if torch.get_num_threads() != self._outside:
            torch.set_num_threads(self._outside)

    def _look(self) -> None:
        """Count the cores that others left free since the last look."""
        now = self._clock()
        elapsed = now - self._read_at
        if self._times is None or elapsed < _WINDOW_SECONDS:
            return
        before, self._times, self._read_at = self._times, self._read(), now
        if self._times is not None:
            busy, own = (b - a for a, b in zip(before, self._times, strict=True))
            others = (busy - own) / elapsed
            self._num_free = max(1, self._num_cores - math.ceil(max(0.0, others - _IGNORED_CORES)))
