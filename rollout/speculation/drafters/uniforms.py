"""The uniforms that tokens are drawn with: of key and position alone, so a drafter has them before the engine draws."""

from collections.abc import Sequence
from itertools import islice

import torch

from kernels.philox import philox_uniform
from rollout.engine.core import Request, SampleKey

__all__ = ["Uniforms", "uniforms"]

_AT_ONCE = 256  # positions of a request: one call takes 0.3 ms, for one as for these


def uniforms(spans: Sequence[tuple[SampleKey, int, int]]) -> list[list[float]]:
    """Of each span (key, first position in the log, positions), all of them in one call."""
    if not spans:
        return []
    keys, positions = [], []
    for key, first, count in spans:
        keys += [[key.seed, key.group_id, key.sample_index]] * count
        positions += range(first, first + count)
    keys_B3 = torch.tensor(keys, dtype=torch.int64).reshape(-1, 3)
    values = iter(philox_uniform(keys_B3, torch.tensor(positions, dtype=torch.int64)).tolist())
    return [list(islice(values, count)) for _, _, count in spans]


class Uniforms:
    """Those of one request, computed as far as they are asked for."""

    def __init__(self, request: Request) -> None:
        self._key = request.drawn_with
        self._first = len(request.token_ids)
        self._known: list[float] = []

    def at(self, position: int) -> float | None:
        """Of a position behind the prompt; None where the request is greedy."""
        if self._key is None:
            return None
        index = position - self._first
        while index >= len(self._known):
            (more,) = uniforms([(self._key, self._first + len(self._known), _AT_ONCE)])
            self._known += more
        return self._known[index]
