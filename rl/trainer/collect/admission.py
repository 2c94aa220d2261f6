"""Admission of groups, which limits staleness by limiting the groups that begin; none is discarded for its age."""

__all__ = ["Admission"]


class Admission:
    """Count of groups that may begin: running + accepted never exceeds

        first accepted + (min(version + max_staleness + 1, num_steps) - first version) * num_prompts_per_step.

    The first version is the one at which the run begins; the groups accepted before it may have been in batches of
    another size. `accepted` counts the groups of all consumed batches, without those that dynamic sampling dropped.
    `running` counts the other groups that have begun, complete or not. With `max_staleness` 0 there is one batch per
    version, which is the synchronous loop. Batches after `num_steps` never begin, because they would not be trained
    on.
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
        """Return the number of groups that may begin now."""
        num_batches = min(policy_version + self._max_staleness + 1, self._num_steps)
        num_groups = (num_batches - self._first_version) * self._num_prompts_per_step
        return self._first_accepted + num_groups - self.running - self.accepted

    def begin(self, num_groups: int = 1) -> None:
        self.running += num_groups

    def drop(self, num_groups: int = 1) -> None:
        """Remove complete groups that will not be trained on, so that others may begin instead."""
        self.running -= num_groups

    def accept(self, num_groups: int = 1) -> None:
        """Move complete groups from running to accepted."""
        self.running -= num_groups
        self.accepted += num_groups
