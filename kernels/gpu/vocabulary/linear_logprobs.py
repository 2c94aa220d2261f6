"""Triton kernels that fuse the LM head with log-probability and entropy: logits are never written.

Each program multiplies a tile of 128 rows and 128 columns and leaves its sums; a second launch joins a row's tiles.
Sums of tiles round otherwise than sums of whole blocks: use this on both sides (`kernels.gpu.vocabulary.sample`) or on none.

Shape legend: T = rows, H = width, V = vocabulary, C = ceil(V / 128) tiles. Memory: 12*T*C bytes.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from kernels.gpu.linears.linear import TILE_K, TILE_T, product_tile
from kernels.gpu.vocabulary.sums import (
    JOIN_WARPS,
    join_tiles,
    logprob_of,
    row_tile_stats,
    store_sums,
)
from kernels.numerics import VOCAB_BLOCK

__all__ = [
    "TILE_V",
    "head_stats_triton",
    "linear_logprobs_triton",
]

TILE_V = 128
_FORWARD_ROWS = 8192


@triton.jit
def _head_stats_kernel(
    hidden_ptr,  # [T, H], unit column stride
    weight_ptr,  # [V, H], unit column stride
    inverse_temperature_ptr,  # [T] fp32
    token_ids_ptr,  # [T] int64, or None
    stats_ptr,  # [3, T, C] fp32, written: maximum, sum, moment of each tile
    chosen_ptr,  # [T] fp32, written where there are token ids: the token's logit
    logits_ptr,  # [T, V] fp32 dense, written; or None
    num_rows,
    vocab_size,
    width,
    stride_t,
    stride_v,
    num_tiles,
    TILE_T: tl.constexpr,
    TILE_V: tl.constexpr,
    TILE_K: tl.constexpr,
):
    # neighbouring programs read the same columns of the weight
    num_row_tiles = tl.cdiv(num_rows, TILE_T)
    tile, row_tile = tl.program_id(0) // num_row_tiles, tl.program_id(0) % num_row_tiles
    rows = row_tile * TILE_T + tl.arange(0, TILE_T)
    columns = tile * TILE_V + tl.arange(0, TILE_V)
    is_row, is_column = rows < num_rows, (columns < vocab_size)[None, :]
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
    if logits_ptr is not None:
        place = rows.to(tl.int64)[:, None] * vocab_size + columns[None, :]
        tl.store(logits_ptr + place, logits, mask=is_row[:, None] & is_column)
    if token_ids_ptr is not None:
        token_ids = tl.load(token_ids_ptr + rows, mask=is_row, other=-1)
        is_token = token_ids[:, None] == columns[None, :]
        chosen = tl.sum(tl.where(is_token, logits, 0.0), axis=1)
        is_here = is_row & (token_ids >= tile * TILE_V) & (token_ids < (tile + 1) * TILE_V)
        tl.store(chosen_ptr + rows, chosen, mask=is_here)
    inverse_temperature = tl.load(inverse_temperature_ptr + rows, mask=is_row, other=0.0)
    maximum, total, moment = row_tile_stats(logits * inverse_temperature[:, None], is_column)
    place = stats_ptr + rows.to(tl.int64) * num_tiles + tile
    plane = num_rows.to(tl.int64) * num_tiles
    tl.store(place, maximum, mask=is_row)
    tl.store(place + plane, total, mask=is_row)
    tl.store(place + 2 * plane, moment, mask=is_row)


@triton.jit
def _join_logprobs_kernel(
    stats_ptr,  # [3, T, C] fp32
    chosen_ptr,  # [T] fp32
    inverse_temperature_ptr,  # [T] fp32
    logprobs_ptr,  # [T] fp32, written
    entropy_ptr,  # [T] fp32, written
    maximum_ptr,  # [T] fp32, written
    total_ptr,  # [T] fp32, written
    num_rows,
    num_tiles,
    num_blocks,
    TILES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    row = tl.program_id(0)
    maximum, cumulative, moment, total = join_tiles(
        stats_ptr, row, num_rows, num_tiles, num_blocks, TILES, BLOCKS
    )
    store_sums(row, maximum, cumulative, moment, maximum_ptr, None, None, num_blocks, BLOCKS)
    inverse_temperature = tl.load(inverse_temperature_ptr + row)
    logprob = logprob_of(tl.load(chosen_ptr + row), inverse_temperature, maximum, total)
    tl.store(logprobs_ptr + row, logprob)
    tl.store(entropy_ptr + row, tl.log(total) - moment / total)
    tl.store(total_ptr + row, total)


def head_stats_triton(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    inverse_temperature_T: torch.Tensor,
    *,
    token_ids_T: torch.Tensor | None = None,
    logits_TV: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """[3, T, C] maximum, sum and moment of each tile of the vocabulary, and the logits of `token_ids_T`.

    Args:
        hidden_TH: at least one row, unit column stride.
        weight_VH: of the same type.
        inverse_temperature_T: fp32.
        token_ids_T: int64, tokens whose logits are wanted.
        logits_TV: fp32 dense, filled with all logits if given.
    """
    (num_rows, width), vocab_size = hidden_TH.shape, weight_VH.shape[0]
    num_tiles = triton.cdiv(vocab_size, TILE_V)
    new = {"dtype": torch.float32, "device": hidden_TH.device}
    stats = torch.empty(3, num_rows, num_tiles, **new)
    chosen_T = None if token_ids_T is None else torch.empty(num_rows, **new)
    _head_stats_kernel[(num_tiles * triton.cdiv(num_rows, TILE_T),)](
        hidden_TH,
        weight_VH,
        inverse_temperature_T,
        token_ids_T,
        stats,
        chosen_T,
        logits_TV,
        num_rows,
        vocab_size,
        width,
        hidden_TH.stride(0),
        weight_VH.stride(0),
        num_tiles,
        TILE_T=TILE_T,
        TILE_V=TILE_V,
        TILE_K=TILE_K,
        num_warps=8,
        num_stages=3,
        enable_fp_fusion=False,
    )
    return stats, chosen_T


def linear_logprobs_triton(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    token_ids_T: torch.Tensor,
    inverse_temperature_T: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """[T] fp32 log-probabilities and entropies, and for the backward the maxima and totals of `VocabSums`."""
    num_rows, vocab_size = hidden_TH.shape[0], weight_VH.shape[0]
    new = {"dtype": torch.float32, "device": hidden_TH.device}
    out = tuple(torch.empty(num_rows, **new) for _ in range(4))
    num_blocks = triton.cdiv(vocab_size, VOCAB_BLOCK)
    for rows in _chunks(num_rows, _FORWARD_ROWS):
        inverse = inverse_temperature_T[rows]
        stats, chosen = head_stats_triton(
            hidden_TH[rows], weight_VH, inverse, token_ids_T=token_ids_T[rows]
        )
        logprobs_T, entropy_T, maximum_T, total_T = (x[rows] for x in out)
        _join_logprobs_kernel[(len(logprobs_T),)](
            stats,
            chosen,
            inverse,
            logprobs_T,
            entropy_T,
            maximum_T,
            total_T,
            len(logprobs_T),
            stats.shape[2],
            num_blocks,
            TILES=VOCAB_BLOCK // TILE_V,
            BLOCKS=triton.next_power_of_2(num_blocks),
            num_warps=JOIN_WARPS,
            enable_fp_fusion=False,
        )
    return out[0], out[1], out[2], out[3]


def _chunks(num_rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))
