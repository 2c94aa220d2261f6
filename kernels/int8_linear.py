"""y = x W^T + b with weights in 8 bits, and activations rounded to integers on the way.

    W[n] ~ scale[n] * q[n],   q int8, scale[n] = max |W[n]| / 127                      one scale per output channel
    x[t] ~ step[t] * p[t],    p int16, nearly all of 8 bits                            one step per token
    y[t, n] = (sum_k p[t, k] q[n, k]) * (step[t] * scale[n]) + b[n]

The sum is of integers, exact in any order: a row has the same bits in any batch, on any machine, in C and in tensors.
The step of a token is such that 6 root mean squares fit into 8 bits; what stands out takes up to 16, on as many levels as
keep the sum in 32 bits. Multiplying 8 bits costs half of 16, and the few outliers are multiplied apart
(docs/adr/0008-int8-weights.md has the mismatch of both).
Forward only: the trainer keeps its weights.

Shape legend: T = rows, K = in features, N = out features.
"""

import torch

from kernels.cpu.ops import int8_linear_native, runs_natively
from kernels.quantize import INT8_LEVELS, quantize_activations, quantize_rows

__all__ = [
    "activation_levels",
    "int8_linear",
    "int8_linear_reference",
    "quantize_channels",
]

_MAX_LEVELS = 2**15 - 1


def quantize_channels(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] weights -> int8 [N, K] and their float32 scales [N].

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
    panels: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, K] -> [T, N], in the type of x. Rows that are not finite give NaN.

    Args:
        x_TK: any float type; read as float32.
        weight_NK: int8, from `quantize_channels`.
        scale_N: float32, of the weights.
        bias_N: any float type.
        panels: what `kernels.cpu.ops.pack_native` made of the weight for the type of x, if it is used more than once.
    """
    bias_N = None if bias_N is None else bias_N.to(x_TK.dtype)
    levels = activation_levels(weight_NK.shape[1])
    if runs_natively(x_TK):
        return int8_linear_native(x_TK, weight_NK, scale_N, bias_N, panels, levels=levels)
    return _int8_linear_tensors(x_TK, weight_NK, scale_N, bias_N, levels).to(x_TK.dtype)


def int8_linear_reference(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, scale_N: torch.Tensor
) -> torch.Tensor:
    """What is approximated, in float64: x times the weights that the integers stand for."""
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


def activation_levels(in_features: int) -> int:
    """Of a token: the most with which `in_features` products stay below 2^31."""
    return min(_MAX_LEVELS, (2**31 - 1) // (INT8_LEVELS * in_features))
