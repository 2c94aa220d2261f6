"""Functions of native/ as Python calls them: their argument types, and which tensors they take.

The launchers beside this file pass shapes and addresses to these functions and do no arithmetic. C reads bytes, so the op
checks types and shapes before it calls a launcher.
"""

import ctypes
import functools
from types import SimpleNamespace

import torch

from kernels.backends import is_interpreting
from kernels.cpu.library import native_library

__all__ = ["is_native", "native_functions", "runs_natively"]

_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_int64
_THREADS = ctypes.c_int

_ARGUMENTS = {
    "linear": [*[_POINTER] * 5, *[_SIZE] * 3, _THREADS],
    "pack": [*[_POINTER] * 2, *[_SIZE] * 2, _THREADS],
    "panel_places": [*[_SIZE] * 2],
    "vocab_sums": [*[_POINTER] * 5, *[_SIZE] * 2, _THREADS],
    "sample": [*[_POINTER] * 6, *[_SIZE] * 2],
    "int8_linear": [*[_POINTER] * 2, ctypes.c_float, *[_POINTER] * 5, *[_SIZE] * 3, _THREADS],
    "int8_pack": [*[_POINTER] * 2, *[_SIZE] * 2, _THREADS],
    "int8_panel_places": [*[_SIZE] * 2],
    "int8_room": [*[_SIZE] * 2],
    "rms_norm": [*[_POINTER] * 4, _SIZE, _SIZE, ctypes.c_float, _THREADS],
    "swiglu": [_POINTER, _POINTER, _SIZE, _SIZE, _THREADS],
    "rope": [_POINTER, _SIZE, _POINTER, _POINTER, *[_SIZE] * 3, _THREADS],
    "lanes": [],
    "attention": [
        *[_POINTER] * 6,
        *[_SIZE] * 4,
        *[_POINTER] * 2,
        _SIZE,
        *[_POINTER] * 2,
        *[_SIZE] * 3,
        _THREADS,
    ],
}


def runs_natively(x: torch.Tensor) -> bool:
    """Returns whether the launchers take `x`: float32 or bfloat16, on the CPU, and native/ could be compiled."""
    return is_native(x.dtype, x.device)


def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Returns whether the launchers take tensors of this type on this device."""
    return device.type == "cpu" and not is_interpreting() and native_library(dtype) is not None


@functools.cache
def native_functions(dtype: torch.dtype) -> SimpleNamespace:
    """Returns the functions for tensors of `dtype` by name, without the prefix `paceline_`."""
    library, functions = native_library(dtype), SimpleNamespace()
    for name, types in _ARGUMENTS.items():
        function = getattr(library, f"paceline_{name}")
        function.argtypes = types
        function.restype = _SIZE if name.endswith(("lanes", "panel_places", "room")) else None
        setattr(functions, name, function)
    return functions
