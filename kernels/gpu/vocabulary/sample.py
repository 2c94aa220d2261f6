"""Triton kernels of `kernels.sample`, and the LM head with sampling in two launches.

The first launch multiplies and leaves the logits and the sums of each tile of 128 columns; the second joins a row's tiles,
draws its block of 1,024, and its token in that block. Only that block's logits are read again.

Shape legend: T = rows, H = width, V = vocabulary, J = ceil(V / 1024) blocks.
"""

import torch
import triton
import triton.language as tl

from kernels.gpu.vocabulary.linear_logprobs import TILE_V, head_stats_triton
from kernels.gpu.vocabulary.sums import JOIN_WARPS, join_tiles, logprob_of
from kernels.numerics import VOCAB_BLOCK

__all__ = ["lm_head_sample_triton", "sample_triton"]


@triton.jit
def _draw(
    row_ptr,
    inverse_temperature,
    maximum,
    cumulative,
    total,
    uniform,
    num_blocks,
    vocab_size,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Token and logit: the first whose cumulative weight exceeds u times the total; the last of positive weight, if rounding leaves none."""
    blocks = tl.arange(0, BLOCKS)
    is_block = blocks < num_blocks
    target = uniform * total
    first = tl.sum((is_block & (cumulative <= target)).to(tl.int32), axis=0)
    last = tl.sum((is_block & (cumulative < total)).to(tl.int32), axis=0)
    block = tl.minimum(first, last)
    before = tl.sum(tl.where(blocks == block - 1, cumulative, 0.0), axis=0)

    places = tl.arange(0, BLOCK)
    columns = block * BLOCK + places
    logits = tl.load(row_ptr + columns, mask=columns < vocab_size, other=float("-inf"))
    logits = logits.to(tl.float32)
    weights = tl.exp(logits * inverse_temperature - maximum)
    has_weight = weights > 0.0
    is_above = has_weight & (tl.cumsum(weights, axis=0) > target - before)
    place = tl.min(tl.where(is_above, places, BLOCK), axis=0)
    last_place = tl.max(tl.where(has_weight, places, 0), axis=0)
    place = tl.where(place < BLOCK, place, last_place)
    logit = tl.sum(tl.where(places == place, logits, 0.0), axis=0)
    return block * BLOCK + place, logit


@triton.jit
def _sample_kernel(
    logits_ptr,  # [T, V], unit column stride
    inverse_temperature_ptr,  # [T] fp32
    maximum_ptr,  # [T] fp32
    cumulative_ptr,  # [T, J] fp32
    uniforms_ptr,  # [T] fp32
    tokens_ptr,  # [T] int64, written
    stride_t,
    num_blocks,
    vocab_size,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, BLOCKS)
    row_sums = cumulative_ptr + row * num_blocks
    cumulative = tl.load(row_sums + blocks, mask=blocks < num_blocks, other=0.0)
    token, _ = _draw(
        logits_ptr + row * stride_t,
        tl.load(inverse_temperature_ptr + row),
        tl.load(maximum_ptr + row),
        cumulative,
        tl.load(row_sums + num_blocks - 1),
        tl.load(uniforms_ptr + row),
        num_blocks,
        vocab_size,
        BLOCKS,
        BLOCK,
    )
    tl.store(tokens_ptr + row, token.to(tl.int64))


@triton.jit
def _join_and_draw_kernel(
    stats_ptr,  # [3, T, V / 128] fp32
    logits_ptr,  # [T, V] fp32 dense
    inverse_temperature_ptr,  # [T] fp32
    uniforms_ptr,  # [T] fp32
    tokens_ptr,  # [T] int64, written
    logprobs_ptr,  # [T] fp32, written
    num_rows,
    num_tiles,
    num_blocks,
    vocab_size,
    TILES: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    maximum, cumulative, _, total = join_tiles(
        stats_ptr, row, num_rows, num_tiles, num_blocks, TILES, BLOCKS
    )
    inverse_temperature = tl.load(inverse_temperature_ptr + row)
    token, logit = _draw(
        logits_ptr + row.to(tl.int64) * vocab_size,
        inverse_temperature,
        maximum,
        cumulative,
        total,
        tl.load(uniforms_ptr + row),
        num_blocks,
        vocab_size,
        BLOCKS,
        BLOCK,
    )
    tl.store(tokens_ptr + row, token.to(tl.int64))
    tl.store(logprobs_ptr + row, logprob_of(logit, inverse_temperature, maximum, total))


def sample_triton(
    logits_TV: torch.Tensor,
    inverse_temperature_T: torch.Tensor,
    maximum_T: torch.Tensor,
    cumulative_TJ: torch.Tensor,
    uniforms_T: torch.Tensor,
) -> torch.Tensor:
    """[T] token ids, int64, from what `vocab_sums_triton` gave for these rows and a uniform for each."""
    logits_TV = logits_TV if logits_TV.stride(1) == 1 else logits_TV.contiguous()
    num_rows, vocab_size = logits_TV.shape
    tokens_T = torch.empty(num_rows, dtype=torch.int64, device=logits_TV.device)
    if num_rows == 0:
        return tokens_T
    num_blocks = cumulative_TJ.shape[1]
    _sample_kernel[(num_rows,)](
        logits_TV,
        inverse_temperature_T,
        maximum_T,
        cumulative_TJ.contiguous(),
        uniforms_T,
        tokens_T,
        logits_TV.stride(0),
        num_blocks,
        vocab_size,
        BLOCKS=triton.next_power_of_2(num_blocks),
        BLOCK=VOCAB_BLOCK,
        num_warps=JOIN_WARPS,
        enable_fp_fusion=False,
    )
    return tokens_T


def lm_head_sample_triton(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    inverse_temperature_T: torch.Tensor,
    uniforms_T: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids [T], their log-probabilities [T], bit for bit those of `linear_logprobs_triton`, and the fp32 logits [T, V]."""
    num_rows, vocab_size = hidden_TH.shape[0], weight_VH.shape[0]
    new = {"dtype": torch.float32, "device": hidden_TH.device}
    logits_TV, logprobs_T = torch.empty(num_rows, vocab_size, **new), torch.empty(num_rows, **new)
    tokens_T = torch.empty(num_rows, dtype=torch.int64, device=hidden_TH.device)
    if num_rows == 0:
        return tokens_T, logprobs_T, logits_TV
    stats, _ = head_stats_triton(hidden_TH, weight_VH, inverse_temperature_T, logits_TV=logits_TV)
    num_blocks = triton.cdiv(vocab_size, VOCAB_BLOCK)
    _join_and_draw_kernel[(num_rows,)](
        stats,
        logits_TV,
        inverse_temperature_T,
        uniforms_T,
        tokens_T,
        logprobs_T,
        num_rows,
        stats.shape[2],
        num_blocks,
        vocab_size,
        TILES=VOCAB_BLOCK // TILE_V,
        BLOCKS=triton.next_power_of_2(num_blocks),
        BLOCK=VOCAB_BLOCK,
        num_warps=JOIN_WARPS,
        enable_fp_fusion=False,
    )
    return tokens_T, logprobs_T, logits_TV
