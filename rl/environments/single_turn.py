"""The environment of one turn: the prompt is the task's own, and the first answer ends the rollout."""

from collections.abc import Mapping, Sequence
from typing import Any

from rl.environments.contract import Message, Reply
from rl.rollouts import RolloutEnd, Turn

__all__ = ["SingleTurn"]


class SingleTurn:
    """Done at once; the task's scorer gives the reward."""

    def start(self, row: Mapping[str, Any], seed: int) -> Sequence[Message]:
        return row["messages"]

    def reply(self, turn: Turn) -> Reply:
        return Reply(is_done=True)

    def end(self, reason: RolloutEnd) -> Reply:
        return Reply(is_done=True)

    def close(self) -> None:
        """There is nothing to free."""
