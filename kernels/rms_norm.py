"""RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight (https://arxiv.org/abs/1910.07467), row by row.

Shape legend: T = rows, H = width. Traffic: reads and writes T*H elements.
"""

import torch
from torch.autograd.function import once_differentiable

from kernels.cpu.ops import rms_norm_native, runs_natively
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
        if runs_natively(x_TH):
            out_TH, inverse_T1 = rms_norm_native(x_TH, weight_H, eps)
            ctx.save_for_backward(x_TH, weight_H, inverse_T1)
            return out_TH
        x = x_TH.to(accumulate_dtype(x_TH.dtype))
        # 1 / sqrt, since the vectorised rsqrt differs from the scalar one at the end of a buffer
        inverse_T1 = (
            x.square().sum(-1, keepdim=True).div_(x.shape[-1]).add_(eps).sqrt_().reciprocal_()
        )
        ctx.save_for_backward(x_TH, weight_H, inverse_T1)
        return (x * inverse_T1).to(x_TH.dtype).mul_(weight_H)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TH: torch.Tensor):  # pyrefly: ignore
        x_TH, weight_H, inverse_T1 = ctx.saved_tensors
        dtype = inverse_T1.dtype
        normed = x_TH.to(dtype) * inverse_T1
        grad = grad_TH.to(dtype)
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        grad = grad * weight_H.to(dtype)
        grad_x = inverse_T1 * (grad - normed * (grad * normed).mean(-1, keepdim=True))
        return grad_x.to(x_TH.dtype), grad_weight.to(weight_H.dtype), None


def rms_norm(x_TH: torch.Tensor, weight_H: torch.Tensor, *, eps: float) -> torch.Tensor:
    """[..., H] -> [..., H], the type of x. Sums in float32 (float64 for float64). Differentiable."""
    if not torch.is_grad_enabled() and runs_natively(x_TH):
        return rms_norm_native(x_TH, weight_H, eps)[0]
    return _RMSNorm.apply(x_TH, weight_H, eps)  # pyrefly: ignore
