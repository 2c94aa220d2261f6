"""Environment of a single turn: it asks the task's prompt, and the first answer ends the rollout."""

from collections.abc import Mapping, Sequence
from typing import Any

from rl.environments.contract import Message, Reply
from rl.rollouts import RolloutEnd, Turn

__all__ = ["SingleTurn"]


class SingleTurn:
    """Environment that is done after one turn; the task's scorer gives the reward."""

    def start(self, row: Mapping[str, Any], seed: int) -> Sequence[Message]:
        return row["messages"]

    def reply(self, turn: Turn) -> Reply:
        return Reply(is_done=True)

    def end(self, reason: RolloutEnd) -> Reply:
        return Reply(is_done=True)

    def close(self) -> None:
        """Do nothing, because there are no resources."""
