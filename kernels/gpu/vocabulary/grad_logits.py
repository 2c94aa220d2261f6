"""Triton kernel of the backward of `kernels.linear_logprobs`: logits of some rows, computed again as their own gradient.

    d logits = g (onehot(token) - softmax(logits / temperature)) / temperature

Shape legend: T = rows, H = width, V = vocabulary.
"""

import torch
import triton
import triton.language as tl

from kernels.gpu.linears.linear import TILE_K, TILE_T, product_tile

__all__ = ["grad_logits_triton"]

TILE_V = 128


@triton.jit
def _grad_logits_kernel(
    hidden_ptr,  # [T, H], unit column stride
    weight_ptr,  # [V, H], unit column stride
    inverse_temperature_ptr,  # [T] fp32
    token_ids_ptr,  # [T] int64
    maximum_ptr,  # [T] fp32
    total_ptr,  # [T] fp32
    grad_logprobs_ptr,  # [T] fp32
    grad_logits_ptr,  # [T, V] dense, written
    num_rows,
    vocab_size,
    width,
    stride_t,
    stride_v,
    TILE_T: tl.constexpr,
    TILE_V: tl.constexpr,
    TILE_K: tl.constexpr,
):
    num_row_tiles = tl.cdiv(num_rows, TILE_T)
    tile, row_tile = tl.program_id(0) // num_row_tiles, tl.program_id(0) % num_row_tiles
    rows = row_tile * TILE_T + tl.arange(0, TILE_T)
    columns = tile * TILE_V + tl.arange(0, TILE_V)
    is_row = rows < num_rows
    logits = product_tile(
        hidden_ptr,
        weight_ptr,
        rows,
        columns,
        num_rows,
        vocab_size,
        width,
        stride_t,
        stride_v,
        TILE_K,
    )
    inverse_temperature = tl.load(inverse_temperature_ptr + rows, mask=is_row, other=0.0)
    maximum = tl.load(maximum_ptr + rows, mask=is_row, other=0.0)
    total = tl.load(total_ptr + rows, mask=is_row, other=1.0)
    grad = tl.load(grad_logprobs_ptr + rows, mask=is_row, other=0.0) * inverse_temperature
    token_ids = tl.load(token_ids_ptr + rows, mask=is_row, other=-1)
    weights = tl.exp(logits * inverse_temperature[:, None] - maximum[:, None])
    grad_logits = weights * (-grad / total)[:, None]
    grad_logits += tl.where(token_ids[:, None] == columns[None, :], grad[:, None], 0.0)
    place = grad_logits_ptr + rows.to(tl.int64)[:, None] * vocab_size + columns[None, :]
    mask = is_row[:, None] & (columns < vocab_size)[None, :]
    tl.store(place, grad_logits.to(grad_logits_ptr.dtype.element_ty), mask=mask)


def grad_logits_triton(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    inverse_temperature_T: torch.Tensor,
    token_ids_T: torch.Tensor,
    maximum_T: torch.Tensor,
    total_T: torch.Tensor,
    grad_logprobs_T: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the logits [T, V], in the type of hidden; logits are computed again, tile by tile."""
    per_row = (inverse_temperature_T, token_ids_T, maximum_T, total_T, grad_logprobs_T)
    (num_rows, width), vocab_size = hidden_TH.shape, weight_VH.shape[0]
    out_TV = torch.empty(num_rows, vocab_size, dtype=hidden_TH.dtype, device=hidden_TH.device)
    _grad_logits_kernel[(triton.cdiv(vocab_size, TILE_V) * triton.cdiv(num_rows, TILE_T),)](
        hidden_TH,
        weight_VH,
        *(x.contiguous() for x in per_row),
        out_TV,
        num_rows,
        vocab_size,
        width,
        hidden_TH.stride(0),
        weight_VH.stride(0),
        TILE_T=TILE_T,
        TILE_V=TILE_V,
        TILE_K=TILE_K,
        num_warps=8,
        num_stages=3,
        enable_fp_fusion=False,
    )
    return out_TV
