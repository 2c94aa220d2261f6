"""Launcher of RMSNorm in C. Shape legend: H = width."""

import torch

from kernels.cpu.native_functions import native_functions

__all__ = ["rms_norm_native"]


def rms_norm_native(
    x: torch.Tensor, weight_H: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the normalised rows [..., H], and the inverse root mean square of each row [..., 1]."""
    rows, weight_H = x.contiguous(), weight_H.contiguous()
    width = rows.shape[-1]
    out = torch.empty(rows.shape, dtype=rows.dtype, device="cpu")
    inverse = torch.empty(*rows.shape[:-1], 1, dtype=torch.float32, device="cpu")
    native_functions(rows.dtype).rms_norm(
        rows.data_ptr(),
        weight_H.data_ptr(),
        out.data_ptr(),
        inverse.data_ptr(),
        inverse.numel(),
        width,
        eps,
        torch.get_num_threads(),
    )
    return out, inverse
