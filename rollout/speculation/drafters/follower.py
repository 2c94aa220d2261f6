"""State that a draft model keeps for a request, and the draft that it makes. No torch."""

from dataclasses import dataclass, field

from rollout.core import RequestState
from rollout.speculation.drafters.drafter import NO_DRAFT, Draft

__all__ = ["Chain", "Follower"]

_MATCH_LENGTH = 1  # of the first token; later tokens are told apart by position


@dataclass(slots=True, eq=False)
class Follower:
    """A request as the draft model follows it."""

    state: RequestState
    """State of the request in the engine."""
    own: RequestState
    """State in the draft model: its own cache blocks, and a log that may end in drafted tokens."""
    num_known: int
    """Tokens of its log that the engine's log had at the last look."""

    @classmethod
    def of(cls, state: RequestState) -> "Follower":
        own = RequestState(
            request=state.request, token_ids=[], num_prompt_tokens=state.num_prompt_tokens
        )
        return cls(state, own, 0)

    @property
    def num_behind(self) -> int:
        """Number of tokens to compute before the first draft token can be drawn."""
        return len(self.state.token_ids) - min(self.own.num_computed, self.num_known)

    def catch_up(self) -> None:
        """Takes over the engine's log, and forgets what was computed after tokens that it does not have."""
        log, own = self.state.token_ids, self.own
        same = self.num_known
        while same < min(len(log), len(own.token_ids)) and log[same] == own.token_ids[same]:
            same += 1
        own.token_ids[same:] = log[same:]
        own.num_computed = min(own.num_computed, same, len(log) - 1)  # the last one yields a row
        self.num_known = len(log)


@dataclass(slots=True)
class Chain:
    """A draft that is being made, token by token."""

    token_ids: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)

    def draft(self) -> Draft:
        """Returns the draft."""
        if not self.token_ids:
            return NO_DRAFT
        return Draft(tuple(self.token_ids), tuple(self.confidences), _MATCH_LENGTH)
