"""Launcher of SwiGLU in C. Shape legend: T = rows, I = width of the MLP."""

import torch

from kernels.cpu.native_functions import native_functions

__all__ = ["swiglu_native"]


def swiglu_native(gate_up_TI: torch.Tensor) -> torch.Tensor:
    """Maps [T, 2*I], gate then up, to [T, I]."""
    gate_up_TI = gate_up_TI.contiguous()
    num_rows, width = gate_up_TI.shape
    out_TI = torch.empty(num_rows, width // 2, dtype=gate_up_TI.dtype, device="cpu")
    native_functions(gate_up_TI.dtype).swiglu(
        gate_up_TI.data_ptr(), out_TI.data_ptr(), num_rows, width // 2, torch.get_num_threads()
    )
    return out_TI
