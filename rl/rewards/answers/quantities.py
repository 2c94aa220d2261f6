"""Numbers with units, parsed and compared exactly: every number is a fraction of integers."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from rl.rewards.answers.units import Unit, parse_unit, same_unit

__all__ = ["NUMBER", "Quantity", "parse_quantity"]

NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ ]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_EXPONENT = r"(?:\{\s*(?P<%s>[-+]?\d+)\s*\}|\(\s*(?P<%s_>[-+]?\d+)\s*\)|(?P<%s__>[-+]?\d+))"


def _exponent(name: str) -> str:
    return _EXPONENT % (name, name, name)


_QUANTITY = re.compile(
    rf"""(?P<sign>[-+]?)\s*(?P<money>[$€£¥₹])?\s*(?P<inner_sign>[-+]?)\s*
    (?: (?P<whole>\d+)\s*(?:\s|\+|(?<=\d)-(?=\d))\s*(?P<part>\d+)\s*/\s*(?P<parts>\d+)
      | \(?\s*(?P<numerator>-?{NUMBER})\s*\)?\s*/\s*\(?\s*(?P<denominator>-?{NUMBER})\s*\)?
      | (?P<time>\d+(?:\s*:\s*\d+)+)
      | (?P<mantissa>{NUMBER})(?:[eE](?P<short>[-+]?\d+)|\s*(?:\*|[xX](?=\s*10\s*\^))\s*10\s*\^\s*{_exponent("tens")})
      | (?P<base>{NUMBER})\s*\^\s*{_exponent("power")}
      | (?P<number>{NUMBER})
    )
    (?![\d.,]?\d)\s*(?P<unit>.*)""",
    re.VERBOSE | re.DOTALL,
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MAX_CHARS = 1000
_MAX_EXPONENT = 1000
_PERCENT = frozenset("%")


@dataclass(frozen=True, slots=True)
class Quantity:
    """Number with a unit, or the several numbers of a time or a ratio."""

    values: tuple[Fraction, ...]
    unit: Unit

    def equals(self, other: "Quantity") -> bool:
        """Return whether both are the same amount. A unit that only one of them has is ignored; percent may also
        mean 1/100."""
        if not same_unit(self.unit, other.unit):
            return False
        if self.values == other.values:
            return True
        is_one_percent = (self.unit == _PERCENT) + (other.unit == _PERCENT) == 1
        return (
            is_one_percent and not (self.unit and other.unit) and self._amount() == other._amount()
        )

    def to_latex(self) -> str:
        """Return the number, as a fraction so that 1e-5 cannot mean Euler's e, and the unit."""
        number = " : ".join(f"\\frac{{{v.numerator}}}{{{v.denominator}}}" for v in self.values)
        return f"{number} \\text{{{' '.join(sorted(self.unit))}}}" if self.unit else number

    def _amount(self) -> tuple[Fraction, ...]:
        return tuple(value / 100 for value in self.values) if self.unit == _PERCENT else self.values


def parse_quantity(plain: str) -> Quantity | None:
    """Return the quantity in a plain text; None if the text is something else, such as a sum."""
    if len(plain) > _MAX_CHARS:
        return None
    match = _QUANTITY.fullmatch(plain)
    if match is None:
        return None
    values = _values(match)
    scale, unit_text = _scale(match["unit"])
    unit = parse_unit(unit_text)
    if values is None or unit is None:
        return None
    if match["money"]:
        unit |= parse_unit(match["money"]) or frozenset()
    is_negative = (match["sign"] == "-") != (match["inner_sign"] == "-")
    return Quantity(tuple((-value if is_negative else value) * scale for value in values), unit)


def _values(match: re.Match[str]) -> tuple[Fraction, ...] | None:
    if match["time"]:
        return tuple(_fraction(part) for part in match["time"].split(":"))
    if match["whole"]:
        part = _ratio(match["part"], match["parts"])
        return None if part is None else (_fraction(match["whole"]) + part,)
    if match["numerator"]:
        ratio = _ratio(match["numerator"], match["denominator"])
        return None if ratio is None else (ratio,)
    if match["mantissa"]:
        tens = _power("10", match["short"] or _first(match, "tens"))
        return None if tens is None else (_fraction(match["mantissa"]) * tens,)
    if match["base"]:
        power = _power(match["base"], _first(match, "power"))
        return None if power is None else (power,)
    return (_fraction(match["number"]),)


def _first(match: re.Match[str], name: str) -> str:
    return match[name] or match[f"{name}_"] or match[f"{name}__"]


def _fraction(digits: str) -> Fraction:
    # Decimal, because int() rejects more than 4300 digits
    return Fraction(Decimal(digits.replace(",", "").replace(" ", "")))


def _ratio(numerator: str, denominator: str) -> Fraction | None:
    below = _fraction(denominator)
    return _fraction(numerator) / below if below else None


def _power(base: str, exponent: str) -> Fraction | None:
    """Return base ** exponent; None if it has too many digits, or is undefined."""
    number, power = _fraction(base), int(exponent) if len(exponent) < 6 else _MAX_EXPONENT + 1
    if abs(power) > _MAX_EXPONENT or len(base) > 20 or (number == 0 and power <= 0):
        return None
    return number**power


def _scale(unit: str) -> tuple[int, str]:
    word, _, rest = unit.strip().partition(" ")
    return (10 ** _SCALES[word.lower()], rest) if word.lower() in _SCALES else (1, unit)
