"""Packs a weight into the layout in which a linear op reads it fastest, for weights that are used more than once.

A packed weight is a copy: it does not follow later changes of the weight. It changes no bit of a result.

Shape legend: K = in features, N = out features.
"""

import torch

from kernels.checks import require_dtype
from kernels.cpu.linear import pack_native
from kernels.cpu.native_functions import is_native

__all__ = ["pack_weight"]


def pack_weight(
    weight_NK: torch.Tensor,
    dtype: torch.dtype,
    *,
    into: torch.Tensor | None = None,
    num_threads: int | None = None,
) -> torch.Tensor | None:
    """Packs the present values of a weight. Packing takes longer than one multiplication with few rows.

    Args:
        weight_NK: weight of type `dtype`, or int8.
        dtype: type of the rows that will be multiplied by it.
        into: an earlier result for a weight of the same shape and type, to overwrite: memory that is used for the first time
            takes 20 times as long as the rest.
        num_threads: CPU threads to use; None: as many as PyTorch has.

    Returns:
        The packed weight; None where this device reads weights as they are.
    """
    if weight_NK.dtype is not torch.int8:
        require_dtype("pack_weight", dtype, weight_NK)
    if is_native(dtype, weight_NK.device):
        return pack_native(weight_NK, dtype, into=into, num_threads=num_threads)
    return None
