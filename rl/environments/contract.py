"""Contract of environments; the policy exchanges messages with an environment.

    start(row, seed) -> messages        the prompt
    reply(turn)      -> messages        the policy takes another turn
                     -> done            the rollout ends, with a reward or with none, which leaves it to the task's
                     scorer
    end(reason)      -> done            the framework ended the rollout
    close()                             always called, exactly once

Each rollout has its own environment. Environments exchange messages; the framework appends their tokens to the
rollout's log, and never tokenizes sampled text again. An environment of a single turn is done after the first
(`single_turn.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rl.rollouts import RolloutEnd, Turn

__all__ = ["Environment", "Message", "Reply"]

Message = Mapping[str, str]
"""Chat message: `role` and `content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Environment's answer to a turn: messages, or the end of the rollout."""

    messages: tuple[Message, ...] = ()
    is_done: bool = False
    reward: float | None = None
    """Reward of the turn that was answered. A rollout in which no turn has a reward is scored by the task's
    scorer."""


class Environment(Protocol):
    def start(self, row: Mapping[str, Any], seed: int) -> Sequence[Message]:
        """Return the prompt.

        Args:
            row: row of the prompt; its `messages` are the chat messages that the task built from it.
            seed: seed of the environment, equal for all siblings of a group, which must start in the same state.
        """
        ...

    def reply(self, turn: Turn) -> Reply:
        """Return the answer to a turn of the policy."""
        ...

    def end(self, reason: RolloutEnd) -> Reply:
        """Return the last reward of a rollout that ends without a reply."""
        ...

    def close(self) -> None:
        """Free the environment's resources."""
