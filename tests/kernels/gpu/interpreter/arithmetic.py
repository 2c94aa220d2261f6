"""Arithmetic as the GPU does it: bfloat16 and float8 by value, float32 products in tf32 where asked, legal sizes of dots."""

import dataclasses
from collections.abc import Callable

import numpy as np
import triton
import triton.language as tl
import triton.runtime.interpreter as stock
from triton.backends.nvidia.compiler import min_dot_size
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype

from tests.kernels.gpu.interpreter.formats import LOW, from_float32, is_low, to_float32

assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1 before triton is imported"
assert triton.__version__.startswith("3.9."), (
    f"written for the private interpreter of Triton 3.9, got {triton.__version__}: compare the two, then change this line"
)

__all__ = ["install_arithmetic", "replace"]


def replace(owner: type, name: str) -> Callable[[Callable], Callable]:
    """Replaces a method; the new one gets the old one as its first argument."""

    def decorate(new: Callable) -> Callable:
        old = getattr(owner, name)
        setattr(owner, name, lambda self, *args, **kwargs: new(old, self, *args, **kwargs))
        return new

    return decorate


def install_arithmetic() -> None:
    _install_casts()
    _install_operators()
    _install_dot()
    for owner in (stock.ReduceOps, stock.ScanOps):
        replace(owner, "apply_impl")(_reduce_by_value)
    builder = stock.interpreter_builder
    builder.codegen_fns["min_dot_size"] = min_dot_size(None)
    # turns on Triton's own asserts against the overflow of int32, and tl.device_assert
    builder.options = dataclasses.replace(builder.options, debug=True)
    replace(InterpreterBuilder, "create_assert")(_assert)


def _assert(_old, _self, condition, message) -> None:
    holds = condition.data if isinstance(condition, TensorHandle) else condition
    assert bool(np.all(holds)), message


def _install_casts() -> None:
    @replace(InterpreterBuilder, "cast_impl")
    def cast(old, self, source, target):
        have, want = source.dtype.scalar, target.scalar
        if have not in LOW and want not in LOW:
            return old(self, source, target)
        is_float = have.is_floating()
        values = to_float32(source.data, have) if is_float else source.data.astype(np.float32)
        if want in LOW:
            return TensorHandle(from_float32(values.astype(np.float32), want), want)
        return TensorHandle(values.astype(_get_np_dtype(want)), want)

    @replace(InterpreterBuilder, "create_fp_to_fp")
    def convert(old, self, source, target, mode):
        have, want = source.dtype.scalar, target.scalar
        known = (*LOW, tl.float16, tl.float32)
        if have in known and want in known and mode != stock._ir.ROUNDING_MODE.RTZ:
            values = to_float32(source.data, have).astype(np.float32)
            return TensorHandle(from_float32(values, want), want)
        return old(self, source, target, mode)


def _install_operators() -> None:
    @replace(InterpreterBuilder, "binary_op")
    def binary(old, self, left, right, op):
        if not is_low(left):
            return old(self, left, right, op)
        dtype = left.dtype.scalar
        out = op(to_float32(left.data, dtype), to_float32(right.data, right.dtype.scalar))
        return TensorHandle(out if out.dtype == bool else from_float32(out, dtype), dtype)

    @replace(InterpreterBuilder, "unary_op")
    def unary(old, self, x, op):
        if not is_low(x):
            return old(self, x, op)
        dtype = x.dtype.scalar
        return TensorHandle(from_float32(op(to_float32(x.data, dtype)), dtype), dtype)


def _install_dot() -> None:
    @replace(InterpreterBuilder, "create_dot")
    def dot(old, self, a, b, addend, precision, imprecise):
        dtype = a.dtype.scalar
        if not dtype.is_floating():
            product = np.matmul(a.data.astype(np.int64), b.data.astype(np.int64))
            total = product + addend.data
            assert np.abs(total).max(initial=0) < 2**31, "int32 overflow detected for a dot"
            return TensorHandle(total.astype(np.int32), addend.dtype.scalar)
        if dtype.primitive_bitwidth > 32:
            return old(self, a, b, addend, precision, imprecise)
        x, y = to_float32(a.data, dtype), to_float32(b.data, b.dtype.scalar)
        if dtype == tl.float32 and getattr(precision, "name", "") == "TF32":
            x, y = stock._round_f32_to_tf32(x), stock._round_f32_to_tf32(y)
        total = np.matmul(x, y) + to_float32(addend.data, addend.dtype.scalar)
        return TensorHandle(from_float32(total, addend.dtype.scalar), addend.dtype.scalar)


def _reduce_by_value(old, self, inputs):
    """Reductions and scans of bfloat16 and float8 through float32."""
    if not any(x.dtype.scalar in LOW for x in inputs):
        return old(self, inputs)
    widened = tuple(
        self.to_tensor(to_float32(x.handle.data, x.dtype.scalar), tl.float32)
        if x.dtype.scalar in LOW
        else x
        for x in inputs
    )
    outputs = old(self, widened)
    outputs = outputs if isinstance(outputs, list | tuple) else (outputs,)
    return [
        _narrow(out, x.dtype.scalar) if x.dtype.scalar in LOW and out.dtype == tl.float32 else out
        for out, x in zip(outputs, inputs, strict=False)
    ]


def _narrow(x: tl.tensor, dtype: tl.dtype) -> tl.tensor:
    data = from_float32(x.handle.data, dtype)
    shape = tl.block_type(dtype, list(data.shape)) if x.type.is_block() else dtype
    return tl.core.tensor(TensorHandle(data, dtype), shape)
