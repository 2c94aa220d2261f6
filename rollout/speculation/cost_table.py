"""What a step costs: seconds by rows and by keys read, measured at the start and refreshed while running. No torch."""

from bisect import bisect_right

__all__ = ["CostTable"]

_REFRESH = 0.1


class CostTable:
    """T(rows, keys) = T(rows) + keys * seconds per key; linear between measured rows and beyond them.

    Args:
        seconds_by_rows: at least two measurements, of steps that read next to no keys.
        seconds_per_key: of one row that reads one key, in all layers.
    """

    def __init__(self, seconds_by_rows: dict[int, float], *, seconds_per_key: float) -> None:
        self._rows = sorted(seconds_by_rows)
        self._seconds = [seconds_by_rows[rows] for rows in self._rows]
        self._seconds_per_key = seconds_per_key

    def seconds(self, num_rows: int, num_keys: int) -> float:
        """Of a step of `num_rows` rows that read `num_keys` keys in all."""
        (i, low), (j, high) = self._weights(num_rows)
        return low * self._seconds[i] + high * self._seconds[j] + num_keys * self._seconds_per_key

    def refresh(self, num_rows: int, num_keys: int, seconds: float) -> None:
        """Move the measurements beside `num_rows` towards what a step took."""
        error = seconds - self.seconds(num_rows, num_keys)
        beside = self._weights(num_rows)
        for index, weight in beside:
            share = min(max(weight, 0.0), 1.0)
            self._seconds[index] = max(self._seconds[index] + _REFRESH * share * error, 1e-6)

    def _weights(self, num_rows: int) -> tuple[tuple[int, float], tuple[int, float]]:
        """The two neighbours and their weights, which sum to 1; beyond the ends one is negative."""
        high = min(max(bisect_right(self._rows, num_rows), 1), len(self._rows) - 1)
        below, above = self._rows[high - 1], self._rows[high]
        share = (num_rows - below) / (above - below)
        return (high - 1, 1 - share), (high, share)
