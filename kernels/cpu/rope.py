"""Launcher of RoPE in C. Shape legend: T = rows, N = heads, D = width of a head."""

import torch

from kernels.cpu.native_functions import native_functions

__all__ = ["rope_native"]


def rope_native(x_TND: torch.Tensor, cos_sin_TD: torch.Tensor) -> torch.Tensor:
    """Rotates the heads [T, N, D] of each row by its angles [T, D], which are float32."""
    num_rows, num_heads, head_dim = x_TND.shape
    x_TND = _dense_rows(x_TND)
    cos_sin_TD = cos_sin_TD.contiguous()
    out_TND = torch.empty(num_rows, num_heads, head_dim, dtype=x_TND.dtype, device="cpu")
    native_functions(x_TND.dtype).rope(
        x_TND.data_ptr(),
        x_TND.stride(0),
        cos_sin_TD.data_ptr(),
        out_TND.data_ptr(),
        num_rows,
        num_heads,
        head_dim,
        torch.get_num_threads(),
    )
    return out_TND


def _dense_rows(x_TND: torch.Tensor) -> torch.Tensor:
    """Returns the tensor with dense rows; the rows may lie apart, as those of a slice of a wider tensor do."""
    is_dense = x_TND.stride()[1:] == (x_TND.shape[2], 1)
    return x_TND if is_dense else x_TND.contiguous()
