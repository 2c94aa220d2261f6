"""The map of which queries see which keys in one forward, the same for every layer: packed rows, or a paged cache.

Shape legend: S = segments, W = tasks, Q = padded queries of a segment, J = key blocks.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

import torch

__all__ = [
    "KEY_BLOCK",
    "AttentionBucket",
    "AttentionLayout",
    "Segment",
    "packed_layout",
    "paged_layout",
]

KEY_BLOCK = 64
_QUERIES_PER_TASK = 8
"""Greatest number of queries in a task; native/attention.c has the same number."""
_JOINT_QUERIES = 4
"""Greatest number of queries in a task of several segments. Twice as many would read shared keys half as often, but leave cores idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Queries at consecutive positions of one sequence, in consecutive packed rows."""

    first_row: int  # of the queries, in the packed tensor
    num_queries: int
    first_position: int
    """Position of the first query in the sequence; a query sees the keys up to its own position."""
    key_index: Sequence[int]
    """Places of the sequence's keys: packed rows, or block ids of the paged cache."""


@dataclass(frozen=True, slots=True)
class AttentionBucket:
    """Segments of similar shape, padded to one with copies of each segment's own first query and first key.

    A padded query, at position -1, sees no key, and no query sees a padded key. Padding copies the segment's
    own rows because 0 * NaN is NaN: a sequence with NaN must not affect the others.
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
    """Keys that one entry of a segment's `key_index` stands for: 1, or the block size."""
    device: torch.device

    @functools.cached_property
    def table(self) -> torch.Tensor:
        """int64, the `key_index` of all segments, one after another."""
        indices = [i for s in self.segments for i in s.key_index]
        return torch.tensor(indices, dtype=torch.int64, device="cpu")

    @functools.cached_property
    def queries_and_tasks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [Q, 3]: row, position, where its keys begin in `table`; int64 [W, 3]: first query, queries, shared keys.

        A task is up to 8 queries of one segment; or some of short segments that begin with the same key blocks, as
        siblings do while they decode, and these blocks are then read once for all of them.
        """
        starts = list(accumulate((len(s.key_index) for s in self.segments), initial=0))
        queries: list[tuple[int, int, int]] = []
        tasks: list[tuple[int, int, int]] = []
        for group, shared in self.groups(_JOINT_QUERIES):
            first = len(queries)
            for i in group:
                s = self.segments[i]
                queries += [
                    (s.first_row + j, s.first_position + j, starts[i]) for j in range(s.num_queries)
                ]
            tasks += [
                (begin, min(_QUERIES_PER_TASK, len(queries) - begin), shared)
                for begin in range(first, len(queries), _QUERIES_PER_TASK)
            ]
        as_integers = functools.partial(torch.tensor, dtype=torch.int64, device="cpu")
        return as_integers(queries), as_integers(tasks)

    def groups(self, max_queries: int) -> Iterator[tuple[list[int], int]]:
        """Yields (indices of segments, number of keys that they share, in whole key blocks).

        Segments that begin with the same key blocks are grouped, up to `max_queries` queries; a longer segment forms a group of its own.
        """
        open_groups: dict[int, tuple[list[int], int]] = {}
        for i, segment in enumerate(self.segments):
            if segment.num_queries > max_queries:
                yield [i], 0
                continue
            key = segment.key_index[0]
            group, _ = open_groups.get(key, ([], 0))
            joined = [*(self.segments[j] for j in group), segment]
            fits = group and sum(s.num_queries for s in joined) <= max_queries
            shared = self._num_shared_keys(joined) if fits else 0
            if group and not shared:
                yield open_groups[key]
            open_groups[key] = ([*group, i], shared) if shared else ([i], 0)
        yield from open_groups.values()

    def _num_shared_keys(self, segments: Sequence[Segment]) -> int:
        """Keys, in whole key blocks, that every query sees and all the segments have in the same place."""
        visible = min(s.first_position for s in segments) + 1
        indices = (s.key_index[: visible // self.keys_per_index] for s in segments)
        same = takewhile(lambda entries: len(set(entries)) == 1, zip(*indices, strict=False))
        return sum(1 for _ in same) * self.keys_per_index // KEY_BLOCK * KEY_BLOCK

    @functools.cached_property
    def buckets(self) -> tuple[AttentionBucket, ...]:
        """Segments grouped by number of key blocks and, up to a factor of two, by number of queries."""
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
