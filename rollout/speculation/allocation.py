"""Chooses how many draft tokens each request gets, for the most expected tokens per second. No torch."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.speculation.cost_table import CostTable, StepSize

__all__ = ["Decoding", "allocate", "survival"]

_LEAST_SURVIVAL = 0.02
_LOOK_AHEAD = 64  # tokens past the best total: no step in the costs is wider


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """The part of a step that drafts are weighed against: its tokens, and the seconds that are theirs."""

    costs: CostTable
    size: StepSize
    """Size of the whole step, without drafts."""
    num_tokens: int
    """Tokens that the step yields without drafts."""
    sunk_seconds: float = 0.0
    """Time spent on prompts, whatever is drafted. It is left out, since it would make drafts seem cheap."""

    def seconds(self, size: StepSize) -> float:
        """Returns the seconds of the step at another size, without the time spent on prompts."""
        return self.costs.seconds(size) - self.sunk_seconds

    @property
    def speed(self) -> float:
        """Tokens per second without drafts."""
        return self.num_tokens / self.seconds(self.size)


def survival(probabilities: Sequence[float]) -> list[float]:
    """Returns, for each token of a draft, the chance that it and all tokens before it are kept."""
    chances, chance = [], 1.0
    for probability in probabilities:
        chance *= probability
        chances.append(chance)
    return chances


def allocate(
    probabilities: Sequence[Sequence[float]],
    context_lengths: Sequence[int],
    *,
    decoding: Decoding,
    least_gain: float,
) -> list[int]:
    """Returns the draft length of each request.

    Tokens are taken greedily, those likeliest to survive per second first; a token survives if it and all before it are
    kept. Of all the totals on that path the one with the most expected tokens per second wins, so a step in the costs
    (a tile of rows that is free once begun) cannot hide what comes after it.

    Args:
        probabilities: per request and draft token, of being kept if those before it are.
        context_lengths: per request, the keys that one more row of it reads.
        decoding: the step without drafts.
        least_gain: factor in speed that drafts must promise.
    """
    survivals = [survival(p) for p in probabilities]
    # by what a token is expected to bring per second: one in a long context reads more keys
    size = decoding.size
    row_seconds = [decoding.seconds(size.with_row(num_keys)) for num_keys in context_lengths]
    lengths = [0] * len(survivals)
    best, best_rate = lengths.copy(), least_gain * decoding.speed
    heap = [(-s[0] / row_seconds[i], i) for i, s in enumerate(survivals) if s]
    heapq.heapify(heap)
    expected, num_behind = float(decoding.num_tokens), 0
    while heap:
        _, i = heapq.heappop(heap)
        chance = survivals[i][lengths[i]]
        if chance < _LEAST_SURVIVAL:
            continue
        expected += chance
        lengths[i] += 1
        size = size.with_row(context_lengths[i])
        if lengths[i] < len(survivals[i]):
            heapq.heappush(heap, (-survivals[i][lengths[i]] / row_seconds[i], i))
        rate = expected / decoding.seconds(size)
        num_behind += 1
        if rate > best_rate:
            best, best_rate, num_behind = lengths.copy(), rate, 0
        if num_behind == _LOOK_AHEAD:
            break
    return best
