"""Config schema of `reward`."""

from dataclasses import dataclass

from rollout.config import require


@dataclass(kw_only=True)
class RewardConfig:
    num_workers: int = 1
    """Number of processes that score completions."""
    time_limit_seconds: float = 10.0
    """Time limit for scoring one completion, in seconds. After it the scorer's process is killed and the outcome
    is a timeout."""
    memory_limit_gb: float = 8.0
    """Limit of the address space of one scorer process, in GB (10^9 bytes)."""
    max_error_rate: float = 0.2
    """Maximum share of a step's completions that may fail to be scored; the run stops if more fail."""

    def __post_init__(self) -> None:
        require(self.num_workers > 0, "reward.num_workers", "> 0", self.num_workers)
        require(
            self.time_limit_seconds > 0, "reward.time_limit_seconds", "> 0", self.time_limit_seconds
        )
        require(self.memory_limit_gb > 0, "reward.memory_limit_gb", "> 0", self.memory_limit_gb)
        require(
            0 <= self.max_error_rate <= 1, "reward.max_error_rate", "in [0, 1]", self.max_error_rate
        )
