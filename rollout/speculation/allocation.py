"""How many draft tokens each request gets: those that raise the tokens expected per second. No torch."""

import heapq
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul

__all__ = ["allocate"]

_LEAST_SURVIVAL = 0.02


def allocate(
    probabilities: Sequence[Sequence[float]],
    context_lengths: Sequence[int],
    *,
    seconds: Callable[[int, int], float],
    num_certain: int,
    least_gain: float,
) -> list[int]:
    """The draft length of each request.

    Tokens are taken greedily, the likeliest to survive first; a token survives if it and all before it are kept. Of all
    the totals on that path the one with the most expected tokens per second wins, so a step in the costs (a tile of
    rows that is free once begun) cannot hide what lies behind it.

    Args:
        probabilities: per request and draft token, of being kept if those before it are.
        context_lengths: per request, the keys that one more row of it reads.
        seconds: of the step with so many more rows that read so many more keys.
        num_certain: tokens that the step yields without drafts.
        least_gain: what speed must be multiplied by to draft at all.
    """
    survivals = [list(accumulate(p, mul)) for p in probabilities]
    lengths = [0] * len(survivals)
    best, best_rate = lengths.copy(), least_gain * num_certain / seconds(0, 0)
    heap = [(-s[0], i) for i, s in enumerate(survivals) if s]
    heapq.heapify(heap)
    expected, num_rows, num_keys = float(num_certain), 0, 0
    while heap:
        survival, i = heapq.heappop(heap)
        if -survival < _LEAST_SURVIVAL:
            break
        expected -= survival
        lengths[i] += 1
        num_rows += 1
        num_keys += context_lengths[i]
        if lengths[i] < len(survivals[i]):
            heapq.heappush(heap, (-survivals[i][lengths[i]], i))
        rate = expected / seconds(num_rows, num_keys)
        if rate > best_rate:
            best, best_rate = lengths.copy(), rate
    return best
