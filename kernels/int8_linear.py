"""y = x W^T + b with weights in 8 bits, and activations rounded to integers on the way.

    W[n] ~ scale[n] * q[n],   q int8, scale[n] = max |W[n]| / 127                      one scale per output channel
    x[t] ~ step[t] * p[t],    p int16, step[t] = max |x[t]| / levels                   one step per token
    y[t, n] = (sum_k p[t, k] q[n, k]) * (step[t] * scale[n]) + b[n]

The sum is of integers, exact in any order: a row has the same bits in any batch, on any machine, in C and in tensor
operations. Activations have as many levels as keep the sum within 32 bits, 1,100 to 32,767 for the widths of language
models: on the CPUs measured (docs/adr/0008-int8-weights.md) 8-bit activations are 1.3 times as fast and ten times as far
from the model. Forward only: the trainer keeps its weights.

Shape legend: T = rows, K = in features, N = out features.
"""

import torch

from kernels.cpu.ops import int8_linear_native, runs_natively

__all__ = ["int8_linear", "int8_linear_reference", "quantize_channels"]

_WEIGHT_LEVELS = 127
_MAX_LEVELS = 2**15 - 1
_SMALLEST = 1e-30  # a row or channel below it counts as zero: its inverse would overflow


def quantize_channels(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] weights -> int8 [N, K] and their float32 scales [N].

    Raises:
        ValueError: a weight is not finite; 8 bits cannot say so.
    """
    weight_NK = weight_NK.detach().float()
    greatest_N = weight_NK.abs().amax(-1)
    if not bool(greatest_N.isfinite().all()):
        raise ValueError("int8 weights must be quantized from finite ones, got NaN or infinity")
    inverse_N = torch.where(greatest_N < _SMALLEST, 0.0, _divide(_WEIGHT_LEVELS, greatest_N))
    return (weight_NK * inverse_N[:, None]).round_().to(torch.int8), greatest_N / _WEIGHT_LEVELS


def int8_linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, K] -> [T, N], in the type of x. Rows that are not finite give NaN.

    Args:
        x_TK: any float type; read as float32.
        weight_NK: int8, from `quantize_channels`.
        scale_N: float32, of the weights.
        bias_N: any float type.
    """
    rows_TK, bias_N = x_TK.float(), None if bias_N is None else bias_N.float()
    levels = _levels(weight_NK.shape[1])
    if runs_natively(rows_TK):
        out_TN = int8_linear_native(rows_TK, weight_NK, scale_N, bias_N, levels=levels)
    else:
        out_TN = _int8_linear_tensors(rows_TK, weight_NK, scale_N, bias_N, levels)
    return out_TN.to(x_TK.dtype)


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
    greatest_T = x_TK.abs().amax(-1)
    is_zero_T = greatest_T < _SMALLEST
    inverse_T = torch.where(is_zero_T, 0.0, _divide(levels, greatest_T))
    is_finite_T = greatest_T.isfinite()
    quantized_TK = torch.where(is_finite_T[:, None], (x_TK * inverse_T[:, None]).round(), 0.0)
    step_T = torch.where(is_zero_T, 0.0, greatest_T / levels)
    step_T = torch.where(is_finite_T, step_T, float("nan"))
    # integers below 2^53: exact
    sums_TN = (quantized_TK.double() @ weight_NK.double().T).float()
    out_TN = sums_TN * (step_T[:, None] * scale_N)
    return out_TN if bias_N is None else out_TN + bias_N


def _divide(number: int, x: torch.Tensor) -> torch.Tensor:
    """Rounded once, as in C; `number / x` would be a product with the reciprocal."""
    return torch.full_like(x, number) / x


def _levels(in_features: int) -> int:
    """The most with which `in_features` products stay below 2^31."""
    return min(_MAX_LEVELS, (2**31 - 1) // (_WEIGHT_LEVELS * in_features))
