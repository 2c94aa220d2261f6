"""Launchers of the linear op in C, and of the packing of its weights.

Shape legend: T = rows, K = in features, N = out features.
"""

import torch

from kernels.cpu.native_functions import native_functions

__all__ = ["linear_native", "pack_native"]


def pack_native(
    weight_NK: torch.Tensor,
    dtype: torch.dtype,
    *,
    into: torch.Tensor | None = None,
    num_threads: int | None = None,
) -> torch.Tensor | None:
    """Packs the present values of a weight: int32, as large as the weight or a little larger.

    Args:
        weight_NK: weight of type `dtype`, or int8.
        dtype: type of the rows that will be multiplied by it.
        into: packed weight of the same shape and type to overwrite, or None for new memory.
        num_threads: threads to use; None: as many as PyTorch has.

    Returns:
        The packed weight; None where C reads the weight as it is.

    Raises:
        ValueError: `into` is the packed form of a weight of another shape or type.
    """
    weight_NK = weight_NK.detach().contiguous()
    out_features, in_features = weight_NK.shape
    prefix = "int8_" if weight_NK.dtype is torch.int8 else ""
    functions = vars(native_functions(dtype))
    num_places = functions[f"{prefix}panel_places"](in_features, out_features)
    if num_places == 0:
        return None
    packed = torch.empty(num_places, dtype=torch.int32, device="cpu") if into is None else into
    if packed.shape != (num_places,) or packed.dtype is not torch.int32:
        raise ValueError(
            f"the packed form of a weight {tuple(weight_NK.shape)} is int32 [{num_places}], got {packed.dtype} "
            f"{tuple(packed.shape)}"
        )
    functions[f"{prefix}pack"](
        weight_NK.data_ptr(),
        packed.data_ptr(),
        in_features,
        out_features,
        num_threads or torch.get_num_threads(),
    )
    return packed


def linear_native(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    packed_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiplies rows [T, K] by a weight [N, K] and adds a bias [N]. A packed weight changes no bit of the result."""
    x_TK, weight_NK = x_TK.contiguous(), weight_NK.contiguous()
    bias_N = None if bias_N is None else bias_N.contiguous()
    (num_rows, in_features), out_features = x_TK.shape, weight_NK.shape[0]
    out_TN = torch.empty(num_rows, out_features, dtype=x_TK.dtype, device="cpu")
    native_functions(x_TK.dtype).linear(
        x_TK.data_ptr(),
        weight_NK.data_ptr(),
        None if packed_weight is None else packed_weight.data_ptr(),
        None if bias_N is None else bias_N.data_ptr(),
        out_TN.data_ptr(),
        num_rows,
        in_features,
        out_features,
        torch.get_num_threads(),
    )
    return out_TN
