"""The interface between callers that need completions and the engines that compute them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rollout.core import Completion, Request
from rollout.weights.update import WeightUpdate

__all__ = ["Fleet", "FleetStatus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    """Books that close: issued = running + finished + rejected + cancelled."""

    issued: int
    running: int
    finished: int
    rejected: int
    cancelled: int
    policy_version: int

    def check(self) -> None:
        """Checks that no request is lost.

        Raises:
            RuntimeError: the books do not close; with the counts.
        """
        if self.issued != self.running + self.finished + self.rejected + self.cancelled:
            raise RuntimeError(f"requests are lost or counted twice: {self}")


class Fleet(Protocol):
    """One engine in this process, or many elsewhere."""

    @property
    def is_concurrent(self) -> bool:
        """True if the fleet generates between calls of `poll`."""
        ...

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests."""

    def poll(self, timeout_seconds: float) -> list[Completion]:
        """Returns completions since the last call; empty if none come within the time limit, or none are left."""
        ...

    def cancel(self, request_ids: Sequence[str]) -> None:
        """Ends requests; a later `poll` answers each as aborted."""

    def update_weights(self, update: WeightUpdate) -> None:
        """Stages, verifies and commits an update; on an error the old version stays live everywhere.

        What becomes of requests in flight is `engine.on_update`'s to say; those that end meanwhile are `poll`'s to return.
        """

    def status(self) -> FleetStatus:
        """Counts since the start."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """Returns metrics since the last call, among them `rollout/concurrency` (mean requests per engine step),
        `fleet/tokens_per_second` (while engines step) and `fleet/busy_seconds` (time in steps, mean over engines)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps of the fleet, as lists and numbers. It makes rollouts faster, and changes none."""
        ...

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Takes over the result of `state_dict`."""
