"""Measures how likely a draft token is to be kept, by match length and confidence. No torch."""

from bisect import bisect_right
from collections.abc import Sequence

from rollout.speculation.drafters.drafter import Draft

__all__ = ["Acceptance"]

_MATCH_EDGES = (2, 3, 4, 6, 9, 14, 24)  # a bucket begins at each
_CONFIDENCE_EDGES = (0.3, 0.45, 0.6, 0.75, 0.85, 0.92, 0.96)
_PRIOR_RATE = 0.05  # low: drafts are compared with what was sampled before any is verified, which costs no row
_PRIOR_TRIALS = 3.0
_DECAY = 0.998  # per verified draft of a bucket: a policy drifts
_REQUEST_TRIALS = 6.0  # how slowly a request's own record tells
_GREATEST = 0.99


class Acceptance:
    """Running estimates: one table for all requests, and a factor for each.

    The j-th token of a draft follows a match that is j tokens longer, if it is reached at all. Tokens after
    the first wrong one were never put to the test, and count neither way.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], float] = {}
        self._tried: dict[tuple[int, int], float] = {}
        self._record: dict[str, tuple[float, float]] = {}  # by request: kept, expected

    def probabilities(self, request_id: str, draft: Draft) -> list[float]:
        """Returns the chance of each token to be kept if those before it are."""
        kept, expected = self._record.get(request_id, (0.0, 0.0))
        factor = (kept + _REQUEST_TRIALS) / (expected + _REQUEST_TRIALS)
        return [min(self._rate(bucket) * factor, _GREATEST) for bucket in _buckets(draft)]

    def observe(self, request_id: str, draft: Draft, num_kept: int) -> None:
        """Learns that the first `num_kept` tokens were right, and that the next one, if any, was wrong."""
        kept, expected = self._record.get(request_id, (0.0, 0.0))
        for j, bucket in enumerate(_buckets(draft)[: num_kept + 1]):
            is_kept = float(j < num_kept)
            kept, expected = kept + is_kept, expected + self._rate(bucket)
            self._kept[bucket] = self._kept.get(bucket, 0.0) * _DECAY + is_kept
            self._tried[bucket] = self._tried.get(bucket, 0.0) * _DECAY + 1.0
        self._record[request_id] = (kept, expected)

    def forget(self, request_id: str) -> None:
        self._record.pop(request_id, None)

    def state_dict(self) -> list[list[float]]:
        """Returns match length, confidence, kept and tried of each bucket. Records of requests are not saved."""
        return [[*bucket, self._kept[bucket], tried] for bucket, tried in self._tried.items()]

    def load_state_dict(self, saved: Sequence[Sequence[float]]) -> None:
        """Takes over what another object learned."""
        for match, confidence, kept, tried in saved:
            bucket = (int(match), int(confidence))
            self._kept[bucket], self._tried[bucket] = kept, tried

    def greatest(self) -> float:
        """Returns the highest rate of any bucket, the most that a draft may be worth."""
        return min(max(map(self._rate, self._tried), default=_PRIOR_RATE), _GREATEST)

    def mean(self) -> float:
        """Returns the rate of all buckets together, the expected worth of a draft before it is made."""
        kept = sum(self._kept.values()) + _PRIOR_RATE * _PRIOR_TRIALS
        return min(kept / (sum(self._tried.values()) + _PRIOR_TRIALS), _GREATEST)

    def _rate(self, bucket: tuple[int, int]) -> float:
        tried = self._tried.get(bucket, 0.0)
        return (self._kept.get(bucket, 0.0) + _PRIOR_RATE * _PRIOR_TRIALS) / (tried + _PRIOR_TRIALS)


def _buckets(draft: Draft) -> Sequence[tuple[int, int]]:
    return [
        (
            bisect_right(_MATCH_EDGES, draft.match_length + j),
            bisect_right(_CONFIDENCE_EDGES, confidence),
        )
        for j, confidence in enumerate(draft.confidences)
    ]
