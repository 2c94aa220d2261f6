"""What a step costs: seconds by rows and by keys read, measured at the start and refreshed while running. No torch."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.engine.core import Chunk

__all__ = ["CostTable", "StepSize", "step_size"]

_REFRESH = 0.1


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step's cost depends on."""

    rows: int
    keys: int
    """Of all requests: each request's are read once, whatever it computes."""
    row_keys: int
    """Keys of each row beyond a request's first: these are in the cache by then."""

    def with_row(self, num_keys: int) -> "StepSize":
        """One more row of a request that has so many keys."""
        return self.with_rows(1, num_keys)

    def with_rows(self, count: int, num_keys: int) -> "StepSize":
        """So many more rows, of requests that have so many keys in all."""
        return StepSize(self.rows + count, self.keys, self.row_keys + num_keys)


def step_size(chunks: Sequence[Chunk]) -> StepSize:
    """Of a step that has not run yet: later the requests have other lengths."""
    contexts = [chunk.state.num_computed + chunk.num_tokens for chunk in chunks]
    row_keys = sum((c.num_rows - 1) * keys for c, keys in zip(chunks, contexts, strict=True))
    return StepSize(sum(chunk.num_rows for chunk in chunks), sum(contexts), row_keys)


class CostTable:
    """T(step) = T(rows) + keys * seconds per key + row keys * seconds per row key.

    Linear between measured numbers of rows, and beyond them.

    Args:
        seconds_by_rows: at least two measurements, of steps that read next to no keys.
        seconds_per_key: of reading a request's keys, in all layers.
        seconds_per_row_key: of one more row of the same request.
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
        """Move the measurements beside a step's number of rows towards what it took."""
        error = seconds - self.seconds(size)
        for index, weight in self._weights(size.rows):
            share = min(max(weight, 0.0), 1.0)
            self._seconds[index] = max(self._seconds[index] + _REFRESH * share * error, 1e-6)

    def _weights(self, num_rows: int) -> tuple[tuple[int, float], tuple[int, float]]:
        """The two neighbours and their weights, which sum to 1; beyond the ends one is negative."""
        high = min(max(bisect_right(self._rows, num_rows), 1), len(self._rows) - 1)
        below, above = self._rows[high - 1], self._rows[high]
        share = (num_rows - below) / (above - below)
        return (high - 1, 1 - share), (high, share)
