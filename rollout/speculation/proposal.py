"""A draft that was proposed for a request, and its comparison with what was sampled. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.speculation.allocation import survival
from rollout.speculation.drafters.drafter import Draft

__all__ = ["Proposal", "tested_part"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A draft for one request."""

    draft: Draft
    source: int
    """Index of the drafter that made it."""
    probabilities: list[float]
    """Chance of each token to be kept if those before it are; only of tokens that the request can use."""

    @property
    def worth(self) -> float:
        """Number of tokens that are expected to be kept."""
        return sum(survival(self.probabilities))


def tested_part(draft: Draft, sampled: Sequence[int]) -> tuple[Draft, int]:
    """Returns the part of a draft that sampled tokens can be compared with, and how many of its tokens were right.

    A draft that was not verified is compared with the one token that was sampled, so learning costs no row.
    """
    tested = Draft(
        draft.token_ids[: len(sampled)], draft.confidences[: len(sampled)], draft.match_length
    )
    num_right = 0
    for drafted, token_id in zip(tested.token_ids, sampled, strict=False):
        if drafted != token_id:
            break
        num_right += 1
    return tested, num_right
