"""Equality of formulas, computed by math-verify.

math-verify limits its own time by SIGALRM, which fails in threads. Its limit is off here, because the pool kills a
scorer that takes too long. It is imported for the first formula, since numbers and words do not need it.
"""

import functools
import logging
import re
from typing import Any

from rl.rewards.answers.units import parse_unit, same_unit

__all__ = ["are_same_formulas", "is_arithmetic", "is_formula"]

_MAX_CHARS = 400
_FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan|max|min|gcd|lcm|mod|det"
_NAMES = re.compile(
    rf"\\(?:begin|end)\{{\w+\}}|\\[a-zA-Z]+|(?<![a-zA-Z])(?:{_FUNCTIONS})(?![a-zA-Z])"
)
_ARITHMETIC = re.compile(r"[\d\s.,+\-*/()^!%$={}÷]*")
# formulas that sympy might compute forever: towers, powers of sums, powers and factorials of many digits, series
_ENDLESS = re.compile(
    r"\^[^+\-*/=]*\^|\*\*|[)}\]]\s*\^\s*\{?\s*\d{2,}|\^\s*\{?\s*[-+(]*\d{4,}|\d{4,}\s*\)*\s*!|[!})]\s*\)*\s*!"
    r"|\\(?:sum|prod|i*int|oint|lim)(?![a-z])|binom\D*\d{4,}"
)
_DATE_OR_CODE = re.compile(r"\d+(?:[-./]\d+){2,}|\d+-\d+")  # compared as text, not as differences
_UNIT_AT_END = re.compile(
    r"\s*\\(?:text|mathrm|mbox|textrm)\s*\{([^{}]*)\}\s*(\^\s*\{?\s*\d\s*\}?)?\s*\$?\s*$"
)


def is_formula(plain: str) -> bool:
    """Return whether a plain text is a formula that can be computed, not words."""
    if not plain or len(plain) > _MAX_CHARS or _ENDLESS.search(plain):
        return False
    if _DATE_OR_CODE.fullmatch(plain):
        return False
    return not re.search(r"[a-zA-Z]{3}|[a-zA-Z]{2}\s+[a-zA-Z]{2}", _NAMES.sub(" ", plain))


def is_arithmetic(plain: str) -> bool:
    """Return whether a text is a calculation with numbers that has not been carried out."""
    return bool(_ARITHMETIC.fullmatch(plain))


def are_same_formulas(answer: str, gold: str) -> bool:
    """Return whether two formulas in LaTeX are equal for all values of their variables."""
    (answer, unit), (gold, gold_unit) = _without_unit(answer), _without_unit(gold)
    if not same_unit(unit, gold_unit):
        return False
    expected, given = _parse(gold), _parse(answer)
    return bool(expected and given) and _verify(expected, given)


def _without_unit(latex: str) -> tuple[str, frozenset[str]]:
    match = _UNIT_AT_END.search(latex)
    if match is None or not latex[: match.start()].strip(" $"):
        return latex, frozenset()
    unit = parse_unit(match[1] + (match[2] or "").replace(" ", ""))
    return (latex, frozenset()) if unit is None else (latex[: match.start()].strip("$ "), unit)


def _verify(expected: Any, given: Any) -> bool:
    from math_verify import verify

    return verify(expected, given, float_rounding=15, timeout_seconds=0)


@functools.lru_cache(maxsize=256)
def _parse(latex: str) -> Any:
    import math_verify

    # at level WARNING it reports that its time limit is off
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    latex = latex.strip().strip("$").strip()
    if not latex.startswith(("\\(", "\\[")):
        latex = f"${latex}$"  # without delimiters, math-verify reads 10^{5} as 10
    return math_verify.parse(latex, parsing_timeout=0)
