"""Sums over the tokens of micro-batches, which add up over micro-batches, steps and ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

__all__ = ["LossSums", "MismatchSums", "over_ranks", "over_steps"]


@dataclass(slots=True, kw_only=True)
class MismatchSums:
    """Measures of how far the trainer's log-probabilities are from those that the engine reported, and the importance weights.

    Fresh tokens were sampled from the weights that are trained. Stale ones also differ because the policy has moved, so
    they say nothing about the engine.
    """

    num_fresh: int = 0
    num_stale: int = 0
    k3: float = 0.0
    """K3 of KL(engine || trainer) over fresh tokens, in nats."""
    stale_k3: float = 0.0
    """K3 over stale tokens."""
    difference: float = 0.0
    """|old_logprobs - rollout_logprobs| over fresh tokens."""
    max_difference: float = 0.0
    """Greatest such difference at one fresh token: 0.0 in exact mode."""
    weight: float = 0.0
    """Importance weights over all tokens."""
    squared_weight: float = 0.0
    num_left_out: int = 0
    """Tokens with an importance weight of 0."""

    def add(self, other: "MismatchSums") -> None:
        """Add sums over other tokens."""
        self.num_fresh += other.num_fresh
        self.num_stale += other.num_stale
        self.k3 += other.k3
        self.stale_k3 += other.stale_k3
        self.difference += other.difference
        self.max_difference = max(self.max_difference, other.max_difference)
        self.weight += other.weight
        self.squared_weight += other.squared_weight
        self.num_left_out += other.num_left_out

    @property
    def mean_k3(self) -> float | None:
        """K3 per fresh token; None where there is none."""
        return self.k3 / self.num_fresh if self.num_fresh else None


@dataclass(slots=True, kw_only=True)
class LossSums:
    """Sums that a loss reports."""

    losses: dict[str, float] = field(default_factory=dict)
    """Losses by their metric's name; reported over the denominator that divides their gradient."""
    tokens: dict[str, float] = field(default_factory=dict)
    """Other sums by their metric's name; reported as means over the tokens."""
    mismatch: MismatchSums = field(default_factory=MismatchSums)
    num_tokens: int = 0
    bad_sample: int | None = None
    """Index of the first sample whose loss is not finite."""
    backward_seconds: float = 0.0
    """Time spent in backward passes."""

    def add(self, other: "LossSums") -> None:
        """Add sums over other tokens, without the time."""
        for own, others in ((self.losses, other.losses), (self.tokens, other.tokens)):
            for name, value in others.items():
                own[name] = own.get(name, 0.0) + value
        self.mismatch.add(other.mismatch)
        self.num_tokens += other.num_tokens
        if self.bad_sample is None:
            self.bad_sample = other.bad_sample


def over_steps(parts: Sequence[LossSums]) -> LossSums:
    """Add up the steps on one batch."""
    return replace(_added(parts), backward_seconds=sum(part.backward_seconds for part in parts))


def over_ranks(parts: Sequence[LossSums]) -> LossSums:
    """Add up the ranks' parts of one step, whose samples have the same numbers on all ranks; the slowest gives the time."""
    bad_samples = [part.bad_sample for part in parts if part.bad_sample is not None]
    return replace(
        _added(parts),
        bad_sample=min(bad_samples, default=None),
        backward_seconds=max(part.backward_seconds for part in parts),
    )


def _added(parts: Sequence[LossSums]) -> LossSums:
    total = LossSums()
    for part in parts:
        total.add(part)
    return total
