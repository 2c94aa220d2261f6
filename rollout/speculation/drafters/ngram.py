"""Prompt lookup: what followed the same last tokens earlier in the same request. No torch."""

from collections.abc import Sequence
from typing import Any

from rollout.core import RequestState
from rollout.speculation.drafters.drafter import NO_DRAFT, Draft, Drafter

__all__ = ["NgramDrafter"]


class NgramDrafter(Drafter):
    """Looks for the last 4 to 1 tokens, longest first, latest occurrence first.

    Prompt lookup decoding (Saxena, 2023). The baseline: it knows neither siblings nor the past.
    """

    def __init__(self, *, max_ngram: int = 4) -> None:
        self._max_ngram = max_ngram
        self._indices: dict[str, _Index] = {}

    def propose(self, states: Sequence[RequestState], *, max_tokens: int) -> list[Draft]:
        return [self._propose(state, max_tokens) for state in states]

    def _propose(self, state: RequestState, max_tokens: int) -> Draft:
        index = self._indices.setdefault(state.request.request_id, _Index(self._max_ngram))
        index.catch_up(state.token_ids)
        start, match_length = index.find(state.token_ids)
        token_ids = tuple(state.token_ids[start : start + max_tokens]) if match_length else ()
        return Draft(token_ids, (1.0,) * len(token_ids), match_length) if token_ids else NO_DRAFT

    def finish(self, state: RequestState, *, policy_version: int) -> None:
        self._indices.pop(state.request.request_id, None)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        pass


class _Index:
    """Position at which each n-gram of a log last ended, except the n-grams that end the log itself."""

    def __init__(self, max_ngram: int) -> None:
        self._max_ngram = max_ngram
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_seen = 0

    def catch_up(self, token_ids: Sequence[int]) -> None:
        for end in range(self._num_seen, len(token_ids)):  # n-grams that end before token `end`
            for n in range(1, min(self._max_ngram, end) + 1):
                self._ends[tuple(token_ids[end - n : end])] = end
        self._num_seen = len(token_ids)

    def find(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """Returns the position after the match and the length of the match; 0 and 0 if there is none."""
        for n in range(min(self._max_ngram, len(token_ids)), 0, -1):
            end = self._ends.get(tuple(token_ids[-n:]))
            if end is not None:
                return end, n
        return 0, 0
