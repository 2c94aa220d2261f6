"""Triton kernel of `kernels.rope`. Shape legend: T = rows, N = heads, D = width of a head."""

import torch
import triton
import triton.language as tl

__all__ = ["rope_triton"]

_HEADS = 8


@triton.jit
def _rope_kernel(
    x_ptr,  # [T, N, D], unit stride within a head
    cos_sin_ptr,  # [T, D] fp32: cosines of D / 2 angles, then their sines
    out_ptr,  # [T, N, D], unit stride within a head, written; may be x
    num_heads,
    stride_xt,
    stride_xn,
    stride_ct,
    stride_ot,
    stride_on,
    INVERSE: tl.constexpr,  # turn the other way
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, BLOCK)
    is_column = columns < HALF
    mask = (heads < num_heads)[:, None] & is_column[None, :]
    angle_ptr = cos_sin_ptr + row * stride_ct + columns
    cos = tl.load(angle_ptr, mask=is_column, other=0.0)[None, :]
    sin = tl.load(angle_ptr + HALF, mask=is_column, other=0.0)[None, :]
    if INVERSE:
        sin = -sin
    first_ptr = x_ptr + row * stride_xt + heads[:, None] * stride_xn + columns[None, :]
    first = tl.load(first_ptr, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(first_ptr + HALF, mask=mask, other=0.0).to(tl.float32)
    to_first = out_ptr + row * stride_ot + heads[:, None] * stride_on + columns[None, :]
    dtype = out_ptr.dtype.element_ty
    tl.store(to_first, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(to_first + HALF, (second * cos + first * sin).to(dtype), mask=mask)


def rope_triton(
    x_TND: torch.Tensor,
    cos_sin_TD: torch.Tensor,
    *,
    is_inverse: bool = False,
    out_TND: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, N, D] heads, turned by the angles of their rows.

    Args:
        x_TND: any strides, but 1 within a head.
        cos_sin_TD: [T, D] fp32, rows of `kernels.rope.rope_table`.
        is_inverse: turn the other way, as the backward does.
        out_TND: where the result goes; x itself is allowed.
    """
    num_rows, num_heads, head_dim = x_TND.shape
    x_TND = x_TND if x_TND.stride(2) == 1 else x_TND.contiguous()
    cos_sin_TD = cos_sin_TD if cos_sin_TD.stride(1) == 1 else cos_sin_TD.contiguous()
    if out_TND is None:
        out_TND = torch.empty(x_TND.shape, dtype=x_TND.dtype, device=x_TND.device)
    if num_rows == 0:
        return out_TND
    half = head_dim // 2
    _rope_kernel[(num_rows, triton.cdiv(num_heads, _HEADS))](
        x_TND,
        cos_sin_TD,
        out_TND,
        num_heads,
        x_TND.stride(0),
        x_TND.stride(1),
        cos_sin_TD.stride(0),
        out_TND.stride(0),
        out_TND.stride(1),
        INVERSE=is_inverse,
        HALF=half,
        HEADS=_HEADS,
        BLOCK=triton.next_power_of_2(half),
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out_TND
