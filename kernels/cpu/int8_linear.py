"""Launcher of the linear op with int8 weights in C. Shape legend: T = rows, K = in features, N = out features."""

import torch

from kernels.cpu.native_functions import native_functions

__all__ = ["int8_linear_native", "int8_room"]


def int8_room(dtype: torch.dtype, num_rows: int, in_features: int) -> torch.Tensor:
    """Returns scratch memory for the integers of `num_rows` rows of type `dtype`, each at most `in_features` wide."""
    size = native_functions(dtype).int8_room(num_rows, in_features)
    return torch.empty(size, dtype=torch.int16, device="cpu")


def int8_linear_native(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N: torch.Tensor,
    bias_N: torch.Tensor | None,
    packed_weight: torch.Tensor | None = None,
    *,
    levels: int,
) -> torch.Tensor:
    """Multiplies rows [T, K] by an int8 weight [N, K]; `levels` is the largest integer of an activation."""
    x_TK, weight_NK, scale_N = x_TK.contiguous(), weight_NK.contiguous(), scale_N.contiguous()
    bias_N = None if bias_N is None else bias_N.contiguous()
    (num_rows, in_features), out_features = x_TK.shape, weight_NK.shape[0]
    room = int8_room(x_TK.dtype, num_rows, in_features)
    out_TN = torch.empty(num_rows, out_features, dtype=x_TK.dtype, device="cpu")
    native_functions(x_TK.dtype).int8_linear(
        x_TK.data_ptr(),
        room.data_ptr(),
        levels,
        weight_NK.data_ptr(),
        None if packed_weight is None else packed_weight.data_ptr(),
        scale_N.data_ptr(),
        None if bias_N is None else bias_N.data_ptr(),
        out_TN.data_ptr(),
        num_rows,
        in_features,
        out_features,
        torch.get_num_threads(),
    )
    return out_TN
