"""Counters of an engine and its speculation. They need no torch."""

from dataclasses import dataclass, field, fields
from itertools import zip_longest

__all__ = ["EngineStats", "SpeculationStats"]


@dataclass(slots=True)
class EngineStats:
    """Counts since the engine was created."""

    num_steps: int = 0
    num_request_steps: int = 0
    """Sum over steps of the number of requests in the batch."""
    num_computed_tokens: int = 0
    """Number of tokens prefilled and decoded."""
    num_sampled_tokens: int = 0
    num_preemptions: int = 0
    num_prefix_hit_tokens: int = 0


@dataclass(slots=True)
class SpeculationStats:
    """Counts since the last time they were taken."""

    num_proposed: int = 0
    """Number of draft tokens that were verified."""
    num_accepted: int = 0
    """Number of verified draft tokens that were kept. The token after the last kept one counts as neither proposed
    nor accepted."""
    proposed_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    num_without_room: int = 0
    """Number of times that a request got no draft because the draft model's cache was full."""
    draft_seconds: float = 0.0
    """Time spent on drafts and on the choice of their lengths, in seconds."""
    drafted_tokens: int = 0
    """Number of tokens sampled in steps with drafts; these steps took `drafted_seconds`."""
    drafted_seconds: float = 0.0
    control_tokens: int = 0
    """Number of tokens sampled in control steps, which skip drafts for comparison; these steps took
    `control_seconds`."""
    control_seconds: float = 0.0

    compared_tokens: int = 0
    """Number of tokens sampled in steps with drafts and without prompts; these steps took `compared_seconds`.
    `expected_tokens` and `expected_seconds` are the predictions for them."""
    compared_seconds: float = 0.0
    expected_tokens: float = 0.0
    expected_seconds: float = 0.0

    def count(self, num_proposed: int, num_accepted: int) -> None:
        """Count one verified draft."""
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
        """Add the counts of another engine."""
        for field_ in fields(self):
            mine, its = getattr(self, field_.name), getattr(other, field_.name)
            if isinstance(mine, list):
                its = [a + b for a, b in zip_longest(mine, its, fillvalue=0)]
            else:
                its += mine
            setattr(self, field_.name, its)

    def metrics(self) -> dict[str, float]:
        """Return counts and rates as metrics. Rates with a denominator of 0 are left out."""
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
