"""Triton kernel of `kernels.paged_kv.PagedKV.write`: plain, int8, or fp8 with a scale per token and head.

Shape legend: T = packed rows, M = KV heads, B = block size, D = width of a head. Traffic: reads and writes 2*T*M*D elements.
"""

import torch
import triton
import triton.language as tl

from kernels.gpu.quantize import quantize_tile

__all__ = ["LEVELS", "write_kv_triton"]

LEVELS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Greatest stored number of each quantized type."""


@triton.jit
def _write_rows(
    rows_ptr,
    stored_ptr,
    scale_ptr,
    place,
    from_row,
    mask,
    is_head,
    head_place,
    LEVELS: tl.constexpr,
):
    x = tl.load(rows_ptr + from_row, mask=mask, other=0.0)
    if scale_ptr is not None:
        x, step = quantize_tile(x.to(tl.float32), LEVELS, stored_ptr.dtype.element_ty == tl.int8)
        tl.store(scale_ptr + head_place, step, mask=is_head)
    tl.store(stored_ptr + place, x.to(stored_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _write_kv_kernel(
    k_ptr,  # [T, M, D], unit stride within a head
    v_ptr,  # like k
    block_ids_ptr,  # [T] int64
    offsets_ptr,  # [T] int64
    keys_ptr,  # [blocks, M, B, D] dense, written
    values_ptr,  # like keys
    key_scales_ptr,  # [blocks, M, B] fp32 dense, written; None: plain
    value_scales_ptr,
    num_heads,
    block_size,
    stride_kt,
    stride_kn,
    stride_vt,
    stride_vn,
    LEVELS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, BLOCK_D)
    is_head = heads < num_heads
    mask = is_head[:, None] & (columns < WIDTH)[None, :]
    block = tl.load(block_ids_ptr + row)
    head_place = (block * num_heads + heads) * block_size + tl.load(offsets_ptr + row)
    place = head_place[:, None] * WIDTH + columns[None, :]
    from_k = row * stride_kt + heads[:, None] * stride_kn + columns[None, :]
    from_v = row * stride_vt + heads[:, None] * stride_vn + columns[None, :]
    _write_rows(k_ptr, keys_ptr, key_scales_ptr, place, from_k, mask, is_head, head_place, LEVELS)
    _write_rows(
        v_ptr, values_ptr, value_scales_ptr, place, from_v, mask, is_head, head_place, LEVELS
    )


def write_kv_triton(
    k_TMD: torch.Tensor,
    v_TMD: torch.Tensor,
    block_ids_T: torch.Tensor,
    offsets_T: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    """Puts row t at offset `offsets_T[t]` of block `block_ids_T[t]`; no two rows may have the same place.

    Args:
        k_TMD: strides of 1 within a head.
        v_TMD: like k.
        block_ids_T: int64.
        offsets_T: int64.
        keys: [blocks, M, B, D] dense, of the rows' type; int8 or float8_e4m3fn with scales.
        values: like keys.
        scales: scales of keys and of values, float32 [blocks, M, B] dense.
    """
    num_rows, num_heads, width = k_TMD.shape
    if num_rows == 0:
        return
    block_d = triton.next_power_of_2(width)
    heads = max(1, min(triton.next_power_of_2(num_heads), 1024 // block_d))
    k_TMD, v_TMD = (x if x.stride(2) == 1 else x.contiguous() for x in (k_TMD, v_TMD))
    key_scales, value_scales = (None, None) if scales is None else scales
    _write_kv_kernel[(num_rows, triton.cdiv(num_heads, heads))](
        k_TMD,
        v_TMD,
        block_ids_T,
        offsets_T,
        keys,
        values,
        key_scales,
        value_scales,
        num_heads,
        keys.shape[2],
        k_TMD.stride(0),
        k_TMD.stride(1),
        v_TMD.stride(0),
        v_TMD.stride(1),
        LEVELS=LEVELS.get(keys.dtype, 0.0),
        WIDTH=width,
        HEADS=heads,
        BLOCK_D=block_d,
        num_warps=4,
        enable_fp_fusion=False,  # the rounding trick of `quantize_tile` must not be fused into a product
    )
