"""Inverse-CDF sampling in token-id order, with one uniform per row.

    target = u * sum(w);   block = first whose cumulative sum exceeds it;   token = first within the block

Shape legend: B = rows, V = vocabulary. One pass over the logits (`kernels.token_logprobs.vocab_sums`), then
1,024 columns of one block. Chosen over Gumbel noise: one uniform instead of V, and the CPU generator is
serial (52 ms against 12 ms for 64 x 49152).
"""

import torch

from kernels.backends import runs_in_triton
from kernels.checks import require_rows
from kernels.cpu.native_functions import runs_natively
from kernels.cpu.vocabulary import sample_native
from kernels.numerics import VOCAB_BLOCK
from kernels.token_logprobs import VocabSums

__all__ = ["keep_top", "sample", "sample_reference"]


def sample_reference(weights_V: torch.Tensor, uniform: float) -> int:
    """Ground truth for one row: first token whose cumulative weight exceeds `uniform` of the total."""
    cumulative = weights_V.double().cumsum(-1)
    above = (cumulative > uniform * cumulative[-1]) & (weights_V > 0)
    index = torch.nonzero(above) if bool(above.any()) else torch.nonzero(weights_V > 0)[-1:]
    return int(index[0])


def sample(sums: VocabSums, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Draws token ids [B] with uniforms [B] in [0, 1). A rounding overflow takes the last token of positive weight.

    Raises:
        ValueError: there is not one uniform per row.
    """
    require_rows("sample", len(sums.logits_TV), uniforms_B)
    uniforms_B = uniforms_B.to(sums.cumulative_TJ.dtype)
    operands = (
        sums.logits_TV,
        sums.inverse_temperature_T,
        sums.maximum_T,
        sums.cumulative_TJ,
        uniforms_B,
    )
    if runs_natively(sums.logits_TV):
        return sample_native(*operands)
    if runs_in_triton(sums.logits_TV):
        from kernels.gpu.vocabulary.sample import sample_triton

        return sample_triton(*operands)
    return _sample_tensors(sums, uniforms_B)


def _sample_tensors(sums: VocabSums, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Computes `sample` in tensor operations, on any device."""
    cumulative_BJ = sums.cumulative_TJ
    target_B1 = uniforms_B[:, None] * cumulative_BJ[:, -1:]
    # a block of weight 0 repeats the cumulative sum before it, so it is never the first to exceed
    block_B1 = _first_above(cumulative_BJ, target_B1)
    before_B1 = torch.where(
        block_B1 > 0,
        cumulative_BJ.gather(-1, (block_B1 - 1).clamp(min=0)),
        cumulative_BJ.new_zeros(()),
    )
    columns_BC = block_B1 * VOCAB_BLOCK + torch.arange(VOCAB_BLOCK, device=block_B1.device)
    last = sums.logits_TV.shape[-1] - 1
    weights_BC = sums.scaled(sums.logits_TV.gather(-1, columns_BC.clamp(max=last))).exp_()
    weights_BC = torch.where(columns_BC <= last, weights_BC, 0)
    offset_B1 = _first_above(weights_BC.cumsum(-1), target_B1 - before_B1)
    return (block_B1 * VOCAB_BLOCK + offset_B1).squeeze(-1)


def _first_above(cumulative_BC: torch.Tensor, target_B1: torch.Tensor) -> torch.Tensor:
    """Returns [B, 1], the first column above the target; if rounding leaves none, the last column that rose."""
    index_B1 = (cumulative_BC <= target_B1).sum(-1, keepdim=True)
    last_B1 = (cumulative_BC < cumulative_BC[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(index_B1, last_B1)


def keep_top(
    logits_BV: torch.Tensor,
    *,
    temperatures_B: torch.Tensor,
    top_k_B: torch.Tensor,
    top_p_B: torch.Tensor,
    min_p_B: torch.Tensor,
) -> torch.Tensor:
    """Returns the logits with -inf in place of the tokens that are not kept.

    top-k keeps k tokens (0: all); top-p, of these, the fewest whose probability reaches p; min-p those with at least
    this share of the greatest probability. Of equal logits the smaller token id is kept.
    """
    scaled = logits_BV.float() / temperatures_B[:, None]
    order_BV = scaled.sort(dim=-1, descending=True, stable=True).indices
    sorted_BV = scaled.gather(-1, order_BV)
    rank_V = torch.arange(logits_BV.shape[-1], device=logits_BV.device)
    is_kept = (rank_V < top_k_B[:, None]) | (top_k_B[:, None] == 0)
    probabilities = torch.where(is_kept, sorted_BV, float("-inf")).softmax(-1)
    # before this token, so that the token that reaches p is kept
    mass_before = probabilities.cumsum(-1) - probabilities
    is_kept &= (mass_before < top_p_B[:, None]) | (top_p_B[:, None] >= 1)
    is_kept &= probabilities >= min_p_B[:, None] * probabilities[:, :1]
    is_kept[:, 0] = True
    mask_BV = torch.zeros_like(is_kept).scatter(-1, order_BV, is_kept)
    return torch.where(mask_BV, logits_BV, float("-inf"))
