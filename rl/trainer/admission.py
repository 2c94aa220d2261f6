"""How many groups may be begun: staleness is bounded here, never by discarding."""

__all__ = ["Admission"]


class Admission:
    """running + accepted <= (policy_version + max_staleness + 1) * num_prompts_per_step.

    `accepted` is cumulative: groups that were trained on or wait to be, without those that dynamic sampling dropped.
    With `max_staleness` 0 this is one batch per version, the synchronous loop.
    """

    def __init__(self, *, num_prompts_per_step: int, max_staleness: int = 0) -> None:
        self._num_prompts_per_step = num_prompts_per_step
        self._max_staleness = max_staleness
        self.running = 0
        self.accepted = 0

    def capacity(self, policy_version: int) -> int:
        """Groups that may be begun now."""
        limit = (policy_version + self._max_staleness + 1) * self._num_prompts_per_step
        return limit - self.running - self.accepted

    def begin(self, num_groups: int = 1) -> None:
        self.running += num_groups

    def drop(self, num_groups: int = 1) -> None:
        """Complete groups that will not be trained on: others may be begun in their place."""
        self.running -= num_groups

    def accept(self, num_groups: int = 1) -> None:
        """Move complete groups from running to accepted."""
        self.running -= num_groups
        self.accepted += num_groups
