"""y = x W^T + b with weights in 4 bits, multiplied as numbers of the type of x.

    W[n, k] ~ scale[n, k / 128] * (q[n, k] - 8),   q in 1..15, scale = max |W| of the group / 7

Two weights lie in a byte, the even one in the low half. Dequantized weights are rounded to the type of x; activations keep
theirs. Forward only.

Shape legend: T = rows, K = in features (even), N = out features, G = ceil(K / 128) groups.
"""

import torch

from kernels.backends import runs_in_triton
from kernels.checks import require_dtype
from kernels.linear import linear

__all__ = ["INT4_GROUP", "dequantize_groups", "int4_linear", "quantize_groups"]

INT4_GROUP = 128
_LEVELS = 7
_ZERO = 8


def quantize_groups(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes weights [N, K] to uint8 [N, K / 2], two in a byte, with float32 scales [N, G].

    Raises:
        ValueError: K is odd, or a weight is not finite.
    """
    width = weight_NK.shape[1]
    if width % 2 or not bool(weight_NK.isfinite().all()):
        raise ValueError(
            f"int4 weights must be finite and of an even width, got a width of {width}"
        )
    padded = torch.nn.functional.pad(weight_NK.detach().float(), (0, -width % INT4_GROUP))
    groups_NGC = padded.unflatten(1, (-1, INT4_GROUP))
    scale_NG = groups_NGC.abs().amax(-1) / _LEVELS
    steps = torch.where(scale_NG == 0, 1.0, scale_NG)[..., None]
    integers = (groups_NGC / steps).round().flatten(1)[:, :width].to(torch.int16) + _ZERO
    packed_NK = integers[:, ::2] | (integers[:, 1::2] << 4)
    return packed_NK.to(torch.uint8), scale_NG


def dequantize_groups(packed_NK: torch.Tensor, scale_NG: torch.Tensor) -> torch.Tensor:
    """Returns the weights [N, K] that the integers stand for, in float32."""
    halves = torch.stack([packed_NK & 15, packed_NK >> 4], dim=-1).flatten(1)
    scale = scale_NG.repeat_interleave(INT4_GROUP, 1)[:, : halves.shape[1]]
    return (halves.float() - _ZERO) * scale


def int4_linear(
    x_TK: torch.Tensor,
    packed_NK: torch.Tensor,
    scale_NG: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Maps [T, K] to [T, N], in the type of x. A row gives the same bits in any batch.

    Args:
        x_TK: rows of any float type.
        packed_NK: uint8 [N, K / 2] from `quantize_groups`.
        scale_NG: float32 scales of the groups.
        bias_N: bias of the type of x.

    Raises:
        ValueError: a size does not fit the weight, or a type is not the one above.
    """
    require_dtype("int4_linear", torch.uint8, packed_NK)
    require_dtype("int4_linear", torch.float32, scale_NG)
    num_columns, num_bytes = packed_NK.shape
    expected = (num_columns, -(-2 * num_bytes // INT4_GROUP))
    if x_TK.shape[1] != 2 * num_bytes or tuple(scale_NG.shape) != expected:
        raise ValueError(
            f"int4_linear: {num_columns} rows of {num_bytes} bytes need rows of {2 * num_bytes} and scales {expected}, "
            f"got {x_TK.shape[1]} and {tuple(scale_NG.shape)}"
        )
    if runs_in_triton(x_TK):
        from kernels.gpu.linears.int4_linear import int4_linear_triton

        return int4_linear_triton(x_TK, packed_NK, scale_NG, bias_N)
    return linear(x_TK, dequantize_groups(packed_NK, scale_NG).to(x_TK.dtype), bias_N)
