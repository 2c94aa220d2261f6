"""Scorer of arithmetic: the last integer of a completion is its answer."""

import re
from decimal import Decimal
from typing import Any

__all__ = ["score_arithmetic"]


def score_arithmetic(completion: str, row: dict[str, Any]) -> float:
    """Return 1.0 if the last integer of the completion equals `row["answer"]`, else 0.0."""
    integers = re.findall(r"-?\d+", completion)
    # Decimal, because int() rejects more than 4300 digits, which a policy may write
    return float(bool(integers) and Decimal(integers[-1]) == Decimal(row["answer"]))
