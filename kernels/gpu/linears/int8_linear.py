"""Triton kernels of `kernels.int8_linear`: activations of up to 16 bits as two numbers of 8, multiplied on the integer units.

    p = 256 high + low,   sum p q = 256 sum high q + sum low q,   exact in 32 bits

The first launch quantizes the rows, bit for bit as `kernels.quantize.quantize_activations`; the second multiplies. Integer
sums have no order, so a row has the same bits in any batch, and those of the CPU.

Shape legend: T = rows, K = in features, N = out features.
"""

import torch
import triton
import triton.language as tl

from kernels.gpu.linears.linear import TILE_T
from kernels.gpu.quantize import quantize_tile, round_half_even

__all__ = ["MAX_LEVELS", "int8_linear_triton"]

MAX_LEVELS = 127 * 256 + 127
"""Greatest |p| whose two halves both fit into 8 bits; more than a weight of 521 in features or more allows."""
_MAX_WIDTH = 32768
_TILE_N, _TILE_K = 64, 128


@triton.jit
def _quantize_kernel(
    x_ptr,  # [T, K], unit column stride
    halves_ptr,  # [2, T, K] int8 dense, written: low, high
    step_ptr,  # [T] fp32, written
    num_rows,
    stride_t,
    WIDTH: tl.constexpr,
    LEVELS: tl.constexpr,
    RATIO: tl.constexpr,  # root mean squares that fit into 8 bits, / 127
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_K)
    mask = columns < WIDTH
    x = tl.load(x_ptr + row * stride_t + columns, mask=mask, other=0.0).to(tl.float32)
    fine, fine_step = quantize_tile(x[None, :], LEVELS, True)
    # of integers, so that it is exact and the same in any order
    exact = fine.to(tl.int64)
    squares = tl.sum(exact * exact, axis=1).to(tl.float64)
    mean = squares / tl.full((1,), WIDTH, tl.float64)
    ratio = (tl.sqrt(mean) * tl.full((1,), RATIO, tl.float64)).to(tl.float32)
    ratio = tl.where(ratio > 1.0, ratio, 1.0)
    greatest = tl.max(tl.abs(x[None, :]), axis=1)
    # a step of zero or NaN: zeros
    is_known = fine_step > 0.0
    inverse = tl.div_rn(tl.div_rn(LEVELS, tl.where(is_known, greatest, 1.0)), ratio)
    scaled = tl.where(is_known[:, None], x[None, :] * inverse[:, None], 0.0)
    integers = round_half_even(scaled).to(tl.int32)
    low = ((integers + 128) & 255) - 128
    place = halves_ptr + row * WIDTH + columns[None, :]
    plane = num_rows.to(tl.int64) * WIDTH
    tl.store(place, low.to(tl.int8), mask=mask[None, :])
    tl.store(place + plane, ((integers - low) >> 8).to(tl.int8), mask=mask[None, :])
    tl.store(step_ptr + row + tl.arange(0, 1), fine_step * ratio)


@triton.jit
def _int8_linear_kernel(
    halves_ptr,  # [2, T, K] int8 dense: low, high
    weight_ptr,  # [N, K] int8, unit column stride
    step_ptr,  # [T] fp32
    scale_ptr,  # [N] fp32
    bias_ptr,  # [N], or None
    out_ptr,  # [T, N] dense, written
    num_rows,
    num_columns,
    width,
    stride_n,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    # neighbouring programs read the same columns of the weight
    num_row_tiles = tl.cdiv(num_rows, TILE_T)
    rows = tl.program_id(0) % num_row_tiles * TILE_T + tl.arange(0, TILE_T)
    columns = tl.program_id(0) // num_row_tiles * TILE_N + tl.arange(0, TILE_N)
    is_row, is_column = rows < num_rows, columns < num_columns
    inner = tl.arange(0, TILE_K)
    from_low = halves_ptr + rows.to(tl.int64)[:, None] * width + inner[None, :]
    from_high = from_low + num_rows.to(tl.int64) * width
    from_weight = weight_ptr + columns.to(tl.int64)[None, :] * stride_n + inner[:, None]
    low_sum = tl.zeros((TILE_T, TILE_N), tl.int32)
    high_sum = tl.zeros((TILE_T, TILE_N), tl.int32)
    for start in range(0, width, TILE_K):
        is_inner = inner < width - start
        mask = is_row[:, None] & is_inner[None, :]
        weight = tl.load(from_weight + start, mask=is_inner[:, None] & is_column[None, :], other=0)
        low_sum = tl.dot(tl.load(from_low + start, mask=mask, other=0), weight, low_sum)
        high_sum = tl.dot(tl.load(from_high + start, mask=mask, other=0), weight, high_sum)
    step = tl.load(step_ptr + rows, mask=is_row, other=0.0)
    scale = tl.load(scale_ptr + columns, mask=is_column, other=0.0)
    out = (low_sum + high_sum * 256).to(tl.float32) * (step[:, None] * scale[None, :])
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=is_column, other=0.0)
        out += bias.to(tl.float32)[None, :]
    place = out_ptr + rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    tl.store(place, out.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


def int8_linear_triton(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N: torch.Tensor,
    bias_N: torch.Tensor | None,
    *,
    levels: int,
    ratio: float,
) -> torch.Tensor:
    """[T, K] -> [T, N], in the type of x.

    Args:
        x_TK: rows.
        weight_NK: int8.
        scale_N: scales of the weights, float32.
        bias_N: bias, in the type of x.
        levels: greatest integer of an activation, at most `MAX_LEVELS`.
        ratio: what a row's root mean square, in steps, is multiplied by to say how much coarser its step must be.
    """
    (num_rows, width), num_columns = x_TK.shape, weight_NK.shape[0]
    if levels > MAX_LEVELS or width > _MAX_WIDTH:
        raise ValueError(
            f"int8_linear: {levels} levels and {width} in features do not fit the GPU kernel's {MAX_LEVELS} and {_MAX_WIDTH}"
        )
    x_TK, weight_NK = (x if x.stride(1) == 1 else x.contiguous() for x in (x_TK, weight_NK))
    out_TN = torch.empty(num_rows, num_columns, dtype=x_TK.dtype, device=x_TK.device)
    if num_rows == 0:
        return out_TN
    halves = torch.empty(2, num_rows, width, dtype=torch.int8, device=x_TK.device)
    step_T = torch.empty(num_rows, dtype=torch.float32, device=x_TK.device)
    _quantize_kernel[(num_rows,)](
        x_TK,
        halves,
        step_T,
        num_rows,
        x_TK.stride(0),
        WIDTH=width,
        LEVELS=float(levels),
        RATIO=ratio,
        BLOCK_K=triton.next_power_of_2(width),
        num_warps=16 if width > 8192 else 8 if width > 2048 else 4,
        enable_fp_fusion=False,
    )
    _int8_linear_kernel[(triton.cdiv(num_rows, TILE_T) * triton.cdiv(num_columns, _TILE_N),)](
        halves,
        weight_NK,
        step_T,
        scale_N.contiguous(),
        None if bias_N is None else bias_N.contiguous(),
        out_TN,
        num_rows,
        num_columns,
        width,
        weight_NK.stride(0),
        TILE_T=TILE_T,
        TILE_N=_TILE_N,
        TILE_K=_TILE_K,
        num_warps=8,
        num_stages=3,
        enable_fp_fusion=False,
    )
    return out_TN
