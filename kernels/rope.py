"""Rotary position embedding (https://arxiv.org/abs/2104.09864), in the half-split layout of Hugging Face.

    y[:D/2] = x[:D/2] cos - x[D/2:] sin      y[D/2:] = x[D/2:] cos + x[:D/2] sin

Shape legend: T = rows, N = heads, D = width of a head, P = positions.
"""

import math
from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable

from kernels.backends import runs_in_triton
from kernels.checks import require_dtype
from kernels.cpu.native_functions import runs_natively
from kernels.cpu.rope import rope_native
from kernels.numerics import accumulate_dtype

__all__ = ["Llama3Scaling", "rope", "rope_reference", "rope_table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Scaling of Llama 3: divides the frequency of long wavelengths by `factor`, keeps short ones, blends those between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def rope_table(
    num_positions: int,
    head_dim: int,
    *,
    theta: float,
    scaling: Llama3Scaling | None = None,
    linear_factor: float = 1.0,
) -> torch.Tensor:
    """Returns [P, D] float32: cos of the D/2 angles, then their sin. Computes the angles in float64."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = theta**-exponents / linear_factor
    if scaling is not None:
        frequencies = _llama3(frequencies, scaling)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def _llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    wavelengths = 2 * math.pi / frequencies
    context = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 0 at the long end (slowed down), 1 at the short end (kept)
    blend = ((context / wavelengths - low) / (high - low)).clamp(0, 1)
    return frequencies / scaling.factor * (1 - blend) + frequencies * blend


def rope_reference(x_TND: torch.Tensor, cos_sin_TD: torch.Tensor) -> torch.Tensor:
    """Ground truth, and the path of types and devices without a kernel. Same contract as `rope`."""
    cos, sin = cos_sin_TD.to(accumulate_dtype(x_TND.dtype))[:, None, :].chunk(2, dim=-1)
    first, second = x_TND.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x_TND.dtype)


def rope(x_TND: torch.Tensor, cos_sin_TD: torch.Tensor) -> torch.Tensor:
    """Rotates the heads of each row by the angles of that row.

    Args:
        x_TND: [T, N, D] queries or keys.
        cos_sin_TD: [T, D] float32 (or float64 for float64), rows of `rope_table` at the positions of the rows.

    Returns:
        [T, N, D], the type of x. Differentiable.

    Raises:
        ValueError: the heads have an odd width, or the angles another shape or type.
    """
    num_rows, _, head_dim = x_TND.shape
    if head_dim % 2 or cos_sin_TD.shape != (num_rows, head_dim):
        raise ValueError(
            f"rope: heads {tuple(x_TND.shape)} need an even width and angles [{num_rows}, {head_dim}], got "
            f"{tuple(cos_sin_TD.shape)}"
        )
    if cos_sin_TD.dtype is not torch.float32:
        require_dtype("rope", accumulate_dtype(x_TND.dtype), cos_sin_TD)
    if torch.is_grad_enabled():
        return _Rope.apply(x_TND, cos_sin_TD)  # pyrefly: ignore
    return _forward(x_TND, cos_sin_TD)


def _forward(x_TND: torch.Tensor, cos_sin_TD: torch.Tensor) -> torch.Tensor:
    """Chooses the implementation."""
    if runs_natively(x_TND):
        return rope_native(x_TND, cos_sin_TD)
    if runs_in_triton(x_TND):
        from kernels.gpu.rope import rope_triton

        return rope_triton(x_TND, cos_sin_TD)
    return rope_reference(x_TND, cos_sin_TD)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TND, cos_sin_TD):  # pyrefly: ignore
        ctx.save_for_backward(cos_sin_TD)
        return _forward(x_TND, cos_sin_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TND):  # pyrefly: ignore
        (cos_sin_TD,) = ctx.saved_tensors
        cos, sin = cos_sin_TD.chunk(2, dim=-1)
        # a rotation's transpose turns the other way
        return _forward(grad_TND, torch.cat([cos, -sin], dim=-1)), None
