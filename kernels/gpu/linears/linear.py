"""Triton kernel of `kernels.linear`: fixed tiles and no split of the inner sum, so that a row has the same bits in any batch.

Programs are persistent: each takes every so-manieth tile. On Hopper and later, operands come through tensor descriptors
(TMA), elsewhere by pointers; both multiply the same tiles in the same order.

Shape legend: T = rows, K = in features, N = out features.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.gpu.target import has_tensor_descriptors, num_multiprocessors

__all__ = ["TILE_K", "TILE_T", "linear_triton", "product_tile", "tile_n"]

TILE_T, TILE_K = 128, 64
_WIDE = 16384
"""Out features from which on tiles of 128 columns leave no multiprocessor of a large GPU idle while it decodes."""


@triton.jit
def product_tile(
    x_ptr, weight_ptr, rows, columns, num_rows, num_columns, width, stride_t, stride_n,
    TILE_K: tl.constexpr,
):  # fmt: skip
    """[rows, columns] of x @ weight^T in fp32."""
    is_row, is_column = rows < num_rows, columns < num_columns
    inner = tl.arange(0, TILE_K)
    # int64: column * stride passes 2**31 at N = 256k, K = 8,192
    from_x = x_ptr + rows.to(tl.int64)[:, None] * stride_t + inner[None, :]
    from_weight = weight_ptr + columns.to(tl.int64)[None, :] * stride_n + inner[:, None]
    total = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, width, TILE_K):
        is_inner = inner < width - start
        x = tl.load(from_x + start, mask=is_row[:, None] & is_inner[None, :], other=0.0)
        weight = tl.load(
            from_weight + start, mask=is_inner[:, None] & is_column[None, :], other=0.0
        )
        total = tl.dot(x, weight, total, input_precision="ieee")
    return total


@triton.jit
def _store_tile(total, bias_ptr, out_ptr, rows, columns, num_rows, num_columns):
    """Adds the bias in fp32, rounds once and writes to [T, N] dense."""
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=columns < num_columns, other=0.0)
        total += bias.to(tl.float32)[None, :]
    place = out_ptr + rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _linear_kernel(
    x_ptr,  # [T, K], unit column stride
    weight_ptr,  # [N, K], unit column stride
    bias_ptr,  # [N], or None
    out_ptr,  # [T, N] dense, written
    num_rows,
    num_columns,
    width,
    stride_t,
    stride_n,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    num_row_tiles = tl.cdiv(num_rows, TILE_T)
    num_tiles = num_row_tiles * tl.cdiv(num_columns, TILE_N)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        # neighbouring programs read the same columns of the weight
        rows = tile % num_row_tiles * TILE_T + tl.arange(0, TILE_T)
        columns = tile // num_row_tiles * TILE_N + tl.arange(0, TILE_N)
        total = product_tile(
            x_ptr,
            weight_ptr,
            rows,
            columns,
            num_rows,
            num_columns,
            width,
            stride_t,
            stride_n,
            TILE_K,
        )
        _store_tile(total, bias_ptr, out_ptr, rows, columns, num_rows, num_columns)


@triton.jit
def _linear_descriptor_kernel(
    x,  # descriptor of [T, K], blocks [TILE_T, TILE_K]
    weight,  # descriptor of [N, K], blocks [TILE_N, TILE_K]
    bias_ptr,  # [N], or None
    out_ptr,  # [T, N] dense, written
    num_rows,
    num_columns,
    width,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    num_row_tiles = tl.cdiv(num_rows, TILE_T)
    num_tiles = num_row_tiles * tl.cdiv(num_columns, TILE_N)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        first_row = tile % num_row_tiles * TILE_T
        first_column = tile // num_row_tiles * TILE_N
        total = tl.zeros((TILE_T, TILE_N), tl.float32)
        for start in range(0, width, TILE_K):
            # zeros past the ends
            x_tile = x.load([first_row, start])
            weight_tile = weight.load([first_column, start])
            total = tl.dot(x_tile, weight_tile.T, total, input_precision="ieee")
        rows, columns = first_row + tl.arange(0, TILE_T), first_column + tl.arange(0, TILE_N)
        _store_tile(total, bias_ptr, out_ptr, rows, columns, num_rows, num_columns)


def tile_n(out_features: int) -> int:
    """Columns of a tile; of the weight's size only, so that rows keep their bits."""
    return 128 if out_features >= _WIDE else 64


def linear_triton(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """[T, K], [N, K], [N] -> [T, N] in `out_dtype`, None: the type of x; sums in fp32, rounded once."""
    x_TK, weight_NK = (x if x.stride(1) == 1 else x.contiguous() for x in (x_TK, weight_NK))
    (num_rows, width), num_columns = x_TK.shape, weight_NK.shape[0]
    out_TN = torch.empty(num_rows, num_columns, dtype=out_dtype or x_TK.dtype, device=x_TK.device)
    if num_rows == 0:
        return out_TN
    columns = tile_n(num_columns)
    num_tiles = triton.cdiv(num_rows, TILE_T) * triton.cdiv(num_columns, columns)
    grid = (min(num_tiles, num_multiprocessors(x_TK.device)),)
    sizes = (None if bias_N is None else bias_N.contiguous(), out_TN, num_rows, num_columns, width)
    options = {
        "TILE_T": TILE_T,
        "TILE_N": columns,
        "TILE_K": TILE_K,
        "num_warps": 8,
        "num_stages": 3,
        "enable_fp_fusion": False,
    }
    if has_tensor_descriptors(x_TK.device) and _can_describe(x_TK) and _can_describe(weight_NK):
        x = TensorDescriptor.from_tensor(x_TK, [TILE_T, TILE_K])
        weight = TensorDescriptor.from_tensor(weight_NK, [columns, TILE_K])
        _linear_descriptor_kernel[grid](x, weight, *sizes, **options)
    else:
        strides = (x_TK.stride(0), weight_NK.stride(0))
        _linear_kernel[grid](x_TK, weight_NK, *sizes, *strides, **options)
    return out_TN


def _can_describe(x: torch.Tensor) -> bool:
    """Whether a tensor descriptor may have this address and these strides: multiples of 16 bytes; float32 has no room in the tiles."""
    is_aligned = x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0
    return is_aligned and x.element_size() == 2
