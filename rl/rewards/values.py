"""Which values that a scorer returns are scores."""

import math
import reprlib
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

__all__ = ["MAX_SCORE", "to_score"]

MAX_SCORE = 1e15
"""Largest magnitude of a score: sums of a million squares of it are finite in float32."""

_NUMBERS = (int, float, Fraction, Decimal)
_float = float  # a scorer may replace the builtin


def to_score(value: Any) -> float:
    """Returns the score as a float.

    Numbers of Python, numpy and torch are scores, booleans and arrays without dimensions among them; a dict stands
    for its `score`, as in verl.

    Raises:
        ValueError: the value is no number, not finite, or larger than MAX_SCORE.
    """
    number = value["score"] if isinstance(value, Mapping) and "score" in value else value
    if getattr(number, "ndim", None) == 0 and hasattr(number, "item"):
        number = number.item()
    if isinstance(number, _NUMBERS) and number == number:  # NaN is not itself
        if abs(number) <= MAX_SCORE:
            return _float(number)
        if isinstance(number, int) or math.isfinite(number):
            raise ValueError(
                f"a score must lie in [{-MAX_SCORE:g}, {MAX_SCORE:g}], so that means and variances are finite, "
                f"got {_short(number)}; scale it"
            )
    raise ValueError(f"a scorer must return a finite number, got {reprlib.repr(value)}")


def _short(number: Any) -> str:
    # repr of an int refuses more than 4300 digits
    return f"an integer of {number.bit_length()} bits" if isinstance(number, int) else repr(number)
