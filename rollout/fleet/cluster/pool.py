"""Between a fleet and its workers: what is asked of them, and what comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rollout.core import Completion, Request
from rollout.fleet.cluster.report import WorkerReport
from rollout.fleet.cluster.update_round import Phase
from rollout.weights.update import WeightUpdate

__all__ = ["Answered", "Event", "Lost", "Reported", "WorkerPool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A sign of life. The first one says that the worker is loaded."""

    worker_id: str
    report: WorkerReport
    completions: Sequence[Completion] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A phase of an update is over at one worker."""

    worker_id: str
    phase: Phase
    version: int
    report: WorkerReport
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A worker is gone, and all that it had with it."""

    worker_id: str
    reason: str


Event = Reported | Answered | Lost


class WorkerPool(Protocol):
    """Starts, asks and ends workers. Nothing but `wait` waits, and only it returns what came."""

    def now(self) -> float:
        """Seconds on the clock that `wait` follows."""
        ...

    def start(self, worker_id: str) -> None:
        """Begin to load a worker; `Reported`, or `Lost`, follows."""

    def submit(self, worker_id: str, requests: Sequence[Request]) -> None:
        """Hand requests over; `Reported` brings their completions."""

    def cancel(self, worker_id: str, request_ids: Sequence[str]) -> None:
        """End requests; they are answered as aborted, if they are there."""

    def restore(self, worker_id: str, speculation: Mapping[str, Any]) -> None:
        """Give a loaded worker what its drafts are made from, as `Speculator.state_dict` has it."""

    def ask(self, worker_ids: Sequence[str], phase: Phase, update: WeightUpdate) -> None:
        """Begin a phase of an update at several workers; `Answered` follows from each.

        A commit may be answered late: `engine.on_update` can have it wait for requests. `update` stays unchanged until
        all have answered or are lost.
        """

    def stop(self, worker_id: str) -> None:
        """End a worker at once; nothing more is heard of it. Those that wait for it to join a transfer are told to stop."""

    def wait(self, timeout_seconds: float) -> list[Event]:
        """Returns events; waits for one, up to the time limit."""
        ...

    def close(self) -> None:
        """End everything."""
