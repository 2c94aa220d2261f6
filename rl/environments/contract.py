"""The contract of environments: the worlds that a policy talks to.

    start(row, seed) -> messages        the prompt
    reply(turn)      -> messages        the policy's next turn follows
                     -> done            the rollout ends, with a reward or for the task's scorer
    end(reason)      -> done            the framework ended the rollout
    close()                             always, once, whatever happened

There is one object per rollout. It speaks messages; the framework appends their tokens to the rollout's log, and never
re-tokenises what was sampled. One turn is the case that is done at once (`single_turn.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rl.rollouts import RolloutEnd, Turn

__all__ = ["Environment", "Message", "Reply"]

Message = Mapping[str, str]
"""A chat message: `role` and `content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An environment's answer to a turn: messages, or the end."""

    messages: tuple[Message, ...] = ()
    is_done: bool = False
    reward: float | None = None
    """Reward of the turn that was answered. A rollout without any reward is scored by the task's scorer."""


class Environment(Protocol):
    """The world of one rollout."""

    def start(self, row: Mapping[str, Any], seed: int) -> Sequence[Message]:
        """Return the prompt.

        Args:
            row: the prompt's row; `messages` holds the chat messages that the task made of it.
            seed: the same for all siblings of a group, whose worlds must be the same.
        """
        ...

    def reply(self, turn: Turn) -> Reply:
        """Answer what the policy said."""
        ...

    def end(self, reason: RolloutEnd) -> Reply:
        """Return the last reward of a rollout that ends without a reply."""
        ...

    def close(self) -> None:
        """Free what the environment holds."""
