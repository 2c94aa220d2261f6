"""Number formats that numpy lacks: bfloat16 and both float8, as bit patterns and as float32."""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle, _get_np_dtype

__all__ = ["LOW", "from_float32", "is_low", "to_float32"]

LOW = (tl.bfloat16, tl.float8e4nv, tl.float8e5)


def is_low(handle: TensorHandle) -> bool:
    """Whether the handle's elements are bit patterns that numpy cannot add."""
    return not isinstance(handle.dtype, tl.pointer_type) and handle.dtype.scalar in LOW


def to_float32(data: np.ndarray, dtype: tl.dtype) -> np.ndarray:
    """Values of `data`; other types than those of `LOW` and float16 stay as they are."""
    if dtype == tl.bfloat16:
        return (np.asarray(data).astype(np.uint32) << 16).view(np.float32)
    if dtype in _VALUES:
        return _VALUES[dtype][data]
    return data.astype(np.float32) if dtype == tl.float16 else data


def from_float32(data: np.ndarray, dtype: tl.dtype) -> np.ndarray:
    """Rounds to the nearest, ties to even; float8 saturates, as the GPU's conversions do."""
    if dtype == tl.bfloat16:
        return _to_bfloat16(data)
    if dtype in _VALUES:
        return _to_float8(data, dtype)
    return data.astype(_get_np_dtype(dtype))


def _to_bfloat16(data: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(data, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)


def _float8_values(mantissa_bits: int, bias: int, *, has_infinity: bool) -> np.ndarray:
    """[256] float32: the value of each bit pattern."""
    codes = np.arange(256, dtype=np.int64)
    exponent_mask = (1 << (7 - mantissa_bits)) - 1
    exponent = (codes >> mantissa_bits) & exponent_mask
    fraction = (codes & ((1 << mantissa_bits) - 1)) / 2.0**mantissa_bits
    subnormal = fraction * 2.0 ** (1 - bias)
    values = np.where(exponent == 0, subnormal, (1 + fraction) * 2.0 ** (exponent - bias))
    if has_infinity:
        special = np.where(fraction == 0, np.inf, np.nan)
        values = np.where(exponent == exponent_mask, special, values)
    else:
        values = np.where((codes & 0x7F) == 0x7F, np.nan, values)
    return np.where(codes >> 7 == 1, -values, values).astype(np.float32)


_VALUES = {
    tl.float8e4nv: _float8_values(3, 7, has_infinity=False),
    tl.float8e5: _float8_values(2, 15, has_infinity=True),
}
_NAN_CODES = {tl.float8e4nv: np.uint8(0x7F), tl.float8e5: np.uint8(0x7E)}
_POSITIVE = {dtype: values[:128][np.isfinite(values[:128])] for dtype, values in _VALUES.items()}
"""Finite values in ascending order, so that a value's code is its index."""


def _to_float8(data: np.ndarray, dtype: tl.dtype) -> np.ndarray:
    data = np.asarray(data, dtype=np.float32)
    positive = _POSITIVE[dtype]
    size = np.minimum(np.abs(np.nan_to_num(data, nan=0.0, posinf=np.inf)), positive[-1])
    above = np.clip(np.searchsorted(positive, size), 1, len(positive) - 1)
    below = above - 1
    to_below = size.astype(np.float64) - positive[below]
    to_above = positive[above].astype(np.float64) - size
    even = np.where(below % 2 == 0, below, above)
    code = np.where(to_below < to_above, below, np.where(to_below > to_above, above, even))
    code = np.where(np.isnan(data), _NAN_CODES[dtype], code.astype(np.uint8))
    return (code | (np.signbit(data).astype(np.uint8) << 7)).astype(np.uint8)
