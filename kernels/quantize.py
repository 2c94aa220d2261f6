"""Rows of numbers as integers and one step each: x ~ integers * step, step = max |x| / levels.

C computes the same bits (`kernels/cpu/native/`), so what one wrote the other may read. K = width of a row.
"""

import torch

__all__ = [
    "INT8_LEVELS",
    "STEP_RATIO",
    "activation_levels",
    "int8_round_trip",
    "quantize_activations",
    "quantize_rows",
]

INT8_LEVELS = 127
_MAX_LEVELS = 2**15 - 1
STEP_RATIO = 6.0 / INT8_LEVELS
"""Step of a row, divided by its root mean square in fine steps; with it, 6 root mean squares fit into 8 bits."""
_SMALLEST = 1e-30  # a row below it counts as zero: its inverse would overflow


def quantize_rows(x: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes rows [..., K] to integers in [-levels, levels], as float32 [..., K], with steps, float32 [...].

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


def quantize_activations(x: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes rows as `quantize_rows` does, with a step so large that elements below 6 root mean squares of the row fit
    into 8 bits; outliers take more, at most `levels`.

    A step of max / 127 would be coarse for all elements of a row where one stands out, as in language models they do.
    """
    fine, fine_step = quantize_rows(x, levels)
    # of integers, so that it is the same in any order, in C too
    squares = fine.double().square().sum(-1)
    ratio = ((squares / x.shape[-1]).sqrt() * STEP_RATIO).float()
    ratio = ratio.clamp(min=1)
    greatest = x.float().abs().amax(-1)
    is_known = greatest.isfinite() & (greatest >= _SMALLEST)
    inverse = torch.where(is_known, torch.full_like(greatest, levels) / greatest / ratio, 0.0)
    integers = torch.where(is_known[..., None], (x.float() * inverse[..., None]).round(), 0.0)
    return integers, fine_step * ratio


def int8_round_trip(x: torch.Tensor) -> torch.Tensor:
    """Rounds x to 8 bits per element with a step per row, and back: the values that an int8 KV cache returns."""
    integers, step = quantize_rows(x, INT8_LEVELS)
    return (integers * step[..., None]).to(x.dtype)


def activation_levels(in_features: int) -> int:
    """Returns the most levels of an activation with which the sum of `in_features` products stays below 2^31."""
    return min(_MAX_LEVELS, (2**31 - 1) // (INT8_LEVELS * in_features))
