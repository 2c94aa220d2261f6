"""How many groups may be begun: staleness is bounded here, never by discarding."""

__all__ = ["Admission"]


class Admission:
    """running + accepted <= first accepted + (min(version + max_staleness + 1, num_steps) - first version) * num_prompts_per_step.

    The first version is the one that the run begins at: what it had accepted then may have been batches of another size.
    `accepted` is cumulative: groups of the batches that were consumed, without those that dynamic sampling dropped.
    `running` are the others that were begun, complete or not. With `max_staleness` 0 this is one batch per version, the
    synchronous loop. Batches beyond `num_steps` are never begun: nobody would train on them.
    """

    def __init__(
        self,
        *,
        num_prompts_per_step: int,
        num_steps: int,
        max_staleness: int = 0,
        first_version: int = 0,
        first_accepted: int = 0,
    ) -> None:
        self._num_prompts_per_step = num_prompts_per_step
        self._num_steps = num_steps
        self._max_staleness = max_staleness
        self._first_version = first_version
        self._first_accepted = first_accepted
        self.running = 0
        self.accepted = first_accepted

    def capacity(self, policy_version: int) -> int:
        """Groups that may be begun now."""
        num_batches = min(policy_version + self._max_staleness + 1, self._num_steps)
        num_groups = (num_batches - self._first_version) * self._num_prompts_per_step
        return self._first_accepted + num_groups - self.running - self.accepted

    def begin(self, num_groups: int = 1) -> None:
        self.running += num_groups

    def drop(self, num_groups: int = 1) -> None:
        """Complete groups that will not be trained on: others may be begun in their place."""
        self.running -= num_groups

    def accept(self, num_groups: int = 1) -> None:
        """Move complete groups from running to accepted."""
        self.running -= num_groups
        self.accepted += num_groups
