"""Triton kernels of `kernels.fp8_linear`: rows are quantized in groups of 128, then multiplied group by group.

Each group's product is scaled and added in float32, so that the narrow sums inside the matrix units hold 128 products at most.

Shape legend: T = rows, K = in features, N = out features, G = groups, B = blocks.
"""

import torch
import triton
import triton.language as tl

from kernels.gpu.linears.linear import TILE_T
from kernels.gpu.quantize import quantize_tile

__all__ = ["fp8_linear_triton"]

_GROUP = 128
_TILE_N = 128
_MAX = 448.0


@triton.jit
def _quantize_groups_kernel(
    x_ptr,  # [T, K], unit column stride
    numbers_ptr,  # [T, K] fp8 dense, written
    step_ptr,  # [T, G] fp32, written
    stride_t,
    width,
    num_groups,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    MAX: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = columns < width
    x = tl.load(x_ptr + row * stride_t + columns, mask=mask, other=0.0).to(tl.float32)
    numbers, step = quantize_tile(x, MAX, False)
    tl.store(numbers_ptr + row * width + columns, numbers.to(tl.float8e4nv), mask=mask)
    tl.store(step_ptr + row * num_groups + groups, step, mask=groups < num_groups)


@triton.jit
def _fp8_linear_kernel(
    numbers_ptr,  # [T, K] fp8 dense
    weight_ptr,  # [N, K] fp8, unit column stride
    step_ptr,  # [T, G] fp32
    scale_ptr,  # [B, G] fp32 dense
    bias_ptr,  # [N], or None
    out_ptr,  # [T, N] dense, written
    num_rows,
    num_columns,
    width,
    num_groups,
    stride_n,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,  # a block of the weight
    GROUP: tl.constexpr,
):
    # neighbouring programs read the same columns of the weight
    num_row_tiles = tl.cdiv(num_rows, TILE_T)
    row_tile, block = tl.program_id(0) % num_row_tiles, tl.program_id(0) // num_row_tiles
    rows = row_tile * TILE_T + tl.arange(0, TILE_T)
    columns = block * TILE_N + tl.arange(0, TILE_N)
    is_row, is_column = rows < num_rows, columns < num_columns
    inner = tl.arange(0, GROUP)
    from_row = numbers_ptr + rows.to(tl.int64)[:, None] * width + inner[None, :]
    from_weight = weight_ptr + columns.to(tl.int64)[None, :] * stride_n + inner[:, None]
    from_step = step_ptr + rows.to(tl.int64) * num_groups
    total = tl.zeros((TILE_T, TILE_N), tl.float32)
    for group in range(0, num_groups):
        start = group * GROUP
        is_inner = inner < width - start
        x = tl.load(from_row + start, mask=is_row[:, None] & is_inner[None, :], other=0.0)
        weight = tl.load(
            from_weight + start, mask=is_inner[:, None] & is_column[None, :], other=0.0
        )
        step = tl.load(from_step + group, mask=is_row, other=0.0)
        scale = step * tl.load(scale_ptr + block * num_groups + group)
        total += tl.dot(x, weight) * scale[:, None]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=is_column, other=0.0)
        total += bias.to(tl.float32)[None, :]
    place = out_ptr + rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


def fp8_linear_triton(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_BG: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, K] -> [T, N], in the type of x; operands as of `kernels.fp8_linear.fp8_linear`."""
    x_TK, weight_NK = (x if x.stride(1) == 1 else x.contiguous() for x in (x_TK, weight_NK))
    (num_rows, width), num_columns = x_TK.shape, weight_NK.shape[0]
    out_TN = torch.empty(num_rows, num_columns, dtype=x_TK.dtype, device=x_TK.device)
    if num_rows == 0:
        return out_TN
    num_groups = triton.cdiv(width, _GROUP)
    numbers_TK = torch.empty_like(
        x_TK, dtype=weight_NK.dtype, memory_format=torch.contiguous_format
    )
    step_TG = torch.empty(num_rows, num_groups, dtype=torch.float32, device=x_TK.device)
    _quantize_groups_kernel[(num_rows, triton.cdiv(num_groups, 16))](
        x_TK,
        numbers_TK,
        step_TG,
        x_TK.stride(0),
        width,
        num_groups,
        GROUPS=16,
        GROUP=_GROUP,
        MAX=_MAX,
        num_warps=4,
        enable_fp_fusion=False,
    )
    _fp8_linear_kernel[(triton.cdiv(num_rows, TILE_T) * triton.cdiv(num_columns, _TILE_N),)](
        numbers_TK,
        weight_NK,
        step_TG,
        scale_BG.contiguous(),
        None if bias_N is None else bias_N.contiguous(),
        out_TN,
        num_rows,
        num_columns,
        width,
        num_groups,
        weight_NK.stride(0),
        TILE_T=TILE_T,
        TILE_N=_TILE_N,
        GROUP=_GROUP,
        num_warps=8,
        num_stages=3,
        enable_fp_fusion=False,
    )
    return out_TN
