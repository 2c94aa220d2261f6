"""The choice of an op's implementation by its tensors: in C (`kernels.cpu`), in Triton (`kernels.gpu`), or in tensor operations."""

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["interpreting_triton", "is_interpreting", "runs_in_triton"]

_TYPES = (torch.bfloat16, torch.float16, torch.float32)

_is_interpreting = False


def runs_in_triton(x: torch.Tensor) -> bool:
    """Whether the Triton launchers take `x`: of 16 or 32 bits, on a CUDA device, or on the CPU in `interpreting_triton()`."""
    return x.dtype in _TYPES and (x.is_cuda or (_is_interpreting and x.device.type == "cpu"))


def is_interpreting() -> bool:
    """Whether CPU tensors go through the Triton launchers, and never to C."""
    return _is_interpreting


@contextlib.contextmanager
def interpreting_triton(is_on: bool = True) -> Iterator[None]:
    """Within the block CPU tensors go through the Triton launchers; for tests, in a process with TRITON_INTERPRET=1."""
    global _is_interpreting
    before, _is_interpreting = _is_interpreting, is_on
    try:
        yield
    finally:
        _is_interpreting = before
