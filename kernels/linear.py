"""y = x W^T + b, where a row does not depend on the other rows of the batch.

Shape legend: T = rows, K = in features, N = out features. Traffic: reads T*K + N*K, writes T*N elements.
"""

import torch
from torch.nn import functional

from kernels.backends import runs_in_triton
from kernels.checks import check_linear_operands, require_dtype
from kernels.cpu.linear import linear_native
from kernels.cpu.native_functions import runs_natively
from kernels.numerics import as_factor, gemm_row_tile, pad_rows

__all__ = ["head_logits", "linear", "linear_reference"]

_EXACT_TILE = 64


def linear_reference(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Ground truth: one GEMM over all rows."""
    return functional.linear(x_TK, weight_NK, bias_N)


def linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None = None,
    packed_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Maps [T, K] to [T, N]. A row gives the same bits in any batch and at any place in it. Differentiable.

    In C on a CPU, and in Triton on a GPU, this holds by construction. Elsewhere the property of the GEMM library
    is probed once per (K, N, dtype, device), see `kernels.numerics`; where few rows break it, rows are padded with zeros.

    Args:
        x_TK: rows.
        weight_NK: weight of the same type.
        bias_N: bias of the same type, or None.
        packed_weight: result of `kernels.packed_weight.pack_weight`, or None; used only without gradients.

    Raises:
        ValueError: a size does not fit the weight, or an operand has another type.
    """
    check_linear_operands("linear", x_TK, weight_NK, bias_N)
    require_dtype("linear", x_TK.dtype, weight_NK)
    if not (runs_natively(x_TK) or runs_in_triton(x_TK)):
        return _linear_tensors(x_TK, weight_NK, bias_N)
    if torch.is_grad_enabled():
        return _Linear.apply(x_TK, weight_NK, bias_N)  # pyrefly: ignore
    return _forward(x_TK, weight_NK, bias_N, packed_weight)


def head_logits(
    hidden_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    packed_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiplies by an LM head, [T, K] to [T, vocabulary], for the sampler and for the loss alike. Forward only.

    In Triton logits are float32. Elsewhere they have the type of the rows: on a CPU float32 products are 4 times slower.
    """
    check_linear_operands("head_logits", hidden_TK, weight_NK, None)
    require_dtype("head_logits", hidden_TK.dtype, weight_NK)
    if runs_in_triton(hidden_TK):
        from kernels.gpu.linears.linear import linear_triton

        return linear_triton(hidden_TK, weight_NK, out_dtype=torch.float32)
    with torch.no_grad():
        return linear(hidden_TK, weight_NK, packed_weight=packed_weight)


def _forward(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    packed_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Chooses between the implementations in which a row does not depend on the others."""
    if runs_natively(x_TK):
        return linear_native(x_TK, weight_NK, bias_N, packed_weight)
    from kernels.gpu.linears.linear import linear_triton

    return linear_triton(x_TK, weight_NK, bias_N)


def _linear_tensors(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None
) -> torch.Tensor:
    """Computes `linear` by the GEMM library of any device, differentiable by autograd."""
    out_features, in_features = weight_NK.shape
    if out_features == 1:
        # a matrix times a vector: libraries then sum a row in an order that depends on its place
        two_NK = torch.cat([weight_NK, torch.zeros_like(weight_NK)])
        two_N = None if bias_N is None else torch.cat([bias_N, torch.zeros_like(bias_N)])
        return _linear_tensors(x_TK, two_NK, two_N)[:, :1]
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
        return _forward(x_TK, weight_NK, bias_N)

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
    """Multiplies two matrices, rounded once, in the type that this processor multiplies faster."""
    return (as_factor(a) @ as_factor(b)).to(a.dtype)
