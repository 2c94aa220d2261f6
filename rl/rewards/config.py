"""The schema of `reward`."""

from dataclasses import dataclass

from rollout.config import require


@dataclass(kw_only=True)
class RewardConfig:
    num_workers: int = 1
    """Processes that score."""
    time_limit_seconds: float = 10.0
    """Time limit for scoring one completion; after it the scorer is killed and the outcome is a timeout."""
    memory_limit_gb: float = 8.0
    """Address space of one scorer process, in GB (10^9 bytes)."""
    max_error_rate: float = 0.2
    """The run stops when more than this share of a step's completions could not be scored."""

    def __post_init__(self) -> None:
        require(self.num_workers > 0, "reward.num_workers", "> 0", self.num_workers)
        require(
            self.time_limit_seconds > 0, "reward.time_limit_seconds", "> 0", self.time_limit_seconds
        )
        require(self.memory_limit_gb > 0, "reward.memory_limit_gb", "> 0", self.memory_limit_gb)
        require(
            0 <= self.max_error_rate <= 1, "reward.max_error_rate", "in [0, 1]", self.max_error_rate
        )
