"""Costs of a step: seconds by rows and by keys read, measured at the start and refreshed while running. No torch."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.core import Chunk

__all__ = ["CostTable", "StepSize", "step_size"]

_REFRESH = 0.1
_LEAST_SECONDS = 1e-6
_DOUBT_OF_KEYS = 3.0  # times that of rows: what keys cost depends on how requests share the cache and the threads
_MOST_RATIO = 2.0  # of a step's time to its estimate: one hiccup must not make a number of rows look too dear to try again


@dataclass(frozen=True, slots=True)
class StepSize:
    """Size of a step, which its cost depends on."""

    rows: int
    keys: int
    """Keys of all requests, each block counted once, however many requests share it and rows read it."""
    row_keys: int
    """Keys that a further row or a sibling meets: they are in the cache by then."""

    def with_row(self, num_keys: int) -> "StepSize":
        """Returns the size with one more row, of a request with `num_keys` keys."""
        return self.with_rows(1, num_keys)

    def with_rows(self, count: int, num_keys: int) -> "StepSize":
        """Returns the size with `count` more rows, of requests with `num_keys` keys in total."""
        return StepSize(self.rows + count, self.keys, self.row_keys + num_keys)


def step_size(chunks: Sequence[Chunk]) -> StepSize:
    """Returns the size of a step that has not run yet; afterwards its requests have other lengths."""
    seen: set[int] = set()  # blocks
    num_rows = keys = row_keys = 0
    for chunk in chunks:
        num_keys = chunk.state.num_computed + chunk.num_tokens
        table, num_seen = chunk.state.block_table, len(seen)
        seen.update(table)
        num_shared = len(table) - (len(seen) - num_seen)
        again = num_keys * num_shared // len(table) if num_shared else 0
        num_rows += chunk.num_rows
        keys += num_keys - again
        row_keys += (chunk.num_rows - 1) * num_keys + again
    return StepSize(num_rows, keys, row_keys)


class CostTable:
    """T(step) = T(rows) + keys * seconds per key + row keys * seconds per row key.

    Linear between measured numbers of rows, and beyond them.

    Args:
        seconds_by_rows: at least two measurements, of steps that read next to no keys.
        seconds_per_key: seconds to read one key of a request, in all layers.
        seconds_per_row_key: seconds per key of one more row of the same request.
    """

    def __init__(
        self,
        seconds_by_rows: dict[int, float],
        *,
        seconds_per_key: float = 0.0,
        seconds_per_row_key: float = 0.0,
    ) -> None:
        self._rows = sorted(seconds_by_rows)
        self._seconds = [seconds_by_rows[rows] for rows in self._rows]
        self._seconds_per_key = seconds_per_key
        self._seconds_per_row_key = seconds_per_row_key

    def seconds(self, size: StepSize) -> float:
        (i, low), (j, high) = self._weights(size.rows)
        of_rows = low * self._seconds[i] + high * self._seconds[j]
        of_keys = size.keys * self._seconds_per_key + size.row_keys * self._seconds_per_row_key
        return of_rows + of_keys

    def refresh(self, size: StepSize, seconds: float) -> None:
        """Move the parts of the estimate towards what a step took, each by how much of it is in doubt.

        Were all of it laid to the rows, keys that cost less than was measured would teach that rows are cheap.
        """
        expected = self.seconds(size)
        error = (min(max(seconds / expected, 0.0), _MOST_RATIO) - 1) * expected
        of_keys = size.keys * self._seconds_per_key
        of_row_keys = size.row_keys * self._seconds_per_row_key
        doubts = (
            expected - of_keys - of_row_keys,
            _DOUBT_OF_KEYS * of_keys,
            _DOUBT_OF_KEYS * of_row_keys,
        )
        whole = sum(doubt**2 for doubt in doubts)
        for_rows, for_keys, for_row_keys = (_REFRESH * error * d**2 / whole for d in doubts)
        for index, weight in self._weights(size.rows):
            share = min(max(weight, 0.0), 1.0)
            self._seconds[index] = max(self._seconds[index] + share * for_rows, _LEAST_SECONDS)
        if of_keys:
            self._seconds_per_key *= max(1 + for_keys / of_keys, 0.5)
        if of_row_keys:
            self._seconds_per_row_key *= max(1 + for_row_keys / of_row_keys, 0.5)

    def _weights(self, num_rows: int) -> tuple[tuple[int, float], tuple[int, float]]:
        """The two neighbours and their weights, which sum to 1; beyond the ends one is negative."""
        high = min(max(bisect_right(self._rows, num_rows), 1), len(self._rows) - 1)
        below, above = self._rows[high - 1], self._rows[high]
        share = (num_rows - below) / (above - below)
        return (high - 1, 1 - share), (high, share)
