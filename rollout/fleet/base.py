"""The interface between whoever needs completions and whatever computes them."""

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
        """Assert that no request is lost.

        Raises:
            RuntimeError: the books do not close; with the counts.
        """
        if self.issued != self.running + self.finished + self.rejected + self.cancelled:
            raise RuntimeError(f"requests are lost or counted twice: {self}")


class Fleet(Protocol):
    """One engine in this process, or many elsewhere."""

    @property
    def is_concurrent(self) -> bool:
        """Whether it generates while nobody polls."""
        ...

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests."""

    def poll(self, timeout_seconds: float) -> list[Completion]:
        """Completions since the last call; empty when there are none within the time or none are left."""
        ...

    def cancel(self, request_ids: Sequence[str]) -> None:
        """End requests; each is still answered, as aborted, by a later `poll`."""

    def update_weights(self, update: WeightUpdate) -> None:
        """Stage, verify and commit; on an error the old version stays in force everywhere.

        What becomes of requests in flight is `engine.on_update`'s to say; those that end meanwhile are `poll`'s to return.
        """

    def status(self) -> FleetStatus:
        """Counts since the start."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """What is worth following besides, since the last call; `rollout/concurrency`: requests per engine step, the
        mean; `fleet/tokens_per_second`: while engines step; `fleet/busy_seconds`: in which they did, the mean of all."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the fleet, as lists and numbers: it speeds rollouts up, and changes none."""
        ...

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
