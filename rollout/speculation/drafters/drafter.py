"""What proposes tokens, and what a proposal is. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rollout.engine.core import RequestState

__all__ = ["NO_DRAFT", "Draft", "Drafter"]


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next, and how sure the drafter is of each if all before it are right."""

    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    """In (0, 1]; the controller learns what they are worth."""
    match_length: int
    """Tokens before the draft that its source had in common with the request."""


NO_DRAFT = Draft((), (), 0)


class Drafter(Protocol):
    """A source of drafts. Any tokens are safe: what is wrong costs time, never changes an output.

    A trained head (EAGLE, MTP) fits here once the runner hands out the last hidden state of each request: it needs
    that state, the request's newest token, the LM head, and a training pass of its own.
    """

    def propose(self, states: Sequence[RequestState], *, max_tokens: int) -> list[Draft]:
        """One draft per request, of up to `max_tokens` tokens; `NO_DRAFT` for none."""
        ...

    def finish(self, state: RequestState, *, policy_version: int) -> None:
        """A request ended, by whatever cause; `state.token_ids` is all there will be of it."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as lists and numbers."""
        ...

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
