"""SwiGLU: y = silu(gate) * up (https://arxiv.org/abs/2002.05202).

Shape legend: T = rows, I = width of the MLP. Traffic: reads 2*T*I, writes T*I elements.
"""

import torch
from torch.nn import functional

from kernels.backends import runs_in_triton
from kernels.cpu.native_functions import runs_natively
from kernels.cpu.swiglu import swiglu_native
from kernels.numerics import accumulate_dtype

__all__ = ["swiglu", "swiglu_reference"]


def swiglu_reference(gate_up_TI: torch.Tensor) -> torch.Tensor:
    """Ground truth."""
    gate, up = gate_up_TI.chunk(2, dim=-1)
    return functional.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up_TI: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up_TI)
        return _forward(gate_up_TI)

    @staticmethod
    def backward(ctx, grad_TI: torch.Tensor):  # pyrefly: ignore
        (gate_up_TI,) = ctx.saved_tensors
        if runs_in_triton(gate_up_TI):
            from kernels.gpu.swiglu import swiglu_backward_triton

            return swiglu_backward_triton(grad_TI, gate_up_TI)
        dtype = accumulate_dtype(gate_up_TI.dtype)
        gate, up = gate_up_TI.to(dtype).chunk(2, dim=-1)
        grad = grad_TI.to(dtype)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        grad_gate = (sigmoid + silu * (1 - sigmoid)).mul_(up).mul_(grad)
        return torch.cat([grad_gate, silu.mul_(grad)], dim=-1).to(gate_up_TI.dtype)


def swiglu(gate_up_TI: torch.Tensor) -> torch.Tensor:
    """Maps [T, 2*I], gate then up, to [T, I]. Rounds once, at the end. Differentiable.

    Raises:
        ValueError: the rows have an odd width.
    """
    if gate_up_TI.shape[-1] % 2:
        raise ValueError(f"swiglu: rows must have an even width, got {gate_up_TI.shape[-1]}")
    if torch.is_grad_enabled():
        return _SwiGLU.apply(gate_up_TI)  # pyrefly: ignore
    return _forward(gate_up_TI)


def _forward(gate_up_TI: torch.Tensor) -> torch.Tensor:
    """Chooses the implementation."""
    if runs_natively(gate_up_TI):
        return swiglu_native(gate_up_TI)
    if runs_in_triton(gate_up_TI):
        from kernels.gpu.swiglu import swiglu_triton

        return swiglu_triton(gate_up_TI)
    gate, up = gate_up_TI.to(accumulate_dtype(gate_up_TI.dtype)).chunk(2, dim=-1)
    # by exp, since the vectorised silu differs from the scalar one at the end of a thread's share
    denominator = gate.neg().exp_().add_(1)
    return torch.div(gate, denominator, out=denominator).mul_(up).to(gate_up_TI.dtype)
