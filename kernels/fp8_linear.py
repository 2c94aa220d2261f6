"""y = x W^T + b in float8 (e4m3): a scale for each 128 x 128 block of the weight, and for each 128 numbers of a row.

    W[n, k] ~ scale[n / 128, k / 128] * q[n, k]        x[t, k] ~ step[t, k / 128] * p[t, k]
    y[t, n] = sum over groups g of (sum_k p[t, k] q[n, k]) * (step[t, g] * scale[n / 128, g]) + b[n],   in float32

The scheme of DeepSeek-V3 (https://arxiv.org/abs/2412.19437, section 3.3). Groups are summed in order, so that a row has the
same bits in any batch. A row that is not finite gives NaN. Forward only.

Shape legend: T = rows, K = in features, N = out features, G = ceil(K / 128) groups, B = ceil(N / 128) blocks.
"""

import torch

from kernels.backends import runs_in_triton
from kernels.checks import check_linear_operands, require_dtype

__all__ = ["FP8_BLOCK", "FP8_MAX", "fp8_linear", "fp8_linear_reference", "quantize_blocks"]

FP8_BLOCK = 128
FP8_MAX = 448.0
"""Greatest number of float8_e4m3fn."""
_SMALLEST = 1e-30  # a group below it counts as zero: its inverse would overflow


def quantize_blocks(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes weights [N, K] to float8_e4m3fn [N, K] with float32 scales [B, G].

    Raises:
        ValueError: a weight is not finite.
    """
    num_rows, width = weight_NK.shape
    blocks = _padded(_padded(weight_NK.detach().float()).T).T.unflatten(1, (-1, FP8_BLOCK))
    blocks_BGC = blocks.unflatten(0, (-1, FP8_BLOCK)).transpose(1, 2).flatten(2)
    numbers_BGC, scale_BG = _quantize(blocks_BGC)
    if bool(scale_BG.isnan().any()):
        raise ValueError("fp8 weights must be quantized from finite ones, got NaN or infinity")
    numbers = numbers_BGC.unflatten(2, (FP8_BLOCK, FP8_BLOCK)).transpose(1, 2)
    numbers_NK = numbers.flatten(2).flatten(0, 1)[:num_rows, :width]
    return numbers_NK.contiguous().to(torch.float8_e4m3fn), scale_BG


def fp8_linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_BG: torch.Tensor,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Maps [T, K] to [T, N], in the type of x.

    Args:
        x_TK: rows of any float type, read as float32.
        weight_NK: float8_e4m3fn weight from `quantize_blocks`.
        scale_BG: float32 scales of the weight.
        bias_N: bias of the type of x.

    Raises:
        ValueError: a size does not fit the weight, or a type is not the one above.
    """
    check_linear_operands("fp8_linear", x_TK, weight_NK, bias_N)
    require_dtype("fp8_linear", torch.float8_e4m3fn, weight_NK)
    require_dtype("fp8_linear", torch.float32, scale_BG)
    expected = tuple(-(-size // FP8_BLOCK) for size in weight_NK.shape)
    if tuple(scale_BG.shape) != expected:
        raise ValueError(
            f"fp8_linear: weights {tuple(weight_NK.shape)} need scales {expected}, got {tuple(scale_BG.shape)}"
        )
    if runs_in_triton(x_TK):
        from kernels.gpu.linears.fp8_linear import fp8_linear_triton
        from kernels.gpu.target import has_float8

        if has_float8(x_TK.device):
            return fp8_linear_triton(x_TK, weight_NK, scale_BG, bias_N)
    return _fp8_linear_tensors(x_TK, weight_NK, scale_BG, bias_N).to(x_TK.dtype)


def fp8_linear_reference(
    x_TK: torch.Tensor, weight_NK: torch.Tensor, scale_BG: torch.Tensor
) -> torch.Tensor:
    """Ground truth in float64: x times the weights that the numbers stand for."""
    scale = scale_BG.double().repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)
    num_rows, width = weight_NK.shape
    return x_TK.double() @ (weight_NK.double() * scale[:num_rows, :width]).T


def _fp8_linear_tensors(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_BG: torch.Tensor,
    bias_N: torch.Tensor | None,
) -> torch.Tensor:
    num_columns = weight_NK.shape[0]
    numbers_TGC, step_TG = _quantize(_padded(x_TK.float()).unflatten(1, (-1, FP8_BLOCK)))
    weight_NGC = _padded(weight_NK.float()).unflatten(1, (-1, FP8_BLOCK))
    scale_NG = scale_BG.repeat_interleave(FP8_BLOCK, 0)[:num_columns]
    out_TN = torch.zeros(len(x_TK), num_columns, dtype=torch.float32, device=x_TK.device)
    for group in range(scale_NG.shape[1]):
        product = numbers_TGC[:, group] @ weight_NGC[:, group].T
        out_TN += product * (step_TG[:, group, None] * scale_NG[:, group])
    return out_TN if bias_N is None else out_TN + bias_N


def _padded(x: torch.Tensor) -> torch.Tensor:
    """Fills the last dimension with zeros up to a multiple of 128."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % FP8_BLOCK))


def _quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes groups [..., C]: numbers of float8 as float32, and steps [...]; NaN where a group is not finite."""
    greatest = x.abs().amax(-1)
    is_zero, is_finite = greatest < _SMALLEST, greatest.isfinite()
    inverse = torch.where(is_zero, 0.0, torch.full_like(greatest, FP8_MAX) / greatest)
    numbers = torch.where(is_finite[..., None], x * inverse[..., None], 0.0)
    step = torch.where(is_zero, 0.0, greatest / FP8_MAX)
    return numbers.to(torch.float8_e4m3fn).float(), torch.where(is_finite, step, float("nan"))
