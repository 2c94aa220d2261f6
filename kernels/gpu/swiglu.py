"""Triton kernels of `kernels.swiglu`. Shape legend: T = rows, I = width of the MLP."""

import torch
import triton
import triton.language as tl

__all__ = ["swiglu_backward_triton", "swiglu_triton"]

_BLOCK = 1024


@triton.jit
def _swiglu_fwd_kernel(
    gate_up_ptr,  # [T, 2 * I], unit column stride
    out_ptr,  # [T, I] dense, written
    stride_t,
    width,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate_ptr = gate_up_ptr + row * stride_t + columns
    gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + width, mask=mask, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * width + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_bwd_kernel(
    grad_ptr,  # [T, I] dense
    gate_up_ptr,  # [T, 2 * I], unit column stride
    grad_gate_up_ptr,  # [T, 2 * I] dense, written
    stride_t,
    width,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate_ptr = gate_up_ptr + row * stride_t + columns
    gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + width, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * sigmoid
    grad_gate = (sigmoid + silu * (1.0 - sigmoid)) * up * grad
    to_gate = grad_gate_up_ptr + row * 2 * width + columns
    tl.store(to_gate, grad_gate.to(grad_gate_up_ptr.dtype.element_ty), mask=mask)
    tl.store(to_gate + width, (silu * grad).to(grad_gate_up_ptr.dtype.element_ty), mask=mask)


def swiglu_triton(gate_up_TI: torch.Tensor) -> torch.Tensor:
    """[T, 2*I] -> [T, I]."""
    gate_up_TI = gate_up_TI if gate_up_TI.stride(1) == 1 else gate_up_TI.contiguous()
    num_rows, width = gate_up_TI.shape[0], gate_up_TI.shape[1] // 2
    out_TI = torch.empty(num_rows, width, dtype=gate_up_TI.dtype, device=gate_up_TI.device)
    if num_rows:
        _swiglu_fwd_kernel[(num_rows, triton.cdiv(width, _BLOCK))](
            gate_up_TI,
            out_TI,
            gate_up_TI.stride(0),
            width,
            BLOCK=_BLOCK,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out_TI


def swiglu_backward_triton(grad_TI: torch.Tensor, gate_up_TI: torch.Tensor) -> torch.Tensor:
    """[T, I], [T, 2*I] -> gradient of the latter."""
    gate_up_TI = gate_up_TI if gate_up_TI.stride(1) == 1 else gate_up_TI.contiguous()
    num_rows, width = gate_up_TI.shape[0], gate_up_TI.shape[1] // 2
    out_TI = torch.empty(num_rows, 2 * width, dtype=gate_up_TI.dtype, device=gate_up_TI.device)
    if num_rows:
        _swiglu_bwd_kernel[(num_rows, triton.cdiv(width, _BLOCK))](
            grad_TI.contiguous(),
            gate_up_TI,
            out_TI,
            gate_up_TI.stride(0),
            width,
            BLOCK=_BLOCK,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out_TI
