"""Triton kernels of the backward of packed attention; probabilities are recomputed from the forward's logsumexp.

One kernel takes the forward's tasks and gives the queries' gradients; another takes tiles of keys, sums over every segment
that sees them, a shared prompt's siblings included, and so needs no atomics: gradients are the same in every run.

Shape legend: as in `kernels.gpu.attention.forward`, and K = key tiles.
"""

import torch
import triton
import triton.language as tl

from kernels.attention_layout import KEY_BLOCK, AttentionLayout
from kernels.gpu.attention.tasks import attention_tasks, key_tiles
from kernels.gpu.attention.tiles import (
    ROWS,
    key_strides,
    load_keys,
    member_rows,
    task_rows,
    tile_warps,
)

__all__ = ["attention_backward_triton"]


@triton.jit
def _load_rows(
    x_ptr, row, n, stride_t, stride_n, is_row, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr
):
    """[R, D] of heads `n` of rows `row`."""
    columns = tl.arange(0, BLOCK_D)
    place = (row * stride_t + n * stride_n)[:, None] + columns[None, :]
    mask = is_row[:, None] & (columns < WIDTH)[None, :]
    return tl.load(x_ptr + place, mask=mask, other=0.0)


@triton.jit
def _grad_queries_kernel(
    q_ptr,  # [T, N, D], unit stride within a head
    keys_ptr,  # [T, M, D], unit stride within a head
    values_ptr,  # like keys
    out_ptr,  # [T, N, D] dense
    grad_out_ptr,  # [T, N, D] dense
    logsumexp_ptr,  # [T, N] fp32
    table_ptr,
    queries_ptr,
    members_ptr,
    tasks_ptr,
    grad_q_ptr,  # [T, N, D] dense, written
    delta_ptr,  # [T, N] fp32, written: sum of out * grad_out
    scale,
    num_heads,
    stride_qt,
    stride_qn,
    stride_ki,
    stride_kk,
    stride_kh,
    stride_vi,
    stride_vk,
    stride_vh,
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
    dense_t = num_heads * WIDTH
    queries = _load_rows(q_ptr, row, n, stride_qt, stride_qn, is_row, WIDTH, BLOCK_D)
    out = _load_rows(out_ptr, row, n, dense_t, WIDTH, is_row, WIDTH, BLOCK_D)
    grad_out = _load_rows(grad_out_ptr, row, n, dense_t, WIDTH, is_row, WIDTH, BLOCK_D)
    delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), axis=1)
    tl.store(delta_ptr + row * num_heads + n, delta, mask=is_row)
    logsumexp = tl.load(logsumexp_ptr + row * num_heads + n, mask=is_row, other=0.0)

    grad_q = tl.zeros((ROWS, BLOCK_D), tl.float32)
    keys = tl.arange(0, KEY_BLOCK)
    for member in range(tl.load(task_ptr + 2), tl.load(task_ptr + 3)):
        _, seen, last_key, table_start, first_block, end_block = member_rows(
            members_ptr, member, query, is_row, position
        )
        for block in range(first_block, end_block):
            key = block * KEY_BLOCK + keys
            is_key = key <= last_key
            index = tl.load(table_ptr + table_start + key, mask=is_key, other=0)
            key_tile = load_keys(
                keys_ptr, None, index, 0, head, is_key, stride_ki, stride_kk, stride_kh,
                0, queries.dtype, 1, WIDTH, BLOCK_D,
            )  # fmt: skip
            scores = tl.dot(queries, tl.trans(key_tile), input_precision="ieee") * scale
            is_visible = key[None, :] <= seen[:, None]
            weights = tl.where(is_visible, tl.exp(scores - logsumexp[:, None]), 0.0)
            value_tile = load_keys(
                values_ptr, None, index, 0, head, is_key, stride_vi, stride_vk, stride_vh,
                0, queries.dtype, 1, WIDTH, BLOCK_D,
            )  # fmt: skip
            grad_weights = tl.dot(grad_out, tl.trans(value_tile), input_precision="ieee")
            grad_scores = weights * (grad_weights - delta[:, None]) * scale
            grad_q = tl.dot(grad_scores.to(queries.dtype), key_tile, grad_q, input_precision="ieee")
    columns = tl.arange(0, BLOCK_D)
    place = (row * dense_t + n * WIDTH)[:, None] + columns[None, :]
    mask = is_row[:, None] & (columns < WIDTH)[None, :]
    tl.store(grad_q_ptr + place, grad_q.to(grad_q_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _grad_keys_kernel(
    q_ptr,  # [T, N, D], unit stride within a head
    keys_ptr,  # [T, M, D], unit stride within a head
    values_ptr,  # like keys
    grad_out_ptr,  # [T, N, D] dense
    logsumexp_ptr,  # [T, N] fp32
    delta_ptr,  # [T, N] fp32
    tile_rows_ptr,  # [K, 64] int32, see KeyTiles
    starts_ptr,  # [K + 1] int32
    visits_ptr,  # [U, 6] int32
    grad_keys_ptr,  # [T, M, D] dense, written
    grad_values_ptr,  # like grad_keys
    scale,
    num_heads,
    stride_qt,
    stride_qn,
    stride_ki,
    stride_kk,
    stride_kh,
    stride_vi,
    stride_vk,
    stride_vh,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    slots = tl.arange(0, KEY_BLOCK)
    key_row = tl.load(tile_rows_ptr + tile * KEY_BLOCK + slots)
    is_key = key_row >= 0
    index = tl.where(is_key, key_row, 0)
    dtype = q_ptr.dtype.element_ty
    key_tile = load_keys(
        keys_ptr, None, index, 0, head, is_key, stride_ki, stride_kk, stride_kh,
        0, dtype, 1, WIDTH, BLOCK_D,
    )  # fmt: skip
    value_tile = load_keys(
        values_ptr, None, index, 0, head, is_key, stride_vi, stride_vk, stride_vh,
        0, dtype, 1, WIDTH, BLOCK_D,
    )  # fmt: skip
    grad_keys = tl.zeros((KEY_BLOCK, BLOCK_D), tl.float32)
    grad_values = tl.zeros((KEY_BLOCK, BLOCK_D), tl.float32)
    rows = tl.arange(0, ROWS)
    dense_t = num_heads * WIDTH
    for visit in range(tl.load(starts_ptr + tile), tl.load(starts_ptr + tile + 1)):
        visit_ptr = visits_ptr + visit * 6
        first_slot, end_slot = tl.load(visit_ptr), tl.load(visit_ptr + 1)
        key_position = tl.load(visit_ptr + 2) + slots - first_slot
        is_here = (slots >= first_slot) & (slots < end_slot)
        first_row, first_position = tl.load(visit_ptr + 3), tl.load(visit_ptr + 4)
        # queries before the first key see none of this tile
        first = tl.maximum(tl.load(visit_ptr + 2) - first_position, 0) * GROUP
        for start in range(first, tl.load(visit_ptr + 5) * GROUP, ROWS):
            query, n = (start + rows) // GROUP, head * GROUP + (start + rows) % GROUP
            is_row = query < tl.load(visit_ptr + 5)
            row = (first_row + query).to(tl.int64)
            queries = _load_rows(q_ptr, row, n, stride_qt, stride_qn, is_row, WIDTH, BLOCK_D)
            grad_out = _load_rows(grad_out_ptr, row, n, dense_t, WIDTH, is_row, WIDTH, BLOCK_D)
            per_row = row * num_heads + n
            logsumexp = tl.load(logsumexp_ptr + per_row, mask=is_row, other=0.0)
            delta = tl.load(delta_ptr + per_row, mask=is_row, other=0.0)
            is_visible = key_position[:, None] <= (first_position + query)[None, :]
            is_visible = is_visible & is_here[:, None] & is_row[None, :]
            scores = tl.dot(key_tile, tl.trans(queries), input_precision="ieee") * scale
            weights = tl.where(is_visible, tl.exp(scores - logsumexp[None, :]), 0.0)
            grad_values = tl.dot(weights.to(dtype), grad_out, grad_values, input_precision="ieee")
            grad_weights = tl.dot(value_tile, tl.trans(grad_out), input_precision="ieee")
            grad_scores = weights * (grad_weights - delta[None, :]) * scale
            grad_keys = tl.dot(grad_scores.to(dtype), queries, grad_keys, input_precision="ieee")
    columns = tl.arange(0, BLOCK_D)
    num_kv_heads = num_heads // GROUP
    place = (index.to(tl.int64) * num_kv_heads + head)[:, None] * WIDTH + columns[None, :]
    mask = is_key[:, None] & (columns < WIDTH)[None, :]
    tl.store(grad_keys_ptr + place, grad_keys.to(dtype), mask=mask)
    tl.store(grad_values_ptr + place, grad_values.to(dtype), mask=mask)


def attention_backward_triton(
    grad_TND: torch.Tensor,
    q_TND: torch.Tensor,
    k_TMD: torch.Tensor,
    v_TMD: torch.Tensor,
    out_TND: torch.Tensor,
    logsumexp_TN: torch.Tensor,
    layout: AttentionLayout,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, zeros in rows of no segment, from what `attention_triton` gave for a packed layout."""
    q_TND, k_TMD, v_TMD = (x if x.stride(2) == 1 else x.contiguous() for x in (q_TND, k_TMD, v_TMD))
    grad_TND = grad_TND.contiguous()
    grads = tuple(
        torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q_TND, k_TMD, v_TMD)
    )
    grad_q, grad_k, grad_v = grads
    (num_heads, head_dim), num_kv_heads = q_TND.shape[1:], k_TMD.shape[1]
    group, block_d = num_heads // num_kv_heads, triton.next_power_of_2(head_dim)
    tasks, tiles = attention_tasks(layout, ROWS // group), key_tiles(layout)
    if len(tasks.tasks_W4) == 0:
        return grad_q, grad_k, grad_v
    delta_TN = torch.empty_like(logsumexp_TN)
    sizes = (
        head_dim**-0.5,
        num_heads,
        *q_TND.stride()[:2],
        *key_strides(k_TMD),
        *key_strides(v_TMD),
    )
    options = {
        "GROUP": group,
        "WIDTH": head_dim,
        "BLOCK_D": block_d,
        "ROWS": ROWS,
        "KEY_BLOCK": KEY_BLOCK,
        "num_warps": tile_warps(block_d),
        "num_stages": 1,
        "enable_fp_fusion": False,
    }
    _grad_queries_kernel[(len(tasks.tasks_W4), num_kv_heads)](
        q_TND,
        k_TMD,
        v_TMD,
        out_TND,
        grad_TND,
        logsumexp_TN,
        tasks.table,
        tasks.queries_Q2,
        tasks.members_P5,
        tasks.tasks_W4,
        grad_q,
        delta_TN,
        *sizes,
        **options,
    )
    _grad_keys_kernel[(len(tiles.rows_KC), num_kv_heads)](
        q_TND,
        k_TMD,
        v_TMD,
        grad_TND,
        logsumexp_TN,
        delta_TN,
        tiles.rows_KC,
        tiles.starts_K,
        tiles.visits_U6,
        grad_k,
        grad_v,
        *sizes,
        **options,
    )
    return grad_q, grad_k, grad_v
