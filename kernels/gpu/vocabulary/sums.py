"""Triton kernels of `kernels.token_logprobs`: sums over the vocabulary in fixed blocks of 1,024, joined in order.

The first launch computes (maximum, sum, moment) of each tile of the vocabulary, relative to the tile's own maximum; the
second joins the tiles of a row. `kernels.gpu.vocabulary.linear_logprobs` does so for tiles whose logits are never stored.

Shape legend: T = rows, V = vocabulary, J = ceil(V / 1024) blocks, C = tiles.
"""

import torch
import triton
import triton.language as tl

from kernels.numerics import VOCAB_BLOCK

__all__ = [
    "JOIN_WARPS",
    "join_tiles",
    "logprob_of",
    "row_tile_stats",
    "store_sums",
    "vocab_sums_triton",
]

JOIN_WARPS = 4
"""Number of warps of every kernel that calls `join_tiles`: all then sum a row in one order. Fewer warps spill registers."""


@triton.jit
def row_tile_stats(scaled, is_column):
    """[R, C] logits / temperature -> maximum, sum of e^x and of x e^x of each row, x = scaled - maximum."""
    scaled = tl.where(is_column, scaled, float("-inf"))
    maximum = tl.max(scaled, axis=1)
    # a tile of -inf only: exp(-inf - 0) = 0 instead of exp(-inf + inf) = NaN
    base = tl.where(maximum == float("-inf"), 0.0, maximum)
    x = scaled - base[:, None]
    weight = tl.exp(x)
    moment = tl.where(weight == 0.0, 0.0, x * weight)
    return maximum, tl.sum(weight, axis=1), tl.sum(moment, axis=1)


@triton.jit
def join_tiles(
    stats_ptr, row, num_rows, num_tiles, num_blocks, TILES: tl.constexpr, BLOCKS: tl.constexpr
):
    """Stats of one row, `TILES` tiles to a block -> its maximum, sums of e^x up to and with each block [BLOCKS], moment, total."""
    blocks = tl.arange(0, BLOCKS)
    tiles = blocks[:, None] * TILES + tl.arange(0, TILES)[None, :]
    is_tile = tiles < num_tiles
    row_ptr = stats_ptr + row.to(tl.int64) * num_tiles + tiles
    plane = num_rows.to(tl.int64) * num_tiles
    maxima = tl.load(row_ptr, mask=is_tile, other=float("-inf"))
    sums = tl.load(row_ptr + plane, mask=is_tile, other=0.0)
    moments = tl.load(row_ptr + 2 * plane, mask=is_tile, other=0.0)
    maximum = tl.max(tl.max(maxima, axis=1), axis=0)
    shift = maxima - maximum
    factor = tl.exp(shift)
    # a tile of -inf only has no weight, and 0 * -inf is NaN
    moment = tl.where(factor == 0.0, 0.0, factor * (moments + shift * sums))
    block_sums = tl.sum(factor * sums, axis=1)
    # in order, and so never falling: a scan would sum in another order for each block
    cumulative = tl.zeros((BLOCKS,), tl.float32)
    total = 0.0
    for j in range(num_blocks):
        total += tl.sum(tl.where(blocks == j, block_sums, 0.0), axis=0)
        cumulative = tl.where(blocks == j, total, cumulative)
    return maximum, cumulative, tl.sum(tl.sum(moment, axis=1), axis=0), total


@triton.jit
def logprob_of(logit, inverse_temperature, maximum, total):
    return logit * inverse_temperature - maximum - tl.log(total)


@triton.jit
def store_sums(
    row,
    maximum,
    cumulative,
    moment,
    maximum_ptr,
    cumulative_ptr,
    moment_ptr,
    num_blocks,
    BLOCKS: tl.constexpr,
):
    """Writes the sums of a row; skips those whose pointer is None."""
    if maximum_ptr is not None:
        tl.store(maximum_ptr + row, maximum)
    if cumulative_ptr is not None:
        blocks = tl.arange(0, BLOCKS)
        place = cumulative_ptr + row.to(tl.int64) * num_blocks + blocks
        tl.store(place, cumulative, mask=blocks < num_blocks)
    if moment_ptr is not None:
        tl.store(moment_ptr + row, moment)


@triton.jit
def _block_stats_kernel(
    logits_ptr,  # [T, V], unit column stride
    inverse_temperature_ptr,  # [T] fp32
    stats_ptr,  # [3, T, J] fp32, written: maximum, sum, moment
    stride_t,
    num_rows,
    vocab_size,
    num_blocks,
    BLOCK: tl.constexpr,
):
    row, block = tl.program_id(0), tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < vocab_size
    # int64: row * stride passes 2**31 at T = 16k, V = 150k
    row_ptr = logits_ptr + row.to(tl.int64) * stride_t
    logits = tl.load(row_ptr + columns, mask=is_column, other=float("-inf")).to(tl.float32)
    scaled = logits * tl.load(inverse_temperature_ptr + row)
    maximum, total, moment = row_tile_stats(scaled[None, :], is_column[None, :])
    place = stats_ptr + row.to(tl.int64) * num_blocks + block + tl.arange(0, 1)
    plane = num_rows.to(tl.int64) * num_blocks
    tl.store(place, maximum)
    tl.store(place + plane, total)
    tl.store(place + 2 * plane, moment)


@triton.jit
def _join_kernel(
    stats_ptr,  # [3, T, J] fp32
    maximum_ptr,  # [T] fp32, written
    cumulative_ptr,  # [T, J] fp32, written
    moment_ptr,  # [T] fp32, written; or None
    num_rows,
    num_blocks,
    BLOCKS: tl.constexpr,
):
    row = tl.program_id(0)
    maximum, cumulative, moment, _ = join_tiles(
        stats_ptr, row, num_rows, num_blocks, num_blocks, TILES=1, BLOCKS=BLOCKS
    )
    store_sums(
        row,
        maximum,
        cumulative,
        moment,
        maximum_ptr,
        cumulative_ptr,
        moment_ptr,
        num_blocks,
        BLOCKS,
    )


def vocab_sums_triton(
    logits_TV: torch.Tensor, inverse_temperature_T: torch.Tensor, *, with_moment: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Maximum [T], cumulative sums [T, J] and moment [T] of `kernels.token_logprobs.VocabSums`, all fp32."""
    logits_TV = logits_TV if logits_TV.stride(1) == 1 else logits_TV.contiguous()
    num_rows, vocab_size = logits_TV.shape
    num_blocks = triton.cdiv(vocab_size, VOCAB_BLOCK)
    new = {"dtype": torch.float32, "device": logits_TV.device}
    maximum_T, cumulative_TJ = (
        torch.empty(num_rows, **new),
        torch.empty(num_rows, num_blocks, **new),
    )
    moment_T = torch.empty(num_rows, **new) if with_moment else None
    if num_rows == 0:
        return maximum_T, cumulative_TJ, moment_T
    stats = torch.empty(3, num_rows, num_blocks, **new)
    _block_stats_kernel[(num_rows, num_blocks)](
        logits_TV,
        inverse_temperature_T,
        stats,
        logits_TV.stride(0),
        num_rows,
        vocab_size,
        num_blocks,
        BLOCK=VOCAB_BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )
    _join_kernel[(num_rows,)](
        stats,
        maximum_T,
        cumulative_TJ,
        moment_T,
        num_rows,
        num_blocks,
        BLOCKS=triton.next_power_of_2(num_blocks),
        num_warps=JOIN_WARPS,
        enable_fp_fusion=False,
    )
    return maximum_T, cumulative_TJ, moment_T
