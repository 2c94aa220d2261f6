"""Gold answers: the values that are accepted, and the texts that they stand for.

    "12", 12, 0.5, Decimal, Fraction, numpy scalars -> one text, with the digits of the value
    True -> "true" or "yes"          ["$2$", "two"] -> any of these
    "9 eggs ... #### 18" -> "18"     "... so $x = \\boxed{18}$" -> "18"

Any other value (a struct, bytes, a date, NaN, None) is no answer, which is an error when the data are loaded.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from rl.rewards.answers.latex import last_boxed

__all__ = ["Gold", "parse_gold"]


@dataclass(frozen=True, slots=True)
class Gold:
    """Parsed gold answer. A completion is right if its final answer equals one of the alternatives."""

    alternatives: tuple[str, ...]
    """Texts of the answer, without the solution that leads to it. There is at least one, and none is empty."""


def parse_gold(value: Any, *, column: str = "<column>") -> Gold:
    """Return the gold answer in a value of a dataset.

    Args:
        value: a text, a number, or a list of alternatives. A text that ends in `#### x`, as in GSM8K, or contains
            `\\boxed{x}`, as in MATH, means x.
        column: name of the value's column, for the message.

    Raises:
        ValueError: the value is no answer; the message is a clause with the reason and the cure.
    """
    if _is_list(value):
        alternatives = [text for item in _items(value, column) for text in _texts(item, column)]
    else:
        alternatives = _texts(value, column)
    return Gold(tuple(dict.fromkeys(alternatives)))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0  # numpy arrays


def _items(values: Sequence[Any], column: str) -> list[Any]:
    items = list(values)
    if not items:
        raise ValueError("an empty list is no answer; remove the row or correct it")
    if any(map(_is_list, items)):
        raise ValueError(
            "a list of lists is no answer, only a list of alternatives is; name one of them, as in "
            f"task.answer_column={column}.0"
        )
    return items


def _texts(value: Any, column: str) -> list[str]:
    if hasattr(value, "dtype") and hasattr(value, "item"):
        # str, not item(): the float64 of a float32 has digits that the value has not
        is_float = str(value.dtype).startswith(("float", "torch.float", "bfloat"))
        value = float(str(value)) if is_float and hasattr(value, "tobytes") else value.item()
    match value:
        case str():
            return [_final_part(value)]
        case bool():
            return ["true", "yes"] if value else ["false", "no"]
        case int():
            return [_digits(Decimal(value))]
        case float():
            return [
                _number(Decimal(repr(value)) if math.isfinite(value) else Decimal("NaN"), value)
            ]
        case Decimal():
            return [_number(value, value)]
        case Fraction():
            return [f"{_digits(Decimal(value.numerator))}/{_digits(Decimal(value.denominator))}"]
        case dict():
            raise ValueError(_struct_message(value, column))
        case None:
            raise ValueError("a missing value is no answer; remove the row or correct it")
        case bytes() | bytearray() | memoryview():
            raise ValueError("bytes are no answer; write the column as text")
        case _:
            raise ValueError(
                f"a {type(value).__name__} is no answer; write it as a text, a number or a list of these"
            )


def _number(number: Decimal, value: float | Decimal) -> str:
    if not number.is_finite():
        raise ValueError(f"{value} is no answer, it is not finite; remove the row or correct it")
    return str(number)


def _digits(integer: Decimal) -> str:
    # str(int) refuses more than 4300 digits
    return format(integer, "f")


def _struct_message(value: dict[str, Any], column: str) -> str:
    if not value:
        return "an empty struct is no answer; remove the row or correct it"
    fields = [str(field) for field in value]
    likely = [name for name in fields if re.search("answer|truth|gold|target|solution", name, re.I)]
    return (
        f"a struct is no answer; name one of its fields {', '.join(fields)}, as in "
        f"task.answer_column={column}.{(likely or fields)[0]}"
    )


def _final_part(text: str) -> str:
    _, marker, last = text.rpartition("####")
    if marker:
        answer = last.strip()
    else:
        boxed = last_boxed(text)
        answer = (text if boxed is None else boxed).strip()
    if not answer:
        raise ValueError(f"{text[:80]!r} is no answer, it is empty; remove the row or correct it")
    return answer
