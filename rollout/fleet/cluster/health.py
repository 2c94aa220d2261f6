"""Silence of workers, and a watchdog that reports what is waited for. Plain Python; time is passed in."""

from collections.abc import Sequence

__all__ = ["Health", "Watchdog"]


class Health:
    """Watches which workers live. A worker lives while its count of turns goes up: an answer from a process whose engine is stuck is no sign of life."""

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}
        self._heard_at: dict[str, float] = {}
        self._limits: dict[str, float] = {}

    def watch(self, worker_id: str, now: float, *, limit_seconds: float) -> None:
        """Begin to expect reports from a worker, at least one every `limit_seconds`."""
        self._heard_at[worker_id] = now
        self._limits[worker_id] = limit_seconds

    def heard(self, worker_id: str, num_turns: int, now: float) -> None:
        """Record a report; it is a sign of life only if `num_turns` changed."""
        if worker_id in self._heard_at and self._turns.get(worker_id) != num_turns:
            self._turns[worker_id] = num_turns
            self._heard_at[worker_id] = now

    def forget(self, worker_id: str) -> None:
        for known in (self._turns, self._heard_at, self._limits):
            known.pop(worker_id, None)

    def seconds_silent(self, worker_id: str, now: float) -> float:
        return now - self._heard_at[worker_id]

    def silent(self, now: float) -> list[str]:
        """Returns the workers that have been silent past their limit."""
        return [w for w, limit in self._limits.items() if self.seconds_silent(w, now) > limit]


class Watchdog:
    """Says who waits for whom when nothing has moved for `patience_seconds`, and again after each such time."""

    def __init__(self, *, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._moved_at = self._spoke_at = 0.0

    def moved(self, now: float) -> None:
        """Something was answered, or nothing is waited for."""
        self._moved_at = self._spoke_at = now

    def line(self, now: float, reasons: Sequence[str]) -> str | None:
        """Returns one line for the log when one is due.

        Args:
            now: the time in seconds.
            reasons: "<who> <does what> for <how long>", of everything that is waited for.
        """
        if now - self._spoke_at < self._patience_seconds:
            return None
        self._spoke_at = now
        return f"nothing has come for {now - self._moved_at:.0f} s: " + "; ".join(reasons)
