"""Estimates whether drafts raise the expected tokens per second, before any is made. No torch."""

from collections.abc import Mapping, Sequence

from rollout.core import RequestState
from rollout.speculation.allocation import Decoding
from rollout.speculation.drafters.drafter import Drafter

__all__ = ["LEAST_GAIN", "best_reach", "can_pay"]

LEAST_GAIN = 1.05
"""Factor in speed that drafts must promise: covers what the estimates do not include, and their noise."""


def can_pay(
    decoding: Decoding, max_lengths: Mapping[RequestState, int], *, rate: float, most_tokens: int
) -> bool:
    """Returns whether drafts whose tokens are kept at this rate would pay, for all requests or for some of them.

    Args:
        decoding: the step without drafts.
        max_lengths: requests that may have drafts.
        rate: chance that a token is kept if those before it are.
        most_tokens: length of the longest draft.
    """
    mean_context = sum(len(state.token_ids) for state in max_lengths) // len(max_lengths)
    least_speed = LEAST_GAIN * decoding.speed
    num_requests = len(max_lengths)
    while num_requests:
        expected = 0.0
        for length in range(1, most_tokens + 1):
            expected += rate**length
            rows = num_requests * length
            longer = decoding.size.with_rows(rows, rows * mean_context)
            num_tokens = decoding.num_tokens + num_requests * expected
            if num_tokens / decoding.seconds(longer) > least_speed:
                return True
        num_requests //= 2
    return False


def best_reach(
    drafter: Drafter,
    states: Sequence[RequestState],
    decoding: Decoding,
    *,
    rate: float,
    most_tokens: int,
) -> tuple[int, int]:
    """Returns how many of the requests to draft for, and the length of each draft, for the most expected tokens per second,
    counting the time of drafting; (0, 0) if no choice pays.

    Args:
        drafter: gives the time of drafting.
        states: requests, of which the first ones are taken.
        decoding: the step without drafts.
        rate: chance that a token is kept if those before it are.
        most_tokens: length of the longest draft.
    """
    best, best_speed = (0, 0), LEAST_GAIN * decoding.speed
    count = len(states)
    while count:
        asked, expected = states[:count], float(decoding.num_tokens)
        num_keys = sum(len(state.token_ids) for state in asked)
        for length in range(1, most_tokens + 1):
            expected += count * rate**length
            longer = decoding.size.with_rows(count * length, num_keys * length)
            own_seconds = drafter.seconds(asked, max_tokens=length)
            speed = expected / (decoding.seconds(longer) + own_seconds)
            if speed > best_speed:
                best, best_speed = (count, length), speed
        count //= 2
    return best
