"""Counts that an engine and its speculation keep. No torch."""

from dataclasses import dataclass, field, fields
from itertools import zip_longest

__all__ = ["EngineStats", "SpeculationStats"]


@dataclass(slots=True)
class EngineStats:
    """Counts since the engine was made."""

    num_steps: int = 0
    num_request_steps: int = 0
    """Requests of a batch, summed over steps."""
    num_computed_tokens: int = 0
    """Tokens prefilled and decoded."""
    num_sampled_tokens: int = 0
    num_preemptions: int = 0
    num_prefix_hit_tokens: int = 0


@dataclass(slots=True)
class SpeculationStats:
    """Counts since they were last taken."""

    num_proposed: int = 0
    """Draft tokens that were verified."""
    num_accepted: int = 0
    """Verified draft tokens that were kept. The token that follows the last kept one is counted in neither."""
    proposed_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    num_without_room: int = 0
    """Times that a request got no draft because the cache of the draft model was full."""
    draft_seconds: float = 0.0
    """Time spent on drafts and on the choice of their lengths."""
    drafted_tokens: int = 0
    """Tokens sampled in steps with drafts, which took `drafted_seconds`."""
    drafted_seconds: float = 0.0
    control_tokens: int = 0
    """Tokens sampled in control steps, which ran without the drafts they would have had, and took `control_seconds`."""
    control_seconds: float = 0.0

    compared_tokens: int = 0
    """Tokens sampled in steps with drafts and without prompts, which took `compared_seconds`; `expected_tokens` and
    `expected_seconds` are the estimates for these steps."""
    compared_seconds: float = 0.0
    expected_tokens: float = 0.0
    expected_seconds: float = 0.0

    def count(self, num_proposed: int, num_accepted: int) -> None:
        """Counts one verified draft."""
        self.num_proposed += num_proposed
        self.num_accepted += num_accepted
        for counts, length in (
            (self.proposed_by_position, num_proposed),
            (self.accepted_by_position, num_accepted),
        ):
            counts += [0] * (length - len(counts))
            for position in range(length):
                counts[position] += 1

    def add(self, other: "SpeculationStats") -> None:
        """Adds the counts of another engine."""
        for field_ in fields(self):
            mine, its = getattr(self, field_.name), getattr(other, field_.name)
            if isinstance(mine, list):
                its = [a + b for a, b in zip_longest(mine, its, fillvalue=0)]
            else:
                its += mine
            setattr(self, field_.name, its)

    def metrics(self) -> dict[str, float]:
        """Returns counts and rates as metrics, without rates whose denominator is 0."""
        metrics = {
            "speculation/proposed_tokens": float(self.num_proposed),
            "speculation/accepted_tokens": float(self.num_accepted),
            "speculation/without_room": float(self.num_without_room),
            "speculation/draft_seconds": self.draft_seconds,
        }
        positions = zip_longest(self.accepted_by_position, self.proposed_by_position, fillvalue=0)
        for position, (accepted, proposed) in enumerate(positions, start=1):
            metrics[f"speculation/acceptance_at_{position}"] = accepted / proposed
        if self.num_proposed:
            metrics["speculation/acceptance_rate"] = self.num_accepted / self.num_proposed
        if self.drafted_seconds:
            metrics["speculation/tokens_per_second_with"] = (
                self.drafted_tokens / self.drafted_seconds
            )
        if self.compared_tokens:
            metrics["speculation/tokens_over_expected"] = (
                self.compared_tokens / self.expected_tokens
            )
            metrics["speculation/seconds_over_expected"] = (
                self.compared_seconds / self.expected_seconds
            )
        if self.control_seconds:
            metrics["speculation/tokens_per_second_without"] = (
                self.control_tokens / self.control_seconds
            )
        return metrics
