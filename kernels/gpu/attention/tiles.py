"""Shared parts of the attention kernels: tiles of 64 rows, finding their queries and keys, joining states.

Shape legend: as in `kernels.attention`, and R = 64 rows of a tile, C = 64 keys.
"""

import torch
import triton
import triton.language as tl

__all__ = [
    "ROWS",
    "fold_scales",
    "key_strides",
    "load_keys",
    "member_rows",
    "task_rows",
    "tile_warps",
]

ROWS = 64
"""Rows of a tile: the fewest that Hopper's matrix instruction takes."""


@triton.jit
def load_keys(
    data_ptr,
    scale_ptr,
    index,
    place,
    head,
    is_key,
    stride_index,
    stride_key,
    stride_head,
    stride_scale,
    dtype: tl.constexpr,
    KEYS_PER_INDEX: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[C, D] keys or values, zero where not `is_key`; dequantized to `dtype` where there are scales."""
    columns = tl.arange(0, BLOCK_D)
    # int64: index * stride passes 2**31 in a cache of 4 GB
    key = data_ptr + index.to(tl.int64) * stride_index + place * stride_key + head * stride_head
    mask = is_key[:, None] & (columns < WIDTH)[None, :]
    data = tl.load(key[:, None] + columns[None, :], mask=mask, other=0.0)
    if scale_ptr is not None:
        # scales [blocks, M, B] dense
        from_scale = scale_ptr + index.to(tl.int64) * stride_scale + head * KEYS_PER_INDEX + place
        data = data.to(tl.float32) * tl.load(from_scale, mask=is_key, other=0.0)[:, None]
    return data.to(dtype)


@triton.jit
def task_rows(tasks_ptr, queries_ptr, task, head, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """[R] query, head, whether there is such a row, its row in the packed tensor, its position."""
    first_query, end_query = tl.load(tasks_ptr + task * 4), tl.load(tasks_ptr + task * 4 + 1)
    rows = tl.arange(0, ROWS)
    query, n = first_query + rows // GROUP, head * GROUP + rows % GROUP
    is_row = query < end_query
    row = tl.load(queries_ptr + query * 2, mask=is_row, other=0).to(tl.int64)
    position = tl.load(queries_ptr + query * 2 + 1, mask=is_row, other=-1)
    return query, n, is_row, row, position


@triton.jit
def member_rows(members_ptr, member, query, is_row, position):
    """[R] whether a row is of the member, and the last key it sees; the last key of all; the member's start in the table and key blocks."""
    member_ptr = members_ptr + member * 5
    is_member = (query >= tl.load(member_ptr)) & (query < tl.load(member_ptr + 1)) & is_row
    seen = tl.where(is_member, position, -1)
    table_start, first_block = tl.load(member_ptr + 2), tl.load(member_ptr + 3)
    return is_member, seen, tl.max(seen, axis=0), table_start, first_block, tl.load(member_ptr + 4)


@triton.jit
def fold_scales(maximum, block_maximum):
    """The greater maximum, and by how much the state before and the block's state shrink."""
    new = tl.maximum(maximum, block_maximum)
    base = tl.where(new == float("-inf"), 0.0, new)
    return new, tl.exp(maximum - base), tl.exp(block_maximum - base)


def key_strides(keys: torch.Tensor) -> tuple[int, int, int]:
    """Strides of a table entry, of a key within it, and of a head."""
    if keys.ndim == 3:
        return keys.stride(0), 0, keys.stride(1)
    return keys.stride(0), keys.stride(2), keys.stride(1)


def tile_warps(block_d: int) -> int:
    """So that two outputs of a tile fit the registers."""
    return max(4, block_d // 16)
