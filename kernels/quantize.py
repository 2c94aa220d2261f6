"""Rows of numbers as integers and one step each: x ~ integers * step, step = max |x| / levels.

C computes the same bits (`kernels/cpu/native/`), so what one wrote the other may read. K = width of a row.
"""

import torch

__all__ = ["INT8_LEVELS", "int8_round_trip", "quantize_rows"]

INT8_LEVELS = 127
_SMALLEST = 1e-30  # a row below it counts as zero: its inverse would overflow


def quantize_rows(x: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., K] -> integers in [-levels, levels], as float32 [..., K], and steps, float32 [...].

    A row that is all but zero becomes zeros with step 0; one that is not finite becomes zeros with a step that is
    NaN, so that it stays NaN and reaches no other row.
    """
    x = x.float()
    greatest = x.abs().amax(-1)
    is_zero, is_finite = greatest < _SMALLEST, greatest.isfinite()
    # `levels / greatest` would be a product with the reciprocal: rounded twice, not once as in C
    inverse = torch.where(is_zero, 0.0, torch.full_like(greatest, levels) / greatest)
    integers = torch.where(is_finite[..., None], (x * inverse[..., None]).round(), 0.0)
    step = torch.where(is_zero, 0.0, greatest / levels)
    return integers, torch.where(is_finite, step, float("nan"))


def int8_round_trip(x: torch.Tensor) -> torch.Tensor:
    """What is left of x after 8 bits per element and a step per row: what an int8 KV cache gives back."""
    integers, step = quantize_rows(x, INT8_LEVELS)
    return (integers * step[..., None]).to(x.dtype)
