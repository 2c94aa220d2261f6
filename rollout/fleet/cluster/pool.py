"""The interface between a fleet and its workers: calls to workers, and the events that they send back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rollout.core import Completion, Request
from rollout.fleet.cluster.report import WorkerReport
from rollout.fleet.cluster.update_round import Phase
from rollout.weights.update import WeightUpdate

__all__ = ["Event", "Lost", "PhaseEnded", "Reported", "WorkerPool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """Report of a living worker, with its completions. The first report says that the worker is loaded."""

    worker_id: str
    report: WorkerReport
    completions: Sequence[Completion] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnded:
    """A phase of an update has ended at one worker; `error` is empty if it succeeded."""

    worker_id: str
    phase: Phase
    version: int
    report: WorkerReport
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A worker is gone, with all requests that it had."""

    worker_id: str
    reason: str


Event = Reported | PhaseEnded | Lost


class WorkerPool(Protocol):
    """Starts, calls and ends workers. Only `wait` blocks, and only `wait` returns events."""

    def now(self) -> float:
        """Returns the time in seconds, on the clock that `wait` follows."""
        ...

    def start(self, worker_id: str) -> None:
        """Begin to load a worker; `Reported`, or `Lost`, follows."""

    def submit(self, worker_id: str, requests: Sequence[Request]) -> None:
        """Send requests to a worker; `Reported` events bring their completions."""

    def cancel(self, worker_id: str, request_ids: Sequence[str]) -> None:
        """Cancel requests; those that the worker still has end as aborted."""

    def restore(self, worker_id: str, speculation: Mapping[str, Any]) -> None:
        """Give a loaded worker the state of its drafters, as returned by `Speculator.state_dict`."""

    def ask(self, worker_ids: Sequence[str], phase: Phase, update: WeightUpdate) -> None:
        """Begin a phase of an update at several workers; `PhaseEnded` follows from each.

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
