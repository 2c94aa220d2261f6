"""Launchers of the sums over the vocabulary, and of sampling from them, in C.

Shape legend: T = rows, V = vocabulary, J = blocks of the vocabulary.
"""

import torch

from kernels.checks import require_dtype, require_rows
from kernels.cpu.native_functions import native_functions
from kernels.numerics import VOCAB_BLOCK

__all__ = ["sample_native", "vocab_sums_native"]


def vocab_sums_native(
    logits_TV: torch.Tensor, inverse_temperature_T: torch.Tensor, *, with_moment: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Returns maximum [T], cumulative sums [T, J] and, on request, the sum of x e^x [T], as in `VocabSums`."""
    num_rows, vocab_size = logits_TV.shape
    _require_dense(logits_TV, inverse_temperature_T)
    num_blocks = -(-vocab_size // VOCAB_BLOCK)
    maximum_T, moment_T = torch.empty(num_rows), torch.empty(num_rows) if with_moment else None
    cumulative_TJ = torch.empty(num_rows, num_blocks)
    native_functions(logits_TV.dtype).vocab_sums(
        logits_TV.data_ptr(),
        inverse_temperature_T.data_ptr(),
        maximum_T.data_ptr(),
        cumulative_TJ.data_ptr(),
        None if moment_T is None else moment_T.data_ptr(),
        num_rows,
        vocab_size,
        torch.get_num_threads(),
    )
    return maximum_T, cumulative_TJ, moment_T


def sample_native(
    logits_TV: torch.Tensor,
    inverse_temperature_T: torch.Tensor,
    maximum_T: torch.Tensor,
    cumulative_TJ: torch.Tensor,
    uniforms_T: torch.Tensor,
) -> torch.Tensor:
    """Draws token ids [T], int64, from the sums of `vocab_sums_native` and one uniform per row."""
    num_rows, vocab_size = logits_TV.shape
    _require_dense(logits_TV, inverse_temperature_T, maximum_T, cumulative_TJ, uniforms_T)
    tokens_T = torch.empty(num_rows, dtype=torch.int64, device="cpu")
    native_functions(logits_TV.dtype).sample(
        logits_TV.data_ptr(),
        inverse_temperature_T.data_ptr(),
        maximum_T.data_ptr(),
        cumulative_TJ.data_ptr(),
        uniforms_T.data_ptr(),
        tokens_T.data_ptr(),
        num_rows,
        vocab_size,
    )
    return tokens_T


def _require_dense(logits_TV: torch.Tensor, *per_row: torch.Tensor) -> None:
    """Refuses what C cannot read: other types than float32 besides the logits, and strided tensors."""
    require_dtype("vocabulary", torch.float32, *per_row)
    require_rows("vocabulary", len(logits_TV), *per_row)
    if not all(tensor.is_contiguous() for tensor in (logits_TV, *per_row)):
        raise ValueError("vocabulary: logits and the tensors of their rows must be contiguous")
