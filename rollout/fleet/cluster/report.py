"""Report of a worker. Plain Python."""

from dataclasses import dataclass

from rollout.fleet.cluster.router import Capacity
from rollout.stats import SpeculationStats

__all__ = ["WorkerReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """State of a worker, sent with every answer."""

    policy_version: int
    digest: str
    """Digest of the live weights, as it was verified."""
    capacity: Capacity
    num_free_blocks: int
    num_unfinished: int
    num_sampled: int
    """Tokens sampled so far for unfinished requests."""
    tokens_per_second: float | None
    """Measured speed while the engine steps; None before its first step."""
    num_turns: int
    """Turns of the worker's loop; grows while the worker lives, idle or not."""
    num_steps: int = 0
    """Steps of the engine since it was made."""
    num_request_steps: int = 0
    """Number of requests in each step, summed over the steps."""
    busy_seconds: float = 0.0
    """Time spent in steps since the worker was made."""
    speculation: SpeculationStats | None = None
    """Counts since the last report; None without speculation."""
