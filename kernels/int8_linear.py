"""y = x W^T + b with weights in 8 bits, and activations rounded to integers on the way.

    W[n] ~ scale[n] * q[n],   q int8, scale[n] = max |W[n]| / 127                      one scale per output channel
    x[t] ~ step[t] * p[t],    p int16, nearly all of 8 bits                            one step per token
    y[t, n] = (sum_k p[t, k] q[n, k]) * (step[t] * scale[n]) + b[n]

The sum is of integers, exact in any order: a row has the same bits in any batch, on any machine, in C and in tensors.
The step of a token is such that 6 root mean squares fit into 8 bits; outliers take up to 16, on as many levels as
keep the sum in 32 bits. A product of 8 bits costs half of one of 16, and the few outliers are multiplied separately
(docs/adr/0008-int8-weights.md has the mismatch of both).
Forward only: the trainer does not train int8 weights.

Shape legend: T = rows, K = in features, N = out features.
"""

import torch

from kernels.backends import runs_in_triton
from kernels.checks import check_linear_operands, require_dtype
from kernels.cpu.int8_linear import int8_linear_native
from kernels.cpu.native_functions import runs_natively
from kernels.quantize import (
    INT8_LEVELS,
    STEP_RATIO,
    activation_levels,
    quantize_activations,
    quantize_rows,
)

__all__ = [
    "int8_linear",
    "int8_linear_reference",
    "quantize_channels",
]


def quantize_channels(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes weights [N, K] to int8 [N, K] with float32 scales [N].

    Raises:
        ValueError: a weight is not finite; 8 bits cannot say so.
    """
    integers_NK, scale_N = quantize_rows(weight_NK.detach(), INT8_LEVELS)
    if bool(scale_N.isnan().any()):
        raise ValueError("int8 weights must be quantized from finite ones, got NaN or infinity")
    return integers_NK.to(torch.int8), scale_N


def int8_linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N: torch.Tensor,
    bias_N: torch.Tensor | None = None,
    packed_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Maps [T, K] to [T, N], in the type of x. Rows that are not finite give NaN.

    Args:
        x_TK: rows of any float type, read as float32.
        weight_NK: int8 weight from `quantize_channels`.
        scale_N: float32 scales of the weight.
        bias_N: bias of any float type.
        packed_weight: result of `kernels.packed_weight.pack_weight` for the type of x, or None.

    Raises:
        ValueError: a size does not fit the weight, or a type is not the one above.
    """
    bias_N = None if bias_N is None else bias_N.to(x_TK.dtype)
    check_linear_operands("int8_linear", x_TK, weight_NK, bias_N, scale_N)
    require_dtype("int8_linear", torch.int8, weight_NK)
    levels = activation_levels(weight_NK.shape[1])
    if runs_natively(x_TK):
        return int8_linear_native(x_TK, weight_NK, scale_N, bias_N, packed_weight, levels=levels)
    if runs_in_triton(x_TK):
        from kernels.gpu.linears.int8_linear import MAX_LEVELS, int8_linear_triton

        if levels <= MAX_LEVELS:
            operands = (x_TK, weight_NK, scale_N, bias_N)
            return int8_linear_triton(*operands, levels=levels, ratio=STEP_RATIO)
    return _int8_linear_tensors(x_TK, weight_NK, scale_N, bias_N, levels).to(x_TK.dtype)


def int8_linear_reference(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, scale_N: torch.Tensor
) -> torch.Tensor:
    """Ground truth in float64: x times the weights that the integers stand for."""
    return x_TK.double() @ (weight_NK.double() * scale_N.double()[:, None]).T


def _int8_linear_tensors(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N: torch.Tensor,
    bias_N: torch.Tensor | None,
    levels: int,
) -> torch.Tensor:
    integers_TK, step_T = quantize_activations(x_TK, levels)
    # integers below 2^53: exact
    sums_TN = (integers_TK.double() @ weight_NK.double().T).float()
    out_TN = sums_TN * (step_T[:, None] * scale_N)
    return out_TN if bias_N is None else out_TN + bias_N
