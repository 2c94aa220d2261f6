"""Conversion of a scorer's return value to a score."""

import math
import reprlib
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

__all__ = ["MAX_SCORE", "to_score"]

MAX_SCORE = 1e15
"""Maximum magnitude of a score; a sum of a million squares of it is still finite in float32."""

_NUMBERS = (int, float, Fraction, Decimal)
_float = float  # kept because a scorer may replace the builtin


def to_score(value: Any) -> float:
    """Return the score as a float.

    Numbers of Python, numpy and torch are scores, including booleans and arrays without dimensions. A dict is
    replaced by its `score`, as in verl.

    Raises:
        ValueError: the value is not a number, not finite, or larger than MAX_SCORE.
    """
    number = value["score"] if isinstance(value, Mapping) and "score" in value else value
    if getattr(number, "ndim", None) == 0 and hasattr(number, "item"):
        number = number.item()
    if isinstance(number, _NUMBERS) and number == number:  # NaN does not equal itself
        if abs(number) <= MAX_SCORE:
            return _float(number)
        if isinstance(number, int) or math.isfinite(number):
            raise ValueError(
                f"a score must lie in [{-MAX_SCORE:g}, {MAX_SCORE:g}], so that means and variances are finite, "
                f"got {_short(number)}; scale it"
            )
    raise ValueError(f"a scorer must return a finite number, got {reprlib.repr(value)}")


def _short(number: Any) -> str:
    # repr of an int rejects more than 4300 digits
    return f"an integer of {number.bit_length()} bits" if isinstance(number, int) else repr(number)
