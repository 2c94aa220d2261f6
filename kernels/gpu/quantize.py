"""Shared code of the kernels that quantize rows: the rule of `kernels.quantize.quantize_rows`, bit for bit."""

import triton
import triton.language as tl

__all__ = ["quantize_tile", "round_half_even"]


@triton.jit
def round_half_even(x):
    """Rounds |x| < 2**22 to integers. Launch with `enable_fp_fusion=False`, else a product before it is not rounded first."""
    magic: tl.constexpr = 12582912.0  # 1.5 * 2**23: in that range neighbouring floats differ by 1
    return (x + magic) - magic


@triton.jit
def quantize_tile(x, LEVELS: tl.constexpr, IS_INTEGER: tl.constexpr):
    """[R, C] fp32, zero outside the rows -> numbers in [-LEVELS, LEVELS], as fp32, and steps [R].

    A row that is all but zero becomes zeros with step 0; one that is not finite becomes zeros with step NaN.
    """
    smallest: tl.constexpr = 1e-30
    greatest = tl.max(tl.abs(x), axis=1)
    is_zero = greatest < smallest
    has_nan = tl.max((x != x).to(tl.int32), axis=1) > 0  # tl.max passes over NaN
    is_finite = (greatest < float("inf")) & (has_nan == 0)
    inverse = tl.where(is_zero, 0.0, tl.div_rn(LEVELS, tl.where(is_zero, 1.0, greatest)))
    scaled = tl.where(is_finite[:, None], x * inverse[:, None], 0.0)
    if IS_INTEGER:
        scaled = round_half_even(scaled)
    step = tl.where(is_zero, 0.0, tl.div_rn(greatest, LEVELS))
    return scaled, tl.where(is_finite, step, float("nan"))
