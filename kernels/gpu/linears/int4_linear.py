"""Triton kernel of `kernels.int4_linear`: weights are unpacked and scaled in registers, then multiplied in the type of x.

Shape legend: T = rows, K = in features (even), N = out features, G = groups of 128.
"""

import torch
import triton
import triton.language as tl

__all__ = ["int4_linear_triton"]

_GROUP = 128
_TILE_T, _TILE_N = 64, 64


@triton.jit
def _int4_linear_kernel(
    x_ptr,  # [T, K], unit column stride
    packed_ptr,  # [N, K / 2] uint8 dense: the even weight in the low half
    scale_ptr,  # [N, G] fp32 dense
    bias_ptr,  # [N], or None
    out_ptr,  # [T, N] dense, written
    num_rows,
    num_columns,
    width,
    num_groups,
    stride_t,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    GROUP: tl.constexpr,
):
    # neighbouring programs read the same columns of the weight
    num_row_tiles = tl.cdiv(num_rows, TILE_T)
    rows = tl.program_id(0) % num_row_tiles * TILE_T + tl.arange(0, TILE_T)
    columns = tl.program_id(0) // num_row_tiles * TILE_N + tl.arange(0, TILE_N)
    is_row, is_column = rows < num_rows, columns < num_columns
    inner, halves = tl.arange(0, GROUP), tl.arange(0, GROUP // 2)
    from_x = x_ptr + rows.to(tl.int64)[:, None] * stride_t + inner[None, :]
    num_bytes = width // 2
    from_packed = packed_ptr + columns.to(tl.int64)[:, None] * num_bytes + halves[None, :]
    from_scale = scale_ptr + columns.to(tl.int64) * num_groups
    total = tl.zeros((TILE_T, TILE_N), tl.float32)
    for group in range(0, num_groups):
        start = group * GROUP
        x = tl.load(
            from_x + start, mask=is_row[:, None] & (inner < width - start)[None, :], other=0.0
        )
        is_byte = is_column[:, None] & (halves < num_bytes - start // 2)[None, :]
        packed = tl.load(from_packed + start // 2, mask=is_byte, other=0)
        integers = tl.interleave(packed & 15, packed >> 4).to(tl.float32) - 8.0
        scale = tl.load(from_scale + group, mask=is_column, other=0.0)
        weight = (integers * scale[:, None]).to(x.dtype)
        total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=is_column, other=0.0)
        total += bias.to(tl.float32)[None, :]
    place = out_ptr + rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


def int4_linear_triton(
    x_TK: torch.Tensor,
    packed_NK: torch.Tensor,
    scale_NG: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, K] -> [T, N], in the type of x; operands as of `kernels.int4_linear.int4_linear`."""
    x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
    (num_rows, width), num_columns = x_TK.shape, packed_NK.shape[0]
    out_TN = torch.empty(num_rows, num_columns, dtype=x_TK.dtype, device=x_TK.device)
    if num_rows == 0:
        return out_TN
    num_tiles = triton.cdiv(num_rows, _TILE_T) * triton.cdiv(num_columns, _TILE_N)
    _int4_linear_kernel[(num_tiles,)](
        x_TK,
        packed_NK.contiguous(),
        scale_NG.contiguous(),
        None if bias_N is None else bias_N.contiguous(),
        out_TN,
        num_rows,
        num_columns,
        width,
        scale_NG.shape[1],
        x_TK.stride(0),
        TILE_T=_TILE_T,
        TILE_N=_TILE_N,
        GROUP=_GROUP,
        num_warps=4,
        num_stages=3,
        enable_fp_fusion=False,
    )
    return out_TN
