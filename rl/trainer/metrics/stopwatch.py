"""Seconds spent in each phase of a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the seconds of `with stopwatch("rollout"): ...` under `seconds/rollout`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._start = time.monotonic()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            elapsed = time.monotonic() - start
            self._seconds[phase] = self._seconds.get(phase, 0.0) + elapsed

    def seconds(self, phase: str) -> float:
        return self._seconds.get(phase, 0.0)

    @property
    def total_seconds(self) -> float:
        """Seconds since the stopwatch was made."""
        return time.monotonic() - self._start

    def metrics(self) -> dict[str, float]:
        """Return the seconds of every phase by metric name, and `seconds/step` since the stopwatch was made."""
        phases = {f"seconds/{phase}": seconds for phase, seconds in self._seconds.items()}
        return {**phases, "seconds/step": self.total_seconds}
