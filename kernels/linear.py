"""y = x W^T + b, with rows that do not depend on who else is in the batch.

Shape legend: T = rows, K = in features, N = out features. Traffic: reads T*K + N*K, writes T*N elements.
"""

import torch
from torch.nn import functional

from kernels.cpu.ops import linear_native, runs_natively
from kernels.numerics import as_factor, gemm_row_tile, pad_rows

__all__ = ["linear", "linear_reference"]

_EXACT_TILE = 64


def linear_reference(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Ground truth: one GEMM over whatever rows there are."""
    return functional.linear(x_TK, weight_NK, bias_N)


def linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None = None,
    panels: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, K] -> [T, N]. A row gives the same bits alone, in any batch and at any place in it. Differentiable.

    float32 and bfloat16 on a CPU run in C, where this holds by construction. Elsewhere the property of the GEMM library
    is probed once per (K, N, dtype, device), see `kernels.numerics`; where few rows break it, rows are padded with zeros.

    Args:
        x_TK: rows.
        weight_NK: of the same type.
        bias_N: of the same type.
        panels: what `kernels.cpu.ops.pack_native` made of the weight, if it is used more than once.
    """
    if runs_natively(weight_NK):
        if torch.is_grad_enabled():
            return _Linear.apply(x_TK, weight_NK, bias_N)  # pyrefly: ignore
        return linear_native(x_TK, weight_NK, bias_N, panels)
    out_features, in_features = weight_NK.shape
    if out_features == 1:
        # a matrix times a vector: libraries then sum a row in an order that depends on its place
        two_NK = torch.cat([weight_NK, torch.zeros_like(weight_NK)])
        two_N = None if bias_N is None else torch.cat([bias_N, torch.zeros_like(bias_N)])
        return linear(x_TK, two_NK, two_N)[:, :1]
    tile = gemm_row_tile(in_features, out_features, weight_NK.dtype, weight_NK.device)
    num_rows = x_TK.shape[0]
    if tile == 0:
        tiles = pad_rows(x_TK, _EXACT_TILE).split(_EXACT_TILE)
        return torch.cat([functional.linear(t, weight_NK, bias_N) for t in tiles])[:num_rows]
    out_TN = functional.linear(pad_rows(x_TK, tile), weight_NK, bias_N)
    return out_TN if out_TN.shape[0] == num_rows else out_TN[:num_rows]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TK, weight_NK, bias_N):  # pyrefly: ignore
        ctx.save_for_backward(x_TK, weight_NK)
        return linear_native(x_TK, weight_NK, bias_N)

    @staticmethod
    def backward(ctx, grad_TN):  # pyrefly: ignore
        x_TK, weight_NK = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad_TN, weight_NK) if needs_x else None,
            _product(grad_TN.T, x_TK) if needs_weight else None,
            grad_TN.sum(0) if needs_bias else None,
        )


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b, rounded once, by whichever units of this processor are faster."""
    return (as_factor(a) @ as_factor(b)).to(a.dtype)
