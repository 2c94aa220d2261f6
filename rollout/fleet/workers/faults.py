"""Injects faults: a worker asks at named points of its work, where a fault may be due."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum, auto

from rollout.config import FaultConfig, FaultKind

__all__ = ["FaultPoint", "Faults"]

_SLOW_FACTOR = 10.0


class FaultPoint(Enum):
    STEP = auto()  # before a step that has something to compute
    STAGE = auto()  # an update is on its way in
    STAGED = auto()  # it is there, and not verified yet
    VERIFIED = auto()  # it may be committed


_POINT = {
    FaultKind.kill_decoding: FaultPoint.STEP,
    FaultKind.kill_staging: FaultPoint.STAGE,
    FaultKind.kill_verified: FaultPoint.VERIFIED,
    FaultKind.hang: FaultPoint.STEP,
    FaultKind.corrupt: FaultPoint.STAGED,
}


class Faults:
    """Faults of one worker; the default has none.

    Args:
        faults: each happens once, at its point, after it was passed `after` times; `slow` from then on.
        kill: ends the worker as `kill -9` does.
        hang: never returns.
    """

    def __init__(
        self,
        faults: Sequence[FaultConfig] = (),
        *,
        kill: Callable[[], None] | None = None,
        hang: Callable[[], None] | None = None,
    ) -> None:
        self._faults = list(faults)
        self._kill = kill or _kill_process
        self._hang = hang or _hang_thread
        self._num_passed: Counter[FaultPoint] = Counter()

    def at(self, point: FaultPoint) -> bool:
        """Pass a point, if it can be passed; True if what is handled there is to be corrupted."""
        num_passed = self._num_passed[point]
        self._num_passed[point] += 1
        due = [f for f in self._faults if _POINT.get(f.kind) is point and f.after == num_passed]
        for fault in due:
            match fault.kind:
                case FaultKind.kill_decoding | FaultKind.kill_staging | FaultKind.kill_verified:
                    self._kill()
                case FaultKind.hang:
                    self._hang()
        return any(fault.kind is FaultKind.corrupt for fault in due)

    @property
    def slowness(self) -> float:
        """Factor by which a step is slowed down."""
        num_steps = self._num_passed[FaultPoint.STEP]
        slow = [f for f in self._faults if f.kind is FaultKind.slow and num_steps > f.after]
        return _SLOW_FACTOR if slow else 1.0


def _kill_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang_thread() -> None:
    while True:
        time.sleep(3600)
