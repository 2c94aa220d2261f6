"""Work of the attention kernels, as integers on the device, from a batch's `AttentionLayout`.

    task    queries that one program takes: a piece of one segment, or short segments that begin with the same key blocks
    member  queries of a task and a range of key blocks that they read through one table; a task's shared blocks come first
    tile    up to 64 rows of packed keys, each row in one tile, so that one program sums its gradient
    visit   a segment that sees a tile's keys, at consecutive positions

Shape legend: Q = queries, P = members, W = tasks, K = key tiles, U = visits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from kernels.attention_layout import KEY_BLOCK, AttentionLayout, Segment

__all__ = ["AttentionTasks", "KeyTiles", "attention_tasks", "key_tiles"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTasks:
    """int32, on the layout's device."""

    table: torch.Tensor
    """Rows or blocks of the keys of all segments, one after another."""
    queries_Q2: torch.Tensor
    """Row, position."""
    members_P5: torch.Tensor
    """First query, end of the queries, start in the table, first key block, end of the key blocks."""
    tasks_W4: torch.Tensor
    """First query, end of the queries, first member, end of the members."""
    num_key_blocks: int
    """Number of key blocks of the longest segment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTiles:
    """Packed keys cut into tiles, and the queries that visit each tile; int32 tensors on the layout's device."""

    rows_KC: torch.Tensor
    """[tiles, 64]: row of each key in the packed keys; -1 marks an empty place."""
    starts_K: torch.Tensor
    """[tiles + 1]: index of each tile's first row in `visits_U6`."""
    visits_U6: torch.Tensor
    """First slot, end of the slots, position of the first slot; first row, first position and number of the queries."""


def attention_tasks(layout: AttentionLayout, queries_per_task: int) -> AttentionTasks:
    """Returns the tasks of a layout; makes them once per layout and size of tasks."""
    return _once(
        layout, f"tasks of {queries_per_task}", lambda: _make_tasks(layout, queries_per_task)
    )


def key_tiles(layout: AttentionLayout) -> KeyTiles:
    """Returns the key tiles of a layout with packed keys; makes them once per layout."""
    assert layout.keys_per_index == 1, "only packed keys have gradients"
    return _once(layout, "key tiles", lambda: _make_tiles(layout))


def _once(layout: AttentionLayout, key: str, make: Callable[[], T]) -> T:
    values = vars(layout)  # where its cached properties are too
    if key not in values:
        values[key] = make()
    return values[key]


def _make_tasks(layout: AttentionLayout, queries_per_task: int) -> AttentionTasks:
    segments = layout.segments
    lengths = [len(s.key_index) for s in segments]
    starts = np.cumsum([0, *lengths])
    queries: list[tuple[int, int]] = []
    members: list[tuple[int, int, int, int, int]] = []
    tasks: list[tuple[int, int, int, int]] = []
    for group, num_shared in layout.groups(queries_per_task):
        for pieces in _pieces([segments[i] for i in group], queries_per_task):
            first_query, first_member = len(queries), len(members)
            shared = num_shared // KEY_BLOCK
            if shared:
                end = first_query + sum(count for _, _, count in pieces)
                members.append((first_query, end, int(starts[group[0]]), 0, shared))
            for i, (segment, skipped, count) in zip(group, pieces, strict=True):
                first, end = len(queries), len(queries) + count
                row, position = segment.first_row + skipped, segment.first_position + skipped
                queries += [(row + j, position + j) for j in range(count)]
                num_blocks = -(-(position + count) // KEY_BLOCK)
                if num_blocks > shared:
                    members.append((first, end, int(starts[i]), shared, num_blocks))
            tasks.append((first_query, len(queries), first_member, len(members)))
    integers = [i for s in segments for i in s.key_index]
    return AttentionTasks(
        table=_int32(integers, 1, layout.device).flatten(),
        queries_Q2=_int32(queries, 2, layout.device),
        members_P5=_int32(members, 5, layout.device),
        tasks_W4=_int32(tasks, 4, layout.device),
        num_key_blocks=max((m[4] for m in members), default=0),
    )


def _pieces(
    segments: list[Segment], queries_per_task: int
) -> Iterator[list[tuple[Segment, int, int]]]:
    """Yields the tasks of a group, each as tuples (segment, queries skipped, queries taken).

    Only the segment of a group of one is cut into several tasks.
    """
    if len(segments) > 1:
        yield [(s, 0, s.num_queries) for s in segments]
        return
    (segment,) = segments
    for skipped in range(0, segment.num_queries, queries_per_task):
        yield [(segment, skipped, min(queries_per_task, segment.num_queries - skipped))]


def _make_tiles(layout: AttentionLayout) -> KeyTiles:
    num_rows = 1 + max((max(s.key_index) for s in layout.segments), default=-1)
    tile_of, slot_of = np.full(num_rows, -1), np.zeros(num_rows, np.int64)
    tiles: list[np.ndarray] = []
    visits: list[list[tuple[int, ...]]] = []
    for segment in layout.segments:
        last = segment.first_position + segment.num_queries
        rows = np.asarray(segment.key_index[:last], np.int64)
        assert len(np.unique(rows)) == len(rows), "a segment sees a row of keys once"
        new = np.flatnonzero(tile_of[rows] < 0)
        for begin, end in _runs(new):
            for start in range(begin, end, KEY_BLOCK):
                chosen = rows[new[start : min(start + KEY_BLOCK, end)]]
                tile_of[chosen], slot_of[chosen] = len(tiles), np.arange(len(chosen))
                tiles.append(chosen)
                visits.append([])
        query = (segment.first_row, segment.first_position, segment.num_queries)
        # numbered so that the last slot of a tile and the first of the next do not follow one another
        for begin, end in _runs(tile_of[rows] * 2 * KEY_BLOCK + slot_of[rows]):
            slot = int(slot_of[rows[begin]])
            visits[tile_of[rows[begin]]].append((slot, slot + end - begin, begin, *query))
    padded = np.full((len(tiles), KEY_BLOCK), -1)
    for tile, chosen in enumerate(tiles):
        padded[tile, : len(chosen)] = chosen
    starts = np.cumsum([0, *(len(v) for v in visits)])
    return KeyTiles(
        rows_KC=_int32(padded.tolist(), KEY_BLOCK, layout.device),
        starts_K=_int32(starts.tolist(), 1, layout.device).flatten(),
        visits_U6=_int32([v for of_tile in visits for v in of_tile], 6, layout.device),
    )


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, end) of each stretch of `values` in which they count up by one."""
    if len(values):
        breaks = (np.flatnonzero(np.diff(values) != 1) + 1).tolist()
        yield from zip([0, *breaks], [*breaks, len(values)], strict=True)


def _int32(values: list, width: int, device: torch.device) -> torch.Tensor:
    """[rows, width]."""
    return torch.tensor(values, dtype=torch.int32, device="cpu").view(-1, width).to(device)
