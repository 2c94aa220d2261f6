"""Triton kernels of `kernels.attention`: packed or paged keys, prefill, drafts or decode, all by one tile of 64 rows.

A tile holds queries of one KV head's group. Every key block of 64 gives its state on its own maximum, and states are
joined by a left fold, as in `kernels.attention`. One program folds all blocks of its queries; where that leaves the GPU
idle, programs take a few blocks each, leave each block's state, and a second launch folds these in the same order: the
same bits. A smaller tile for decode would round otherwise than that of prefill.

Shape legend: as in `kernels.attention`, and R = 64 rows of a tile, C = 64 keys, J = key blocks, Q = queries.
"""

import torch
import triton
import triton.language as tl

from kernels.attention_layout import KEY_BLOCK, AttentionLayout
from kernels.gpu.attention.split import blocks_of_a_program, fold_states, new_states
from kernels.gpu.attention.tasks import attention_tasks
from kernels.gpu.attention.tiles import (
    ROWS,
    fold_scales,
    key_strides,
    load_keys,
    member_rows,
    task_rows,
    tile_warps,
)

__all__ = ["attention_triton"]


@triton.jit
def _block_weights(queries, keys, is_visible, scale):
    """Maximum, sum, and e^(score - maximum) of one key block."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where(is_visible, scores, float("-inf"))
    maximum = tl.max(scores, axis=1)
    # a block that the row does not see: exp(-inf - 0) = 0 instead of exp(-inf + inf) = NaN
    base = tl.where(maximum == float("-inf"), 0.0, maximum)
    weights = tl.exp(scores - base[:, None])
    return maximum, tl.sum(weights, axis=1), weights


@triton.jit
def _attention_fwd_kernel(
    q_ptr,  # [T, N, D], unit stride within a head
    keys_ptr,  # [rows, M, D] packed or [blocks, M, B, D] paged, unit stride within a head
    values_ptr,  # like keys
    key_scales_ptr,  # [blocks, M, B] fp32 dense, of quantized keys; or None
    value_scales_ptr,
    table_ptr,  # int32, rows or blocks
    queries_ptr,  # [Q, 2] int32: row, position
    members_ptr,  # [P, 5] int32, see AttentionTasks
    tasks_ptr,  # [W, 4] int32
    out_ptr,  # [T, N, D] dense, written
    logsumexp_ptr,  # [T, N] fp32, written
    state_ptr,  # [Q, N, J, D] fp32, written where keys are split; or None
    state_sums_ptr,  # [Q, N, J, 2] fp32, written: maximum, sum
    scale,
    num_heads,
    num_key_blocks,
    stride_qt,
    stride_qn,
    stride_ki,
    stride_kk,
    stride_kh,
    stride_vi,
    stride_vk,
    stride_vh,
    BLOCKS_PER_PROGRAM: tl.constexpr,  # 0: all
    KEYS_PER_INDEX: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
):
    task_ptr, head = tasks_ptr + tl.program_id(0) * 4, tl.program_id(1)
    query, n, is_row, row, position = task_rows(
        tasks_ptr, queries_ptr, tl.program_id(0), head, GROUP, ROWS
    )
    columns = tl.arange(0, BLOCK_D)
    mask = is_row[:, None] & (columns < WIDTH)[None, :]
    from_q = (row * stride_qt + n * stride_qn)[:, None] + columns[None, :]
    queries = tl.load(q_ptr + from_q, mask=mask, other=0.0)

    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, BLOCK_D), tl.float32)
    keys = tl.arange(0, KEY_BLOCK)
    for member in range(tl.load(task_ptr + 2), tl.load(task_ptr + 3)):
        is_member, seen, last_key, table_start, first_block, end_block = member_rows(
            members_ptr, member, query, is_row, position
        )
        if BLOCKS_PER_PROGRAM:
            first_block = tl.maximum(first_block, tl.program_id(2) * BLOCKS_PER_PROGRAM)
            end_block = tl.minimum(end_block, (tl.program_id(2) + 1) * BLOCKS_PER_PROGRAM)
        for block in range(first_block, end_block):
            key = block * KEY_BLOCK + keys
            # past the last key lies what an earlier owner of the block left
            is_key = key <= last_key
            index = tl.load(table_ptr + table_start + key // KEYS_PER_INDEX, mask=is_key, other=0)
            place = key % KEYS_PER_INDEX
            key_tile = load_keys(
                keys_ptr, key_scales_ptr, index, place, head, is_key, stride_ki, stride_kk, stride_kh,
                num_heads // GROUP * KEYS_PER_INDEX, queries.dtype, KEYS_PER_INDEX, WIDTH, BLOCK_D,
            )  # fmt: skip
            is_visible = key[None, :] <= seen[:, None]
            block_maximum, block_total, weights = _block_weights(
                queries, key_tile, is_visible, scale
            )
            value_tile = load_keys(
                values_ptr, value_scales_ptr, index, place, head, is_key, stride_vi, stride_vk, stride_vh,
                num_heads // GROUP * KEYS_PER_INDEX, queries.dtype, KEYS_PER_INDEX, WIDTH, BLOCK_D,
            )  # fmt: skip
            block_out = tl.dot(weights.to(queries.dtype), value_tile, input_precision="ieee")
            if state_ptr is None:
                maximum, keep, add = fold_scales(maximum, block_maximum)
                total = total * keep + block_total * add
                out = out * keep[:, None] + block_out * add[:, None]
            else:
                state = (query.to(tl.int64) * num_heads + n) * num_key_blocks + block
                tl.store(state_sums_ptr + state * 2, block_maximum, mask=is_member)
                tl.store(state_sums_ptr + state * 2 + 1, block_total, mask=is_member)
                to_state = state[:, None] * WIDTH + columns[None, :]
                is_stored = is_member[:, None] & (columns < WIDTH)[None, :]
                tl.store(state_ptr + to_state, block_out, mask=is_stored)
    if state_ptr is None:
        to_out = (row * num_heads + n)[:, None] * WIDTH + columns[None, :]
        tl.store(out_ptr + to_out, (out / total[:, None]).to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(logsumexp_ptr + row * num_heads + n, maximum + tl.log(total), mask=is_row)


def attention_triton(
    q_TND: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: AttentionLayout,
    *,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    blocks_per_program: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, N, D], and the logsumexp of the scores, float32 [T, N]; zeros in rows of no segment.

    Args:
        q_TND: queries.
        keys: [rows, M, D] packed, or [blocks, M, B, D] paged, as the layout says.
        values: like keys.
        layout: from `packed_layout` or `paged_layout`.
        scales: scales of keys and of values, float32 [blocks, M, B] dense, where those are int8 or fp8.
        blocks_per_program: how keys are split; 0: not at all, None: as the number of programs suggests. Bits stay the same.
    """
    num_heads, head_dim = q_TND.shape[1:]
    group = num_heads // keys.shape[1]
    if group > ROWS:
        raise ValueError(f"attention: at most {ROWS} query heads may share a KV head, got {group}")
    q_TND, keys, values = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q_TND, keys, values)
    )
    out_TND = torch.zeros(q_TND.shape, dtype=q_TND.dtype, device=q_TND.device)
    logsumexp_TN = torch.zeros(q_TND.shape[:2], dtype=torch.float32, device=q_TND.device)
    tasks = attention_tasks(layout, ROWS // group)
    num_tasks = len(tasks.tasks_W4)
    if num_tasks == 0:
        return out_TND, logsumexp_TN
    blocks_per_program = blocks_of_a_program(tasks, keys.shape[1], blocks_per_program)
    states = new_states(tasks, q_TND) if blocks_per_program else None
    num_splits = triton.cdiv(tasks.num_key_blocks, blocks_per_program) if blocks_per_program else 1
    block_d = triton.next_power_of_2(head_dim)
    _attention_fwd_kernel[(num_tasks, keys.shape[1], num_splits)](
        q_TND,
        keys,
        values,
        *(scales or (None, None)),
        tasks.table,
        tasks.queries_Q2,
        tasks.members_P5,
        tasks.tasks_W4,
        out_TND,
        logsumexp_TN,
        *(states or (None, None)),
        head_dim**-0.5,
        num_heads,
        tasks.num_key_blocks,
        *q_TND.stride()[:2],
        *key_strides(keys),
        *key_strides(values),
        BLOCKS_PER_PROGRAM=blocks_per_program,
        KEYS_PER_INDEX=layout.keys_per_index,
        GROUP=group,
        WIDTH=head_dim,
        BLOCK_D=block_d,
        ROWS=ROWS,
        KEY_BLOCK=KEY_BLOCK,
        num_warps=tile_warps(block_d),
        num_stages=2 if scales is None else 1,  # one more would spill where keys are dequantized
        enable_fp_fusion=False,
    )
    if states is not None:
        fold_states(states, tasks, out_TND, logsumexp_TN)
    return out_TND, logsumexp_TN
