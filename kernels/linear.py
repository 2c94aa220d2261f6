"""y = x W^T + b, with rows that do not depend on who else is in the batch.

Shape legend: T = rows, K = in features, N = out features. Traffic: reads T*K + N*K, writes T*N elements.
"""

import torch
from torch.nn import functional

from kernels.numerics import gemm_row_tile, pad_rows

__all__ = ["linear", "linear_reference"]

_EXACT_TILE = 64


def linear_reference(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Ground truth: one GEMM over whatever rows there are."""
    return functional.linear(x_TK, weight_NK, bias_N)


def linear(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """[T, K] -> [T, N]. A row gives the same bits alone, in any batch and at any place in it.

    The property is probed once per (K, N, dtype, device), see `kernels.numerics`; where few rows break it,
    rows are padded with zeros. Differentiable.
    """
    out_features, in_features = weight_NK.shape
    tile = gemm_row_tile(in_features, out_features, weight_NK.dtype, weight_NK.device)
    num_rows = x_TK.shape[0]
    if tile == 0:
        tiles = pad_rows(x_TK, _EXACT_TILE).split(_EXACT_TILE)
        return torch.cat([functional.linear(t, weight_NK, bias_N) for t in tiles])[:num_rows]
    return functional.linear(pad_rows(x_TK, tile), weight_NK, bias_N)[:num_rows]
