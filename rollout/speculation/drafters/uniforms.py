"""Uniforms that tokens are drawn with. They depend only on key and position, so a drafter has them before the engine draws."""

from collections.abc import Sequence
from itertools import islice

import torch

from kernels.philox import philox_uniform
from rollout.core import SampleKey

__all__ = ["Uniforms", "look_ahead", "uniforms"]

_AT_ONCE = 64  # positions of a request: a call takes 0.6 ms, for 1 as for 1,000


def uniforms(spans: Sequence[tuple[SampleKey, int, int]]) -> list[list[float]]:
    """Computes the uniforms of each span (key, first position in the log, number of positions), all in one call."""
    if not spans:
        return []
    counts = torch.tensor([count for *_, count in spans])
    keys_S3 = torch.tensor([[k.seed, k.group_id, k.sample_index] for k, *_ in spans])
    # what is added to a place in the row of all spans to get the position in the log
    shifts_S = torch.tensor([first for _, first, _ in spans]) - (counts.cumsum(0) - counts)
    positions_B = torch.arange(int(counts.sum())) + shifts_S.repeat_interleave(counts)
    values = iter(philox_uniform(keys_S3.repeat_interleave(counts, 0), positions_B).tolist())
    return [list(islice(values, count)) for *_, count in spans]


class Uniforms:
    """Uniforms of one completion, as far as `look_ahead` has computed them.

    Args:
        key: key that the completion is drawn with; None: there is none.
        first: its first position in the log.
    """

    def __init__(self, key: SampleKey | None, *, first: int) -> None:
        self.key = key
        self.end = first
        """The first position that is not known."""
        self._first = first
        self._known: list[float] = []

    def at(self, position: int) -> float | None:
        """Returns the uniform of a position after the prompt; None if there is no key."""
        return None if self.key is None else self._known[position - self._first]

    def extend(self, values: Sequence[float]) -> None:
        self._known += values
        self.end += len(values)


def look_ahead(completions: Sequence[Uniforms], *, ends: Sequence[int]) -> None:
    """Compute those of each completion before its end, in one call."""
    short: list[Uniforms] = []
    spans: list[tuple[SampleKey, int, int]] = []
    for known, end in zip(completions, ends, strict=True):
        if known.key is not None and known.end < end:
            short.append(known)
            spans.append((known.key, known.end, max(end - known.end, _AT_ONCE)))
    for known, values in zip(short, uniforms(spans), strict=True):
        known.extend(values)
