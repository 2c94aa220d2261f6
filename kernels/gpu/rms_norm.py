"""Triton kernels of `kernels.rms_norm`, with an optional residual that is added first. Shape legend: T = rows, H = width."""

import torch
import triton
import triton.language as tl

__all__ = ["rms_norm_backward_triton", "rms_norm_triton"]

_MAX_WIDTH = 16384
_PARTIAL_SUMS = 128


@triton.jit
def _rms_norm_fwd_kernel(
    x_ptr,  # [T / N, N, H], unit column stride
    residual_ptr,  # [T, H] dense, or None
    weight_ptr,  # [H]
    out_ptr,  # [T, H] dense, written
    sum_ptr,  # [T, H] dense, written where there is a residual: x + residual
    inverse_ptr,  # [T] fp32, written: 1 / root mean square
    num_rows,
    rows_per_token,
    stride_t,
    stride_n,
    width,
    eps,
    ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_H)
    is_row = rows < num_rows
    mask = is_row[:, None] & (columns < width)[None, :]
    # int64: row * width passes 2**31 at T = 512k, H = 4,096
    tokens, places = (rows // rows_per_token).to(tl.int64), rows % rows_per_token
    from_x = (tokens * stride_t + places * stride_n)[:, None] + columns[None, :]
    dense = rows.to(tl.int64)[:, None] * width + columns[None, :]

    x = tl.load(x_ptr + from_x, mask=mask, other=0.0)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + dense, mask=mask, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + dense, x, mask=mask)
    wide = x.to(tl.float32)
    mean = tl.sum(wide * wide, axis=1) / width
    inverse = 1.0 / tl.sqrt_rn(mean + eps)
    tl.store(inverse_ptr + rows, inverse, mask=is_row)
    weight = tl.load(weight_ptr + columns, mask=columns < width, other=0.0)
    # rounded before the weight scales it, as Hugging Face does
    normed = (wide * inverse[:, None]).to(x.dtype)
    out = normed.to(tl.float32) * weight.to(tl.float32)[None, :]
    tl.store(out_ptr + dense, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rms_norm_bwd_kernel(
    grad_ptr,  # [T, H] dense
    grad_sum_ptr,  # [T, H] dense, gradient of x + residual from elsewhere, or None
    x_ptr,  # [T / N, N, H], unit column stride
    weight_ptr,  # [H]
    inverse_ptr,  # [T] fp32
    grad_x_ptr,  # [T, H] dense, written
    grad_weight_ptr,  # [programs, H] fp32, written: sums over each program's rows
    num_rows,
    rows_per_token,
    stride_t,
    stride_n,
    width,
    ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_H)
    is_column = columns < width
    weight = tl.load(weight_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    grad_weight = tl.zeros((BLOCK_H,), tl.float32)
    for first in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        rows = first + tl.arange(0, ROWS)
        is_row = rows < num_rows
        mask = is_row[:, None] & is_column[None, :]
        tokens, places = (rows // rows_per_token).to(tl.int64), rows % rows_per_token
        from_x = (tokens * stride_t + places * stride_n)[:, None] + columns[None, :]
        dense = rows.to(tl.int64)[:, None] * width + columns[None, :]

        inverse = tl.load(inverse_ptr + rows, mask=is_row, other=0.0)[:, None]
        x = tl.load(x_ptr + from_x, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + dense, mask=mask, other=0.0).to(tl.float32)
        normed = x * inverse
        grad_weight += tl.sum(grad * normed, axis=0)
        grad = grad * weight[None, :]
        projection = tl.sum(grad * normed, axis=1) / width
        grad_x = inverse * (grad - normed * projection[:, None])
        if grad_sum_ptr is not None:
            grad_x += tl.load(grad_sum_ptr + dense, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x_ptr + dense, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
    to_weight = tl.program_id(0).to(tl.int64) * width + columns
    tl.store(grad_weight_ptr + to_weight, grad_weight, mask=is_column)


def rms_norm_triton(
    x: torch.Tensor, weight_H: torch.Tensor, *, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised rows of x, or of x + residual rounded to their type; [..., 1] inverse root mean squares; those rows.

    Without a residual the last is x itself. A row's bits do not depend on the other rows.
    """
    x, num_tokens, per_token = _rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(out)
    inverse = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    num_rows = num_tokens * per_token
    if num_rows == 0:
        return out, inverse, total
    rows, block, warps = _shape(x.shape[-1])
    _rms_norm_fwd_kernel[(triton.cdiv(num_rows, rows),)](
        x,
        None if residual is None else residual.contiguous(),
        weight_H.contiguous(),
        out,
        total,
        inverse,
        num_rows,
        per_token,
        x.stride(0),
        x.stride(-2),
        x.shape[-1],
        eps,
        ROWS=rows,
        BLOCK_H=block,
        num_warps=warps,
        enable_fp_fusion=False,
    )
    return out, inverse, total


def rms_norm_backward_triton(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight_H: torch.Tensor,
    inverse: torch.Tensor,
    *,
    grad_sum: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of x and of the weight; `x` is the third result of the forward, `grad_sum` what else flows into it."""
    x, num_tokens, per_token = _rows(x)
    width, num_rows = x.shape[-1], num_tokens * per_token
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return grad_x, torch.zeros_like(weight_H)
    rows, block, warps = _shape(width)
    num_programs = min(_PARTIAL_SUMS, triton.cdiv(num_rows, rows))
    partial = torch.empty(num_programs, width, dtype=torch.float32, device=x.device)
    _rms_norm_bwd_kernel[(num_programs,)](
        grad.contiguous(),
        None if grad_sum is None else grad_sum.contiguous(),
        x,
        weight_H.contiguous(),
        inverse,
        grad_x,
        partial,
        num_rows,
        per_token,
        x.stride(0),
        x.stride(-2),
        width,
        ROWS=rows,
        BLOCK_H=block,
        num_warps=warps,
        enable_fp_fusion=False,
    )
    return grad_x, partial.sum(0).to(weight_H.dtype)


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Returns x, copied if its rows are not evenly spaced; how many tokens it has; how many rows (heads) each token has."""
    if x.stride(-1) != 1 or x.ndim not in (2, 3):
        x = x.contiguous().view(-1, x.shape[-1])
    return x, x.shape[0], x.shape[1] if x.ndim == 3 else 1


def _shape(width: int) -> tuple[int, int, int]:
    """(rows of a program, columns, warps); of the width only, so that a row's sum has the same order in any batch."""
    if width > _MAX_WIDTH:
        raise ValueError(f"rms_norm: rows must be at most {_MAX_WIDTH} wide on a GPU, got {width}")
    block = triton.next_power_of_2(width)
    return max(1, 1024 // block), block, 16 if block > 8192 else 8 if block > 2048 else 4
