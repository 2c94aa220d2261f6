"""RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight (https://arxiv.org/abs/1910.07467), row by row.

Shape legend: T = rows, H = width. Traffic: reads and writes T*H elements.
"""

import torch
from torch.autograd.function import once_differentiable

from kernels.backends import runs_in_triton
from kernels.checks import require_dtype
from kernels.cpu.native_functions import runs_natively
from kernels.cpu.rms_norm import rms_norm_native
from kernels.numerics import accumulate_dtype

__all__ = ["rms_norm", "rms_norm_reference"]


def rms_norm_reference(x_TH: torch.Tensor, weight_H: torch.Tensor, *, eps: float) -> torch.Tensor:
    """Ground truth, in the order of Hugging Face's Llama: normalise, round, then scale."""
    x = x_TH.to(accumulate_dtype(x_TH.dtype))
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed.to(x_TH.dtype) * weight_H


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TH: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
        out_TH, inverse_T1 = _forward(x_TH, weight_H, eps)
        ctx.save_for_backward(x_TH, weight_H, inverse_T1)
        return out_TH

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TH: torch.Tensor):  # pyrefly: ignore
        x_TH, weight_H, inverse_T1 = ctx.saved_tensors
        if runs_in_triton(x_TH):
            from kernels.gpu.rms_norm import rms_norm_backward_triton

            return *rms_norm_backward_triton(grad_TH, x_TH, weight_H, inverse_T1), None
        dtype = inverse_T1.dtype
        normed = x_TH.to(dtype) * inverse_T1
        grad = grad_TH.to(dtype)
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        grad = grad * weight_H.to(dtype)
        grad_x = inverse_T1 * (grad - normed * (grad * normed).mean(-1, keepdim=True))
        return grad_x.to(x_TH.dtype), grad_weight.to(weight_H.dtype), None


def rms_norm(x_TH: torch.Tensor, weight_H: torch.Tensor, *, eps: float) -> torch.Tensor:
    """Normalises rows [..., H], in the type of x. Sums in float32 (float64 for float64). Differentiable.

    Raises:
        ValueError: the weight has another size or type than the rows.
    """
    if weight_H.shape != x_TH.shape[-1:]:
        raise ValueError(
            f"rms_norm: rows of {x_TH.shape[-1]} need as many weights, got {tuple(weight_H.shape)}"
        )
    require_dtype("rms_norm", x_TH.dtype, weight_H)
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x_TH, weight_H, eps)  # pyrefly: ignore
    return _forward(x_TH, weight_H, eps)[0]


def _forward(
    x_TH: torch.Tensor, weight_H: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the result, and the inverse root mean square of each row [..., 1]; chooses the implementation."""
    if runs_natively(x_TH):
        return rms_norm_native(x_TH, weight_H, eps)
    if runs_in_triton(x_TH):
        from kernels.gpu.rms_norm import rms_norm_triton

        return rms_norm_triton(x_TH, weight_H, eps=eps)[:2]
    x = x_TH.to(accumulate_dtype(x_TH.dtype))
    # 1 / sqrt, since the vectorised rsqrt differs from the scalar one at the end of a buffer
    inverse_T1 = x.square().sum(-1, keepdim=True).div_(x.shape[-1]).add_(eps).sqrt_().reciprocal_()
    return (x * inverse_T1).to(x_TH.dtype).mul_(weight_H), inverse_T1
