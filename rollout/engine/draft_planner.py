"""Interface through which an engine speculates. The engine is given an implementation and imports none."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rollout.core import RequestState, StepBatch
from rollout.stats import SpeculationStats

__all__ = ["DraftPlanner"]


class DraftPlanner(Protocol):
    """Chooses drafts for each batch and learns from what was sampled. No draft changes an output."""

    def plan(
        self, batch: StepBatch, max_lengths: Mapping[RequestState, int]
    ) -> Mapping[RequestState, Sequence[int]]:
        """Returns draft tokens for requests of a batch that is about to run.

        Args:
            batch: batch without drafts.
            max_lengths: requests that may have a draft, and how many tokens each can still use.
        """
        ...

    def begin(self, batch: StepBatch) -> None:
        """Notes that a batch is about to run, with the drafts that it has room for."""

    def observe(self, batch: StepBatch, sampled: Mapping[RequestState, Sequence[int]]) -> None:
        """Learns from a batch that has run.

        Args:
            batch: batch as it ran.
            sampled: tokens that each request kept, at least one.
        """

    def finish(self, state: RequestState, *, policy_version: int) -> None:
        """Notes that a request has ended."""

    def check_integrity(self) -> None:
        """Recounts the state kept for unfinished requests.

        Raises:
            RuntimeError: the counts do not agree.
        """

    def take_stats(self) -> SpeculationStats:
        """Returns the counts since the last call."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, as lists and numbers."""
        ...

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Takes over the result of `state_dict`."""
