"""Scorer of mathematics in text or LaTeX, by math-verify.

math-verify limits its own time by SIGALRM, which fails in threads; we switch that off, since the pool kills
what takes too long.
"""

import logging
from typing import Any

from math_verify import parse, verify

__all__ = ["score_mathematics"]

# at level WARNING it says that its time limit is off
logging.getLogger("math_verify").setLevel(logging.ERROR)

_LATEX_DELIMITERS = ("$", "\\(", "\\[", "\\boxed")


def score_mathematics(completion: str, row: dict[str, Any]) -> float:
    """1.0 if the completion's final expression equals `row["answer"]`, else 0.0.

    A completion without mathematics, or with some that sympy cannot compare, is wrong. An answer that ends in
    `#### x`, as in GSM8K, means x.

    Raises:
        ValueError: the answer holds no mathematics.
    """
    answer = str(row["answer"]).rpartition("####")[2].strip()
    if not any(delimiter in answer for delimiter in _LATEX_DELIMITERS):
        answer = f"${answer}$"  # undelimited, math-verify reads 10^{5} as 10
    expected = parse(answer, parsing_timeout=0)
    if not expected:
        raise ValueError(
            f"math-verify finds no mathematics in the answer {row['answer']!r}; "
            "correct it, or name a scorer of your own in task.scorer"
        )
    return float(verify(expected, parse(completion, parsing_timeout=0), timeout_seconds=0))
