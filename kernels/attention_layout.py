"""Who sees whom in one forward, for every layer alike: packed rows, or a paged cache.

Shape legend: S = segments, W = tasks, Q = padded queries of a segment, J = key blocks.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from kernels.cpu.ops import QUERIES_PER_TASK

__all__ = [
    "KEY_BLOCK",
    "AttentionBucket",
    "AttentionLayout",
    "Segment",
    "packed_layout",
    "paged_layout",
]

KEY_BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Queries at consecutive positions of one sequence, in consecutive packed rows."""

    first_row: int  # of the queries, in the packed tensor
    num_queries: int
    first_position: int
    """Of the queries, in the sequence; they see the keys up to their own position."""
    key_index: Sequence[int]
    """Where the sequence's keys are: packed rows, or block ids of the paged cache."""


@dataclass(frozen=True, slots=True)
class AttentionBucket:
    """Segments of similar shape, padded to one with copies of each segment's own first query and first key.

    A padded query, at position -1, sees nothing, and nobody sees a padded key. They are the segment's own
    because 0 * NaN is NaN: a broken sequence must not reach the others.
    """

    query_rows_SQ: torch.Tensor
    positions_SQ: torch.Tensor
    key_index_SK: torch.Tensor
    """Packed rows, K = J * 64; or block ids, K = J * blocks per key block."""
    num_key_blocks: int


@dataclass(frozen=True)
class AttentionLayout:
    """Built once per batch; each path takes the form that suits it."""

    segments: tuple[Segment, ...]
    num_rows: int
    keys_per_index: int
    """Keys behind one entry of a segment's `key_index`: 1, or the block size."""
    device: torch.device

    @functools.cached_property
    def segments_S4(self) -> torch.Tensor:
        """int64: first row, queries, first position, where its keys begin in `table`."""
        starts = accumulate((len(s.key_index) for s in self.segments), initial=0)
        rows = [
            (s.first_row, s.num_queries, s.first_position, start)
            for s, start in zip(self.segments, starts, strict=False)
        ]
        return torch.tensor(rows, dtype=torch.int64, device="cpu")

    @functools.cached_property
    def table(self) -> torch.Tensor:
        """int64, the `key_index` of all segments, one after another."""
        indices = [i for s in self.segments for i in s.key_index]
        return torch.tensor(indices, dtype=torch.int64, device="cpu")

    @functools.cached_property
    def tasks_W2(self) -> torch.Tensor:
        """int64: segment, first query; pieces of work of at most 8 queries."""
        tasks = [
            (index, first)
            for index, segment in enumerate(self.segments)
            for first in range(0, segment.num_queries, QUERIES_PER_TASK)
        ]
        return torch.tensor(tasks, dtype=torch.int64, device="cpu")

    @functools.cached_property
    def buckets(self) -> tuple[AttentionBucket, ...]:
        """Segments by number of key blocks and, within a factor of two, of queries."""
        members: dict[tuple[int, int], list[Segment]] = {}
        for segment in self.segments:
            last = segment.first_position + segment.num_queries
            shape = (-(-last // KEY_BLOCK), (segment.num_queries - 1).bit_length())
            members.setdefault(shape, []).append(segment)
        indices_per_block = KEY_BLOCK // self.keys_per_index
        return tuple(
            _bucket(segments, num_key_blocks, indices_per_block, self.device)
            for (num_key_blocks, _), segments in sorted(members.items())
        )


def packed_layout(
    segments: Sequence[Segment], *, num_rows: int, device: torch.device | str = "cpu"
) -> AttentionLayout:
    """Layout over packed keys: `key_index` of a segment holds the row of the key at each position."""
    return AttentionLayout(tuple(segments), num_rows, 1, torch.device(device))


def paged_layout(
    segments: Sequence[Segment],
    *,
    num_rows: int,
    block_size: int,
    device: torch.device | str = "cpu",
) -> AttentionLayout:
    """Layout over a paged cache: `key_index` of a segment is its block table."""
    return AttentionLayout(tuple(segments), num_rows, block_size, torch.device(device))


def _bucket(
    segments: Sequence[Segment],
    num_key_blocks: int,
    indices_per_block: int,
    device: torch.device,
) -> AttentionBucket:
    width = max(s.num_queries for s in segments)
    offsets_Q = torch.arange(width)
    first_S1 = torch.tensor([[s.first_row, s.first_position, s.num_queries] for s in segments])
    row, position, count = first_S1.unsqueeze(-1).unbind(1)
    is_query = offsets_Q < count
    num_indices = num_key_blocks * indices_per_block
    keys = [
        [*s.key_index[:num_indices], *[s.key_index[0]] * (num_indices - len(s.key_index))]
        for s in segments
    ]
    return AttentionBucket(
        torch.where(is_query, row + offsets_Q, row).to(device),
        torch.where(is_query, position + offsets_Q, -1).to(device),
        torch.tensor(keys, dtype=torch.int64).to(device),
        num_key_blocks,
    )
