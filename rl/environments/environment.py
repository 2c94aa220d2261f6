"""What answers a policy between its turns."""

from typing import Protocol

from rl.rollouts import Rollout

__all__ = ["Environment", "SingleTurn"]


class Environment(Protocol):
    def reply(self, rollout: Rollout) -> list[int] | None:
        """Token ids to append before the policy's next turn; None when the rollout is done."""
        ...


class SingleTurn:
    """Done at once: one completion is the whole rollout."""

    def reply(self, rollout: Rollout) -> list[int] | None:
        return None
