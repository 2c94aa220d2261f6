"""Interface of a source of drafts, and the draft. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rollout.core import RequestState

__all__ = ["NO_DRAFT", "NO_ROOM", "Draft", "Drafter"]


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next, and how sure the drafter is of each if all before it are right."""

    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    """Confidences in (0, 1], one per token; the controller learns what they are worth."""
    match_length: int
    """Tokens before the draft that its source had in common with the request."""


NO_DRAFT = Draft((), (), 0)
NO_ROOM = Draft((), (), 0)
"""No draft either, since the drafter had no memory for the request; told apart by identity, to be counted."""


class Drafter(Protocol):
    """A source of drafts. Any tokens are safe: what is wrong costs time, never changes an output.

    A trained head (EAGLE, MTP) is one more drafter, and needs what none of these do:

    - the target's hidden states at the last accepted position of each request (EAGLE-3: of several layers; and of every
      accepted position, where the head has a KV cache). `Runner.run` would return them beside the logits, and the engine
      hand them over once it knows which tokens were kept;
    - the newest token, and the target's embedding and LM head, which are another object after every commit;
    - its own weights in the same `WeightUpdate` as the policy's, under a prefix of their own, so that one manifest and
      one policy version covers both and a rollback takes both back; what it has cached of a request is of that version;
    - a training pass: its loss against the policy's detached distribution.
    """

    def propose(self, states: Sequence[RequestState], *, max_tokens: int) -> list[Draft]:
        """One draft per request, of up to `max_tokens` tokens; `NO_DRAFT` for none."""
        ...

    def seconds(self, states: Sequence[RequestState], *, max_tokens: int) -> float:
        """Returns the expected seconds of `propose` with the same arguments; 0 if they are negligible."""
        return 0.0

    def finish(self, state: RequestState, *, policy_version: int) -> None:
        """Notes that a request has ended, for any reason; `state.token_ids` is its whole log."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, as lists and numbers."""
        ...

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes over the result of `state_dict`."""

    def check_integrity(self) -> None:
        """Recounts what it holds.

        Raises:
            RuntimeError: the books do not agree.
        """
        return
